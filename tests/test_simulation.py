"""Simulated galaxies, blends and stamps: what GalSim draws, in whatever order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
import pytest

from tfdeblend.data.observation import COADD_ZEROPOINT
from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import Galaxies, Population
from tfdeblend.simulation.real_galaxies import RealPopulation, read_catalogue
from tfdeblend.simulation.rendering import Camera, Component, Knots
from tfdeblend.simulation.scenes import NOISE_REACH, SceneConfig, Simulator, draw_positions, noise_kernel, unit_noise
from tfdeblend.simulation.stamps import CHUNK, StampConfig
from tfdeblend.simulation.surveys import SURVEYS, Colors

HSC = SURVEYS["hsc"]
CONFIG = SceneConfig(HSC, Population(), sources=(1, 3), size=32)
ZEROPOINTS = np.full(5, 27.0)


def galaxies(number: int, seed: int = 0, survey: str = "hsc", **population: float) -> Galaxies:
    colors = Colors.of(SURVEYS[survey].throughputs)
    rng = np.random.default_rng(seed)
    return Population(**population).draw(rng, number, colors, np.full(len(colors.wavelengths), 27.0))


def by_galsim(components: list[Component], psf: galsim.GSObject, band: int, y: float, x: float, scale: float):
    """(71,71): what GalSim draws by itself at its default accuracy; the pixel is part of the PSF, where it has one."""
    image = galsim.ImageD(71, 71, scale=scale)
    for component in components:
        profile = component.profile
        if isinstance(profile, Knots):
            parts = zip(profile.share, profile.offset, profile.sigma, strict=True)
            profile = galsim.Sum([galsim.Gaussian(sigma=s, flux=f).shift(dx, dy) for f, (dy, dx), s in parts])
        profile = galsim.Convolve(profile * float(component.flux[band]), psf)
        center = galsim.PositionD(x + 1, y + 1)
        profile.drawImage(image, center=center, method="no_pixel", add_to_image=True)
    return image.array


@pytest.mark.parametrize("survey", ["hsc", "lsst", "euclid-vis", "hst-acs"])
@pytest.mark.parametrize("frame", ["observed", "model"])
def test_images_are_within_a_thousandth_of_the_peak_of_galsims(survey: str, frame: str):
    scale = SURVEYS[survey].pixel_scale
    camera = Camera.of_survey(SURVEYS[survey]) if frame == "observed" else Camera.of_model(1.0, scale)
    found = galaxies(12, 4, survey, bright=18, faint=25, slope=0.0, stars=0.2)
    for row, (y, x) in enumerate(np.random.default_rng(1).uniform(8, 62, (12, 2))):
        components = found.components(row)
        drawn = camera.draw(components, y, x, (71, 71))
        for band in (0, len(drawn) - 1):
            expected = by_galsim(components, camera.psfs[min(band, len(camera.psfs) - 1)], band, y, x, scale)
            assert np.abs(drawn[band] - expected).max() < 1e-3 * expected.max()


def test_flux_is_conserved():
    found = galaxies(40, 2, bright=22, faint=25)
    for camera in (Camera.of_survey(HSC), Camera.of_model(1.0, 0.168)):
        for row in range(len(found)):
            total = camera.draw(found.components(row), 127.3, 128.4, (256, 256)).sum((1, 2))
            np.testing.assert_allclose(total, found.flux[row].sum(0), rtol=1e-4)


def test_a_point_in_the_model_frame_is_the_gaussian_sampled_at_pixel_centres():
    point = Component(galsim.DeltaFunction(), np.ones(1), 0.0)
    for sigma in (0.7, 1.0, 1.5):
        drawn = Camera.of_model(sigma, 0.2).draw([point], 16, 16, (33, 33))[0]
        gauss = np.exp(-0.5 * ((np.arange(33) - 16) / sigma) ** 2)
        expected = gauss[:, None] * gauss / (2 * np.pi * sigma**2)
        np.testing.assert_allclose(drawn, expected, atol=3e-4 * expected.max())


def test_light_moves_with_its_source_and_is_cut_at_the_edge():
    components = galaxies(1, 3, bright=22, faint=23).components(0)
    camera = Camera.of_survey(HSC)
    middle, moved = camera.draw(components, 20.25, 20.5, (41, 41)), camera.draw(components, 23.25, 16.5, (41, 41))
    np.testing.assert_allclose(moved[:, 3:, :-4], middle[:, :-3, 4:], atol=1e-4 * middle.max())
    edge = camera.draw(components, 0.25, 0.5, (41, 41))
    np.testing.assert_allclose(edge[:, :20, :20], middle[:, 20:40, 20:40], atol=1e-4 * middle.max())


def test_populations_keep_to_their_limits_and_slopes():
    found = galaxies(40_000, 5, bright=20.0, faint=25.0, slope=0.31, stars=0.25)
    assert found.magnitude.min() >= 20 and found.magnitude.max() <= 25
    counts, edges = np.histogram(found.magnitude, np.arange(20, 25.5, 0.5))
    assert np.polyfit(edges[:-1], np.log10(counts), 1)[0] == pytest.approx(0.31, abs=0.02)
    assert found.is_star.mean() == pytest.approx(0.25, abs=0.01)
    i_flux = found.flux.sum(1)[:, 2]
    np.testing.assert_allclose(27 - 2.5 * np.log10(i_flux), found.magnitude, atol=1e-9)
    faint = np.median(found.radius[found.magnitude > 24.5, 1])
    assert faint < np.median(found.radius[found.magnitude < 21, 1])
    assert np.hypot(*np.moveaxis(found.shear, -1, 0)).max() < 0.81


def test_knots_share_their_light():
    found = galaxies(50, 6)
    np.testing.assert_allclose(found.knot_flux.sum(1), 1)
    np.testing.assert_allclose(found.take(slice(3, 5)).flux, found.flux[3:5])


def test_a_scene_depends_on_its_number_only():
    first, second = Simulator(CONFIG), Simulator(CONFIG)
    late = first.scene(7)
    for number in (3, 5, 7):
        scene = second.scene(number)
    for name, values in late.arrays().items():
        np.testing.assert_array_equal(values, scene.arrays()[name])
    other = Simulator(replace(CONFIG, seed=1)).scene(7)
    assert other.images.shape == late.images.shape and not np.array_equal(other.images, late.images)


@pytest.mark.parametrize("noise", ["white", "correlated"])
def test_data_minus_truth_is_noise_of_the_weights(noise: str):
    simulator = Simulator(replace(CONFIG, noise=noise, size=64))
    scenes = [simulator.scene(number) for number in range(12)]
    chi2 = [np.mean((s.images - s.truth.sum(0)) ** 2 * s.weights) for s in scenes]
    assert np.mean(chi2) == pytest.approx(1, abs=0.01 if noise == "white" else 0.03)
    bright = scenes[0].weights[0].min() < scenes[0].weights[0].max()
    assert bright  # the sources' own light adds noise


def test_correlated_noise_has_the_power_of_its_kernel():
    field = unit_noise(np.random.default_rng(0), (40, 64, 64), "correlated")
    assert field.var() == pytest.approx(1, abs=0.01)
    kernel = noise_kernel()
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (0, 5)):
        side = 2 * NOISE_REACH + 1
        expected = (kernel[: side - dy, : side - dx] * kernel[dy:, dx:]).sum()
        found = (field[:, : 64 - dy, : 64 - dx] * field[:, dy:, dx:]).mean()
        assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("positions", ["uniform", "clustered"])
def test_thirty_sources_find_their_places(positions: str):
    config = replace(CONFIG, sources=(30, 30), positions=positions, size=71)
    places = draw_positions(np.random.default_rng(0), 30, config)
    distance = np.hypot(*np.moveaxis(places[:, None] - places, -1, 0)) + 100 * np.eye(30)
    assert places.shape == (30, 2) and distance.min() >= 2 and places.min() > 0 and places.max() < 70


def test_clusters_are_tighter_than_fields():
    rng, config = np.random.default_rng(0), replace(CONFIG, size=71)
    spread = {
        positions: np.std([draw_positions(rng, 4, replace(config, positions=positions)) for _ in range(50)])
        for positions in ("uniform", "clustered")
    }
    assert spread["clustered"] < 0.7 * spread["uniform"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sources": (0, 3)}, "sources: expected 1 to 30, received 0 to 3"),
        ({"sources": (4, 3)}, "sources: expected 1 to 30, received 4 to 3"),
        ({"positions": "random"}, "positions: expected uniform or clustered, received 'random'"),
        ({"noise": "pink"}, "noise: expected white or correlated, received 'pink'"),
        ({"size": 4}, "size: expected 16 to 512 pixels, received 4"),
        ({"seed": -1}, "seed: expected a number from 0, received -1"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(change: dict, problem: str):
    with pytest.raises(DataError) as error:
        replace(CONFIG, **change)
    assert str(error.value) == f"simulate: {problem}"


def test_bad_populations_and_stamps_are_refused():
    with pytest.raises(
        DataError, match="magnitude: expected a bright and a faint limit within 10 to 32, received 25 to"
    ):
        Population(25, 20)
    with pytest.raises(DataError, match="stars: expected a share from 0 to 1, received 2"):
        Population(stars=2)
    with pytest.raises(DataError, match="model_sigma: expected"):
        StampConfig(Population(), HSC, model_sigma=0.1)
    with pytest.raises(DataError, match="split: expected one of train, test, all"):
        RealPopulation(".", split="training")
    with pytest.raises(DataError, match="shrink: expected positive factors that rise, received"):
        RealPopulation(".", shrink=(0.5, 0.3))


def test_stamps_are_isolated_galaxies_near_the_middle():
    images, catalog = StampConfig(Population(bright=22), HSC, side=48, seed=3).chunk(1)
    assert images.shape == (CHUNK, 5, 48, 48) and images.dtype == np.float32 and len(catalog) == CHUNK
    assert np.abs(catalog["x"] - 24).max() <= 0.5 and np.abs(catalog["y"] - 24).max() <= 0.5
    small = catalog["radius"] < 0.3
    np.testing.assert_allclose(images[small, 2].sum((1, 2)), catalog["flux_i"][small], rtol=0.05)
    np.testing.assert_allclose(catalog["magnitude"], COADD_ZEROPOINT - 2.5 * np.log10(catalog["flux_i"]), atol=1e-9)


def test_the_model_frame_is_the_deblenders():
    """Convolved with what the deblender takes for the rest of the PSF, the truth in the model frame is the observed."""
    from tfdeblend.data.psf import transfer_function

    scene = Simulator(replace(CONFIG, population=Population(bright=22), model_sigma=1.0, size=64)).scene(1)
    kernel = transfer_function(scene.psfs.astype(float), 1.0, 120)
    for model, truth in zip(scene.truth_model, scene.truth, strict=True):
        rendered = np.fft.irfft2(np.fft.rfft2(model, (120, 120)) * kernel, (120, 120))[:, :64, :64]
        assert np.abs(rendered - truth).max() < 2e-3 * truth.max()


def test_real_galaxies(data: Path):
    folder = str(data / "hst_galaxies")
    every = np.asarray(read_catalogue(folder).ident).astype(str)
    parts = {}
    for split in ("train", "test"):
        rng, colors = np.random.default_rng(0), Colors.of(HSC.throughputs)
        drawn = RealPopulation(folder, split=split).draw(rng, 600, colors, ZEROPOINTS, HSC.bands)
        parts[split] = set(drawn.catalog(HSC.bands)["ident"])
    assert len(parts["train"]) == 35 and len(parts["test"]) == 15
    assert parts["train"] | parts["test"] == set(every)
    camera = Camera.of_survey(HSC)
    for row in range(5):
        image = camera.draw(drawn.components(row), 40, 40, (81, 81))
        np.testing.assert_allclose(image.sum((1, 2)), drawn.flux[row], rtol=0.02)
    camera, peaks = Camera.of_model(1.0, HSC.pixel_scale), []
    for shrink in ((0.5, 0.5), (1.0, 1.0)):
        population = RealPopulation(folder, split="train", shrink=shrink)
        drawn = population.draw(np.random.default_rng(2), 8, colors, ZEROPOINTS, HSC.bands)
        peaks.append([camera.draw(drawn.components(row), 32, 32, (64, 64)).max() for row in range(8)])
    assert (np.array(peaks[0]) > peaks[1]).all()  # the same galaxies, denser
    with pytest.raises(
        DataError, match="expected galaxies of F814W magnitudes from 10 to 12 in split all, received none"
    ):
        RealPopulation(folder, 10, 12, "all").draw(rng, 1, colors, ZEROPOINTS, HSC.bands)
