"""Galaxy profiles against GalSim, and the laws of the Gaussian mixtures that stand for them."""

from __future__ import annotations

import galsim
import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.galaxies import profiles
from tfdeblend.galaxies.priors import BulgeDiskPrior, Frame
from tfdeblend.galaxies.profiles import Mixture

RESOLUTION = 0.8  # pixels: the model PSF's sigma
INDICES = (0.5, 0.7, 1.0, 1.5, 2.5, 4.0, 5.0, 6.0)
SHAPES = [(0.0, 0.0), (0.4, 0.0), (0.0, -0.5), (-0.3, 0.35)]
PRECISE = galsim.GSParams(folding_threshold=5e-4, maxk_threshold=1e-4, kvalue_accuracy=1e-6, maximum_fft_size=2**14)


def mixture(
    index: float, radius: float, shape: tuple[float, float] = (0, 0), center: tuple[float, float] = (0, 0)
) -> Mixture:
    """One Sersic galaxy in one band, [1, 1, J]; radius in pixels, convolved with the model PSF."""
    amplitude, variance = profiles.sersic(tf.constant([index], tf.float64))
    matrix = profiles.ellipse(tf.constant([shape], tf.float64))[:, None]
    covariance = radius**2 * variance[..., None] * matrix + RESOLUTION**2 * np.array([1.0, 0, 1])
    return Mixture(amplitude[:, None], covariance, tf.constant([center], tf.float64))


def rendered(of: Mixture, side: int) -> np.ndarray:
    return profiles.render(of, side)[0, 0].numpy()


def by_galsim(profile: galsim.GSObject, center: tuple[float, float], side: int) -> np.ndarray:
    """A profile convolved with the model PSF and sampled at pixel centres, its centre relative to pixel side // 2."""
    seen = galsim.Convolve([profile, galsim.Gaussian(sigma=RESOLUTION)], gsparams=PRECISE)
    middle = side // 2 - (side - 1) / 2
    offset = (center[1] + middle, center[0] + middle)
    return seen.drawImage(nx=side, ny=side, scale=1, method="no_pixel", offset=offset, dtype=float).array


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("index", INDICES)
def test_sersic_against_galsim(index: float, radius: float) -> None:
    for side, shape, center in ((47, (0.3, -0.2), (0.3, -0.4)), (48, (0, 0), (0, 0))):
        expected = by_galsim(
            galsim.Sersic(index, half_light_radius=radius, gsparams=PRECISE).shear(g1=shape[0], g2=shape[1]),
            center,
            side,
        )
        image = rendered(mixture(index, radius, shape, center), side)
        np.testing.assert_allclose(image, expected, atol=1e-3 * expected.max())


@pytest.mark.parametrize("shape", SHAPES)
def test_exponential_and_shear_convention_against_galsim(shape: tuple[float, float]) -> None:
    profile = galsim.Exponential(half_light_radius=3, gsparams=PRECISE).shear(g1=shape[0], g2=shape[1])
    for side in (40, 41):
        expected = by_galsim(profile, (0.2, 0.45), side)
        image = rendered(mixture(1, 3, shape, (0.2, 0.45)), side)
        np.testing.assert_allclose(image, expected, atol=2e-4 * expected.max())


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    "table, kind", [(profiles.EXPONENTIAL, galsim.Exponential), (profiles.DE_VAUCOULEURS, galsim.DeVaucouleurs)]
)
def test_profiles_of_fixed_index_against_galsim(table: np.ndarray, kind: type, radius: float) -> None:
    amplitude, variance = profiles.fixed(table, tf.float64)
    matrix = profiles.ellipse(tf.constant([(0.3, -0.2)], tf.float64))[:, None]
    covariance = radius**2 * variance[..., None] * matrix + RESOLUTION**2 * np.array([1.0, 0, 1])
    image = rendered(Mixture(amplitude[None, None], covariance, tf.constant([(0.3, -0.4)], tf.float64)), 47)
    expected = by_galsim(kind(half_light_radius=radius, gsparams=PRECISE).shear(g1=0.3, g2=-0.2), (0.3, -0.4), 47)
    np.testing.assert_allclose(image, expected, atol=1e-3 * expected.max())


