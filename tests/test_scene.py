"""Scene: positions from any kind of catalogue, and what a set of sources must be."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import QTable, Table
from fields import away, expose, positions
from scene_files import BANDS, SHAPE, XY, arrays, celestial

from tfdeblend import io
from tfdeblend.data.astrometry import AffineMap
from tfdeblend.data.observation import Observation
from tfdeblend.data.plausibility import examined
from tfdeblend.data.psf import REACH, fwhm
from tfdeblend.data.scene import Scene, Source, finest_first
from tfdeblend.errors import DataError

YX = XY[:, ::-1]


@pytest.fixture(scope="module")
def observation() -> Observation:
    content = arrays()
    return Observation(content["images"], content["weights"], content["psfs"], BANDS, name="field", wcs=celestial())


def sky() -> SkyCoord:
    return celestial().pixel_to_world(*XY.T)


@pytest.mark.parametrize(
    "catalog",
    [
        XY,
        XY.tolist(),
        Table({"x": XY[:, 0], "y": XY[:, 1]}),
        Table({"X": XY[:, 0], "Y": XY[:, 1]}).as_array(),
        {"x": XY[:, 0], "y": XY[:, 1]},
        sky(),
        sky().galactic,
        Table({"ra": sky().ra.deg, "dec": sky().dec.deg}),
        Table({"RA": sky().ra.to(units.rad), "Dec": sky().dec.to(units.rad)}),
    ],
    ids=["array", "list", "table", "structured", "mapping", "SkyCoord", "galactic", "ra_dec", "radians"],
)
def test_positions_from(catalog: Any, observation: Observation) -> None:
    scene = Scene.from_catalog(observation, catalog)
    np.testing.assert_allclose(scene.positions, YX, atol=1e-6)
    assert [source.id for source in scene.sources] == ["0", "1"]
    assert {source.kind for source in scene.sources} == {"unknown"}
    assert scene.name == "field"


def named(*names: str, unit: str | None = None) -> Table:
    """A table of the sources with two columns of these names: pixels, or sky coordinates in `unit`."""
    ra, dec = sky().ra, sky().dec
    values = (XY[:, 0], XY[:, 1]) if unit is None else (ra.to_value(unit), dec.to_value(unit))
    return Table(dict(zip(names, values, strict=True)))


@pytest.mark.parametrize(
    ("x", "y", "first"),
    [
        ("X_IMAGE", "Y_IMAGE", 1),
        ("XWIN_IMAGE", "YWIN_IMAGE", 1),
        ("xcentroid", "ycentroid", 0),
        ("base_SdssCentroid_x", "base_SdssCentroid_y", 0),
        ("bx", "by", 0),
    ],
)
def test_pixels_by_the_names_of_tools(x: str, y: str, first: int, observation: Observation) -> None:
    """SExtractor's count from 1, which a note says."""
    scene = Scene.from_catalog(observation, Table({x: XY[:, 0] + first, y: XY[:, 1] + first}))
    np.testing.assert_allclose(scene.positions, YX, atol=1e-9)
    assert scene.observation.notes == ((f"{x}, {y} count from 1: 1 subtracted",) if first else ())


@pytest.mark.parametrize(
    ("ra", "dec"),
    [
        ("ALPHA_J2000", "DELTA_J2000"),
        ("ALPHAWIN_J2000", "DELTAWIN_J2000"),
        ("ALPHA_SKY", "DELTA_SKY"),
        ("coord_ra", "coord_dec"),
        ("RA", "DEC"),
        ("RIGHT_ASCENSION", "DECLINATION"),
        ("RAJ2000", "DECJ2000"),
    ],
)
def test_sky_coordinates_by_the_names_of_surveys(ra: str, dec: str, observation: Observation) -> None:
    """In degrees, in the unit of the column, or, where it says none, in radians if only these lie in the image."""
    stated = named(ra, dec, unit="rad")
    stated[ra].unit = stated[dec].unit = "rad"
    for table in (named(ra, dec, unit="deg"), stated, named(ra, dec, unit="rad")):
        scene = Scene.from_catalog(observation, table)
        np.testing.assert_allclose(scene.positions, YX, atol=1e-6)
        bare = table[ra].unit is None and table[ra][0] < 7
        noted = (f"{ra}, {dec} taken as radians: as degrees none is in the image",) if bare else ()
        assert scene.observation.notes == noted


