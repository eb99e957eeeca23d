"""Laws of the linear operators: adjoints, gradients, placement, shifts."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from helpers import gaussian, smooth_correlation
from likelihoods import mixed_exposures, one_exposure, several_exposures

import tfdeblend
from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.noise_correlation import whitening
from tfdeblend.data.psf import gaussian_psf, transfer_function
from tfdeblend.diffusion.initial import StampWindow
from tfdeblend.diffusion.linear_gaussian import SourceOperator
from tfdeblend.forward.likelihood import ForwardOperator, Likelihood
from tfdeblend.forward.noise import Whiten, WithoutConstant
from tfdeblend.forward.operators import Convolve, Place, Shift
from tfdeblend.forward.resample import Resample, Shifted
from tfdeblend.forward.shapes import kept_frequencies, resampled_transfer
from tfdeblend.linalg.operator import Adjoint, Composition, LinearOperator

Case = tuple[LinearOperator, list[int], list[int]]  # the operator, the shapes of its input and of its output

INSIDE = [[[0, 0], [4, 7], [13, 13]], [[1, 2], [3, 3], [9, 0]]]
PARTLY_OUTSIDE = [[[-5, -3], [15, 2], [18, 18]], [[-1, 19], [3, -7], [6, 6]]]
WHOLLY_OUTSIDE = [[[-8, 0], [20, 20], [-100, 300]], [[0, -8], [5, 20], [2, 2]]]


def place(corners: list, side: int, one_by_one: bool = True) -> Callable[[tf.DType], Case]:
    """The two ways of placing: stamps one by one, as a few on a CPU are, or row by row."""

    def build(dtype: tf.DType) -> Case:
        operator = Place(tf.constant(corners, tf.int32), side, 20, dtype)
        operator.one_by_one = one_by_one
        return operator, [2, 3, 2, side, side], [2, 2, 20, 20]

    return build


def kernels(psf: tuple[int, int], side: int, dtype: tf.DType) -> tf.Tensor:
    """[2, 2, N, N // 2 + 1]: another PSF, of noise, in each blend and band."""
    images = np.random.default_rng(0).uniform(size=(4, *psf))
    images /= images.sum((1, 2), keepdims=True)
    values = [transfer_function(pair, 0.6, side) for pair in (images[:2], images[2:])]
    return tf.constant(np.stack(values), tf.complex128 if dtype == tf.float64 else tf.complex64)


def convolve(psf: tuple[int, int], image: tuple[int, int], margin: int, side: int, *extra: int):
    def build(dtype: tf.DType) -> Case:
        frame = [size + 2 * margin for size in image]
        operator = Convolve(kernels(psf, side, dtype), side, margin, image)
        return operator, [2, 2, *extra, *frame], [2, 2, *extra, *image]

    return build


def resample(scale: float, degrees: float, shape: tuple[int, int], *extra: int) -> Callable[[tf.DType], Case]:
    """Two blends of two bands on pixels of their own, some of which see nothing of the frame."""

    def build(dtype: tf.DType) -> Case:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        pixels = AffineMap(scale * np.array([[c, s], [s, -c]]), np.array([14.0, 9.0]))
        psf = np.random.default_rng(2).uniform(size=(2, 5, 5))
        kernel = resampled_transfer(psf, gaussian_psf(0.6), pixels, 32, kept_frequencies(pixels, 32))
        points = np.stack([pixels.points(shape), pixels.points(shape) - 3.7])
        complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
        operator = Resample(tf.constant([kernel] * 2, complex_dtype), tf.constant(points, dtype), 32, 20)
        return operator, [2, 2, *extra, 20, 20], [2, 2, *extra, *shape]

    return build


def shifted(step: int, *extra: int) -> Callable[[tf.DType], Case]:
    """Every `step`-th pixel of grids that begin between the frame's, and end beyond it."""

    def build(dtype: tf.DType) -> Case:
        psf = np.random.default_rng(2).uniform(size=(2, 5, 5))
        pixels = AffineMap(np.eye(2), np.zeros(2))
        kernel = resampled_transfer(psf, gaussian_psf(0.6), pixels, 32, 32)
        points = pixels.points((24, 20))[::step, ::step]
        points = tf.constant(np.stack([points + np.array(first) for first in ((0.3, -1.6), (-6.2, 4))]), dtype)
        complex_dtype = tf.complex128 if dtype == tf.float64 else tf.complex64
        operator = Shifted(tf.constant([kernel] * 2, complex_dtype), points, 32, 20, step)
        return operator, [2, 2, *extra, 20, 20], [2, 2, *extra, 24 // step, 20 // step]

    return build


def shift(side: int) -> Callable[[tf.DType], Case]:
    def build(dtype: tf.DType) -> Case:
        offset = tf.constant([[0.3, -0.7], [0.0, 0.5], [-2.4, 1.0]], dtype)
        return Shift(offset, side), [3, side, side], [3, side, side]

    return build


def whiten(reach: int, *extra: int, kind: type[Whiten] = Whiten) -> Callable[[tf.DType], Case]:
    """Noise of unequal variance in two bands, with masked pixels."""

    def build(dtype: tf.DType) -> Case:
        rng = np.random.default_rng(3)
        weights = rng.lognormal(size=(2, 2, 9, 9)) * (rng.uniform(size=(2, 2, 9, 9)) > 0.2)
        correlation = np.stack([smooth_correlation(0.5), smooth_correlation(0.8)])
        rows = np.stack([whitening(correlation, w > 0, reach) for w in weights])
        shape = [2, 2, *extra, 9, 9]
        return kind(tf.constant(weights, dtype), tf.constant(rows, dtype)), shape, shape

    return build


def composition(dtype: tf.DType) -> Case:
    first, shape, _ = place(PARTLY_OUTSIDE, 7)(dtype)
    last, _, image = convolve((9, 9), (14, 14), 3, 32)(dtype)
    return last @ first, shape, image


def window(dtype: tf.DType) -> Case:
    """Stamps put into larger ones."""
    return StampWindow(tf.constant([[[0, 3], [2, 1], [4, 4]]] * 2), 6, 10), [2, 3, 2, 6, 6], [2, 3, 2, 10, 10]


def whole(make: Callable[[tf.DType], Likelihood], scaled: bool = False) -> Callable[[tf.DType], Case]:
    """The forward operator of a batch, `scaled`: of stamps in units of their own."""

    def build(dtype: tf.DType) -> Case:
        likelihood = make(dtype)
        shape, operator = likelihood.shape, likelihood.operator
        if scaled:
            scale = 0.1 + draw([shape.blends, shape.sources, shape.bands, 1, 1], dtype, 5) ** 2
            operator = ForwardOperator(likelihood.place, likelihood.exposures, scale)
        pixels = sum(bands * side**2 for bands, side in shape.images)
        return operator, [shape.blends, shape.sources, shape.bands, 16, 16], [shape.blends, pixels]

    return build


def sources_at_unit_scale(dtype: tf.DType) -> Case:
    """As a learned prior sees them: some of their amplitudes are unknown, which leaves A what it is."""
    operator, inputs, outputs = whole(several_exposures, scaled=True)(dtype)
    assert isinstance(operator, ForwardOperator)
    amplitude = draw(inputs, dtype, 6)
    return SourceOperator(operator.place, operator.exposures, operator.scale, amplitude), inputs, outputs


OPERATORS: dict[str, Callable[[tf.DType], Case]] = {
    "place odd stamps": place(INSIDE, 7),
    "place even stamps": place(INSIDE, 6),
    "place partly outside": place(PARTLY_OUTSIDE, 7),
    "place wholly outside": place(WHOLLY_OUTSIDE, 8),
    "place stamps larger than the frame": place([[[-3, -2], [0, 0], [-5, -5]]] * 2, 25),
    "place rows of odd stamps": place(INSIDE, 7, one_by_one=False),
    "place rows partly outside": place(PARTLY_OUTSIDE, 6, one_by_one=False),
    "place rows wholly outside": place(WHOLLY_OUTSIDE, 8, one_by_one=False),
    "place rows of stamps larger than the frame": place([[[-3, -2], [0, 0], [-5, -5]]] * 2, 25, one_by_one=False),
    "convolve odd PSF": convolve((9, 9), (12, 12), 4, 32),
    "convolve even PSF": convolve((8, 10), (12, 12), 3, 30),
    "convolve without margin": convolve((5, 5), (12, 12), 0, 18),
    "convolve a wide image": convolve((9, 9), (12, 21), 4, 40),
    "convolve PSF larger than the image": convolve((41, 41), (12, 12), 5, 36),
    "convolve with an extra axis": convolve((9, 9), (12, 12), 4, 32, 3),
    "resample to coarser pixels": resample(2.3, 30, (9, 8)),
    "resample to pixels of the same size": resample(1.0, -10, (12, 15)),
    "resample with an extra axis": resample(1.4, 200, (6, 6), 3),
    "shifted pixels": shifted(1),
    "every second shifted pixel, with an extra axis": shifted(2, 3),
    "shift odd stamps": shift(9),
    "shift even stamps": shift(10),
    "whiten white noise": whiten(0),
    "whiten without a constant": whiten(2, 3, kind=WithoutConstant),
    "whiten white noise with an extra axis": whiten(0, 3),
    "whiten correlated noise": whiten(4),
    "whiten correlated noise with an extra axis": whiten(2, 3),
    "composition": composition,
    "stamp in a larger one": window,
    "one exposure": whole(one_exposure),
    "several exposures": whole(several_exposures),
    "several exposures with constants, scaled": whole(lambda dtype: several_exposures(dtype, True), scaled=True),
    "several exposures, of sources at unit scale": sources_at_unit_scale,
    "several exposures, one on the model's own pixels": whole(mixed_exposures),
}

every_operator = pytest.mark.parametrize("build", OPERATORS.values(), ids=OPERATORS.keys())


def draw(shape: list[int], dtype: tf.DType, seed: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def inner(a: tf.Tensor, b: tf.Tensor) -> float:
    return float(np.vdot(a.numpy().astype(float), b.numpy().astype(float)))


def norm(a: tf.Tensor) -> float:
    return inner(a, a) ** 0.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-5), (tf.float64, 1e-12)], ids=["float32", "float64"])