def test_bulge_and_disk_against_galsim() -> None:
    """A De Vaucouleurs bulge and an exponential disk with their own radii, shapes and colours."""
    prior = BulgeDiskPrior(2, dtype=tf.float64)
    latent = tf.constant(np.random.default_rng(2).normal(size=prior.size), tf.float64)
    theta = {name: value.numpy() for name, value in prior.unpack(latent).items()}
    fraction = prior.components(prior.unpack(latent))[1].fraction.numpy()
    one = tf.constant(1.0, tf.float64)
    frame = Frame(tf.constant([0.1, -0.2], tf.float64), 5 * one, 0 * one, RESOLUTION * one)
    image = profiles.render(prior.mixture(latent, frame), 61).numpy()
    radius = 5 * theta["disk_radius"][0]
    disk = galsim.Exponential(half_light_radius=radius, gsparams=PRECISE)
    bulge = galsim.DeVaucouleurs(half_light_radius=radius * theta["bulge_ratio"][0], gsparams=PRECISE)
    disk, bulge = (
        part.shear(g1=shape[0], g2=shape[1])
        for part, shape in ((disk, theta["disk_ellipticity"]), (bulge, theta["bulge_ellipticity"]))
    )
    center = (0.1 + theta["offset"][0], -0.2 + theta["offset"][1])
    for band in range(2):
        profile = disk * (1 - fraction[band]) + bulge * fraction[band]
        expected = by_galsim(profile, center, 61)
        np.testing.assert_allclose(image[band], expected, atol=1e-3 * expected.max())


@pytest.mark.parametrize("index", INDICES)
def test_unit_flux(index: float) -> None:
    amplitude, variance = profiles.sersic(tf.constant([index], tf.float64))
    assert float(tf.reduce_sum(amplitude)) == pytest.approx(1, abs=1e-12)
    assert float(tf.reduce_min(variance)) > 0
    widest = float(tf.sqrt(tf.reduce_max(variance)))
    assert rendered(mixture(index, 40 / widest), 481).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("index", INDICES)
def test_half_light_radius(index: float) -> None:
    """Of the mixture and of the profile: one; where the mixture's own radius is off by less than one per cent."""
    amplitude, variance = profiles.sersic(tf.constant([index, index], tf.float64))
    scale = tf.constant([[1.0], [7.0]], tf.float64)
    radius = profiles.half_light_radius(amplitude, variance * scale**2)
    np.testing.assert_allclose(radius, [1, 7], rtol=0.01)
    inside = 1 - tf.reduce_sum(amplitude * tf.exp(-(radius**2)[:, None] / (2 * variance * scale**2)), -1)
    np.testing.assert_allclose(inside, 0.5, atol=1e-9)


@pytest.mark.parametrize("variances", [[1.0, 1.0], [1e-4, 1e4], [0.5, 30.0]])
def test_half_light_radius_of_any_two_gaussians(variances: list[float]) -> None:
    variance = tf.constant(variances, tf.float64)
    for share in (0.01, 0.3, 0.5, 0.7, 0.99):
        weight = tf.constant([share, 1 - share], tf.float64)
        radius = profiles.half_light_radius(weight, variance)
        inside = 1 - tf.reduce_sum(weight * tf.exp(-(radius**2) / (2 * variance)))
        assert float(inside) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, (0.7, 0.6)])
def test_ellipse(shape: tuple[float, float]) -> None:
    """Determinant 1, axis ratio (1 - |e|) / (1 + |e|), and GalSim's shear applied twice: covariance = S S^T."""
    yy, yx, xx = profiles.ellipse(tf.constant(shape, tf.float64)).numpy()
    assert yy * xx - yx**2 == pytest.approx(1)
    minor, major = np.linalg.eigvalsh([[xx, yx], [yx, yy]])
    size = np.hypot(*shape)
    assert np.sqrt(minor / major) == pytest.approx((1 - size) / (1 + size))
    matrix = galsim.Shear(g1=shape[0], g2=shape[1]).getMatrix()
    np.testing.assert_allclose([[xx, yx], [yx, yy]], matrix @ matrix.T, rtol=1e-12)


