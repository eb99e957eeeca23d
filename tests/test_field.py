"""`tfdeblend deblend --observation`: one result for a field that several observations show."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from fields import away, expose, positions, write

from tfdeblend.app.cli import main
from tfdeblend.catalog import files, flags
from tfdeblend.data.observation import Observation


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


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> tuple[Path, list[object], str]:
    """A run over a coarse observation and a fine one, given in this order: its folder, arguments and messages."""
    folder = tmp_path_factory.mktemp("field")
    fine, coarse = expose("fine", shape=(32, 32)), expose("coarse", 0.3, (24, 26), 30, seeing=0.9, bands="ri", seed=1)
    sources(fine).write(folder / "sources.ecsv")
    coarse_file = write(folder, coarse, MASK=mask_around(coarse, 1, 5.5))
    arguments = [*both(coarse_file, write(folder, fine)), "--catalog", folder / "sources.ecsv"]
    arguments += ["--prior", "exponential", "--out", folder / "out"]
    with redirect_stderr(StringIO()) as said:
        assert deblend(*arguments) == 0
    return folder / "out", arguments, said.getvalue()


def test_writes_one_result_with_all_observations(field) -> None:
    out, _, _ = field
    assert {path.name for path in out.iterdir()} == {"fine.fits", "fine.png", "catalog.ecsv", "index.html"}
    with fits.open(out / "fine.fits") as hdus:
        assert hdus["MODEL"].data.shape == (2, 32, 32)
        assert hdus["MODEL_COARSE"].data.shape == (2, 24, 26)
        assert hdus["SOURCES_COARSE"].data.shape == (3, 2, 24, 26)
        np.testing.assert_allclose(hdus["SOURCES_COARSE"].data.sum(0), hdus["MODEL_COARSE"].data, atol=1e-2)
        residual = hdus["IMAGES_COARSE"].data - hdus["MODEL_COARSE"].data
        residual[hdus["WEIGHTS_COARSE"].data == 0] = np.nan
        np.testing.assert_allclose(hdus["RESIDUAL_COARSE"].data, residual, atol=1e-4)
        calibration = Table.read(hdus["CALIBRATION"])
        assert [(str(row["observation"]), str(row["band"])) for row in calibration] == [
            ("fine", "g"), ("fine", "r"), ("coarse", "r"), ("coarse", "i"),
        ]  # fmt: skip
        shift = Table.read(hdus["CALIBRATION"])["shift_y"]
        np.testing.assert_allclose(shift[0] + shift[2], 0, atol=1e-9)


def test_catalogue_has_all_bands_and_the_sky(field) -> None:
    out, arguments, _ = field
    catalog, given = Table.read(out / "catalog.ecsv"), Table.read(arguments[5])
    assert list(catalog["id"]) == list(given["id"])
    for name in ("ra", "dec"):
        np.testing.assert_allclose(catalog[name], given[name], atol=0.2 / 3600)
    assert {"flux_g", "flux_r", "flux_i", "flux_err_i", "size", "snr", "blendedness", "chi2", "flags"} <= set(
        catalog.colnames
    )
    assert np.isfinite(catalog["flux_g"]).all() and np.isfinite(catalog["flux_r"]).all()
    np.testing.assert_array_equal(np.isnan(catalog["flux_i"]), [False, True, False])
    np.testing.assert_array_equal(catalog["flags"] & flags.UNSEEN > 0, [False, True, False])


def test_result_is_read_measured_and_drawn_as_any(field, tmp_path) -> None:
    """As the first observation's: in its bands."""
    out, _, _ = field
    result = files.read_fits(out / "fine.fits")
    assert result.scene.observation.bands == ("g", "r") and result.header["prior"] == "exponential"
    assert main(["plot", str(out / "fine.fits"), "--out", str(tmp_path)]) == 0
    assert main(["measure", str(out / "fine.fits"), "--out", str(tmp_path / "again.ecsv")]) == 0
    again, catalog = Table.read(tmp_path / "again.ecsv"), Table.read(out / "catalog.ecsv")
    np.testing.assert_allclose(again["flux_r"], catalog["flux_r"], rtol=0.05)
    assert "flux_i" not in again.colnames
    assert main(["info", str(out / "fine.fits")]) == 0


def test_says_whose_pixels_and_goes_on(field, capsys) -> None:
    """What is done stays; another order of the observations is the same input."""
    _, arguments, said = field
    assert "the model's pixels are those of fine (0.2 arcsec), the finest; together with coarse (0.3 arcsec)" in said
    assert deblend(*arguments[2:4], *arguments[:2], *arguments[4:], "--json") == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["counts"] == {"done": 0, "skipped": 1, "failed": 0}
    assert [Path(file).name for file in summary["scenes"][0]["observations"]] == ["fine.fits", "coarse.fits"]
    assert deblend(*arguments, "--background") == 2
    assert "--overwrite" in capsys.readouterr().err


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
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error, error
    assert not list((tmp_path / "out").glob("*.fits"))


TWO = ["--observation", "first.fits", "--observation", "b.fits"]
TWINS = ["--observation", "first.fits", "--observation", "again/first.fits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INPUT: expected files"),
        (["--observation", "first.fits"], "--observation: expected two or more"),
        (["--observation", "first.fits", "--observation", "none.fits"], "none.fits: files: expected a file"),
        (TWINS, "expected a different name"),
        (["first.fits", *TWO], "INPUT: expected none beside --observation"),
        (["first.fits", "--catalog", "bad.csv"], "--catalog: expected --observation"),
        ([*TWO, "--method", "sample", "--steps", "4"], "--steps: expected a learned prior beside it, received 'auto'"),
        ([*TWO, "--prior", "hsc-grizy-64"], "--prior: expected auto or a closed-form prior"),
        ([*TWO, "--server", "grpc://localhost:1"], "--server: expected none"),
        ([*TWO, "--prior", "nonparametric"], "--prior: expected auto or a closed-form prior"),
        ([*TWO, "--no-detect"], "--catalog: expected a catalogue"),
        ([*TWO, "--catalog", "cat.ecsv", "--detect"], "--detect: expected none beside --catalog"),
        ([*TWO, "--catalog", "none.ecsv"], "none.ecsv: file: expected"),
        ([*TWO, "--catalog", "none.txt"], "none.txt: suffix: expected"),
        ([*TWO, "--catalog", "bad.csv"], "bad.csv: table: expected columns"),
        ([*TWO, "--catalog", "far.csv"], "far.csv: catalog: expected sources inside"),
    ],
)
def test_refuses_arguments(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    first = expose("first", shape=(32, 32))
    write(tmp_path, first)
    (tmp_path / "again").mkdir()
    write(tmp_path / "again", first)
    write(tmp_path, replace(first, name="b"))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "far.csv").write_text("x,y\n1,200\n")
    assert deblend(*arguments, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert message in printed[-1], printed