@every_operator
def test_adjoint(build: Callable[[tf.DType], Case], dtype: tf.DType, tolerance: float) -> None:
    """<A x, y> = <x, A^T y>, and A^T is linear from the outputs' shape to the inputs'."""
    operator, inputs, outputs = build(dtype)
    for seed in range(3):
        x, y = draw(inputs, dtype, seed), draw(outputs, dtype, seed + 10)
        forward, back = operator(x), operator.adjoint(y)
        assert (forward.shape.as_list(), back.shape.as_list()) == (outputs, inputs)
        assert (forward.dtype, back.dtype) == (dtype, dtype)
        largest = max(norm(forward) * norm(y), norm(x) * norm(back))
        assert abs(inner(forward, y) - inner(x, back)) <= tolerance * largest
        np.testing.assert_array_equal(operator.adjoint.adjoint(x), forward)


@every_operator
def test_gradients_are_adjoints(build: Callable[[tf.DType], Case]) -> None:
    """The gradient of |A x|^2 / 2 is A^T A x, and that gradient's own derivative along v is A^T A v."""
    operator, inputs, _ = build(tf.float64)
    x, v = draw(inputs, tf.float64, 0), draw(inputs, tf.float64, 1)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            half = 0.5 * tf.reduce_sum(operator(x) ** 2)
        gradient = tape.gradient(half, x)
    second = outer.gradient(gradient, x, output_gradients=v)
    for found, along in ((gradient, x), (second, v)):
        expected = operator.adjoint(operator(along))
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


