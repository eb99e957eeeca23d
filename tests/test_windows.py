"""Laws of windows: they stand for the images of whole fields, which results in windows are, measure and draw alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from helpers import make_deblended, make_scene, result_of
from test_measure import measured

from tfdeblend import plots
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.windows import Windows, trimmed
from tfdeblend.errors import DataError
from tfdeblend.plots.bitmap import plot

SHAPE = (2, 30, 40)


def windows(seed: int = 0) -> Windows:
    """Five sources of random windows, the last of them empty."""
    rng = np.random.default_rng(seed)
    sides = np.append(rng.integers(1, 20, (4, 2)), [[0, 0]], 0)
    corners = rng.integers(0, np.array(SHAPE[1:]) - sides + 1)
    return Windows(tuple(rng.normal(size=(2, *side)).astype(np.float32) for side in sides), corners, SHAPE)


def in_windows(images: Windows) -> Windows:
    """The same sources in the smallest windows that hold all that is not 0."""
    parts = [trimmed(pixels, np.zeros(2, int), images.shape, np.zeros(images.shape[0])) for pixels in images.pixels]
    return Windows(tuple(pixels for pixels, _ in parts), np.array([corner for _, corner in parts]), images.shape)


def pair() -> tuple[Deblended, Deblended]:
    """A sampled result of sources that end within the image, and the same with windows around them."""
    scene, truth = make_scene(bands="gr", seed=3)
    whole = result_of(scene, np.where(truth > 0.01, truth, 0), samples=2)
    (view,) = whole.views
    view = replace(view, light_std=view.light_std.map(lambda here, pixels: pixels * (view.light.total()[here] > 0)))
    light = in_windows(view.light)
    cut = [
        view.light_std.cut(k, corner, pixels.shape[1:])
        for k, (corner, pixels) in enumerate(zip(light.corners, light.pixels, strict=True))
    ]
    std = replace(light, pixels=tuple(cut))
    whole = replace(whole, views=(replace(view, light_std=Windows.whole(std.dense)),))
    return whole, replace(whole, views=(replace(view, light=light, light_std=std),))


def test_windows_add_up_to_the_images() -> None:
    some = windows()
    assert some.dense.shape == (5, *SHAPE) and not some.are_whole
    np.testing.assert_allclose(some.total(), some.dense.sum(0, dtype=float), atol=1e-6)
    for k, (here, pixels) in enumerate(some):
        np.testing.assert_array_equal(some.image(k)[here], pixels)
        np.testing.assert_array_equal(some.image(k), some.dense[k])
        assert np.count_nonzero(some.dense[k]) == pixels.size


def test_whole_images_are_windows_too() -> None:
    images = windows().dense
    whole = Windows.whole(images)
    assert whole.are_whole and len(whole) == 5
    np.testing.assert_array_equal(whole.dense, images)


@pytest.mark.parametrize("corner", [(0, 0), (-7, 12), (22, 30), (40, 3), (-30, -30)])
def test_a_cut_shows_what_its_window_of_the_image_does(corner: tuple[int, int]) -> None:
    some, border = windows(), 40
    padded = np.pad(some.dense, ((0, 0), (0, 0), (border, border), (border, border)))
    (y, x), (n, m) = np.add(corner, border), (13, 18)
    for k in range(len(some)):
        np.testing.assert_array_equal(some.cut(k, np.array(corner), (n, m)), padded[k, :, y : y + n, x : x + m])


def test_maps_change_pixels_and_spreads_number_sources() -> None:
    some, kept = windows(), np.array([False, True, True, False, True, True, True])
    np.testing.assert_array_equal(some.map(lambda here, pixels: 2 * pixels).dense, 2 * some.dense)
    spread = some.spread(kept)
    np.testing.assert_array_equal(spread.dense[kept], some.dense)
    assert not spread.dense[~kept].any() and len(spread) == 7
    assert Windows.whole(some.dense).spread(kept).are_whole


def test_what_is_trimmed_off_is_faint() -> None:
    image, floor = np.zeros((2, 12, 12), np.float32), np.array([0.1, 1.0])
    image[0, 5, 4], image[1, 7, 9], image[1, 1, 1] = 0.2, -1.5, 0.9
    pixels, corner = trimmed(image, np.array([-2, 10]), (2, 20, 18), floor)  # whose columns from 8 on lie outside
    assert corner.tolist() == [3, 14] and pixels.shape == (2, 1, 1) and pixels[0, 0, 0] == np.float32(0.2)
    pixels, corner = trimmed(image, np.array([3, 3]), (2, 20, 20), floor)
    assert corner.tolist() == [8, 7] and pixels.shape == (2, 3, 6)
    assert trimmed(0 * image, np.array([3, 3]), (2, 20, 20), floor)[0].size == 0
    assert trimmed(image, np.array([-50, 3]), (2, 20, 20), floor)[0].size == 0


def test_results_in_windows_are_those_of_whole_images() -> None:
    whole, cut = pair()
    assert sum(pixels.size for pixels in cut.light.pixels) < 0.7 * whole.sources.size
    for name in ("sources", "sources_std", "reapportioned"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name), err_msg=name)
    one, other = measured(cut), measured(whole)
    for name in one.colnames:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            assert (one[name] == other[name]).all(), name
    np.testing.assert_array_equal(plot(cut), plot(whole))
    pictures = []
    for result in (cut, whole):
        figure = plots.samples(result)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba()))
    np.testing.assert_array_equal(*pictures)


def test_windows_come_back_from_files(tmp_path: Path) -> None:
    _, written = pair()
    written.write(tmp_path / "a.fits")
    read = Deblended.read(tmp_path / "a.fits")
    mine, theirs = read.views[0], written.views[0]
    for one, other in ((mine.light, theirs.light), (mine.light_std, theirs.light_std)):
        np.testing.assert_array_equal(one.corners, other.corners)
        assert one.shape == other.shape
        for pixels, same in zip(one.pixels, other.pixels, strict=True):
            np.testing.assert_array_equal(pixels, same)
    np.testing.assert_array_equal(read.reapportioned, written.reapportioned)
    with fits.open(tmp_path / "a.fits") as hdus:
        row = hdus["SOURCES"].data[2]
        shown = row["pixels"].reshape(2, row["height"], row["width"])
        here = slice(row["y0"], row["y0"] + row["height"]), slice(row["x0"], row["x0"] + row["width"])
        np.testing.assert_array_equal(shown, written.sources[2][:, *here])
        shares = hdus["REAPPORTIONED"].data
        np.testing.assert_array_equal(shares["y0"], hdus["SOURCES"].data["y0"])


def test_large_images_come_back_from_compressed_ones(tmp_path: Path) -> None:
    written = make_deblended(bands="gr", shape=(720, 730), sources=1)
    written.write(tmp_path / "a.fits")
    read = Deblended.read(tmp_path / "a.fits")
    for name in ("model", "sources", "residual", "reapportioned"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    np.testing.assert_array_equal(read.scene.observation.images, written.scene.observation.images)
    np.testing.assert_array_equal(read.scene.observation.weights, written.scene.observation.weights)
    assert (tmp_path / "a.fits").stat().st_size < 0.6 * 7 * written.model.nbytes
    with fits.open(tmp_path / "a.fits") as hdus:
        assert isinstance(hdus["WEIGHTS"], fits.CompImageHDU) and hdus["WEIGHTS"].shape == (2, 720, 730)


@pytest.mark.parametrize("changes", [{"x0": 45}, {"y0": -1}, {"height": 3}, {"width": -1}])
def test_windows_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    pair()[1].write(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        for name, value in changes.items():
            hdus["SOURCES"].data[name][1] = value
    with pytest.raises(DataError, match=r"a\.fits: SOURCES: expected the pixels of windows of 3 sources in an image"):
        Deblended.read(tmp_path / "a.fits")


def test_images_of_another_number_of_sources_are_refused(tmp_path: Path) -> None:
    make_deblended().write(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        hdus["SOURCES"].data = hdus["SOURCES"].data[1:]
    with pytest.raises(DataError, match=r"SOURCES: expected shape \(3, 5, 40, 50\), received \(2, 5, 40, 50\)"):
        Deblended.read(tmp_path / "a.fits")


def test_covariances_of_many_sources_are_written_as_pairs(tmp_path: Path) -> None:
    made = make_deblended(bands="gr", sources=40)
    covariance = made.flux_cov.copy()
    covariance[:, 3, 17] = covariance[:, 17, 3] = [1.5, 0]
    covariance[:, 5] = covariance[:, :, 5] = np.nan  # a source that was left out
    replace(made, flux_cov=covariance).write(tmp_path / "a.fits")
    np.testing.assert_array_equal(Deblended.read(tmp_path / "a.fits").flux_cov, covariance)
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        assert len(hdus["FLUXCOV"].data) == 39 + 2 + 79
        hdus["FLUXCOV"].data["second"][0] = 40
    with pytest.raises(DataError, match="FLUXCOV: expected pairs of 40 sources"):
        Deblended.read(tmp_path / "a.fits")
