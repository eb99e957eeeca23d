"""Scene: positions from any kind of catalogue, and what a set of sources must be."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.table import Table
from scene_files import BANDS, SHAPE, XY, arrays, celestial

from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
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
    assert {source.kind for source in scene.sources} == {"galaxy"}
    assert scene.name == "field"


def test_integer_positions(observation: Observation) -> None:
    assert Scene.from_catalog(observation, XY.astype(np.int32)).positions.tolist() == YX.tolist()


def test_kinds_and_ids(observation: Observation) -> None:
    columns = {"x": XY[:, 0], "y": XY[:, 1]}
    starred = Scene.from_catalog(observation, {**columns, "is_star": [True, False], "id": [7, 8]})
    assert [(source.kind, source.id) for source in starred.sources] == [("point", "7"), ("galaxy", "8")]
    named = Scene.from_catalog(observation, {**columns, "kind": np.array([b"galaxy", b"point"])})
    assert [source.kind for source in named.sources] == ["galaxy", "point"]


def test_sources_up_to_the_outer_edge_of_the_pixels(observation: Observation) -> None:
    height, width = SHAPE[1:]
    Scene(observation, (Source(-0.5, -0.5), Source(height - 0.5, width - 0.5)))
    for y, x in ((-0.51, 3), (3, -0.51), (height - 0.49, 3), (3, width - 0.49)):
        with pytest.raises(DataError, match="field: catalog: expected sources inside"):
            Scene(observation, (Source(y, x),))


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
    [(), (Source(np.nan, 3),), (Source(3, 3, "star"),), (Source(3, 3, id="a"), Source(9, 9, id="a"))],
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
