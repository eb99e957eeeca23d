"""Columns of catalogues: units, digits and meanings, in memory and through files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Column, Table
from helpers import make_joint

from tfdeblend.catalog import files
from tfdeblend.catalog.measure import remeasure
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.photometry import flux_unit
from tfdeblend.data.scene import Scene


def deblended(*names: str) -> Deblended:
    """A result for two observations in these units of their images, g and r in the first, i in the second."""
    result = make_joint()
    given = zip(result.scene.observations, names, strict=True)
    scene = Scene(tuple(one.derived(unit=unit) for one, unit in given), result.scene.sources)
    result = replace(result, scene=scene)
    return replace(result, catalog=remeasure(result))


@pytest.mark.parametrize(
    ("image", "flux"),
    [
        *(("nJy", "nJy"), ("ADU", "adu"), ("ELECTRONS/S", "electron / s"), ("e-", "electron"), ("nmgy", "nmgy")),
        *(("uJy/pix", "uJy"), ("1e-6 Jy", "1e-6 Jy"), ("erg/s/cm2/Hz", "erg / (s cm2 Hz)")),
        *((None, None), ("cps", None), ("3.631 uJy", None), ("MJy/sr", None), ("nJy/arcsec2", None)),
    ],
)
def test_the_unit_of_fluxes(image: str | None, flux: str | None) -> None:
    """It is that of a sum over pixels; what no column can have stays in words."""
    expected = None if flux is None else units.Unit(flux)
    assert flux_unit(image) == expected
    table = deblended(image, "electron").catalog
    for name in ("flux_g", "flux_err_r"):
        assert table[name].unit == expected
        assert image is None or image in table[name].description
    assert table["flux_i"].unit == units.electron
    assert "summed over pixels" not in table["flux_i"].description


def test_every_column_says_what_it_holds() -> None:
    """Columns stay plain arrays, so that arithmetic makes no quantities."""
    table = deblended("nJy", "nJy").catalog
    assert all(table[name].description for name in table.colnames)
    said = {name: str(table[name].unit) for name in table.colnames if table[name].unit is not None}
    assert {said.pop(name) for name in ("ra", "dec")} == {"deg"}
    assert {said.pop(name) for name in table.colnames if name.startswith("flux")} == {"nJy"}
    assert {said.pop(name) for name in table.colnames if name.startswith(("mag", "color"))} == {"mag"}
    assert said.pop("runtime_ms") == "ms"
    assert set(said.values()) == {"pix"}
    assert {"x", "y_err", "size", "stamp_x0"} <= said.keys()
    for name in table.colnames:
        assert type(table[name]) is Column
    assert type(table["flux_g"] / table["flux_err_g"]) is Column
    assert type(table["flux_g"].sum()) is np.float64


def test_sky_coordinates() -> None:
    result = deblended("nJy", "nJy")
    table, observation = result.catalog, result.scene.observation
    found = SkyCoord(table["ra"], table["dec"])
    assert found.separation(observation.sky(table["y"], table["x"])).max() < 1e-9 * units.deg


def test_a_printed_catalogue_shows_fluxes_and_flags() -> None:
    """On 80 characters, in digits that can be read, whatever the size of the numbers."""
    table = deblended("nJy", "nJy").catalog
    for factor in (1e-30, 1e-3, 1.0, 1e6):
        scaled = table.copy()
        scaled["flux_g"] *= factor
        lines = scaled.pformat(max_width=80)
        shown = lines[0].split()
        assert shown[:5] == ["id", "x", "y", "flux_g", "flux_err_g"] and shown[-2:] == ["primary", "flags"]
        assert all(len(row.split()[3]) <= len("-1.23456e-30") for row in lines[3:])
        printed = [float(row.split()[3]) for row in lines[3:]]
        np.testing.assert_allclose(printed, scaled["flux_g"], rtol=1e-5)


@pytest.mark.parametrize("unit", ["nJy", "adu", "1e-6 Jy", "ct"])
@pytest.mark.parametrize("form", ["ascii.ecsv", "fits", "votable", "parquet"])
def test_catalogues_keep_units_in_files(form: str, unit: str, tmp_path: Path) -> None:
    """Those of FITS's standard by Astropy's own writers."""
    table, path = deblended(unit, unit).catalog, tmp_path / "catalog"
    if form == "parquet":
        pytest.importorskip("pyarrow")
    table.write(path, format=form)
    if form == "parquet":
        assert {name: str(one) for name, one in parquet_units(path).items()} == {
            name: str(table[name].unit) for name in table.colnames if table[name].unit is not None
        }
        return
    again = Table.read(path, format=form)
    assert again.colnames == table.colnames
    for name in table.colnames:
        assert again[name].unit == table[name].unit
        if table[name].dtype.kind in "fi":
            np.testing.assert_array_equal(again[name], table[name])


def parquet_units(path: Path) -> dict[str, Any]:
    """The file is read by pyarrow alone, as Astropy's reader needs pandas, too."""
    from astropy.table.meta import get_header_from_yaml
    from pyarrow import parquet

    lines = parquet.read_schema(path).metadata[b"table_meta_yaml"].decode().split("\n")
    return {one["name"]: one["unit"] for one in get_header_from_yaml(lines)["datatype"] if "unit" in one}


@pytest.mark.parametrize("unit", ["nJy", "electron / s", "DN", "nmgy", "MJy/sr", "3.631 uJy", "cps"])
def test_results_keep_what_columns_say(unit: str, tmp_path: Path) -> None:
    """Also in units that FITS does not list, which other readers find as text."""
    result = deblended(unit, "electron")
    files.write(result, tmp_path / "a.fits")
    again = files.read(tmp_path / "a.fits").catalog
    for name in result.catalog.colnames:
        ours, theirs = result.catalog[name].info, again[name].info
        assert (ours.unit, ours.format, ours.description) == (theirs.unit, theirs.format, theirs.description)
    files.write_catalog({"a": result.catalog}, tmp_path / "catalog.fits")
    assert str(Table.read(tmp_path / "catalog.fits", unit_parse_strict="silent")["flux_i"].unit) == "electron"


def test_joined_catalogues_of_several_units_have_none(tmp_path: Path) -> None:
    """Numbers stay as they are, and the description lists what they are in."""
    one, two = (deblended(unit, "electron").catalog for unit in ("nJy", "adu"))
    files.write_catalog({"one": one, "two": two}, tmp_path / "catalog.ecsv")
    table = Table.read(tmp_path / "catalog.ecsv")
    assert table["flux_g"].unit is None and table["flux_i"].unit == "electron"
    assert all(f"in {unit}" in table["flux_g"].description for unit in ("nJy", "adu"))
    np.testing.assert_array_equal(table["flux_g"], np.concatenate([one["flux_g"], two["flux_g"]]))
    assert one["flux_g"].unit == "nJy"


def test_data_frames() -> None:
    pytest.importorskip("pandas")
    table = deblended("nJy", "nJy").catalog
    frame = table.to_pandas()
    assert list(frame.columns) == table.colnames
    for name in ("id", "kind", "flux_g", "flags"):
        assert list(frame[name]) == list(table[name])
