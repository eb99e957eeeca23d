"""Samples of several observations together: more data make them narrower, shifts and constants belong to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from astropy.io import fits
from fields import COLOUR, FLUX, expose, places, positions, write

from tfdeblend.app.cli import main
from tfdeblend.catalog import measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.denoisers import flux_scale
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.inference import priors
from tfdeblend.inference.calibration import CalibrationOptions
from tfdeblend.inference.map_fit import MapOptions
from tfdeblend.training import fit_gaussian

KNOWN = CalibrationOptions(shift=0, gain=0)
SIDE = 24


def together(observations: list[Observation], prior: str, **how: object) -> Deblended:
    """The result for the observations, with the sources at their places."""
    scene = Scene.from_catalog(observations, positions(observations[0]))
    return Deblender(prior, assume_ab=True, **how).deblend(scene)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> str:
    """A Gaussian prior of smooth galaxies in g and r."""
    rng, (y, x) = np.random.default_rng(0), np.indices((SIDE, SIDE)) - SIDE / 2
    stamps = []
    for _ in range(300):
        size, ratio, angle, colour = (
            rng.uniform(2, 4.5),
            rng.uniform(0.5, 1),
            rng.uniform(0, np.pi),
            rng.lognormal(0.25, 0.1),
        )
        dy, dx = rng.uniform(-0.5, 0.5, 2)
        u = (x - dx) * np.cos(angle) + (y - dy) * np.sin(angle)
        v = (y - dy) * np.cos(angle) - (x - dx) * np.sin(angle)
        light = np.exp(-1.5 * np.sqrt((u / size) ** 2 + (v / ratio / size) ** 2 + 0.3))
        stamps.append([light, colour * light])
    unit = np.array(stamps, np.float32) / np.asarray(flux_scale(tf.constant(stamps, tf.float32)))[:, None, None, None]
    path = tmp_path_factory.mktemp("prior") / "smooth.npz"
    kind = {"bands": ("g", "r"), "pixel_scale": 0.2, "model_sigma": 1.0, "scale_jitter": 0.1}
    GaussianDenoiser.fit(unit, 8, **kind).save(path)
    return str(path)


def test_a_prior_is_fitted_to_stamps(tmp_path: Path, capsys) -> None:
    """Its mean is the same turned and mirrored about pixel P // 2; wrong names and files are refused in one line."""
    np.save(tmp_path / "stamps.npy", np.random.default_rng(0).uniform(0.1, 1, (20, 2, 8, 8)).astype(np.float32))
    command = [
        "--stamps",
        str(tmp_path),
        "--pixel-scale",
        "0.2",
        "--rank",
        "2",
        "--out",
        str(tmp_path / "new" / "a.npz"),
    ]
    fit_gaussian.main([*command, "--bands", "g,r"])
    found = registry.find(str(tmp_path / "new" / "a.npz"))
    assert (found.bands, found.side, found.pixel_scale) == (("g", "r"), 8, 0.2)
    mean = np.asarray(found.load().mean)[:, 1:, 1:]
    for same in (mean[:, ::-1], mean.swapaxes(1, 2), np.rot90(mean, 1, (1, 2))):
        np.testing.assert_allclose(same, mean, rtol=1e-4)
    with pytest.raises(SystemExit):
        fit_gaussian.main([*command, "--bands", "g"])
    assert "--bands: expected 2 names, received g" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"a.npz: prior: expected a network"):
        found.network()
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"bad.npz: prior: expected a Gaussian prior's arrays, received"):
        registry.find(str(tmp_path / "bad.npz"))


@pytest.mark.slow
def test_more_exposures_make_errors_smaller(prior: str) -> None:
    """Two more, turned, coarser and of one band; skies are drawn besides."""
    first = expose("first")
    turned = expose("turned", degrees=25, noise=0.4, shape=(40, 42), seed=1)
    coarse = expose("coarse", 0.3, (30, 30), -60, True, 0.9, noise=0.5, bands="r", seed=2)
    turned = replace(turned, images=turned.images + 5)
    how = {"calibration": KNOWN, "background": True, "method": "sample", "samples": 32}
    alone, joint = (together(some, prior, **how) for some in ([first], [first, turned, coarse]))
    assert joint.scene.bands == ("g", "r")
    ratios = [joint.catalog[f"flux_err_{band}"] / alone.catalog[f"flux_err_{band}"] for band in "gr"]
    # Errors of 32 samples are themselves off by an eighth: their mean tells more than each.
    assert np.max(ratios) < 1 and np.exp(np.mean(np.log(ratios))) < 0.9
    np.testing.assert_allclose(joint.views[1].background, 5, atol=0.3)
    for view in joint.views:
        assert view.chi2 == pytest.approx(1, abs=0.15)
        assert view.sources_std.shape == (3, *view.observation.shape) and (view.sources_std >= 0).all()


@pytest.mark.slow
def test_chains_of_closed_form_galaxies() -> None:
    """NUTS: within a few errors of the truth, which are those of the maximum."""
    first, other = expose("first"), expose("other", 0.3, (30, 30), 30, seeing=0.9, bands="ri", seed=1)
    other = replace(other, images=other.images + 4)
    how = {"calibration": KNOWN, "background": True}
    fit = together([first, other], "exponential", **how, options=MapOptions(profile_error=0))
    drawn = together([first, other], "exponential", **how, method="sample", samples=32)
    assert not (drawn.catalog["flags"] & measure.NOT_CONVERGED).any()
    for band in "gri":
        error = np.asarray(fit.catalog[f"flux_err_{band}"])
        np.testing.assert_allclose(drawn.catalog[f"flux_err_{band}"], error, rtol=0.6)
        assert (np.abs(drawn.catalog[f"flux_{band}"] - fit.catalog[f"flux_{band}"]) < 2 * error).all()
    np.testing.assert_allclose(drawn.views[1].background, 4, atol=0.3)
    np.testing.assert_allclose(drawn.catalog["flux_g"], FLUX * COLOUR["g"], rtol=0.2)


