"""What a survey run writes on request: images of models, posterior samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from scene_files import celestial

from tfdeblend.app import survey_page
from tfdeblend.catalog.builder import build_from_samples
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.statistics import Sample, SampleStatistics
from tfdeblend.cluster import here
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.survey import Survey, SurveySettings, hats, pictures, tables, tasks
from tfdeblend.survey.outputs import MODELS, SAMPLES, checksums

pytest.importorskip("pyarrow")
HEIGHT, WIDTH = 64, 128
PAIR, ALONE = ((30, 58), (30, 65)), ((36, 110),)  # the pair lies on both sides of the edge of two tiles
FLUX, SIGMA = 900.0, 2.4


def coadd(path: Path, band: str, seed: int) -> str:
    """A pair of round Gaussian galaxies and one far away, on a sky of 5 with noise of 1; some pixels are masked."""
    y, x = np.indices((HEIGHT, WIDTH))
    noisy = 5 + np.random.default_rng(seed).normal(size=y.shape)
    for row, column in (*PAIR, *ALONE):
        noisy += FLUX * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    psf = np.exp(-((np.indices((25, 25)) - 12) ** 2).sum(0) / (2 * 1.8**2))
    header = celestial().to_header()
    header.update({"FILTER": band, "MAGZERO": 27.0})
    variance = np.ones_like(noisy, np.float32)
    variance[50:, :5] = np.inf
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(noisy.astype(np.float32), header, name="IMAGE")]
    hdus += [fits.ImageHDU(variance, name="VARIANCE")]
    hdus += [fits.ImageHDU((psf / psf.sum()).astype(np.float32), name="PSF")]
    fits.HDUList(hdus).writeto(path)
    return str(path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SurveySettings:
    folder = tmp_path_factory.mktemp("coadd")
    files = tuple(coadd(folder / f"coadd_{band}.fits", band, seed) for seed, band in enumerate("gr"))
    return SurveySettings(files, prior="exponential", models=True, tile=64, border=64, margin=32, threshold=8.0)


def known(scene: Scene, draws: int) -> Deblended:
    """The result for a scene of such galaxies by samples that make all brighter and fainter by a hundredth."""
    y, x = np.indices(scene.observation.shape[1:])
    places = np.round(scene.positions)
    apart = (y - places[:, 0, None, None]) ** 2 + (x - places[:, 1, None, None]) ** 2
    light = FLUX * np.exp(-apart / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    light = np.repeat(light[:, None], len(scene.bands), 1)
    corners = np.maximum(places.astype(int) - 12, 0)
    stamps = np.stack([np.pad(one, ((0, 0), (0, 25), (0, 25)))[:, r : r + 25, c : c + 25] for one, (r, c) in zip(
        light, corners.tolist(), strict=True)])  # fmt: skip
    statistics = SampleStatistics(scene, corners, 1.0)
    for factor in 1 + 0.01 * np.linspace(-1, 1, draws):
        statistics.add(
            Sample(
                models=[factor * light.sum(0)],
                sources=[factor * light],
                backgrounds=[np.zeros(len(scene.bands))],
                stamps=factor * stamps,
                flux=np.full(light.shape[:2], factor * FLUX),
                prior_variance=np.zeros(stamps.shape),
                beyond_prior=np.zeros(len(light), bool),
            )
        )
    return build_from_samples(statistics, {"method": "sample", "walltime": 0.01})


@pytest.fixture
def fits_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deblenders that know the answer."""

    def iterate(self: Deblender, scenes: list[Scene]) -> Iterator[tuple[int, Deblended]]:
        for index, scene in enumerate(scenes):
            found = known(scene, self.samples)
            yield index, found if self.method == "sample" else replace(found, sample_catalog=None)

    monkeypatch.setattr(Deblender, "iterate", iterate)


@pytest.fixture
def run(settings: SurveySettings, fits_known: None, tmp_path: Path) -> Survey:
    survey = Survey(settings, tmp_path / "run")
    assert survey.run(progress=False).failures == 0
    return survey


