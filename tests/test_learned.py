"""Learned priors: which there are, what they refuse, and the annealed fit with them."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from hsc import SHIPPED, simulated
from likelihoods import Seen

from tfdeblend.app.cli import main
from tfdeblend.catalog import measure
from tfdeblend.data.noise_correlation import stencil
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.deblender import Deblender
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import NeuralDenoiser
from tfdeblend.diffusion.initial import StampWindow, stamp_begin
from tfdeblend.diffusion.linear_gaussian import SourceCovariance, SourceOperator, gaussian_step
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Place
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.galaxies.priors import SersicPrior
from tfdeblend.inference.annealed import AnnealedFit, AnnealingOptions
from tfdeblend.inference.map_fit import MapFit
from tfdeblend.linalg.low_rank import DiagonalPlusLowRank, LowRankUpdate
from tfdeblend.linalg.solvers import AdamSolver, ConjugateGradients
from tfdeblend.networks import UNet
from tfdeblend.simulation.parametric import Population


@pytest.fixture(scope="module")
def deblender() -> Deblender:
    """Shared, so that each shape is compiled once."""
    return Deblender(SHIPPED)


# -- the step


@pytest.mark.parametrize(("rank", "reach", "number"), [(0, 0, 1), (3, 0, 1), (3, 1, 1), (0, 0, 2), (3, 1, 2)])
def test_gaussian_step_is_the_closed_form(rank, reach, number):
    """V A^T (1 + A V A^T)^-1 r, for galaxies and a star whose bands are free, in one exposure or in two.

    The second exposure has one of the bands; each lies on a constant that is not known."""
    rng = np.random.default_rng(0)
    scale = tf.constant(rng.uniform(0.5, 2, [1, 2, 2, 6, 6]))
    rows = rng.uniform(-0.2, 0.2, [1, 2, len(stencil(reach)) if reach else 0, 8, 8])
    rows[:, :, :1] = 1
    noise = GaussianNoise(tf.constant(rng.uniform(0.5, 2, [1, 2, 8, 8])), tf.constant(rows), on_constant=True)
    place = Place(tf.constant([[[0, 1], [2, 2]]]), 6, 8, tf.float64)
    pixels = np.zeros([1, 2, 2, 6, 6])
    pixels[:, 0] = rng.uniform(0.1, 3, [1, 2, 6, 6])
    star = np.zeros_like(pixels)
    star[:, 1] = rng.uniform(0, 1, [1, 2, 6, 6])
    ones, none = tf.ones([1, 2, 1, 1, 1], tf.float64), tf.zeros_like(star)
    galaxies = DiagonalPlusLowRank(tf.constant(pixels), tf.constant(rng.standard_normal([1, 2, rank, 2, 6, 6])))
    covariance = SourceCovariance(galaxies, ones, none, tf.constant(star))
    exposures = [Seen((0, 1), noise.whiten, (2, 8, 8), 2)]
    if number == 2:
        other = GaussianNoise(tf.constant(rng.uniform(0.5, 2, [1, 1, 8, 8])), tf.zeros([1, 1, 0, 8, 8], tf.float64))
        exposures.append(Seen((1,), other.whiten, (1, 8, 8), 2))
    seen = 128 + 64 * (number - 1)
    operator = SourceOperator(place, exposures, scale, tf.constant(star))
    units = [tf.constant(unit.reshape(1, 2, 2, 6, 6)) for unit in np.eye(144)]
    forward = np.stack([np.ravel(operator.forward(unit)) for unit in units], 1)
    variance = np.stack([np.ravel(covariance.matvec(unit)) for unit in units], 1)
    residual = rng.standard_normal([1, seen])
    inner = np.linalg.solve(np.eye(seen) + forward @ variance @ forward.T, residual.ravel())
    found = gaussian_step(operator, covariance, tf.constant(residual), ConjugateGradients(max_steps=200))
    np.testing.assert_allclose(np.ravel(found), variance @ forward.T @ inner, atol=1e-10)
    x, y = tf.constant(rng.standard_normal([1, 2, 2, 6, 6])), tf.constant(rng.standard_normal([1, seen]))
    np.testing.assert_allclose(np.sum(operator.forward(x) * y), np.sum(x * operator.transpose(y)), rtol=1e-12)


def test_evidence_of_a_bright_star_is_exact():
    """log det (1 + U U^T) in single precision, of one bright direction beside three that are empty."""
    shape = np.exp(-0.5 * ((np.indices((16, 16)) - 7.5) ** 2).sum(0) / 4)
    own = np.zeros([1, 1, 4, 16, 16], np.float32)
    own[0, 0, 0] = 10_000 * shape / np.sqrt((shape**2).sum())
    exact = np.log1p((own.astype(float) ** 2).sum())
    assert float(LowRankUpdate([(0,)], 1, [tf.constant(own)]).logdet()[0]) == pytest.approx(exact, abs=1e-4)


def test_window_cuts_and_puts_back():
    stamps = tf.random.stateless_normal([2, 3, 1, 6, 6], [0, 1])
    begin = tf.constant([[[0, 1], [2, 2], [1, 0]]] * 2)
    cut = StampWindow(begin, 6, 9)
    np.testing.assert_array_equal(cut.transpose(cut.forward(stamps)), stamps)
    assert float(tf.reduce_sum(cut.forward(stamps)[0, 0, 0, :, 0] ** 2)) == 0  # begins at column 1


def test_a_gaussian_prior_ends_at_its_maximum():
    """A network that gives zero leaves independent pixels N(m, v), whose maximum obeys (x - m) / v = A^T (y - A x).

    Adam and conjugate gradients end there."""
    scene, _ = simulated(0, size=40)
    shape = scene_shape(scene, 64)._replace(blends=1)
    denoiser = NeuralDenoiser(UNet(48, 5, 5, widths=(8, 8), blocks=(1, 1), gated=True), model_sigma=shape.model_sigma)
    r = np.hypot(*np.mgrid[-24:24, -24:24])
    light = np.tile(np.exp(-r / 3) / 15, [5, 1, 1])
    denoiser.set_moments(light, 0.1 * light**2 + 1e-8)
    fit = MapFit(SersicPrior(5), shape)
    tensors = Batch.build([scene], shape).tensors
    initial = fit(tensors)
    solvers = ConjugateGradients(max_steps=300), AdamSolver([1, 5, shape.frame, shape.frame])
    levels = [AnnealingOptions(2, 30.0, 10.0, solver, amplitude_width=0) for solver in solvers]
    exact, end = (AnnealedFit(fit, denoiser, options)(tensors, initial) for options in levels)
    np.testing.assert_allclose(end.stamps, exact.stamps, atol=1e-3 * np.abs(exact.stamps).max())
    begin = stamp_begin(initial.summary[..., :2], shape.stamp, 48)
    cut = StampWindow(begin, 48, shape.stamp)
    unit = tensors.band_unit[:, None, :, None, None]
    scale = unit * tf.sqrt(tf.reduce_sum((cut.transpose(initial.stamps) / unit) ** 2, [2, 3, 4], keepdims=True))
    likelihood = Likelihood(tensors, shape)
    operator = likelihood.operator.at(Place(tensors.corners + begin, 48, shape.frame))
    pulled = operator.transpose(likelihood.data(end.models))
    slope = (scale * pulled).numpy()[0, : len(scene.sources)]
    x = (cut.transpose(end.stamps) / tf.where(scale > 0, scale, 1)).numpy()[0, : len(scene.sources)]
    expected = (x - light) / denoiser.variance.numpy()
    inside = np.broadcast_to(r < 8, x.shape)
    np.testing.assert_allclose(slope[inside], expected[inside], atol=0.02 * np.abs(expected[inside]).max())


# -- the shipped priors


@pytest.mark.parametrize("name", registry.shipped())
def test_shipped_priors_are_what_their_cards_say(name: str):
    prior = registry.find(name)
    denoiser = prior.load()  # checks the SHA-256
    assert denoiser.bands == prior.bands and denoiser.stamp_shape == (len(prior.bands), prior.side, prior.side)
    assert (denoiser.pixel_scale, denoiser.model_sigma) == (prior.pixel_scale, prior.model_sigma)
    assert prior.path.stat().st_size < 10e6
    noise = 0.1 * tf.random.stateless_normal([1, *denoiser.stamp_shape], [0, 1])
    x = denoiser.mean + noise
    mean, covariance = denoiser.posterior(x, tf.constant([0.1]))
    assert np.isfinite(mean).all() and (covariance.variance.numpy() > 0).all()
    assert np.sum((mean - denoiser.mean) ** 2) < np.sum(noise**2)


def test_blends_of_its_own_kind(deblender: Deblender):
    drawn = [simulated(index) for index in range(4)]
    for (_, truth), result in zip(drawn, deblender.deblend([scene for scene, _ in drawn]), strict=True):
        assert result.header["prior"] == SHIPPED and abs(result.header["chi2"] - 1) < 0.1
        error = np.sqrt(((result.sources - truth) ** 2).sum((1, 2, 3)) / (truth**2).sum((1, 2, 3)))
        assert np.median(error) < 0.15
        ratio = result.sources[:, 2].sum((1, 2)) / truth[:, 2].sum((1, 2))
        assert np.median(np.abs(ratio - 1)) < 0.1
        assert np.isfinite(result.stamps).all() and np.isfinite(result.catalog["flux_i"]).all()
        np.testing.assert_allclose(result.sources.sum(0), result.model, atol=1e-3 * result.model.max())


def test_units_change_nothing(deblender: Deblender):
    scene, _ = simulated(1)
    seen = scene.observation
    dimmer = replace(
        seen,
        images=seen.images.astype(float) * 1e-6,
        weights=seen.weights.astype(float) * 1e12,
        zeropoints=seen.zeropoints - 15,
    )
    one, two = deblender.deblend(scene), deblender.deblend(replace(scene, observations=dimmer))
    np.testing.assert_allclose(two.stamps * 1e6, one.stamps, atol=2e-3 * one.stamps.max())


def test_batch_mates_change_nothing(deblender: Deblender):
    scenes = [simulated(index)[0] for index in range(4)]
    alone, among = deblender.deblend(scenes[2]), deblender.deblend(scenes)[2]
    np.testing.assert_allclose(among.stamps, alone.stamps, atol=2e-3 * alone.stamps.max())


def test_stars_and_a_background():
    """A star keeps the model PSF's shape, its fluxes are fitted again, and a background is separated from galaxies."""
    scene, truth = simulated(3, population=Population(bright=20, faint=22, stars=0.5), sources=(3, 3))
    stars = np.array([source.kind == "point" for source in scene.sources])
    assert 0 < stars.sum() < len(stars)
    noise = 1 / np.sqrt(np.median(scene.observation.weights, axis=(1, 2)))
    raised = replace(scene.observation, images=scene.observation.images + noise[:, None, None].astype(np.float32))
    result = Deblender(SHIPPED, background=True).deblend(replace(scene, observations=raised))
    np.testing.assert_allclose(result.background / noise, 1, atol=0.15)
    ratio = result.sources[stars][:, 2].sum((1, 2)) / truth[stars][:, 2].sum((1, 2))
    np.testing.assert_allclose(ratio, 1, atol=0.05)
    stamp = result.stamps[np.flatnonzero(stars)[0]].astype(float)
    shape = stamp / stamp.max((1, 2), keepdims=True)
    np.testing.assert_allclose(shape, shape[:1] + np.zeros_like(shape), atol=3e-3)  # but for errors of the PSF


