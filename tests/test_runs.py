"""A run over many fields: whatever one of them does, the others are done, and nothing passes for what it is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from astropy.table import Table
from scene_files import SHAPE, XY, arrays, celestial, write_fits, write_npz

from tfdeblend.app.cli import main


def at(values: np.ndarray, new: float) -> np.ndarray:
    values = np.array(values, float)
    values[0, 12, 10] = new
    return values


def cube_of_tpv() -> dict[str, Any]:
    header = dict(celestial().to_header())
    return header | {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "CTYPE3": "WAVE", "CRVAL3": 1.0, "CDELT3": 1.0}


def crowd(path: Path) -> None:
    """10,000 peaks on 200 x 200 pixels."""
    images = np.random.default_rng(0).normal(size=(1, 200, 200)).astype(np.float32)
    peaks = np.stack(np.meshgrid(*[np.arange(0, 200, 2.0)] * 2), -1).reshape(-1, 2)
    write_npz(
        path,
        images=images,
        weights=np.ones_like(images),
        filters=np.array(["g"]),
        peaks=peaks,
        psfs=arrays()["psfs"][:1],
    )


def with_header(path: Path, **cards: Any) -> None:
    write_fits(path, header=cards)


def with_odd_name(path: Path) -> None:
    """An extension of a name that no parser of FITS cards takes."""
    whole = write_fits(path).read_bytes()
    path.write_bytes(whole.replace(b"EXTNAME = 'MASK    '", b"EXTNAME = MASK'     ", 1))


def beside_folder(path: Path) -> None:
    write_npz(path, without=("psfs",))
    path.with_name(f"{path.stem}_psf.fits").mkdir()


def beside_fifo(path: Path) -> None:
    write_npz(path, without=("psfs",))
    os.mkfifo(path.with_name(f"{path.stem}_psf.fits"))


def with_odd_ids(path: Path) -> None:
    catalog = Table({"x": XY[:, 0], "y": XY[:, 1], "id": ["\x1b\x00", "\u00fc"]})
    write_npz(path, ("peaks",), catalog=catalog.as_array())


GOOD = arrays()
BAD: dict[str, tuple[str, Callable[[Path], Any]]] = {  # by name: what is said, "" where the scene may well be done
    "pixel 1e25.npz": ("", lambda path: write_npz(path, images=at(GOOD["images"], 1e25))),
    "pixel -1e30.npz": ("", lambda path: write_npz(path, images=at(GOOD["images"], -1e30))),
    "weight 1e38.npz": ("", lambda path: write_npz(path, weights=at(GOOD["weights"], 1e38))),
    "weights 1e38.npz": ("", lambda path: write_npz(path, weights=GOOD["weights"].astype(float) * 1e36)),
    "weights 1e-310.npz": ("expected", lambda path: write_npz(path, weights=np.full(SHAPE, 1e-310))),
    "scale 1e-300.npz": ("pixel_scale: expected", lambda path: write_npz(path, pixel_scale=np.array(1e-300))),
    "peak at the edge.npz": ("", lambda path: write_npz(path, peaks=np.array([[SHAPE[2] - 0.5, 7.0]]))),
    "unit.npz": ("", lambda path: write_npz(path, unit=np.array("\x1b[31m\x00nJy"))),
    "bands.npz": ("", lambda path: write_npz(path, filters=np.array(["g", "r\x07", "\u00fc"]))),
    "long bands.npz": ("", lambda path: write_npz(path, filters=np.array(["g" * 60, "r" * 60, "i" * 90]))),
    "ids.npz": ("", with_odd_ids),
    "frame.fits": ("", lambda path: write_fits(path, header={"RADESYS": "NOWHERE"})),
    "tpv.fits": ("", lambda path: write_fits(path, header=cube_of_tpv())),
    "singular.fits": ("wcs: expected", lambda path: write_fits(path, header={"CDELT1": 1e-30, "CDELT2": 1e-30})),
    "extension.fits": ("", with_odd_name),
    "folder.npz": ("psfs: expected an array", beside_folder),
    "fifo.npz": ("psfs: expected an array", beside_fifo),
    "crowd.npz": ("memory: expected a field whose result takes at most 4 GB of memory, received 10000 sources", crowd),
    "n" * 247 + ".npz": ("File name too long", write_npz),
    os.fsdecode(b"\xff\xfe.npz"): ("", write_npz),
    "odd\x1b[31m\n.npz": ("", write_npz),
    "empty.npz": ("expected an NPZ or FITS file, received an empty file", Path.touch),
}


class Hostile(NamedTuple):
    out: Path
    code: int
    said: str
    failures: dict[str, str]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    """A run over all kinds of bad scenes, with a good one before and one after them."""
    folder = tmp_path_factory.mktemp("hostile")
    scenes, out = folder / "in", folder / "out"
    scenes.mkdir()
    for name, (_, write) in {"a.npz": ("", write_npz), **BAD, "z.npz": ("", write_npz)}.items():
        write(scenes / name)
    with redirect_stderr(StringIO()) as said:
        code = main(["deblend", str(scenes), "--prior", "exponential", "--memory", "4", "--out", str(out)])
    failures = json.loads((out / "failures.json").read_text())
    return Hostile(out, code, said.getvalue(), {Path(one["input"]).name: one["error"] for one in failures})


@pytest.mark.filterwarnings("ignore")
def test_a_bad_scene_never_ends_a_run(hostile: Hostile) -> None:
    """The good ones are done, each of the others is done or its error is one line, and no row of the table is lost."""
    done = set(Table.read(hostile.out / "catalog.ecsv")["scene"])
    assert hostile.code == 1 and {"a", "z"} <= done
    assert len(done) + len(hostile.failures) == len(BAD) + 2
    assert (hostile.out / "index.html").exists() and "Traceback" not in hostile.said
    assert not list(hostile.out.glob(".*"))
    for error in hostile.failures.values():
        assert error.isprintable() and len(error) < 1000
        assert error in hostile.said


@pytest.mark.parametrize("name", [name for name, (said, _) in BAD.items() if said])
def test_a_bad_scene_says_why(hostile: Hostile, name: str) -> None:
    assert BAD[name][0] in hostile.failures[name]