@pytest.fixture
def sampled(settings: SurveySettings) -> SurveySettings:
    return replace(settings, method="sample", samples=3, sample_above=0.05)


def test_models_cover_the_image_once_and_leave_the_noise(run: Survey, settings: SurveySettings) -> None:
    """Model + residual = image - sky on each tile's inner region, NaN where masked, on the pixels of the image."""
    whole, covered = WCS(fits.getheader(settings.images[0], "IMAGE")), np.zeros((HEIGHT, WIDTH), int)
    for tile, file in zip(run.tiles, run.files(MODELS), strict=True):
        flat = tasks.observe(settings, tile)
        inner = [
            slice(part.start - first, part.stop - first) for part, first in zip(tile.inner, tile.corner, strict=True)
        ]
        with fits.open(file) as hdus:
            model, residual, header = hdus["MODEL"].data, hdus["RESIDUAL"].data, hdus["MODEL"].header
        valid = flat.valid[:, *inner]
        np.testing.assert_allclose((model + residual)[valid], flat.images[:, *inner][valid], atol=1 / 64 + 1e-4)
        np.testing.assert_array_equal(np.isnan(residual), ~valid)
        assert 0.8 < np.nanstd(residual) < 1.2 and header["NLACKING"] == 0
        place, (rows, columns) = whole.pixel_to_world(tile.inner[1].start + 3, tile.inner[0].start + 9), tile.inner
        assert place.separation(WCS(header).celestial.pixel_to_world(3, 9)).arcsec < 1e-6
        assert (header["LTV1"], header["LTV2"]) == (-columns.start, -rows.start)
        covered[rows, columns] += 1
    assert (covered == 1).all()


def test_only_blends_above_the_blendedness_are_sampled(run: Survey, sampled: SurveySettings) -> None:
    """Of the pair on the edge each tile has the samples of its own; their mean is in the table of objects."""
    detections = tables.read(run.out / "detections.parquet")
    for number, tile in enumerate(run.tiles):
        found = tasks.deblend(sampled, tile, number, detections)
        objects, drawn = found.objects, found.samples
        np.testing.assert_array_equal(objects["sampled"], objects["deblend_nChild"] == 2)
        (k,) = np.flatnonzero(objects["sampled"])
        assert drawn["objectId"].tolist() == drawn["groupId"].tolist() == [objects["objectId"][k]] * 3
        assert drawn["draw"].tolist() == [0, 1, 2]
        error = objects["g_fluxErr"][k]
        np.testing.assert_allclose(drawn["g_flux"], objects["g_flux"][k] + error * np.array([-1, 0, 1]), rtol=1e-5)
        np.testing.assert_allclose(drawn["x"].mean(), objects["x"][k], rtol=1e-6)
        assert drawn["coord_ra"][1] == pytest.approx(objects["coord_ra"][k], abs=1e-9)
        assert found.model is not None and np.nanmax(np.abs(found.model.residual)) < 6


def test_objects_that_are_drawn_together_are_a_group(run: Survey, sampled: SurveySettings) -> None:
    """Draw n of objects of one group are of one joint sample."""
    everything = replace(sampled, sample_above=None)
    found = tasks.deblend(everything, run.tiles[1], 1, tables.read(run.out / "detections.parquet"))
    objects = found.objects["objectId"]
    assert len(found.samples["draw"]) == 3 * len(objects) and {*found.samples["groupId"]} == {objects[0]}
    assert found.objects["sampled"].all()


def test_a_tile_with_neighbours_alone_has_their_light_and_no_samples(run: Survey, sampled: SurveySettings) -> None:
    """Nor has it any of an object that could not be fitted."""
    detections = tables.read(run.out / "detections.parquet")
    everything, foreign = replace(sampled, sample_above=None), detections | {"tile": 0 * detections["tile"]}
    found = tasks.deblend(everything, run.tiles[1], 1, foreign)
    assert found.model is not None and found.model.sources > 0 and found.model.light.max() > 1
    assert {len(column) for table in (found.objects, found.samples) for column in table.values()} == {0}