def test_light_beyond_the_stamps_is_kept_and_flagged():
    """A galaxy larger than the prior's stamps: its wings are the first fit's, and its flux is whole."""
    side = 128
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    light = np.exp(-np.hypot(y, x) / 9)
    images = np.tile(3000 * light / light.sum() * 1e3, [5, 1, 1])
    drawn = np.random.default_rng(1).normal(images, 3.0)
    core = np.exp(-(np.hypot(*np.mgrid[-20:21, -20:21]) ** 2) / 2 / 1.8**2)
    seen = Observation(drawn, np.full(images.shape, 1 / 9), np.tile(core / core.sum(), [5, 1, 1]), tuple("grizy"))
    result = Deblender(SHIPPED, assume_ab=True).deblend(Scene(seen, (Source(63.5, 63.5),)))
    assert result.catalog["flags"][0] & measure.BEYOND_PRIOR
    np.testing.assert_allclose(result.sources.sum((0, 2, 3)) / images.sum((1, 2)), 1, atol=0.05)


def test_no_light_is_made_of_nothing(deblender: Deblender):
    """A source on a wholly masked patch, and one in a trough, get no light from the prior."""
    scene, _ = simulated(0)
    seen = scene.observation
    images, weights = np.zeros_like(seen.images), seen.weights.copy()
    weights[:, :30, :30] = 0
    y, x = np.mgrid[:60, :60]
    noise = 1 / np.sqrt(np.median(weights[weights > 0]))
    images -= (30 * noise * np.exp(-((y - 45) ** 2 + (x - 45) ** 2) / 18)).astype(np.float32)
    empty = Scene(replace(seen, images=images, weights=weights), (Source(12.0, 12.0), Source(45.0, 45.0)))
    result = deblender.deblend(empty)
    assert (result.catalog["flags"] & (measure.BEYOND_PRIOR | measure.LEFT_OUT) > 0).all()
    assert (result.stamps.sum((2, 3)) < 1e-3 * noise).all()


