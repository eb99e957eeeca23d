"""Survey runs: the image is covered once, objects are neither lost nor doubled, and a run goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scene_files import celestial
from scipy.ndimage import gaussian_filter

from tfdeblend.errors import DataError
from tfdeblend.inference import parts
from tfdeblend.survey import Survey, SurveySettings, tables, tasks
from tfdeblend.survey.outputs import FAILURES, OBJECTS, PAIRS
from tfdeblend.survey.tiles import tiles

pytest.importorskip("pyarrow")
SIDE, FLUX = 192, 500.0  # pixels of the image; of its galaxies
PSF_SIGMA = 1.8


def image(path: Path, band: str, seed: int, masked: tuple[slice, slice] | None = None, smoothing: float = 0.0) -> Path:
    """A lattice of round Gaussian galaxies, some of which lie on the edges of tiles, in noise of 1.

    smoothing: of the noise, pixels.
    """
    y, x = np.indices((SIDE, SIDE))
    light = np.zeros((SIDE, SIDE))
    for place in lattice():
        light += FLUX * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * 2.4**2)) / (2 * np.pi * 2.4**2)
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=light.shape), smoothing, mode="wrap")
    noisy = light + 5 + noise / noise.std()
    psf = np.exp(-((np.indices((25, 25)) - 12) ** 2).sum(0) / (2 * PSF_SIGMA**2))
    header = celestial().to_header()
    header.update({"FILTER": band, "MAGZERO": 27.0})
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(noisy.astype(np.float32), header, name="IMAGE")]
    variance = np.ones_like(noisy, np.float32)
    if masked is not None:
        variance[masked] = np.inf
    hdus += [fits.ImageHDU(variance, name="VARIANCE")]
    hdus += [fits.ImageHDU((psf / psf.sum()).astype(np.float32), name="PSF")]
    fits.HDUList(hdus).writeto(path)
    return path


def lattice() -> np.ndarray:
    """(K,2) places, most of them on edges of tiles of 64 pixels, to a tenth of a pixel."""
    y, x = np.meshgrid([31, 63.4, 95, 127.6, 159], [31, 63.5, 95, 127.5, 159], indexing="ij")
    return np.stack([y.ravel(), x.ravel()], 1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SurveySettings:
    folder = tmp_path_factory.mktemp("coadd")
    files = tuple(str(image(folder / f"coadd_{band}.fits", band, seed)) for seed, band in enumerate("gr"))
    return SurveySettings(files, prior="exponential", tile=64, border=64, margin=32)


@pytest.fixture(scope="module")
def run(settings: SurveySettings, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    survey = Survey(settings, tmp_path_factory.mktemp("run"))
    survey.report = survey.run(progress=False)  # type: ignore[attr-defined]
    return survey


def bright(survey: Survey) -> Table:
    """The objects that are no peaks of the noise."""
    table = survey.objects()
    return table[table["detect_snr"] > 10]


def digests(survey: Survey) -> dict[str, dict[str, str]]:
    return {file.name: json.loads(file.read_text()) for file in sorted((survey.out / "done").iterdir())}


@pytest.mark.parametrize(("shape", "side"), [((100, 70), 64), (((64, 64)), 64), ((5, 300), 128)])
def test_tiles_cover_the_image_once(shape: tuple[int, int], side: int) -> None:
    """Also places between pixels have one tile; borders end with the image."""
    count = np.zeros(shape, int)
    y, x = np.random.default_rng(0).uniform(-0.5, np.array(shape) - 0.5, (50, 2)).T
    owners = np.zeros(50, int)
    for tile in tiles(shape, side, 32):
        count[tile.inner] += 1
        owners += tile.owns(y, x)
        for inner, outer, length in zip(tile.inner, tile.outer, shape, strict=True):
            assert outer.start == max(inner.start - 32, 0) and outer.stop == min(inner.stop + 32, length)
    assert (count == 1).all() and (owners == 1).all()


def test_detection_alone_writes_no_objects(run: Survey, settings: SurveySettings, tmp_path: Path) -> None:
    survey = Survey(settings, tmp_path)
    report = survey.run(progress=False, fit=False)
    assert report.detections >= len(lattice()) and (report.objects, report.done) == (0, 0)
    assert not survey.files(OBJECTS)
    assert (tmp_path / "detections.parquet").read_bytes() == (run.out / "detections.parquet").read_bytes()


def test_no_object_is_lost_or_doubled_at_the_edges(run: Survey) -> None:
    """Each galaxy of a lattice that crosses the edges of tiles is found once."""
    table, places = bright(run), lattice()
    found = np.stack([table["y"], table["x"]], 1)
    nearest = np.hypot(*(found[:, None] - places).T).argmin(0)
    assert sorted(nearest.tolist()) == list(range(len(places)))
    assert np.hypot(*(found - places[nearest]).T).max() < 1
    assert len(np.unique(table["objectId"])) == len(table)


def test_fluxes_are_in_nanojansky_and_errors_hold(run: Survey) -> None:
    """Flux 1 of a zero point of 27 is 57.5 nJy."""
    table = bright(run)
    assert str(table["g_flux"].unit) == "nJy" and str(table["coord_ra"].unit) == "deg"
    pull = (np.asarray(table["g_flux"]) - FLUX * 10 ** (0.4 * 4.4)) / np.asarray(table["g_fluxErr"])
    assert np.sqrt(np.mean(pull**2)) < 1.5
    np.testing.assert_allclose(table["g_mag"], 31.4 - 2.5 * np.log10(table["g_flux"]), atol=1e-3)


def test_pairs_are_those_of_neighbours_and_each_is_there_once(run: Survey) -> None:
    rows = tables.joined([tables.read(file) for file in run.files(PAIRS)], tables.pairs(("g", "r"), "nJy"))
    assert (rows["objectId_1"] < rows["objectId_2"]).all()
    assert len({*zip(rows["objectId_1"].tolist(), rows["objectId_2"].tolist(), strict=True)}) == len(rows["objectId_1"])
    assert np.isin(rows["objectId_1"], run.objects()["objectId"]).all()


def test_a_run_that_is_given_again_does_nothing(run: Survey, settings: SurveySettings) -> None:
    before = digests(run)
    again = Survey(settings, run.out).run(progress=False)
    assert again.done == 0 and digests(run) == before
    assert again.objects == run.report.objects  # type: ignore[attr-defined]


def test_a_tile_whose_file_is_damaged_is_done_again_to_the_same_bytes(run: Survey, settings: SurveySettings) -> None:
    before = digests(run)
    file = run.out / "objects" / "tile_0001_0001.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    again = Survey(settings, run.out).run(progress=False)
    assert again.done == 1 and digests(run) == before


def test_a_folder_of_another_run_is_refused(run: Survey, settings: SurveySettings) -> None:
    with pytest.raises(DataError, match="expected the run of these settings"):
        Survey(replace(settings, threshold=4.0), run.out)


def test_detections_of_two_tiles_are_joined(settings: SurveySettings) -> None:
    """Where one reports an object on either side of the edge, that counts which is deeper in its own tile."""
    both = tiles((64, 128), 64, 32)
    columns = {"snr": np.array([9.0]), "half": np.array([2.0]), "reach": np.array([5.0])}
    found = [
        {"y": np.array([30.0]), "x": np.array([63.7])} | columns,
        {"y": np.array([30.2]), "x": np.array([63.3])} | columns,
    ]
    merged = tasks.merge(found, both, (64, 128))
    assert len(merged["x"]) == 1 and merged["tile"][0] in (0, 1)
    wide = tiles((5, 300), 128, 32)  # whose rows are fewer than a tile's
    of_each = [{"y": np.array([2.0]), "x": np.array([x])} | columns for x in (10.0, 140.0, 290.0)]
    assert tasks.merge(of_each, wide, (5, 300))["tile"].tolist() == [0, 1, 2]
    apart = tasks.merge([found[0], {"y": np.array([40.0]), "x": np.array([70.0])} | columns], both, (64, 128))
    assert apart["tile"].tolist() == [1, 1] and len(np.unique(apart["objectId"])) == 2


def test_neighbours_at_an_edge_stay_two(settings: SurveySettings) -> None:
    """Both tiles report both, 1.5 pixels apart."""
    both = tiles((64, 128), 64, 32)
    found = {"y": np.array([30.0, 30.0]), "x": np.array([62.8, 64.3]), "snr": np.array([9.0, 8.0])}
    found |= {"half": np.array([2.0, 2.0]), "reach": np.array([5.0, 5.0])}
    merged = tasks.merge([found, {name: values + 0.0 for name, values in found.items()}], both, (64, 128))
    assert merged["x"].tolist() == [62.8, 64.3] and merged["tile"].tolist() == [0, 1]


def test_a_tile_reads_the_detections_of_its_rows(tmp_path: Path) -> None:
    """What it sees of them is the same as of all, and so is its checksum; children are those of whole blends."""
    settings, rng = SurveySettings(("coadd.fits",), tile=64, border=64, margin=32), np.random.default_rng(0)
    all_tiles = tiles((640, 128), 64, 64)
    place = rng.uniform(0, [640, 128], (3000, 2))
    columns = {"snr": rng.uniform(5, 9, 3000), "half": np.full(3000, 1.0), "reach": np.full(3000, 1.5)}
    none = {name: np.zeros(0) for name in ("y", "x", *columns)}
    found = tasks.merge([dict(zip("yx", place.T, strict=True)) | columns] + [none] * 19, all_tiles, (640, 128))
    for blend, children in zip(found["blend"], found["children"], strict=True):
        assert children == (found["blend"] == blend).sum()
    tables.write(tmp_path / "detections.parquet", found, tables.DETECTIONS, {}, 100)
    for tile in all_tiles[::7]:
        near = tables.read(tmp_path / "detections.parquet", y=tasks.reach(settings, tile))
        assert len(near["y"]) < len(found["y"]) / 3
        whole = tables.read(tmp_path / "detections.parquet")
        assert tasks.digest(settings, tile, near) == tasks.digest(settings, tile, whole)


def test_masked_tiles_and_bands_are_no_failures(tmp_path: Path) -> None:
    """A tile without a pixel has no detections; one that a band lacks has those of the others."""
    right, all_right = (slice(0, SIDE), slice(64, SIDE)), (slice(0, SIDE), slice(64 - 40, SIDE))
    files = [image(tmp_path / "coadd_g.fits", "g", 0, right), image(tmp_path / "coadd_r.fits", "r", 1)]
    one_band = SurveySettings(tuple(map(str, files)), prior="exponential", tile=64, border=64, margin=0)
    _, last = one_band.tiles()[0], one_band.tiles()[2]
    assert len(tasks.detect(one_band, last)["y"]) > 2
    assert not one_band.read(last.outer).valid[0].any()
    none = image(tmp_path / "empty_g.fits", "g", 0, all_right)
    empty = SurveySettings((str(none),), prior="exponential", tile=64, border=64, margin=0)
    assert len(tasks.detect(empty, last)["y"]) == 0


def test_tiles_that_fail_are_reported_and_done_again(
    settings: SurveySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be searched is not taken for empty; what it had goes, and comes back when it works."""
    few = replace(settings, tile=128, threshold=50.0)
    survey = Survey(few, tmp_path / "run")
    search = tasks.detect

    def detect(settings: SurveySettings, tile: object) -> tables.Table:
        if tile == survey.tiles[0]:
            raise OSError("expected a disk, received none")
        return search(settings, tile)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "detect", detect)
    report = survey.run(progress=False)
    assert report.failures == 1 and report.kinds == {"OSError": 1}
    assert "OSError: expected a disk, received none" in str(report)
    monkeypatch.setattr(tasks, "detect", search)
    again = Survey(few, survey.out).run(progress=False)
    assert again.failures == 0 and again.objects > report.objects