@pytest.mark.parametrize("name", ["sky", "sky_centroid", "coord"])
def test_a_column_of_sky_coordinates(name: str, observation: Observation, tmp_path: Path) -> None:
    """In any frame, in memory and in files; one of numbers that is called sky says nothing."""
    table = Table({name: sky().galactic, "id": ["a", "b"]})
    for given in (table, QTable(table)):
        np.testing.assert_allclose(Scene.from_catalog(observation, given).positions, YX, atol=1e-6)
    for suffix in (".ecsv", ".fits"):
        table.write(tmp_path / f"sources{suffix}")
        scene = Scene.from_catalog(observation, io.read_catalog(tmp_path / f"sources{suffix}"))
        np.testing.assert_allclose(scene.positions, YX, atol=1e-6)
        assert [source.id for source in scene.sources] == ["a", "b"]
    level = Table({"x": XY[:, 0], "y": XY[:, 1], "sky": [1.0, 2.0]})
    np.testing.assert_allclose(Scene.from_catalog(observation, level).positions, YX)


def test_columns_with_units(observation: Observation) -> None:
    """Angles and pixels of a QTable."""
    angles = QTable({"ra": sky().ra.to("hourangle"), "dec": sky().dec.to("rad")})
    for table in (angles, QTable({"x": XY[:, 0] * units.pix, "y": XY[:, 1] * units.pix})):
        np.testing.assert_allclose(Scene.from_catalog(observation, table).positions, YX, atol=1e-6)


def test_a_data_frame_is_a_table(observation: Observation) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"coord_ra": sky().ra.deg, "coord_dec": sky().dec.deg, "objectId": [2**60 + 1, 2**60 + 3]})
    scene = Scene.from_catalog(observation, frame)
    np.testing.assert_allclose(scene.positions, YX, atol=1e-6)
    assert [source.id for source in scene.sources] == [str(2**60 + 1), str(2**60 + 3)]


def test_kinds_and_ids_by_the_names_of_surveys(observation: Observation) -> None:
    """Legacy's types say what is a point and which rows are no sources; other columns `type` and CLASS_STAR do not."""
    three = {"x": [5.0, 12.0, 12.3], "y": [6.0, 16.0, 16.1]}
    scene = Scene.from_catalog(observation, {**three, "TYPE": ["PSF", "REX", "DUP"], "objid": [7, 8, 9]})
    assert [(source.kind, source.id) for source in scene.sources] == [("point", "7"), ("galaxy", "8")]
    assert scene.observation.notes == ("1 rows of type DUP are no sources",)
    other = {**three, "type": ["PSF", "QSO", "EXP"], "CLASS_STAR": [1.0, 0.9, 0.0], "NUMBER": [1, 2, 3]}
    scene = Scene.from_catalog(observation, other)
    assert [(source.kind, source.id) for source in scene.sources] == [("unknown", n) for n in "123"]
    scene = Scene.from_catalog(observation, {**three, "objid": [4, 4, 5]})
    assert [source.id for source in scene.sources] == ["0", "1", "2"]
    assert scene.observation.notes == ("sources are numbered, as objid is the same for several",)


@pytest.mark.parametrize("offset", [0.0, 1.0, 9000.0])
def test_of_pixels_and_sky_those_that_see_the_light_are_taken(offset: float, observation: Observation) -> None:
    """Where they differ by more than a pixel: a tile's pixels beside a cut-out, or those that count from 1."""
    table = named("ra", "dec", unit="deg")
    table["x"], table["y"] = (XY + offset).T
    scene = Scene.from_catalog(observation, table)
    np.testing.assert_allclose(scene.positions, YX, atol=1e-6)
    apart = f"{np.hypot(offset, offset):.3g} pixels away in the median by the WCS"
    noted = (f"ra, dec taken, which see more light than x, y, {apart}",)
    assert scene.observation.notes == (noted if offset else ())
    wrong = replace(observation, wcs=away(observation.wcs))
    assert Scene.from_catalog(wrong, table if offset == 0 else XY).positions.tolist() == YX.tolist()


