"""`tfdeblend deblend --observation`: one result for each field that several observations show."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from fields import away, expose, positions, write

from tfdeblend.app import inputs
from tfdeblend.app.cli import main
from tfdeblend.app.runs import Settings
from tfdeblend.catalog import files, measure
from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError

SKY = 40.0  # level of both images


def deblend(*args: object) -> int:
    return main(["deblend", *map(str, args)])


def both(*paths: Path) -> list[object]:
    return [part for path in paths for part in ("--observation", path)]


def sources(first: Observation) -> Table:
    """On the sky."""
    x, y = positions(first).T
    sky = first.wcs.pixel_to_world(x, y)
    return Table({"ra": sky.ra.deg, "dec": sky.dec.deg, "id": ["a", "b", "c"]})


def mask_around(one: Observation, source: int, radius: float) -> np.ndarray:
    """All is DETECTED, and NO_DATA in the last band around a source."""
    mask = np.full(one.shape, 1 << 5, np.int32)
    row, column = one.wcs.wcs_world2pix([sources(one)[source]["ra", "dec"].as_void().tolist()], 0)[0][::-1]
    y, x = np.indices(one.shape[1:])
    mask[-1][np.hypot(y - row, x - column) < radius] |= 1 << 8
    return mask


class Fields(NamedTuple):
    """A run over the fields a, b and bad, each in folders fine and coarse: what it was given and what it said."""

    folder: Path
    arguments: list[object]
    summary: dict[str, Any]
    said: str

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Fields:
    folder = tmp_path_factory.mktemp("fields")
    for name in ("fine", "coarse", "sources"):
        (folder / name).mkdir()
    for seed, name in enumerate("ab"):
        fine, coarse = expose(name, shape=(32, 32), seed=seed), expose(name, 0.3, (24, 26), 30, seeing=0.9, bands="ri")
        write(folder / "fine", replace(fine, images=fine.images + SKY))
        mask = mask_around(coarse, 1, 5.5)
        write(folder / "coarse", replace(coarse, images=coarse.images + SKY), MASK=mask)
        sources(fine).write(folder / "sources" / f"{name}.ecsv")
    write(folder / "fine", expose("bad", shape=(32, 32)))
    (folder / "coarse" / "bad.fits").write_bytes(b"nothing")
    arguments = [*both(folder / "coarse", folder / "fine"), "--catalog", folder / "sources", "--background"]
    arguments += ["--prior", "exponential", "--out", folder / "out", "--json"]
    with redirect_stderr(StringIO()) as said, redirect_stdout(StringIO()) as printed:
        assert deblend(*arguments) == 1
    return Fields(folder, arguments, json.loads(printed.getvalue()), said.getvalue())


def test_files_of_one_name_in_several_folders_are_one_field(fields) -> None:
    """A field that fails does not stop the others."""
    stems = {f"{name}.{suffix}" for name in "ab" for suffix in ("fits", "png")}
    assert {path.name for path in fields.out.iterdir()} == stems | {"catalog.ecsv", "index.html", "failures.json"}
    assert fields.summary["counts"] == {"done": 2, "skipped": 0, "failed": 1}
    a, b, bad = sorted(fields.summary["scenes"], key=lambda scene: (scene["status"], scene["scene"]))
    assert (a["scene"], b["scene"]) == ("a", "b") and "coarse/bad.fits: file: expected" in bad["error"]
    assert [Path(file).parent.name for file in a["observations"]] == ["coarse", "fine"]
    message = "a, b: the model's pixels are those of fine (0.2 arcsec), the finest; together with coarse (0.3 arcsec)"
    assert message in fields.said


def test_writes_one_result_with_all_observations(fields) -> None:
    with fits.open(fields.out / "a.fits") as hdus:
        assert hdus["MODEL"].data.shape == (2, 32, 32)
        assert hdus["MODEL_COARSE"].data.shape == (2, 24, 26)
        assert hdus["SOURCES_COARSE"].data.shape == (3, 2, 24, 26)
        residual = hdus["IMAGES_COARSE"].data - hdus["MODEL_COARSE"].data
        fitted = np.isfinite(hdus["RESIDUAL_COARSE"].data)
        assert fitted.any() and (hdus["WEIGHTS_COARSE"].data[fitted] > 0).all()
        np.testing.assert_allclose(hdus["RESIDUAL_COARSE"].data[fitted], residual[fitted], atol=1e-4)
        calibration = Table.read(hdus["CALIBRATION"])
        assert [(str(row["observation"]), str(row["band"])) for row in calibration] == [
            ("a", "g"), ("a", "r"), ("coarse", "r"), ("coarse", "i"),
        ]  # fmt: skip
        np.testing.assert_allclose(calibration["shift_y"][0] + calibration["shift_y"][2], 0, atol=1e-9)
        np.testing.assert_allclose(calibration["shift_x"][0] + calibration["shift_x"][2], 0, atol=1e-9)
        np.testing.assert_allclose(calibration["background"], SKY, atol=1)
        whole = hdus["SOURCES_COARSE"].data.sum(0) + np.asarray(calibration["background"])[2:, None, None]
        np.testing.assert_allclose(whole, hdus["MODEL_COARSE"].data, atol=1e-2)


def test_catalogue_has_all_bands_and_the_sky(fields) -> None:
    catalog = Table.read(fields.out / "catalog.ecsv")
    assert list(catalog["scene"]) == ["a"] * 3 + ["b"] * 3
    for name in "ab":
        rows, given = catalog[catalog["scene"] == name], Table.read(fields.folder / "sources" / f"{name}.ecsv")
        assert list(rows["id"]) == list(given["id"])
        for axis in ("ra", "dec"):
            np.testing.assert_allclose(rows[axis], given[axis], atol=0.2 / 3600)
        assert np.isfinite(rows["flux_g"]).all() and np.isfinite(rows["flux_r"]).all()
        np.testing.assert_array_equal(np.isnan(rows["flux_i"]), [False, True, False])
        np.testing.assert_array_equal(rows["flags"] & measure.UNSEEN > 0, [False, True, False])
    assert {"flux_err_i", "size", "snr", "blendedness", "chi2"} <= set(catalog.colnames)


def test_page_names_all_observations(fields) -> None:
    page = (fields.out / "index.html").read_text()
    scenes = json.loads(page.split('type="application/json">')[1].split("</script>")[0])["scenes"]
    found = {scene["name"]: [(one["name"], one["bands"]) for one in scene["observations"]] for scene in scenes}
    assert found == {name: [(name, ["g", "r"]), ("coarse", ["r", "i"])] for name in "ab"} | {"bad": []}


def test_result_is_read_measured_and_drawn_as_any(fields, tmp_path) -> None:
    result = files.read(fields.out / "a.fits")
    assert result.scene.bands == ("g", "r", "i") and result.header["prior"] == "exponential"
    assert main(["plot", str(fields.out / "a.fits"), "--out", str(tmp_path)]) == 0
    assert main(["measure", str(fields.out / "a.fits"), "--out", str(tmp_path / "again.ecsv")]) == 0
    again, catalog = Table.read(tmp_path / "again.ecsv"), Table.read(fields.out / "catalog.ecsv")[:3]
    np.testing.assert_allclose(again["flux_r"], catalog["flux_r"], rtol=0.05)
    assert main(["info", str(fields.out / "a.fits")]) == 0


def test_goes_on_and_refuses_other_settings(fields, capsys) -> None:
    for name in ("fine", "coarse"):
        (fields.folder / name / "bad.fits").unlink(missing_ok=True)
    assert deblend(*fields.arguments) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 0, "skipped": 2, "failed": 0}
    assert not (fields.out / "failures.json").exists()
    assert deblend(*fields.arguments, "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_finds_fields_and_names_their_observations(fields) -> None:
    settings, (fine, coarse) = Settings(), (fields.folder / name for name in ("fine", "coarse"))
    several = inputs.find_fields([str(fine / "[ab].fits"), str(coarse / "[ab].fits")], None, settings)
    assert [one.name for one in several] == ["a", "b"] and several[0].names == ("fine", "coarse")
    (one,) = inputs.find_fields([str(coarse / "a.fits"), str(fine / "a.fits")], None, settings)
    assert one.files == (fine / "a.fits", coarse / "a.fits")
    (one,) = inputs.find_fields([str(fine / "[ab].fits")], None, settings)
    assert one.names == ("a", "b")
    with pytest.raises(DataError, match="--catalog: expected a folder"):
        inputs.find_fields([str(fine), str(coarse)], fields.folder / "some.ecsv", settings)


def test_detects_above_the_sky_where_a_background_is_fitted(fields) -> None:
    """Images are searched less the levels of their sky, of one observation and of several; the scene keeps them."""
    pair = inputs.Input((fields.folder / "fine" / "a.fits", fields.folder / "coarse" / "a.fits"))
    for one in (pair, inputs.Input(pair.files[:1])):
        scene = one.read(Settings(background=True))
        assert 2 <= len(scene.sources) <= 4
        assert np.median(scene.observation.images) > SKY - 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wcs": None}, "second.fits: wcs: expected a WCS to join"),
        ({"zeropoints": 27.0}, "second.fits: zeropoints: expected them of all"),
        ({"wcs": "away"}, "second.fits: wcs: expected unmasked pixels in the image of first"),
    ],
)
def test_refuses_observations_that_do_not_join(tmp_path, capsys, change, message) -> None:
    first = expose("first", shape=(32, 32))
    change = {"wcs": away(first.wcs)} if change == {"wcs": "away"} else change
    second = replace(first, name="second", **change)
    paths = [write(tmp_path, one) for one in (first, second)]
    if "zeropoints" in change:
        fits.setval(paths[1], "MAGZERO", value=27.0, extname="SCI")
    sources(first).write(tmp_path / "sources.ecsv")
    assert deblend(*both(*paths), "--catalog", tmp_path / "sources.ecsv", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.fits"))


TWO = ["--observation", "first.fits", "--observation", "b.fits"]
FOLDERS = ["--observation", "many", "--observation", "more"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INPUT: expected files"),
        (["--observation", "first.fits"], "--observation: expected two or more"),
        (["--observation", "first.fits", "--observation", "none.fits"], "none.fits: files: expected a file"),
        (["first.fits", *TWO], "INPUT: expected none beside --observation"),
        ([*TWO, "--method", "sample", "--samples", "1"], "--samples: expected at least 2"),
        ([*TWO, "--steps", "4"], "--steps: expected --method sample beside it"),
        ([*TWO, "--server", "grpc://localhost:1"], "--server: expected none"),
        ([*TWO, "--psf", "first.fits"], "--psf: expected none"),
        ([*TWO, "--no-detect"], "first.fits: catalog: expected a catalogue"),
        ([*TWO, "--catalog", "cat.ecsv", "--detect"], "--detect: expected none beside --catalog"),
        ([*TWO, "--catalog", "none.ecsv"], "none.ecsv: file: expected"),
        ([*TWO, "--catalog", "none.txt"], "none.txt: suffix: expected"),
        ([*TWO, "--catalog", "bad.csv"], "bad.csv: table: expected columns"),
        ([*TWO, "--catalog", "far.csv"], "far.csv: catalog: expected sources inside"),
        (
            [*TWO, "--method", "sample", "--prior", "nonparametric"],
            "--prior: expected auto, a learned or a closed-form",
        ),
        (
            [*TWO, "--method", "sample", "--prior", "sersic", "--steps", "4"],
            "--steps: expected a learned prior beside it",
        ),
        ([*TWO, "--prior", "cubist"], "--prior: expected one of auto"),
        ([*TWO, "--prior", "none.keras"], "none.keras: prior: expected a .keras file"),
        (FOLDERS, "more: files: expected files of the same names as beside every other --observation, received c"),
        (["many", "--catalog", "bad.csv"], "--catalog: expected a folder"),
    ],
)
def test_refuses_arguments(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    first = expose("first", shape=(32, 32))
    write(tmp_path, first)
    write(tmp_path, replace(first, name="b"))
    for folder, names in (("many", "ab"), ("more", "abc")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.fits").touch()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "far.csv").write_text("x,y\n1,200\n")
    assert deblend(*arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