def test_correlated_noise_is_measured_where_that_is_asked_for(tmp_path: Path) -> None:
    """Then its peaks are no sources, and the fit of a tile knows how it is correlated."""
    files = tuple(str(image(tmp_path / f"{band}.fits", band, seed, smoothing=0.8)) for seed, band in enumerate("gr"))
    white = SurveySettings(files, prior="exponential", tile=64, border=64, margin=32)
    known = replace(white, sky_correlation=True)
    all_tiles = white.tiles()
    found = {
        one: tasks.merge([tasks.detect(one, tile) for tile in all_tiles], all_tiles, one.shape)
        for one in (white, known)
    }
    assert len(found[known]["y"]) == len(lattice()) < len(found[white]["y"])
    fitted = tasks.deblend(known, all_tiles[4], 4, found[known])
    errors = fitted.objects["g_fluxErr"]
    assert np.all(errors > 1600) and not any("correlated" in note for note in fitted.notes)  # 1,070 as of white noise


def test_files_of_one_table_are_a_dataset(run: Survey) -> None:
    """Also tiles without an object, or without a failure, have the columns' types."""
    from pyarrow import parquet

    for part in (OBJECTS, PAIRS, FAILURES):
        rows = sum(tables.rows(file) for file in run.files(part))
        assert parquet.read_table(run.out / part.name).num_rows == rows