def parts(operator: LinearOperator) -> set[type]:
    """The classes that an operator is made of."""
    if isinstance(operator, Composition):
        return {Composition} | parts(operator.last) | parts(operator.first)
    return {type(operator)}


def subclasses(of: type) -> set[type]:
    own = set(of.__subclasses__())
    return own.union(*(subclasses(one) for one in own))


def test_every_operator_is_in_the_table() -> None:
    """Whatever the package defines as a linear operator has its adjoint and its gradients tested above."""
    for name in ("linalg", "forward", "galaxies", "diffusion", "inference"):
        package = importlib.import_module(f"{tfdeblend.__name__}.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    tested = set().union(*(parts(build(tf.float64)[0]) for build in OPERATORS.values())) | {
        Adjoint
    }  # by `test_adjoint`
    missing = {f"{one.__module__}.{one.__name__}" for one in subclasses(LinearOperator) - tested}
    assert {name for name in missing if name.startswith("tfdeblend.")} == set()


def test_composition_is_associative_and_reverses_its_adjoint() -> None:
    a, shape, _ = place(PARTLY_OUTSIDE, 7)(tf.float64)
    b, _, image = convolve((9, 9), (14, 14), 3, 32)(tf.float64)
    c = Whiten(draw(image, tf.float64, 3) ** 2, tf.zeros([*image[:2], 0, *image[2:]], tf.float64))
    x, y = draw(shape, tf.float64, 4), draw(image, tf.float64, 5)
    np.testing.assert_allclose(((c @ b) @ a)(x), (c @ (b @ a))(x), atol=1e-13)
    np.testing.assert_allclose((c @ b @ a).adjoint(y), a.adjoint(b.adjoint(c.adjoint(y))), atol=1e-13)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_place_puts_each_pixel_where_it_belongs(one_by_one: bool) -> None:
    operator, shape, _ = place(PARTLY_OUTSIDE, 7, one_by_one)(tf.float64)
    x = draw(shape, tf.float64, 0).numpy()
    expected = np.zeros((2, 2, 60, 60))  # the frame with 20 pixels around it
    for b, corners in enumerate(PARTLY_OUTSIDE):
        for k, (row, column) in enumerate(corners):
            expected[b, :, 20 + row : 27 + row, 20 + column : 27 + column] += x[b, k]
    np.testing.assert_allclose(operator(tf.constant(x)), expected[:, :, 20:40, 20:40], atol=1e-14)
    assert isinstance(operator, Place)
    np.testing.assert_allclose(tf.reduce_sum(operator.each(tf.constant(x)), 1), operator(tf.constant(x)), atol=1e-14)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_one_graph_places_at_any_corners(one_by_one: bool) -> None:
    """A compiled graph takes corners as it takes stamps, and knows the shapes of what it returns."""

    @tf.function(autograph=False)
    def there_and_back(x: tf.Tensor, corners: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        operator = Place(corners, 8, 20, tf.float64)
        operator.one_by_one = one_by_one
        frame = operator(x)
        stamps = operator.adjoint(frame)
        assert (frame.shape.as_list(), stamps.shape.as_list()) == ([2, 2, 20, 20], [2, 3, 2, 8, 8])
        return frame, stamps

    x = draw([2, 3, 2, 8, 8], tf.float64, 0)
    for corners in (INSIDE, PARTLY_OUTSIDE, WHOLLY_OUTSIDE):
        operator = Place(tf.constant(corners), 8, 20, tf.float64)
        frame, stamps = there_and_back(x, tf.constant(corners))
        np.testing.assert_allclose(frame, operator.forward(x), atol=1e-14)
        np.testing.assert_allclose(stamps, operator.transpose(frame), atol=1e-14)
    assert there_and_back.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("side", [30, 31])
def test_shift_moves_a_gaussian(side: int) -> None:
    """A well sampled Gaussian, shifted, is the Gaussian sampled at the shifted position."""
    offsets = np.array([[0.5, -0.5], [0.25, 1.7], [-3.0, 0.0], [0.0, 0.0], [1e-7, -0.33]])
    stamp = gaussian((side, side), side // 2, side // 2, 1.8)
    shifted = Shift(tf.constant(offsets), side)(tf.constant(np.stack([stamp] * len(offsets))))
    expected = [gaussian((side, side), side // 2 + y, side // 2 + x, 1.8) for y, x in offsets]
    np.testing.assert_allclose(shifted, expected, atol=3e-7 * stamp.max())


@pytest.mark.parametrize("side", [12, 13])
def test_shift_by_whole_pixels_is_a_roll(side: int) -> None:
    stamps = draw([2, side, side], tf.float64, 0)
    shifted = Shift(tf.constant([[3.0, -2.0], [0.0, side - 1.0]], tf.float64), side)(stamps)
    expected = [np.roll(stamps[0], (3, -2), (0, 1)), np.roll(stamps[1], -1, 1)]
    np.testing.assert_allclose(shifted, expected, atol=1e-12)


def test_shifts_add_up_and_conserve_flux() -> None:
    stamps, zero = draw([1, 15, 15], tf.float64, 0), tf.zeros([1, 2], tf.float64)
    a, b = tf.constant([[0.3, -1.2]], tf.float64), tf.constant([[0.45, 0.1]], tf.float64)
    twice = Shift(b, 15)(Shift(a, 15)(stamps))
    np.testing.assert_allclose(twice, Shift(a + b, 15)(stamps), atol=1e-12)
    np.testing.assert_allclose(tf.reduce_sum(twice), tf.reduce_sum(stamps), atol=1e-12)
    np.testing.assert_allclose(Shift(zero, 15)(stamps), stamps, atol=1e-13)