# -- choosing one


def test_auto_takes_bands_and_pixels_into_account():
    scene, _ = simulated(0)
    seen = scene.observation
    auto = Deblender()
    assert auto.prior_of(scene)[0].name == SHIPPED
    for changed, reason in (
        (replace(seen, pixel_scale=0.2), f"{SHIPPED}: expected pixels of 0.168 arcsec, received 0.2"),
        (replace(seen, bands=tuple("ugriz")), "no learned prior has the bands u, g, r, i, z"),
        (replace(seen, pixel_scale=None), f"{SHIPPED}: expected pixels of 0.168 arcsec, received none"),
        (replace(seen, zeropoints=None, unit=None), f"{SHIPPED}: expected zero points"),
    ):
        prior, why = auto.prior_of(replace(scene, observations=changed))
        assert prior.name == "bulge-disk" and why.startswith(reason)
    bare = replace(scene, observations=replace(seen, zeropoints=None, unit=None))
    assert Deblender(assume_ab=True).prior_of(bare)[0].name == SHIPPED


@pytest.mark.slow
def test_real_scenes_take_the_prior(data: Path):
    """Measured PSFs, whose corners in Fourier space are noise, are wide enough all the same."""
    scene = Scene.read(data / "scenes" / "hsc_cosmos_35.npz")
    result = Deblender(SHIPPED, assume_ab=True).deblend(scene)
    assert result.header["prior"] == SHIPPED and result.header["modelsig"] == 1
    assert np.isfinite(result.sources).all()
    plain = Deblender("bulge-disk").deblend(scene)
    assert result.chi2 < plain.chi2