def test_blends_are_what_ties_join() -> None:
    """A chain is one blend, though its ends do not touch."""
    places = np.array([[0.0, 0.0], [0.0, 8.0], [0.0, 16.0], [0.0, 60.0]])
    labels = parts.blends(places, np.full(4, 2.0), np.full(4, 7.0))
    assert len({*labels[:3]}) == 1 and labels[3] != labels[0]


def test_a_blend_that_fails_is_a_row_and_the_others_go_on(
    settings: SurveySettings, run: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole tile is refused, then one blend of it."""
    detections = tables.read(run.out / "detections.parquet")
    tile = run.tiles[4]
    own = detections["objectId"][detections["tile"] == 4]
    deblender = tasks.deblender(settings)
    true, poisoned = type(deblender).deblend, str(own[0])

    def deblend(self: object, scenes: object) -> object:
        raise DataError("tile", "fit", "expected numbers, received none")

    iterate = type(deblender).iterate

    def some(self, scenes):
        for index, result in iterate(self, scenes):
            bad = any(source.id == poisoned for source in scenes[index].sources)
            yield index, DataError("blend", "fit", "expected numbers, received none") if bad else result

    monkeypatch.setattr(type(deblender), "deblend", deblend)
    monkeypatch.setattr(type(deblender), "iterate", some)
    found = tasks.deblend(settings, tile, 4, detections)
    monkeypatch.setattr(type(deblender), "deblend", true)
    assert int(poisoned) in found.failures["objectId"] and (found.failures["stage"] == "deblend").all()
    assert sorted([*found.failures["objectId"], *found.objects["objectId"]]) == sorted(own)
    assert len(found.objects["objectId"])
    assert any(note.startswith("blends were fitted one by one") for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_catalogue(run: Survey, settings: SurveySettings, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("distributed")
    survey = Survey(settings, tmp_path / "run")
    survey.run(workers, progress=False)
    one, two = bright(run), bright(survey)
    assert list(one["objectId"]) == list(two["objectId"])
    np.testing.assert_allclose(one["g_flux"], two["g_flux"], rtol=1e-6)


@pytest.mark.parametrize("side", [128, 256])
def test_tiles_of_other_sizes_see_the_same(tmp_path: Path, side: int) -> None:
    """Sky and detections in an image with a gradient are those of a single tile, but for what touches an edge."""
    shape, rng = (256, 768), np.random.default_rng(5)
    images = rng.normal(size=shape) + np.linspace(0, 4, shape[1])
    for y, x in rng.uniform(0, shape, (90, 2)):
        rows, columns = (np.arange(n) - at for n, at in zip(shape, (y, x), strict=True))
        images += rng.uniform(50, 2000) * np.outer(*(np.exp(-((at / 2.4) ** 2) / 2) / 6 for at in (rows, columns)))
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(images, name="IMAGE"), fits.ImageHDU(np.ones(shape), name="VARIANCE")]
    psf = np.exp(-((np.indices((25, 25)) - 12) ** 2).sum(0) / (2 * PSF_SIGMA**2))
    fits.HDUList([*hdus, fits.ImageHDU(psf / psf.sum(), name="PSF")]).writeto(tmp_path / "coadd.fits")
    one = SurveySettings((str(tmp_path / "coadd.fits"),), tile=768)
    found = []
    for settings in (one, replace(one, tile=side)):
        parts, sky = [], np.zeros(shape)
        for tile in settings.tiles():
            parent = np.zeros(shape)
            parent[tile.outer] = (settings.read(tile.outer).images - tasks.observe(settings, tile).images)[0]
            sky[tile.inner] = parent[tile.inner]
            parts.append(tasks.detect(settings, tile))
        found.append((sky, tasks.merge(parts, settings.tiles(), shape)))
    (sky, whole), (again, pieces) = found
    np.testing.assert_allclose(again, sky, atol=1e-5)  # of the rounding of the images
    assert len(whole["y"]) == len(pieces["y"]) > 60
    edge = np.minimum(whole["x"] % side, side - whole["x"] % side)
    edge = np.minimum(edge, np.minimum(whole["y"] % side, side - whole["y"] % side))
    for name in ("y", "x", "snr", "half", "reach"):
        np.testing.assert_allclose(pieces[name][edge > 16], whole[name][edge > 16], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_other_tiles_give_the_same_catalogue(settings: SurveySettings, tmp_path: Path) -> None:
    """Also objects on edges of tiles, to a fiftieth of their errors, by which a fit may stop early."""
    tables = []
    for side in (64, 192):
        survey = Survey(replace(settings, tile=side, border=192, margin=64), tmp_path / str(side))
        survey.run(progress=False)
        tables.append(bright(survey))
    one, two = tables
    apart = np.hypot(*(np.stack([np.subtract.outer(one[axis], two[axis]) for axis in ("y", "x")])))
    match = apart.argmin(1)
    assert sorted(match.tolist()) == list(range(len(two))) and apart.min(1).max() < 0.01
    assert (np.abs(one["g_flux"] - two["g_flux"][match]) / two["g_fluxErr"][match]).max() < 0.02


def test_a_tile_without_enough_sky_has_white_noise(tmp_path: Path) -> None:
    """It is not lost, and says so."""
    file = image(tmp_path / "g.fits", "g", 0, masked=(slice(3, None), slice(None)), smoothing=0.8)
    known = SurveySettings((str(file),), prior="exponential", tile=64, border=64, margin=32, sky_correlation=True)
    flat = tasks.observe(known, known.tiles()[0])
    one = tasks._with_noise(known, flat.cut(slice(0, 3), slice(0, 64)))
    assert one.noise_correlation is None and "the noise is taken as white here" in one.notes[-1]
