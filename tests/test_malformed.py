"""Every malformed file ends in a DataError of one line that names the file and the field, and in nothing else."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from scene_files import SHAPE, XY, arrays, celestial, extensions, write_fits, write_npz

from tfdeblend.data.scene import Scene
from tfdeblend.errors import DataError
from tfdeblend.io import read_catalog

MANY = (0, slice(3, 5))  # pixels, of which more than 1% are broken
Case = tuple[str, str, Callable[[Path], Any]]  # id, field that the message names, writer of the file


def altered(values: np.ndarray, new: Any, at: Any = (0, 3, 4)) -> np.ndarray:
    values = np.array(values, dtype=np.result_type(values, np.asarray(new)))
    values[at] = new
    return values


def wrong_arrays(good: np.ndarray) -> dict[str, Any]:
    """What no array of numbers in three dimensions may be."""
    return {
        "text": np.full(good.shape, "a"),
        "bytes": np.full(good.shape, b"a"),
        "complex": good.astype(complex),
        "objects": np.array([{}, None], dtype=object),
        "dates": np.zeros(good.shape, "datetime64[s]"),
        "structured": np.zeros(good.shape, [("a", float)]),
        "number": np.array(3.0),
        "empty": np.zeros((0,)),
        "no_bands": good[:0],
        "no_rows": good[:, :0],
        "no_columns": good[..., :0],
        "one_dimension": good.ravel(),
        "four_dimensions": good[np.newaxis],
    }


def catalog(**columns: Any) -> np.ndarray:
    return Table(columns).as_array()


def npz_cases() -> Iterator[Case]:
    good = arrays()
    images, weights, psfs = good["images"], good["weights"], good["psfs"]
    changes: dict[str, dict[str, Any]] = {
        "images": {
            **wrong_arrays(images),
            "booleans": images > 0,
            "absurd": images * 1e31,
            "all_nan_of_shape": np.full((2, 3), np.nan)[:0],
            "too_wide": np.zeros((3, 1, 20_001), np.float32),
            "too_high": np.zeros((3, 20_001, 1), np.float32),
            "too_many_bands": np.zeros((5000, 2, 2), np.float32),
        },
        "weights": {
            **wrong_arrays(weights),
            "booleans": weights > 0,
            "nan": altered(weights, np.nan, MANY),
            "infinite": altered(weights, np.inf, MANY),
            "negative": altered(weights, -1, MANY),
            "absurd": altered(weights.astype(float), 1e71, MANY),
            "all_zero": weights * 0,
            "one_row_less": weights[:, 1:],
            "one_band_less": weights[1:],
            "transposed": weights.transpose(0, 2, 1),
            "one_band": weights[0],
        },
        "psfs": {
            **wrong_arrays(psfs),
            "booleans": psfs > 0,
            "nan": altered(psfs, np.nan),
            "infinite": altered(psfs, np.inf),
            "zero": psfs * 0,
            "negative": -psfs,
            "one_band_of_zero": psfs * np.array([1, 0, 1])[:, None, None],
            "sum_1.06": psfs * 1.06,
            "sum_0.94": psfs * 0.94,
            "sum_3": psfs * 3,
            "two_bands": psfs[:2],
            "six_bands": np.concatenate([psfs, psfs]),
            "absurd": psfs * 1e200,
        },
        "filters": {
            "two": np.array(["g", "r"]),
            "four": np.array(["g", "r", "i", "z"]),
            "twice": np.array(["g", "r", "g"]),
            "numbers": np.array([1.0, 2.0, 3.0]),
            "blank": np.array(["g", "", "i"]),
            "spaces": np.array(["g", "  ", "i"]),
            "text": np.array("gri"),
            "empty": np.array([], "U1"),
            "objects": np.array(["g", "r", None], dtype=object),
            "square": np.array([["g", "r", "i"]] * 2),
        },
        "peaks": {
            **{name: value for name, value in wrong_arrays(images).items() if name != "objects"},
            "objects": np.array([[1, None]], dtype=object),
            "none": np.zeros((0, 2)),
            "three_columns": np.zeros((2, 3)),
            "nan": np.full_like(XY, np.nan),
            "twice": np.concatenate([XY, XY]),
            "almost_twice": np.concatenate([XY, XY[:1] + 0.05]),
            "left": XY - np.array([30, 0]),
            "right": XY + np.array([SHAPE[2] + 30, 0]),
            "below": XY - np.array([0, 30]),
            "above": XY + np.array([0, 30]),
            "absurd": XY * 1e300,
        },
        "zeropoints": {
            "nan": np.array([27, np.nan, 27]),
            "infinite": np.array([27, np.inf, 27]),
            "two": np.array([27.0, 27.0]),
            "text": np.array(["a", "b", "c"]),
            "absurd": np.full(3, 1e9),
            "square": np.full((3, 3), 27.0),
        },
        "unit": {"number": np.array(3.0), "two": np.array(["nJy", "Jy"]), "objects": np.array({}, dtype=object)},
        "pixel_scale": {
            "zero": np.array(0.0),
            "negative": np.array(-0.2),
            "nan": np.array(np.nan),
            "infinite": np.array(np.inf),
            "degrees": np.array(0.2 / 3600),
            "arcminutes": np.array(61.0),
            "two": np.array([0.2, 0.2]),
            "text": np.array("0.2"),
        },
        "wcs": {
            "number": np.array(3.0),
            "nonsense": np.array("not a header"),
            "degree": np.array(
                "".join(f"CTYPE{i} = '{name}'".ljust(80) for i, name in ((1, "RA---TAN"), (2, "DEC--TAN")))
            ),
            "linear": np.array("CTYPE1  = 'LINEAR  '".ljust(80)),
            "half": np.array(celestial().to_header_string()[:400]),
            "bad_projection": np.array(celestial().to_header_string().replace("TAN", "XXX")),
            "objects": np.array({}, dtype=object),
        },
        "mask": {
            "floats": np.zeros(SHAPE),
            "text": np.full(SHAPE, "a"),
            "transposed": np.zeros(SHAPE, bool).transpose(0, 2, 1),
            "bits_of_another_shape": np.zeros((2, 24, 20), int),
            "one_row": np.zeros(20, int),
            "empty": np.zeros(0, int),
            "objects": np.array([{}], dtype=object),
        },
        "footprint": {
            "integers": np.zeros(SHAPE, int),
            "floats": np.zeros(SHAPE[1:]),
            "another_shape": np.zeros((20, 24), bool),
            "empty": np.zeros(0, bool),
        },
    }
    for field, values in changes.items():
        for name, value in values.items():
            yield f"npz-{field}-{name}", field, lambda path, field=field, value=value: write_npz(path, **{field: value})
    for key in ("images", "psfs", "filters"):
        yield f"npz-{key}-missing", key[:3], lambda path, key=key: write_npz(path, without=(key,))


def npz_variance_cases() -> Iterator[Case]:
    variance = 1 / arrays()["weights"]
    values = {
        **wrong_arrays(variance),
        "nan": altered(variance, np.nan, MANY),
        "negative": altered(variance, -1, MANY),
        "minus_infinite": altered(variance, -np.inf, MANY),
        "one_row_less": variance[:, 1:],
        "one_band": variance[0],
    }
    for name, value in values.items():
        yield f"npz-variance-{name}", "variance", lambda path, v=value: write_npz(path, ("weights",), variance=v)
    masked = {
        "zero": ("weights", {"variance": variance * 0}),
        "infinite": ("weights", {"variance": variance * np.inf}),
        "tiny": ("weights", {"variance": variance * 1e-80}),
        "mask": ("weights", {"variance": variance, "mask": np.ones(SHAPE, bool)}),
        "planes": ("weights", {"variance": variance, "mask": np.full(SHAPE, 256)}),
        "footprint": ("weights", {"variance": variance, "footprint": np.ones(SHAPE[1:], bool)}),
        "nan_images": ("weights", {"images": np.full(SHAPE, np.nan), "variance": variance}),
        "constant": ("weights", {"images": np.ones(SHAPE)}),
    }
    for name, (field, values) in masked.items():
        yield f"npz-all-masked-{name}", field, lambda path, values=values: write_npz(path, ("weights",), **values)
    yield "npz-both-catalogs", "peaks", lambda path: write_npz(path, catalog=catalog(x=XY[:, 0], y=XY[:, 1]))


def catalogs() -> dict[str, dict[str, Any]]:
    """Columns that no catalogue may have."""
    x, y = XY.T
    return {
        "nan": {"x": x * np.nan, "y": y},
        "infinite": {"x": x, "y": y + np.inf},
        "outside": {"x": x + 100, "y": y},
        "twice": {"x": x * 0 + 3, "y": y * 0 + 3},
        "empty": {"x": x[:0], "y": y[:0]},
        "text_in_x": {"x": ["a", "b"], "y": y},
        "two_a_row": {"x": XY, "y": y},
        "kinds": {"x": x, "y": y, "kind": ["galaxy", "quasar"]},
        "numbers_as_kinds": {"x": x, "y": y, "kind": [1, 2]},
        "stars": {"x": x, "y": y, "is_star": ["yes", "no"]},
        "half_stars": {"x": x, "y": y, "is_star": [0.5, 0.5]},
        "ids": {"x": x, "y": y, "id": ["a", "a"]},
        "no_y": {"x": x},
        "no_position": {"a": x, "b": y},
    }


def catalog_cases() -> Iterator[Case]:
    for name, columns in catalogs().items():
        table = catalog(**columns)
        yield f"npz-catalog-{name}", "catalog", lambda path, t=table: write_npz(path, ("peaks",), catalog=t)
        yield f"fits-catalog-{name}", "CATALOG", lambda path, t=table: write_fits(path, CATALOG=Table(t))
    for name, value in {"floats": XY, "number": np.array(1.0), "text": np.array(["x", "y"])}.items():
        yield f"npz-catalog-{name}", "catalog", lambda path, v=value: write_npz(path, ("peaks",), catalog=v)
    sky = {"ra": [150.0, 150.0], "dec": [2.0, 2.001]}
    yield "fits-sky-without-wcs", "CATALOG", lambda path: write_fits(path, wcs=False, CATALOG=Table(sky))
    for name, change in {
        "nan": {"ra": [np.nan, np.nan]},
        "outside": {"ra": [10.0, 11.0]},
        "antipode": {"ra": [330.0, 330.0], "dec": [-2.0, -2.001]},
        "beyond_pole": {"dec": [91.0, 2.0]},
        "text": {"dec": ["a", "b"]},
    }.items():
        table = Table({**sky, **change})
        yield f"fits-sky-{name}", "CATALOG", lambda path, t=table: write_fits(path, CATALOG=t)


def fits_cases() -> Iterator[Case]:
    good = extensions()
    changes: dict[str, dict[str, Any]] = {
        "SCI": {
            "one_dimension": good["SCI"].ravel(),
            "four_dimensions": good["SCI"][np.newaxis],
            "absurd": good["SCI"] * 1e30,
            "too_wide": np.zeros((3, 1, 20_001), np.float32),
            "too_many_bands": np.zeros((5000, 1, 1), np.float32),
        },
        "VAR": {
            "nan": altered(good["VAR"], np.nan, MANY),
            "negative": altered(good["VAR"], -1, MANY),
            "transposed": good["VAR"].transpose(0, 2, 1),
            "one_band": good["VAR"][0],
            "none": None,
        },
        "MASK": {"floats": np.zeros(SHAPE), "another_shape": np.zeros((24, 21), np.int32), "none": None},
        "PSF": {
            "nan": altered(good["PSF"], np.nan),
            "zero": good["PSF"] * 0,
            "two_bands": good["PSF"][:2],
            "sum_2": good["PSF"] * 2,
            "one_row": good["PSF"][0, 0],
            "none": None,
            "table": Table({"a": [1, 2]}),
        },
    }
    for field, values in changes.items():
        for name, value in values.items():
            named = "psf" if name == "table" else field
            yield f"fits-{field}-{name}", named, lambda path, f=field, v=value: write_fits(path, **{f: v})
    for name in ("SCI", "PSF"):
        yield f"fits-{name}-missing", name.lower(), lambda path, name=name: write_fits(path, without=(name,))
    weights = {"nan": np.nan, "negative": -1.0, "infinite": np.inf}
    for name, value in weights.items():
        wht = altered(1 / good["VAR"], value, MANY)
        yield f"fits-WHT-{name}", "WHT", lambda path, wht=wht: write_fits(path, ("VAR",), WHT=wht)
    headers: dict[str, dict[str, Any]] = {
        "MAGZERO": {"text": "a", "absurd": 1e6, "truth": True},
        "ZP": {"text": "a"},
        "FILTER": {"repeated": "g,r,g"},
        "BANDS": {"repeated": "ggg"},
        "BUNIT": {"number": 3.0},
        "CTYPE1": {"projection": "RA---XXX", "unpaired": "RA---SIN"},
        "CDELT1": {"zero": 0.0},
        "MASK:MP_BAD": {"text": "a", "fraction": 0.5, "too_high": 99},
    }
    fields = {"ZP": "MAGZERO", "BANDS": "FILTER", "CTYPE1": "wcs", "CDELT1": "wcs", "MASK:MP_BAD": "MASK"}
    for key, cards in headers.items():
        for name, value in cards.items():
            header = {key: value}
            yield f"fits-{key}-{name}", fields.get(key, key), lambda path, h=header: write_fits(path, header=h)


def broken_files() -> Iterator[Case]:
    """Files cut short, of other content, or with bytes overwritten."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    whole = buffer.getvalue()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        yield f"npz-cut-{length}", "", lambda path, length=length: path.write_bytes(whole[:length])
    yield "npz-zeros-inside", "", lambda path: path.write_bytes(whole[:900] + bytes(2000) + whole[2900:])
    for name, content in {
        "text": b"images = 3",
        "zeros": bytes(5000),
        "empty": b"",
        "pickle": b"\x80\x04K\x01.",
        "lone_npy": b"\x93NUMPY\x01\x00v\x00",
        "zip_signature": b"PK\x03\x04",
        "fits_signature": b"SIMPLE",
        "gzip_signature": b"\x1f\x8b\x08\x00",
    }.items():
        yield f"file-{name}", "", lambda path, content=content: path.write_bytes(content)
    yield "file-folder", "file", lambda path: path.mkdir()
    yield "file-none", "file", lambda path: None
    yield "npz-no-arrays", "images", lambda path: zipfile.ZipFile(path, "w").close()
    yield "npz-other-members", "images", lambda path: _zip(path, {"images": b"hello", "readme.txt": b"hello"})
    yield "npz-member-cut", "images", lambda path: _zip(path, {"images.npy": b"\x93NUMPY\x01\x00v\x00{'descr'"})
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (900000, 900000, 900), }\n"
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    yield "npz-member-huge", "images", lambda path: _zip(path, {"images.npy": huge})


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def cut_fits() -> Iterator[Case]:
    def cut(path: Path, fraction: float) -> None:
        whole = write_fits(path).read_bytes()
        path.write_bytes(whole[: int(len(whole) * fraction)])

    for fraction in np.linspace(0.001, 0.9999, 60):
        yield f"fits-cut-{fraction:.3f}", "", lambda path, fraction=fraction: cut(path, fraction)

    def overwrite(path: Path, old: bytes, new: bytes) -> None:
        whole = write_fits(path).read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new.ljust(len(old)), 1))

    for old, new in {
        b"NAXIS1  =                   20": b"NAXIS1  =        9000000000000",
        b"NAXIS2  =                   24": b"NAXIS2  =                  -24",
        b"NAXIS3  =                    3": b"NAXIS3  =                  abc",
        b"BITPIX  =                  -32": b"BITPIX  =                   17",
        b"XTENSION= 'IMAGE   '": b"XTENSION= 'NOTHING '",
        b"NAXIS   =                    3": b"NAXIS   =                   30",
        b"TFORM1  = 'D       '": b"TFORM1  = 'Q9Q     '",
    }.items():
        name = new.decode().replace(" ", "")
        yield f"fits-with-{name}", "", lambda path, old=old, new=new: overwrite(path, old, new)


