"""The page over a survey run: pictures that cover the image once, numbers that add up, and the match with the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image
from scene_files import celestial

from tfdeblend.app import cli, survey_page
from tfdeblend.cluster import here
from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError
from tfdeblend.survey import Survey, SurveySettings, pictures, tables, truth
from tfdeblend.survey.tiles import Section, Tile

pytest.importorskip("pyarrow")
SHAPE, TILE = (150, 200), 64  # tiles of 3 rows and 4 columns


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SurveySettings:
    """Two bands of noise, a bright square in the lower left, and columns without data on the right.

    Nothing is found, so that nothing is fitted.
    """
    folder, rng = tmp_path_factory.mktemp("coadd"), np.random.default_rng(0)
    psf = np.exp(-((np.indices((15, 15)) - 7) ** 2).sum(0) / 8)
    for band in "gr":
        image, variance = rng.normal(size=SHAPE), np.ones(SHAPE, np.float32)
        image[10:20, 30:40] += 3000
        variance[:, 190:] = np.inf
        header = celestial().to_header()
        header.update({"FILTER": band, "MAGZERO": 27.0})
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(image.astype(np.float32), header, name="IMAGE")]
        hdus += [fits.ImageHDU(variance, name="VARIANCE")]
        hdus += [fits.ImageHDU((psf / psf.sum()).astype(np.float32), name="PSF")]
        fits.HDUList(hdus).writeto(folder / f"coadd_{band}.fits")
    files = tuple(str(folder / f"coadd_{band}.fits") for band in "gr")
    return SurveySettings(files, prior="exponential", tile=TILE, border=64, margin=32, threshold=1e9)


@pytest.fixture(scope="module")
def run(settings: SurveySettings, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    survey = Survey(settings, tmp_path_factory.mktemp("run"))
    survey.run(progress=False, pictures=True)
    return survey


def redraw(survey: Survey, out: Path | None = None) -> None:
    def counted(results: Any, number: int) -> Any:
        return results

    for _ in pictures.draw(survey.settings, out or survey.out, survey.tiles, here, counted):
        pass


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)[::-1]


def drawn(out: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted((out / "pictures" / "image").rglob("*.jpg"))
    return {str(file.relative_to(out)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_pictures_cover_the_image_and_those_above_are_their_means(run: Survey) -> None:
    """Row 0 is at the bottom; masked pixels are grey."""
    of_tiles = [[read(pictures.path(run.out, "image", 0, (row, column))) for column in range(4)] for row in range(3)]
    whole = np.concatenate([np.concatenate(row, 1) for row in of_tiles])
    assert whole.shape == (*SHAPE, 3) and pictures.levels(run.tiles) == 3
    assert whole[12:18, 32:38].min() > 150 > 60 > np.median(whole[:, :180])
    assert np.abs(whole[:, 192:] - pictures.MASKED).max() < 12
    top = read(pictures.path(run.out, "image", 2, (0, 0)))
    assert top.shape == (-(-SHAPE[0] // 4), SHAPE[1] // 4, 3)
    means = whole[:148].reshape(37, 4, 50, 4, 3).mean((1, 3))
    assert np.abs(top[:37] - means).mean() < 3


def test_only_pictures_that_are_missing_are_drawn(run: Survey) -> None:
    before = drawn(run.out)
    redraw(run)
    assert drawn(run.out) == before
    pictures.path(run.out, "image", 0, (1, 2)).unlink()
    pictures.path(run.out, "image", 2, (0, 0)).write_bytes(b"no picture")
    redraw(run)
    after = drawn(run.out)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    assert [name for name in after if after[name][0] != before[name][0]] == [
        "pictures/image/0/1_2.jpg",
        "pictures/image/2/0_0.jpg",
    ]


def test_a_tile_that_cannot_be_drawn_is_said_and_the_others_are_drawn(
    run: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = pictures.observe

    def broken(settings: SurveySettings, tile: Tile) -> Any:
        if (tile.row, tile.column) == (2, 0):
            raise OSError("expected a disk,\nreceived none")
        return observe(settings, tile)

    monkeypatch.setattr(pictures, "observe", broken)
    redraw(run, tmp_path)
    assert pictures.failed(tmp_path) == {"tile_0002_0000": "expected a disk, received none"}
    assert len(drawn(tmp_path)) == 12 - 1 + 4 + 1
    assert np.abs(read(pictures.path(tmp_path, "image", 1, (1, 0)))[:8, :30] - pictures.MASKED).max() < 8


def test_a_run_of_which_no_tile_can_be_read_has_a_page(
    settings: SurveySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SurveySettings, *section: object) -> Any:
        raise OSError("expected a disk, received none")

    monkeypatch.setattr(SurveySettings, "read", broken)
    report = Survey(settings, tmp_path / "run").run(progress=False, pictures=True)
    assert report.failures == report.tiles and report.objects == 0
    assert "expected a disk" in survey_page.write_page(tmp_path / "run").read_text()


def catalogue(number: int, seed: int = 0) -> tables.Table:
    """A catalogue of two bands, of fluxes that are their truth and an error."""
    rng, columns = np.random.default_rng(seed), tables.objects(("g", "r"), "nJy")
    table = {name: np.ones(number, column.dtype) for name, column in columns.items()}
    table["objectId"] = table["parentObjectId"] = np.arange(number)
    table["y"], table["x"] = rng.uniform(0, [[SHAPE[0] - 1], [180.0]], (2, number))
    table["kind"] = np.where(np.arange(number) % 5, "galaxy", "point").astype("U8")
    table["flags"] = np.zeros(number, int)
    for band in "gr":
        table[f"{band}_flux"] = 10 ** rng.uniform(2, 4, number)
        table[f"{band}_fluxErr"] = np.full(number, 20.0)
    return table


def test_the_page_adds_up_and_stays_small(settings: SurveySettings, tmp_path: Path) -> None:
    """Of 64 tiles with 200 objects each; their objects are beside it."""
    facts = {"settings": {**vars(settings), "images": settings.images, "tile": 64, "border": 64}, "version": "1"}
    facts = {key: value for key, value in facts.items()}
    facts["settings"] = {k: v for k, v in facts["settings"].items() if k in SurveySettings.__dataclass_fields__}
    (tmp_path / "run.json").write_text(json.dumps(facts | {"shape": [512, 512]}))
    folder = survey_page.SurveyRun(tmp_path)
    for number, tile in enumerate(folder.tiles()):
        table = catalogue(200, number) | {"flags": np.full(200, 16 * (number % 2))}
        failed = {"objectId": [7], "tile": [number], "stage": ["deblend"], "kind": ["Error"], "message": ["</script>"]}
        tables.write(tmp_path / "objects" / f"{tile.name}.parquet", table, tables.objects(("g", "r"), "nJy"), {})
        if number:
            tables.write(tmp_path / "failures" / f"{tile.name}.parquet", failed, tables.FAILURES, {})
    page = survey_page.write_page(tmp_path).read_text()
    assert len(page) < 5e5 and page.count("</script>") == 2
    assert 'src="http' not in page and "@import" not in page
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert data["tiles"]["objects"] == [200] * 64 and sum(data["tiles"]["failures"]) == 63
    assert sum(data["counts"]["bands"]["g"]) == 12800 and data["unit"] == "nJy"
    assert data["flags"] == [[16, "chi-square per pixel above 2 where this source shines", 6400]]
    assert data["failures"][0][:4] == ["deblend", "Error", "</script>", 63]
    assert len(data["diagram"]["points"]) <= survey_page.POINTS
    text = (tmp_path / "pictures" / "objects" / "tile_0007_0007.js").read_text()
    assert len(json.loads(text.removeprefix("tile(").removesuffix(")\n"))["x"]) == 200


def test_a_run_of_no_objects_has_a_page(run: Survey) -> None:
    page = survey_page.write_page(run.out).read_text()
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert data["tiles"]["objects"] == [0] * 12 and data["layers"] == ["image"] and data["shown"] == ["r", "g"]
    with pytest.raises(DataError, match="expected the folder of a survey run"):
        survey_page.write_page(run.out / "objects")


def test_pairs_are_each_others_nearest() -> None:
    """Of two sources near an object one is its partner; beyond the radius none is."""
    objects, sources = np.array([[5.0, 5.0], [20.0, 20.0]]), np.array([[5.0, 6.0], [5.0, 4.5], [20.0, 24.0]])
    found, which = truth.match(objects, sources, 3.0)
    assert found.tolist() == [0] and which.tolist() == [1]
    assert all(len(part) == 0 for part in truth.match(objects[:0], sources, 3.0))


def test_a_catalogue_that_is_the_truth_and_noise_is_told_so() -> None:
    """Half of the sources are taken from it, and as many objects are added that are none: 1/2 and 1/2."""
    number, rng = 4000, np.random.default_rng(2)
    places = np.stack(np.divmod(np.arange(number), 64), 1) * 40.0
    flux = np.repeat(10 ** (0.4 * (31.4 - np.array([22.25, 23.25]))), number // 2)
    true = truth.Truth({"y": places[:, 0], "x": places[:, 1], "r_flux": flux}, 0.2)
    kept, error = np.arange(number) % 2 == 0, 0.01 * flux
    made = places[kept] + [20.0, 0]
    objects = {"y": np.append(places[kept, 0], made[:, 0]), "x": np.append(places[kept, 1], made[:, 1])}
    objects["r_flux"] = np.tile((flux + error * rng.normal(size=number))[kept], 2)
    objects["r_fluxErr"], objects["deblend_nChild"] = np.tile(error[kept], 2), np.ones(number, int)
    found = truth.compare(objects, true, "r")
    at = [np.searchsorted(found.edges, m) - 1 for m in (22.25, 23.25)]
    for name, value in (("completeness", 0.5), ("purity", 0.5), ("wrong", 0.0)):
        np.testing.assert_allclose(found.shares[name][0, at], value, atol=1e-9)
    np.testing.assert_allclose(found.shares["within68"][0, at], 0.683, atol=0.05)
    np.testing.assert_allclose(found.scatter[0, at], 0.01, rtol=0.1)
    assert np.abs(found.bias[0, at]).max() < 1e-3 and found.counts["sources"][1].sum() == number
    assert found.chance == 0 and "0.500" in str(found)


def test_blends_are_told_apart_by_the_truth() -> None:
    """A source with one as bright 1 arcsec away is blended; one with a neighbour 100 times fainter is not."""
    sources = {"y": np.zeros(4), "x": np.array([0.0, 5.0, 100.0, 105.0]), "r_flux": np.array([100.0, 90, 100, 1])}
    objects = sources | {"r_fluxErr": np.ones(4), "deblend_nChild": np.array([2, 2, 2, 2])}
    found = truth.compare(objects, truth.Truth(sources, 0.2), "r")
    assert found.counts["sources"].sum(1).tolist() == [4, 1, 3]


def test_the_truth_is_read_and_refused(settings: SurveySettings, tmp_path: Path) -> None:
    """Sources beyond the image and where all bands are masked are left out."""
    x, y = np.array([50.0, 195.0, 500.0]), np.array([149.4, 20.0, 20.0])
    ra, dec = celestial().pixel_to_world_values(x, y)
    table = Table({"x": x, "y": y, "ra": ra, "dec": dec, "mag_g": np.full(3, 27.0)})
    table.write(tmp_path / "truth.ecsv")
    found = truth.read(tmp_path / "truth.ecsv", settings)
    assert found.sources["x"].tolist() == [50] and found.pixel_scale == pytest.approx(0.2)
    np.testing.assert_allclose(found.sources["g_flux"], 10 ** (0.4 * 4.4))
    table["ra", "dec", "mag_g"].write(tmp_path / "sky.fits")
    np.testing.assert_allclose(truth.read(tmp_path / "sky.fits", settings).sources["x"], 50, atol=1e-6)
    masked = Table({"x": x[[0, 0]], "y": y[[0, 0]], "mag_g": np.ma.array([27.0, 27.0], mask=[False, True])})
    masked.write(tmp_path / "masked.ecsv")
    assert np.isnan(truth.read(tmp_path / "masked.ecsv", settings).sources["g_flux"]).tolist() == [False, True]
    table["x"] += 1
    table.write(tmp_path / "off.ecsv")
    with pytest.raises(DataError, match=r"received 1.00 pixels between them"):
        truth.read(tmp_path / "off.ecsv", settings)
    table["x", "y"].write(tmp_path / "none.ecsv")
    with pytest.raises(DataError, match=r"expected a column mag_<band>"):
        truth.read(tmp_path / "none.ecsv", settings)


def test_true_sources_on_a_tile_that_cannot_be_read_do_not_count(
    settings: SurveySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the first, whose WCS is read."""
    ra, dec = celestial().pixel_to_world_values([20.0, 180.0], [20.0, 70.0])
    Table({"ra": ra, "dec": dec, "mag_g": [27.0, 27.0]}).write(tmp_path / "truth.ecsv")
    read = SurveySettings.read

    def damaged(settings: SurveySettings, section: Section) -> Observation:
        if section[0].start == section[1].start == 0:
            raise DataError("coadd", "VARIANCE", "expected another one")
        return read(settings, section)

    monkeypatch.setattr(SurveySettings, "read", damaged)
    found = truth.read(tmp_path / "truth.ecsv", settings).sources
    np.testing.assert_allclose([found["x"], found["y"]], [[180], [70]], atol=1e-6)


def test_the_command_writes_the_page_and_prints_the_comparison(
    settings: SurveySettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Table({"x": [50.0], "y": [60.0], "mag_r": [22.25]}).write(tmp_path / "truth.ecsv")
    out = tmp_path / "run"
    options = ["--prior", "exponential", "--threshold", "1e9", "--tile", "128", "--out", str(out), "--quiet"]
    assert cli.main(["survey", *settings.images, *options, "--truth", str(tmp_path / "truth.ecsv")]) == 0
    printed = capsys.readouterr().out
    assert "22.0-22.5       all        1    0.000" in printed
    assert (out / "index.html").is_file() and (out / "pictures" / "image" / "1" / "0_0.jpg").is_file()
    with pytest.raises(DataError, match="expected the run of these settings"):
        Survey(replace(settings, tile=64), out)