def test_unfit_scenes_are_refused_in_one_line(deblender: Deblender):
    scene, _ = simulated(0)
    seen = scene.observation
    for changed, message in (
        (replace(seen, pixel_scale=0.2), "expected pixels of 0.168 arcsec, received 0.2"),
        (replace(seen, bands=tuple("ugriz")), "expected bands g, r, i, z, y, received u, g, r, i, z"),
        (replace(seen, psf=np.ones((1, 1))), "expected PSFs wider than a Gaussian of sigma 1 pixel"),
    ):
        with pytest.raises(DataError, match=f"prior {SHIPPED}: {message}"):
            deblender.deblend(replace(scene, observations=changed))


def test_files_that_are_no_priors(tmp_path: Path, capsys):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(registry.find(SHIPPED).path.read_bytes()[:1000])
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(other)
    for path, message in (
        (broken, "expected a denoiser saved by Keras"),
        (other, "expected a denoiser, received a Sequential"),
        (tmp_path / "none.keras", "expected a .keras file"),
    ):
        with pytest.raises(DataError, match=message):
            registry.find(str(path))
    damaged = replace(registry.find(SHIPPED), path=broken)
    with pytest.raises(DataError, match="the file is damaged"):
        damaged.load()
    scene = tmp_path / "x.npz"
    scene.touch()  # the prior is read first
    assert main(["deblend", str(scene), "--out", str(tmp_path / "out"), "--prior", str(broken)]) == 2
    assert main(["deblend", str(scene), "--out", str(tmp_path / "out"), "--prior", "sersik"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "find", lambda name: damaged)
        assert main(["deblend", str(scene), "--out", str(tmp_path / "out"), "--prior", SHIPPED]) == 2
    assert "the file is damaged" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser's file: untrained, and sound."""
    path = tmp_path_factory.mktemp("prior") / "small.keras"
    network = UNet(16, 2, 2, widths=(8,), blocks=(1,), embedding=8, gated=True)
    NeuralDenoiser(network, bands=("g", "r"), pixel_scale=0.2, sigma_data=0.1).save(path)
    registry.find(str(path))
    return path


def rewritten(old: Path, new: Path, config: dict | bytes, weights: Callable[[h5py.File], object] | None) -> Path:
    """A copy of a denoiser's file with some of its settings and weights changed."""
    with zipfile.ZipFile(old) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    whole = json.loads(parts["config.json"])
    whole["config"] |= config if isinstance(config, dict) else {}
    parts["config.json"] = config if isinstance(config, bytes) else json.dumps(whole).encode()
    stored = io.BytesIO(parts["model.weights.h5"])
    if weights is not None:
        with h5py.File(stored, "r+") as file:
            weights(file)
    parts["model.weights.h5"] = stored.getvalue()
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return new


def fill(value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["vars/1"][:] = value  # the variance

    return change


U_NET = {"module": "tfdeblend.networks.unet", "class_name": "UNet", "registered_name": "tfdeblend>UNet"}
LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "config": {}, "registered_name": None}
HUGE = {"side": 16, "channels": 2, "outputs": 2, "widths": [10**5], "blocks": [1]}


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({}, fill(np.nan), "expected finite weights, received some that are not"),
        ({}, fill(0), "expected a positive variance of every pixel, received 0"),
        ({}, lambda file: file["layers"].clear(), "expected a denoiser saved by Keras, received A total of"),
        ({"sigma_data": np.nan}, None, "sigma_data: expected a positive number, received 'nan'"),
        ({"model_sigma": "wide"}, None, "model_sigma: expected a positive number, received 'wide'"),
        ({"scale_jitter": -1}, None, "scale_jitter: expected a number, received '-1'"),
        ({"bands": ["g", "g"]}, None, "expected 2 names of bands that differ"),
        ({"network": LAMBDA}, None, "expected networks that are U-Nets, received a Lambda"),
        ({"network": U_NET | {"config": HUGE}}, None, "at most 67108864 weights, received one of"),
        (b" " * 2**21, None, "expected at most 1 MiB in config.json, received 2"),
        (
            {},
            lambda file: file.create_dataset("bomb", (2**28,), "f4", chunks=True, compression="gzip"),
            "expected at most 256 MiB of weights, received 1024",
        ),
    ],
)
def test_a_network_that_cannot_be_a_prior(small: Path, config, weights, expected: str, tmp_path: Path):
    path = rewritten(small, tmp_path / "bad.keras", config, weights)
    assert path.stat().st_size < 2**18
    with pytest.raises(DataError, match=f"^{path}: prior: ") as raised:
        registry.find(str(path))
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_a_denoiser_that_adds_noise_is_no_prior(tmp_path: Path):
    network = UNet(16, 1, 1, widths=(8,), blocks=(1,), embedding=8, gated=True, output_scale=100.0)
    NeuralDenoiser(network, bands=("i",)).save(tmp_path / "wild.keras")
    with pytest.raises(DataError, match="expected a denoiser that takes noise of 1 away, received"):
        registry.find(str(tmp_path / "wild.keras"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"factor": np.full((1, 2, 8, 8), np.nan)}, "expected finite weights"),
        ({"diagonal": np.full((2, 8, 8), -1.0)}, "expected a positive variance"),
        ({"mean": np.zeros((2, 8, 7))}, "expected mean (C, P, P)"),
        ({"pixel_scale": np.nan}, "pixel_scale: expected a positive number"),
        ({"bands": ["g"]}, "expected 2 names of bands that differ"),
        ({"mean": np.array([print])}, "Object arrays cannot be loaded"),
    ],
)
def test_a_gaussian_that_cannot_be_a_prior(change: dict, expected: str, tmp_path: Path):
    arrays = {"mean": np.zeros((2, 8, 8)), "diagonal": np.ones((2, 8, 8)), "factor": np.zeros((1, 2, 8, 8))}
    facts = {"bands": ["g", "r"], "pixel_scale": 0.2, "model_sigma": 1.0, "scale_jitter": 0.1}
    np.savez(tmp_path / "good.npz", **arrays, **facts)
    assert registry.find(str(tmp_path / "good.npz")).side == 8
    np.savez(tmp_path / "bad.npz", **arrays | facts | change)
    with pytest.raises(DataError, match=r"bad\.npz: prior: ") as raised:
        registry.find(str(tmp_path / "bad.npz"))
    assert expected in str(raised.value) and "\n" not in str(raised.value)


def test_a_prior_from_a_file_is_the_shipped_one(tmp_path: Path, capsys):
    scene, _ = simulated(1)
    path = tmp_path / "mine.keras"
    shutil.copy(registry.find(SHIPPED).path, path)
    result = Deblender(str(path)).deblend(scene)
    assert result.header["prior"] == "mine"
    assert main(["info", "--priors", "--json"]) == 0
    assert SHIPPED in json.loads(capsys.readouterr().out)["priors"]