CASES = [
    case
    for cases in (npz_cases, npz_variance_cases, catalog_cases, fits_cases, broken_files, cut_fits)
    for case in cases()
]


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 200
    assert len({name for name, _, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("name", "field", "write"), CASES, ids=[name for name, _, _ in CASES])
def test_is_refused_in_one_line(name: str, field: str, write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / ("scene.fits" if name.startswith("fits") else "scene.npz")
    write(path)
    with pytest.raises(DataError) as caught:
        Scene.read(path)
    message = str(caught.value)
    assert "\n" not in message
    file, named, problem = message.split(": ", 2)
    assert file == str(path)
    assert named
    assert field.lower() in named.lower()
    assert problem.startswith("expected ")
    assert "received" in problem or "as " in problem


def test_unaltered_files_are_read(tmp_path: Path) -> None:
    """The cases above fail for what was altered, not for what they share."""
    assert len(Scene.read(write_npz(tmp_path / "a.npz")).sources) == 2
    assert len(Scene.read(write_fits(tmp_path / "b.fits")).sources) == 2
    assert fits.getdata(tmp_path / "b.fits", "SCI").shape == SHAPE


def npy(shape: tuple[int, ...], kind: Any) -> bytes:
    """The header of an array of zeros, and of the zeros as many as would show that they are read."""
    buffer = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(100)


SOURCES = [("x", float), ("y", float)]


@pytest.mark.parametrize(
    ("key", "shape", "kind", "received"),
    [
        ("images", (1, 20_000, 20_000), np.float32, "400,000,000 of shape"),
        ("images", (1, 20_000, 20_000), np.uint8, "400,000,000 of shape"),
        ("weights", (20_000, 20_000), float, "400,000,000 of shape"),
        ("psfs", (1, 20_000, 20_000), float, "400,000,000 of shape"),
        ("filters", (1,), "U100000000", "50,000,000 of shape"),
        ("peaks", (60_000_000, 2), np.float32, "at most 1,000,000 rows, received 60,000,000"),
        ("catalog", (60_000_000,), SOURCES, "at most 1,000,000 rows, received 60,000,000"),
    ],
)
def test_archives_are_refused_by_the_shapes_of_their_arrays(
    tmp_path: Path, key: str, shape: tuple[int, ...], kind: Any, received: str
) -> None:
    """Before anything of that size is read."""
    path = tmp_path / "scene.npz"
    write_npz(path, without=(key, *(("peaks",) if key == "catalog" else ())))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{key}.npy", npy(shape, kind))
    tracemalloc.start()
    with pytest.raises(DataError, match=f"scene.npz: {key}: expected .*{received}"):
        Scene.read(path)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_what_is_read_can_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, PSFs and tables of FITS files and catalogues likewise; the limit is a variable of the environment."""
    path, catalog = write_fits(tmp_path / "scene.fits"), tmp_path / "rows.csv"
    monkeypatch.setenv("TFDEBLEND_LARGEST", "1439")
    with pytest.raises(
        DataError, match=r"SCI: expected at most 1,439 numbers, received 1,440 of shape \(3, 24, 20\); cut"
    ):
        Scene.read(path)
    monkeypatch.setenv("TFDEBLEND_LARGEST", "1440")
    Scene.read(path)
    monkeypatch.setenv("TFDEBLEND_LARGEST", "many")
    with pytest.raises(DataError, match="TFDEBLEND_LARGEST: expected a number, received many"):
        Scene.read(path)
    monkeypatch.delenv("TFDEBLEND_LARGEST")
    monkeypatch.setattr("tfdeblend.io.files.MOST_ROWS", 1)
    with pytest.raises(DataError, match="CATALOG: expected a catalogue of at most 1 rows, received 2"):
        Scene.read(path)
    catalog.write_text("x,y\n1,2\n3,4\n")
    with pytest.raises(DataError, match="table: expected a catalogue of at most 1 rows, received 2"):
        read_catalog(catalog)