def test_rendering_is_the_sum_of_its_gaussians() -> None:
    """Against the textbook formula, for any number of leading axes."""
    rng = np.random.default_rng(0)
    shape = tf.constant(rng.uniform(-0.5, 0.5, (2, 3, 4, 2)))
    of = Mixture(
        tf.constant(rng.uniform(size=(2, 3, 2, 4))),
        tf.constant(rng.uniform(1, 9, (2, 3, 4, 1))) * profiles.ellipse(shape),
        tf.constant(rng.normal(size=(2, 3, 2))),
    )
    expected = np.zeros((2, 3, 2, 10, 10))
    pixels = np.stack(np.indices((10, 10)), -1) - 5
    for b, k, j in np.ndindex(2, 3, 4):
        yy, yx, xx = of.covariance[b, k, j].numpy()
        matrix = np.array([[yy, yx], [yx, xx]])
        away = pixels - of.center[b, k].numpy()
        value = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", away, np.linalg.inv(matrix), away))
        value /= 2 * np.pi * np.sqrt(np.linalg.det(matrix))
        expected[b, k] += of.amplitude[b, k, :, j].numpy()[:, None, None] * value
    np.testing.assert_allclose(profiles.render(of, 10), expected, atol=1e-14)


def random_direction(like: Mixture, seed: int) -> Mixture:
    rng = np.random.default_rng(seed)
    return Mixture(*(tf.constant(rng.normal(size=part.shape) * 0.1) for part in like))


def coefficient_slopes(of: Mixture, direction: Mixture) -> list[tf.Tensor]:
    with tf.autodiff.ForwardAccumulator(list(of), list(direction)) as forward:
        weight, exponent = profiles.coefficients(of)
    return [forward.jvp(weight), forward.jvp(exponent)]


def test_tangents_are_derivatives() -> None:
    """`render_tangents` and the gradient of `render` against central differences."""
    first = mixture(2.5, 2, (0.3, -0.2), (0.3, 0.1))
    of = first._replace(amplitude=tf.concat([first.amplitude, first.amplitude[..., ::-1]], -2))  # two bands
    directions = [random_direction(of, seed) for seed in range(3)]
    slopes = [coefficient_slopes(of, direction) for direction in directions]
    d_weight, d_exponent = (tf.stack(parts, 1) for parts in zip(*slopes, strict=True))
    tangents = profiles.render_tangents(*profiles.coefficients(of), d_weight, d_exponent, 21).numpy()
    assert tangents.shape == (1, 4, 2, 21, 21)
    np.testing.assert_allclose(tangents[:, -1], profiles.render(of, 21), rtol=1e-12)
    weight = np.random.default_rng(9).normal(size=(1, 2, 21, 21))
    with tf.GradientTape() as tape:
        tape.watch(list(of))
        total = tf.reduce_sum(profiles.render(of, 21) * weight)
    gradient = tape.gradient(total, list(of))
    step = 1e-5
    for number, direction in enumerate(directions):
        ahead, behind = (
            profiles.render(Mixture(*(part + sign * step * d for part, d in zip(of, direction, strict=True))), 21)
            for sign in (1, -1)
        )
        slope = ((ahead - behind) / (2 * step)).numpy()
        np.testing.assert_allclose(tangents[:, number], slope, atol=1e-8 * np.abs(slope).max())
        along = sum(float(tf.reduce_sum(g * d)) for g, d in zip(gradient, direction, strict=True))
        assert along == pytest.approx(float((slope * weight).sum()), rel=1e-7)


def test_index_and_shape_have_finite_gradients_over_the_whole_range() -> None:
    index = tf.constant(np.linspace(*profiles.SERSIC_INDEX_RANGE, 20), tf.float32)
    shape = tf.zeros([20, 2])
    with tf.GradientTape() as tape:
        tape.watch([index, shape])
        amplitude, variance = profiles.sersic(index)
        covariance = 25 * variance[..., None] * profiles.ellipse(shape)[:, None]
        image = profiles.render(Mixture(amplitude[:, None], covariance, tf.zeros([20, 2])), 15)
        total = tf.reduce_sum(image**2)
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(total, [index, shape]))


def test_single_sources_of_many_blends_are_rendered_as_one_by_one() -> None:
    """[B, 1, ...]: axes over which oneDNN's matrix product must not broadcast."""
    variance = tf.linspace(1.0, 4.0, 64)[:, None, None] * np.linspace(1, 2, 12, dtype=np.float32)
    covariance = tf.stack([variance, 0 * variance, variance], -1)  # [64, 1, 12, 3]
    many = Mixture(tf.ones([64, 1, 1, 12]), covariance, tf.zeros([64, 1, 2]))
    one_by_one = [profiles.render(Mixture(*(part[i : i + 1] for part in many)), 16) for i in range(64)]
    np.testing.assert_allclose(profiles.render(many, 16), tf.concat(one_by_one, 0), rtol=1e-5)