def test_constants_are_drawn_about_the_best() -> None:
    """The draws scatter as a weighted mean does; their random numbers are the part of the normals along them."""
    one = expose("one", shape=(32, 32))
    scene = Scene.from_catalog(one, [[15.0, 16.0]])
    shape = scene_shape(scene, 16, background=True)._replace(blends=400)
    tensors = Batch.build([scene] * 400, shape).tensors
    likelihood = Likelihood(tensors, shape)
    nothing = tuple(tf.zeros_like(exposure.images) for exposure in tensors.exposures)
    normals = likelihood.unused_normals(tf.random.stateless_normal(likelihood.data(nothing).shape, (0, 1)))
    best = likelihood.constants(nothing)[0][0].numpy()
    found = likelihood.drawn_constants(nothing, normals)[0].numpy()
    error = tensors.exposures[0].weights[0].numpy().sum((1, 2)) ** -0.5
    np.testing.assert_allclose(found.mean(0), best, atol=4 * error.max() / 20)
    np.testing.assert_allclose(found.std(0), error, rtol=0.15)


def test_refuses(prior: str) -> None:
    one = expose("one")
    other = expose("other", bands="ri", seed=1)
    with pytest.raises(DataError, match="one: prior smooth: expected bands g, r, in this order, received g, r, i"):
        together([one, other], prior, method="sample")
    fine = expose("fine", 0.1)
    with pytest.raises(DataError, match=r"fine: prior smooth: expected pixels of 0.2 arcsec, received 0.1"):
        together([fine, one], prior)
    sharp = expose("sharp", seeing=0.35)
    with pytest.raises(DataError, match="sharp: prior smooth: expected PSFs wider than a Gaussian of sigma 1 pixel"):
        together([sharp], prior)
    with pytest.raises(DataError, match="one: stamp: expected at least 26 pixels for prior smooth, received 24"):
        together([one], prior, stamp=24)


@pytest.mark.slow
def test_a_learned_maximum_and_images_of_no_profile(prior: str) -> None:
    """A Gaussian prior and non-parametric galaxies explain both observations as closed-form galaxies do."""
    first, coarse = expose("first"), expose("coarse", 0.3, (30, 30), 40, seeing=0.9, bands="r", seed=1)
    for name in (prior, "nonparametric"):
        found = together([first, coarse], name, calibration=KNOWN)
        for view in found.views:
            assert view.chi2 == pytest.approx(1, abs=0.2)
        np.testing.assert_allclose(found.catalog["flux_g"], FLUX * COLOUR["g"], rtol=0.15)


@pytest.mark.slow
def test_shifts_and_zero_points(monkeypatch) -> None:
    """Positions are the first one's, fluxes in its unit; samples that do not fill the last graph."""
    one, two = expose("one"), expose("two", 0.3, (30, 30), 40, seeing=0.9, shift=(0.3, -0.3), seed=1)
    two = replace(two, images=6.309573 * two.images, weights=two.weights / 6.309573**2, zeropoints=27.0)
    monkeypatch.setattr(priors, "rows_at_once", lambda shape, blends, samples: 3)
    one = replace(one, zeropoints=25.0)
    found = together([one, two], "exponential", method="sample", samples=8)
    moved = found.calibration.shift
    assert np.abs(moved[0]).max() > 0.1
    off = np.stack([found.catalog["x"], found.catalog["y"]], 1) - places(one)
    assert np.abs(off).max() < 0.08  # a shift of the wrong sign is off by twice `moved`
    np.testing.assert_allclose(found.catalog["flux_g"], FLUX * COLOUR["g"], rtol=0.1)
    assert (found.catalog["flux_err_r"] > 0).all()


def test_an_aligned_observation_may_be_larger(prior: str) -> None:
    one, large = expose("one", shape=(32, 32)), expose("large", shape=(128, 128), seed=1)
    found = together([one, large], "exponential", calibration=KNOWN)
    np.testing.assert_allclose(found.catalog["flux_g"], FLUX * COLOUR["g"], rtol=0.2)
    assert found.views[1].model.shape == (2, 128, 128)


@pytest.mark.slow
def test_command_line_samples_a_field(tmp_path: Path, prior: str) -> None:
    first, coarse = expose("first", shape=(32, 32)), expose("coarse", 0.3, (24, 26), 30, seeing=0.9, bands="r", seed=1)
    x, y = positions(first).T
    (tmp_path / "sources.csv").write_text("x,y\n" + "\n".join(f"{a},{b}" for a, b in zip(x, y, strict=True)))
    files = [part for one in (first, coarse) for part in ("--observation", str(write(tmp_path, one)))]
    options = ["--prior", prior, "--assume-ab", "--method", "sample", "--samples", "4"]
    options += ["--save-samples", "--no-figures"]
    command = ["deblend", *files, "--catalog", str(tmp_path / "sources.csv"), *options, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    with fits.open(tmp_path / "out" / "first.fits") as hdus:
        assert hdus["SAMPLES"].data.shape[:3] == (4, 3, 2)
        assert hdus["SOURCES_STD_COARSE"].data.shape == (3, 1, 24, 26)
        assert hdus[0].header["METHOD"] == "sample" and hdus[0].header["PRIOR"] == "smooth"