def test_a_blend_that_cannot_be_sampled_keeps_its_maximum(
    run: Survey, sampled: SurveySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a row of the failures as well."""
    iterate = Deblender.iterate

    def failing(self: Deblender, scenes: list[Scene]) -> Iterator[tuple[int, Deblended | Exception]]:
        for index, result in iterate(self, scenes):
            failed = DataError(scenes[index].name, "memory", "expected less, received more")
            yield index, failed if self.method == "sample" else result

    monkeypatch.setattr(Deblender, "iterate", failing)
    found = tasks.deblend(sampled, run.tiles[0], 0, tables.read(run.out / "detections.parquet"))
    assert found.failures["stage"].tolist() == ["sample"] and not len(found.samples["draw"])
    assert found.failures["objectId"].tolist() == found.objects["objectId"].tolist()
    assert found.model is not None and found.model.lacking == 0 and not found.objects["sampled"].any()


def test_a_damaged_image_is_written_again(settings: SurveySettings, run: Survey) -> None:
    """To the same bytes."""
    file = run.files(MODELS)[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert Survey(settings, run.out).run(progress=False).done == 1 and file.read_bytes() == whole


def luminance(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")).astype(float)[::-1]


def test_model_and_residual_are_layers_of_the_page(run: Survey) -> None:
    """Of a model that is the truth the residual is noise around grey, of an rms of 1 sigma."""
    run.run(progress=False, pictures=True)
    page = survey_page.write_page(run.out).read_text()
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert data["layers"] == ["image", "model", "residual"] and data["residual"]["limit"] == 5
    np.testing.assert_allclose(data["tiles"]["rms"], 1, atol=0.03)
    image, model, residual = (
        np.concatenate([luminance(pictures.path(run.out, layer, 0, (0, column))) for column in (0, 1)], 1)
        for layer in data["layers"]
    )
    low, high = (np.dot(colour, (0.299, 0.587, 0.114)) for colour in pictures.ENDS)
    empty = residual[:, 5:]
    assert np.mean(empty) == pytest.approx((low + high) / 2, abs=1)
    assert np.std(empty) == pytest.approx((high - low) / 2 / pictures.LIMIT, rel=0.1)
    assert model[:15].std() < 2 < 8 < image[:15].std() and abs(residual[52:62, :3] - 60).max() < 12
    for y, x in (*PAIR, *ALONE):
        assert model[y, x] > 100 and model[y, x] == pytest.approx(image[y, x], rel=0.1)
    assert np.std(luminance(pictures.path(run.out, "residual", 1, (0, 0)))) < 0.8 * np.std(empty)


def test_layers_of_a_tile_are_drawn_again_with_its_model_alone(run: Survey) -> None:
    """Without a model, as the fit failed, the tile has none of them."""

    def drawn() -> dict[str, int]:
        def counted(results: Any, number: int) -> Any:
            return results

        assert all(isinstance(used, dict) for used in pictures.draw(run.settings, run.out, run.tiles, here, counted))
        folder = run.out / pictures.FOLDER
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}

    before, sums = drawn(), checksums(run.out, run.tiles[1])
    assert drawn() == before and len(before) == 3 * 3
    sums.write_text(json.dumps(json.loads(sums.read_text()) | {MODELS.name: "of another fit"}))
    after = drawn()
    layers = ("model", "residual")
    assert {path for path in after if after[path] != before[path]} == {
        f"{layer}/{place}.jpg" for layer in layers for place in ("0/0_1", "1/0_0")
    }
    sums.unlink()
    assert after.keys() - drawn().keys() == {f"{layer}/0/0_1.jpg" for layer in layers}


@pytest.mark.slow
def test_a_run_samples_its_blends(settings: SurveySettings, tmp_path: Path) -> None:
    """Means and errors in the table of objects are those of the samples."""
    survey = Survey(replace(settings, method="sample", samples=4, sample_above=0.05), tmp_path / "run")
    assert survey.run(progress=False).failures == 0
    objects, drawn = survey.objects(), [tables.read_astropy(file) for file in survey.files(SAMPLES)]
    assert objects["sampled"].sum() == 2 and sum(len(table) for table in drawn) == 8
    for row in objects[objects["sampled"]]:
        (mine,) = (
            table[table["objectId"] == row["objectId"]] for table in drawn if row["objectId"] in table["objectId"]
        )
        assert str(mine["g_flux"].unit) == "nJy" and len(mine) == 4
        assert np.mean(mine["g_flux"]) == pytest.approx(row["g_flux"], rel=1e-4)
        assert np.std(mine["g_flux"], ddof=1) == pytest.approx(row["g_fluxErr"], rel=1e-2)
        assert np.mean(mine["x"]) == pytest.approx(row["x"], abs=1e-4)


@pytest.mark.slow
def test_lsdb_matches_the_objects(run: Survey, tmp_path: Path) -> None:
    """Each object once, by the place of its galaxy; units and descriptions stay in the schema."""
    lsdb = pytest.importorskip("lsdb", reason="pip install lsdb")
    pytest.importorskip("hats_import", reason="pip install 'tfdeblend[hats]'")
    from pyarrow import parquet

    for _ in range(2):  # written again, it is the same
        run.write_hats(tmp_path / "catalogue")
    found, objects = lsdb.open_catalog(tmp_path / "catalogue"), run.objects()
    sky = celestial().pixel_to_world(*np.transpose([(x, y) for y, x in (*PAIR, *ALONE)]))
    truth = lsdb.from_dataframe(pandas_table(ra=sky.ra.deg, dec=sky.dec.deg), margin_threshold=10)
    matched = found.crossmatch(truth, radius_arcsec=1, suffixes=("", "_true"), suffix_method="all_columns").compute()
    assert sorted(matched["objectId"]) == sorted(objects["objectId"]) and len(matched) == 3
    assert found.margin is not None
    field = parquet.read_schema(next((tmp_path / "catalogue").rglob("Npix=*.parquet"))).field("g_flux")
    assert field.metadata[b"unit"] == b"nJy" and field.metadata[b"description"] == b"flux in g"
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="expected no such folder, or the HATS catalogue of this run"):
        run.write_hats(tmp_path / "other")


def pandas_table(**columns: np.ndarray) -> object:
    import pandas

    return pandas.DataFrame(columns)


def test_a_folder_around_a_catalogue_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the catalogue itself is, since what is replaced is removed with all that it holds."""
    monkeypatch.setattr(hats, "_pipeline", lambda: None)
    catalogue = tmp_path / "data" / "catalogue"
    catalogue.mkdir(parents=True)
    (catalogue / "collection.properties").write_text("#HATS Collection\ntfdeblend_run=abc\n")
    hats.check(catalogue, "abc")
    for folder, key in ((tmp_path / "data", "abc"), (catalogue, "ab"), (catalogue, "abd")):
        with pytest.raises(DataError, match="expected no such folder, or the HATS catalogue of this run"):
            hats.check(folder, key)


def test_hats_needs_its_package(run: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hats_import", None)
    with pytest.raises(DataError, match=r"expected the package hats-import, .*tfdeblend\[hats\]"):
        run.write_hats(tmp_path / "catalogue")


def test_settings_of_samples_are_checked(settings: SurveySettings) -> None:
    with pytest.raises(DataError, match="sample_above: expected the method sample, received map"):
        replace(settings, sample_above=0.1)
    with pytest.raises(DataError, match=r"sample_above: expected a blendedness of 0 to 1, received 1\.5"):
        replace(settings, method="sample", sample_above=1.5)