def test_positions_at_odds_with_the_light_are_noted(observation: Observation) -> None:
    for places, note in (
        (XY, None),
        (
            XY + 1,
            r"expected positions whose first pixel is \(0, 0\), .*-1.00, -1.00 pixels .*; subtract 1 if",
        ),
        (XY - 1, r"expected positions whose first pixel is \(0, 0\), .*\+1.00, \+1.00 pixels .*; add 1 if 1 too many"),
        (YX, r"expected positions as \(x, y\), received ones that see more light as \(y, x\) .*; exchange them if"),
    ):
        notes = Scene.from_catalog(observation, places).observation.notes
        assert len(notes) == (note is not None) and (note is None or re.match(note, notes[0])), notes


@pytest.mark.parametrize("missing", [np.nan, np.inf, np.ma.masked])
def test_rows_without_a_position_are_left_out(missing: Any, observation: Observation) -> None:
    """By pixels, by the sky, and by both, with a note; the rows stay."""
    table = Table(
        {"ra": sky().ra.deg, "dec": sky().dec.deg, "x": XY[:, 0], "y": XY[:, 1], "id": ["a", "b"]}, masked=True
    )
    table.add_row([150.0, 2.0, 3.0, 3.0, "c"])
    table["x"][2] = table["ra"][2] = missing
    for names in (("x", "y", "id"), ("ra", "dec", "id"), tuple(table.colnames)):
        scene = Scene.from_catalog(observation, table[names])
        assert scene.left_out.tolist() == [False, False, True]
        np.testing.assert_allclose(scene.kept.positions, YX, atol=1e-6)
        (note,) = scene.observation.notes
        assert note.startswith("1 of 3 sources left out, with no unmasked pixel near them, such as 'c' at x=")
        assert examined(scene).left_out.tolist() == scene.left_out.tolist()


def test_the_catalogue_of_a_larger_field_is_cut(observation: Observation) -> None:
    far = np.column_stack([np.arange(101) + 500, np.zeros(101)])
    few = Scene.from_catalog(observation, np.concatenate([XY, far[1:]]))
    assert len(few.sources) == 102
    scene = Scene.from_catalog(observation, np.concatenate([XY, far]))
    assert scene.positions.tolist() == YX.tolist()
    assert scene.observation.notes[1:] == ("the rows of what is left out are not kept, as they are more than 100",)


@pytest.mark.parametrize(
    ("catalog", "error", "message"),
    [
        (
            {"x": XY[:, 0] * units.arcsec, "y": XY[:, 1]},
            DataError,
            "field: catalog.x: expected pixels, received arcsec",
        ),
        ({"X_IMAGE": XY[:, 0]}, DataError, "field: catalog: expected columns x, y or ra, dec, received x_image"),
        (
            "sources.fits",
            TypeError,
            "catalog: expected a table, .* a str; tfdeblend.io.read_catalog reads files",
        ),
        (Source(3, 4), TypeError, "catalog: expected a table, an array .* received a Source"),
    ],
)
def test_catalogues_that_are_none(catalog: Any, error: type, message: str, observation: Observation) -> None:
    with pytest.raises(error, match=message):
        Scene.from_catalog(observation, catalog)


def test_integer_positions(observation: Observation) -> None:
    assert Scene.from_catalog(observation, XY.astype(np.int32)).positions.tolist() == YX.tolist()


def test_kinds_and_ids(observation: Observation) -> None:
    columns = {"x": XY[:, 0], "y": XY[:, 1]}
    starred = Scene.from_catalog(observation, {**columns, "is_star": [True, False], "id": [7, 8]})
    assert [(source.kind, source.id) for source in starred.sources] == [("point", "7"), ("galaxy", "8")]
    named = Scene.from_catalog(observation, {**columns, "kind": np.array([b"galaxy", b"point"])})
    assert [source.kind for source in named.sources] == ["galaxy", "point"]


def test_sources_are_fitted_up_to_three_widths_of_the_psf_from_the_data(observation: Observation) -> None:
    """Beyond, a source is left out with one note, and a scene without any other is refused."""
    height, width = SHAPE[1:]
    reach = REACH * float(fwhm(observation.psf).max())
    inside = Source(6, 5)
    near, far = reach - 0.01, reach + 0.01
    for y, x, least in ((-1, 0, 0), (0, -1, 0), (1, 0, height - 1), (0, 1, width - 1)):
        place = {out: Source(*(y * (least + out) or 9.0, x * (least + out) or 8.0)) for out in (near, far)}
        assert Scene(observation, (inside, place[near])).left_out.tolist() == [False, False]
        scene = Scene(observation, (place[far], inside, Source(1e300, 3, id="c")))
        assert scene.left_out.tolist() == [True, False, True] and scene.kept.sources == scene.sources[1:2]
        (note,) = scene.observation.notes
        assert re.match(r"2 of 3 sources left out, with no unmasked pixel near them, such as '0' at x=", note)
        assert Scene(scene.observations, scene.sources).observation.notes == (note,)
        with pytest.raises(DataError, match="field: catalog: expected sources inside"):
            Scene(observation, (place[far],))


def test_sources_without_data_in_any_band_are_left_out(observation: Observation) -> None:
    weights = observation.weights.copy()
    weights[:, 8:, 4:] = 0
    for band, out in ((None, [False, True]), (2, [False, False])):
        shown = weights.copy()
        if band is not None:
            shown[band] = 100
        masked = replace(observation, weights=shown)
        assert Scene(masked, (Source(6, 5), Source(20, 15))).left_out.tolist() == out
    with pytest.raises(DataError, match="field: catalog: expected sources with unmasked pixels near them"):
        Scene(replace(observation, weights=weights), (Source(20, 15),))


def test_duplicates_are_found_wherever_they_are(observation: Observation) -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(1, 23, 0.5), np.arange(1, 19, 0.5)), -1).reshape(-1, 2)
    Scene(observation, tuple(Source(y, x) for y, x in grid))
    for _ in range(10):
        twin = grid[rng.integers(len(grid))] + 0.06
        with pytest.raises(DataError, match="duplicates"):
            Scene(observation, tuple(Source(y, x) for y, x in rng.permutation([*grid, twin])))


@pytest.mark.parametrize(
    "sources",
    [(), (Source(np.nan, 3), Source(3, np.inf)), (Source(3, 3, "star"),), (Source(3, 3, id="a"), Source(9, 9, id="a"))],
    ids=["none", "nan", "kind", "id"],
)
def test_refused(sources: tuple[Source, ...], observation: Observation) -> None:
    with pytest.raises(DataError, match=r"^field: catalog"):
        Scene(observation, sources)


def test_errors_survive_pickling() -> None:
    """They travel between processes."""
    error = DataError("a.npz", "psf", "expected one\nline")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.npz: psf: expected one line"


def test_errors_are_renamed_and_keep_the_rest() -> None:
    error = DataError("field", "psf", "expected one, received two", "give one")
    assert str(error.at("a.npz")) == "a.npz: psf: expected one, received two; give one"
    assert str(error.at("a.npz", "psfs")) == "a.npz: psfs: expected one, received two; give one"
    assert str(DataError("--prior", None, "expected one")) == "--prior: expected one"


# -- several observations


def test_one_observation_in_a_tuple_is_the_scene_of_it(observation: Observation) -> None:
    sources = (Source(3, 4), Source(9, 9, "point"))
    for given in (observation, (observation,), [observation]):
        scene = Scene(given, sources)
        assert scene.observations == (observation,) and scene.observation is observation
        assert scene.bands == observation.bands and scene.name == "field"
        assert scene.fitted(0) is observation and scene.covered(0).all()
        np.testing.assert_array_equal(scene.maps[0].matrix, np.eye(2))
        assert scene.sources == Scene(observation, sources).sources


def test_a_scene_without_an_observation_is_refused() -> None:
    for make in (lambda: Scene((), (Source(3, 4),)), lambda: Scene.from_catalog([], XY), lambda: Scene.detect([])):
        with pytest.raises(DataError, match="observations: expected at least one, received none"):
            make()


def test_bands_and_units_are_those_of_the_first_that_has_them() -> None:
    first = replace(expose("first"), zeropoints=27.0, unit="adu")
    other = replace(expose("other", bands="ri", seed=1), zeropoints=[25.0, 26.0], unit="electron")
    scene = Scene.from_catalog((first, other), positions(first))
    assert scene.bands == ("g", "r", "i")
    assert scene.zeropoints.tolist() == [27.0, 27.0, 26.0]
    assert scene.flux_units == ("adu", "adu", "electron")
    assert [scene.band_indices(one) for one in scene.observations] == [(0, 1), (1, 2)]


def test_maps_are_from_the_others_to_the_first() -> None:
    first, other = expose("first"), expose("other", 0.3, (30, 30), 20)
    own, pixels = Scene.from_catalog((first, other), positions(first)).maps
    np.testing.assert_allclose(own.matrix, np.eye(2), atol=1e-9)
    expected = AffineMap.between("x", other.wcs, first.wcs, (30, 30))
    np.testing.assert_allclose(pixels.matrix, expected.matrix)
    np.testing.assert_allclose(pixels.matrix @ [14.5, 14.5] + pixels.offset, [19.5, 19.5], atol=1e-6)


def test_what_the_first_does_not_cover_is_not_fitted() -> None:
    first, other = expose("first"), expose("other", 0.3, (40, 40), 20)
    scene = Scene.from_catalog((first, other), positions(first))
    covered, fitted = scene.covered(1), scene.fitted(1)
    places = scene.maps[1].points((40, 40))
    np.testing.assert_array_equal(covered, ((places > -0.5) & (places < 39.5)).all(-1))
    assert 0.2 < covered.mean() < 0.8
    np.testing.assert_array_equal(fitted.valid, other.valid & covered)
    np.testing.assert_array_equal(fitted.images, other.images)


def test_refuses_observations_that_do_not_join() -> None:
    first = expose("first")
    bad = {
        "second: wcs: expected a WCS to join": replace(first, name="second", wcs=None),
        "first: name: expected a name for each observation": first,
        "first: name: expected a name for each": replace(first, name="FIRST"),
        "second: zeropoints: expected them of all": replace(first, name="second", zeropoints=27.0),
        "fine: wcs: expected pixels no finer than those of first": expose("fine", 0.1),
        "first: bands: expected names whose columns": replace(first, name="second", bands=("err_g", "r")),
        "far: wcs: expected unmasked pixels in the image of first": replace(first, name="far", wcs=away(first.wcs)),
    }
    for message, other in bad.items():
        with pytest.raises(DataError, match=message):
            Scene.from_catalog((first, other), positions(first))
    nameless = replace(first, bands=None)
    with pytest.raises(DataError, match=r"other: bands: expected names of bands, .* received none: band0, band1"):
        Scene.from_catalog((nameless, replace(nameless, name="other")), positions(first))
    with pytest.raises(DataError, match="first: wcs: expected a WCS to join"):
        Scene.from_catalog((replace(first, wcs=None), replace(first, name="second")), positions(first))


def test_the_finest_comes_first() -> None:
    """Scales within 2% are equal, of which the first is taken; the others keep their order."""
    coarse, one, same, other = expose("coarse", 0.3), expose("one"), expose("same", 0.199), expose("other", 0.25)
    assert [each.name for each in finest_first([coarse, one, same, other])] == ["one", "coarse", "same", "other"]
    with pytest.raises(DataError, match="bare: wcs: expected a WCS"):
        finest_first([coarse, replace(one, name="bare", wcs=None)])
