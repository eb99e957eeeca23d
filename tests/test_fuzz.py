"""Files that nobody would write: a reader makes an Observation whose numbers can be used, or says in one line why not.

500 files, always the same; TFDEBLEND_FUZZ=20000 pytest tests/test_fuzz.py tries so many others.
"""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scene_files import SHAPE, arrays, extensions, write_fits

from tfdeblend.data.observation import Observation
from tfdeblend.errors import DataError

FILES = int(os.environ.get("TFDEBLEND_FUZZ", "500"))
MEMORY, SECONDS = 2**29, 30  # more than before a file is read, and for one file
each_half = settings(
    max_examples=FILES // 2,
    derandomize="TFDEBLEND_FUZZ" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Hang(BaseException):
    """A file that takes too long; no reader catches it."""


@contextmanager
def limited() -> Iterator[None]:
    """Fails what takes too much memory or time."""

    def stop(*_: object) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def check(content: bytes, suffix: str) -> None:
    """Reads a file, and checks what comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(content)
        try:
            with limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = Observation.read(path)
        except DataError as error:
            line = str(error)
            assert line.startswith(f"{path}: ") and len(line.splitlines()) == 1 and line.isprintable()
            assert len(line) < 1000
            assert "MemoryError" not in line and "Unable to allocate" not in line
            return
    seen = found.weights > 0
    assert np.isfinite(found.weights).all() and (found.weights >= 0).all() and seen.any()
    assert np.isfinite(found.images[seen]).all() and np.isfinite(found.psf).all()
    numbers = [value for value in (found.zeropoints, found.pixel_scale) if value is not None]
    assert all(np.isfinite(value).all() for value in numbers)
    assert all(note.isprintable() for note in found.notes)


# -- what is done to good files


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, cut off, left out or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at, kind = draw(st.integers(0, len(changed) - 1)), draw(st.sampled_from(("flip", "set", "out", "in", "end")))
        if kind == "flip":
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            changed[at] = draw(st.integers(0, 255))
        elif kind == "out":
            del changed[at : at + draw(st.integers(1, 80))]
        elif kind == "in":
            changed[at:at] = draw(st.binary(min_size=1, max_size=80))
        else:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


NUMBERS = st.one_of(
    st.floats(width=32),
    st.sampled_from((np.nan, np.inf, -1, 0, 1e38, -1e30, 1e-310, 65535, -99, 2**31)),
)
DTYPES = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(),
    arrays_of.unsigned_integer_dtypes(),
    arrays_of.floating_dtypes(endianness="?"),
    arrays_of.complex_number_dtypes(),
    arrays_of.unicode_string_dtypes(max_len=4),
    arrays_of.byte_string_dtypes(max_len=4),
    arrays_of.datetime64_dtypes(),
    arrays_of.array_dtypes(arrays_of.integer_dtypes(), max_size=3),
)
SHAPES = st.one_of(
    st.sampled_from((SHAPE, SHAPE[1:], (1, *SHAPE[1:]), (3, 15, 15), (15, 15), (3,), (2, 2), (), (0,), (3, 0, 20))),
    arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@st.composite
def odd_arrays(draw: st.DrawFn) -> np.ndarray:
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if dtype.kind in "fiu" and dtype.subdtype is None:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.full(shape, draw(NUMBERS)).astype(dtype)
    return draw(arrays_of.arrays(dtype, shape, fill=arrays_of.from_dtype(dtype)))


@st.composite
def pixels_changed(draw: st.DrawFn, good: np.ndarray) -> np.ndarray:
    """Some values of a good array replaced by others."""
    if good.dtype.kind not in "fiu":
        return good
    changed = good.astype(np.float64)
    for _ in range(draw(st.integers(1, 3))):
        changed[tuple(draw(st.integers(0, size - 1)) for size in good.shape)] = draw(NUMBERS)
    return changed


NPZ_KEYS = (*arrays(), "variance", "sigma", "mask", "footprint", "zeropoints", "unit", "wcs", "pixel_scale", "catalog")
NPZ_KEYS += ("noise_correlation", "saturated", "IMAGES", "ivar", "x/y", "", "images.npy")
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ("nJy", "MJy/sr", "mag", "1e-30 Jy", "adu/s", "electron", "\x00", "g", "g,r,i", "ICRS", "RA---TPV")
    ),
)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@st.composite
def npz_files(draw: st.DrawFn) -> bytes:
    """Keys of other values, or left out; then one member's bytes changed, or the archive's."""
    good = arrays()
    values: dict[str, Any] = dict(good)
    for key in draw(st.lists(st.sampled_from(NPZ_KEYS), max_size=3, unique=True)):
        kinds = [odd_arrays(), TEXTS.map(np.array), NUMBERS.map(np.array), st.none()]
        values[key] = draw(st.one_of(*kinds, *([pixels_changed(good[key])] * 3 if key in good else [])))
    members = {f"{key}.npy": saved(value) for key, value in values.items() if value is not None}
    where = draw(st.sampled_from(("none", "member", "member", "archive")))
    if where == "member":
        name = draw(st.sampled_from(sorted(members)))
        members[name] = draw(damaged(members[name]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return draw(damaged(file.getvalue())) if where == "archive" else file.getvalue()


KEYWORDS = (
    *(
        "BUNIT",
        "FILTER",
        "FILTER1",
        "BANDS",
        "MAGZERO",
        "ZP",
        "PIXSCALE",
        "FLUXMAG0",
        "PHOTFLAM",
        "PHOTPLAM",
        "PHOTZPT",
    ),
    *(
        "PIXAR_SR",
        "PIXAR_A2",
        "TELESCOP",
        "INSTRUME",
        "PUPIL",
        "EXPTIME",
        "MP_BAD",
        "MP_SAT",
        "LTV1",
        "UTYPE",
        "EXTNAME",
    ),
    *(
        "CTYPE1",
        "CTYPE2",
        "CRPIX1",
        "CRVAL2",
        "CDELT1",
        "CD1_1",
        "CD1_2",
        "CUNIT1",
        "PC1_1",
        "PV1_1",
        "A_ORDER",
        "A_0_2",
    ),
    *("RADESYS", "EQUINOX", "WCSAXES", "LONPOLE", "BSCALE", "BZERO", "BLANK", "OVERSAMP", "DET_SAMP", "PIXELSCL", "é"),
    *("TTYPE1", "TUNIT1", "TNULL1", "TZERO1", "TSCAL1", "COMMENT", "HIERARCH X", "CONTINUE", "INHERIT", "POLNAXIS"),
)
STRUCTURE = ("BITPIX", "NAXIS", "NAXIS1", "NAXIS3", "PCOUNT", "GCOUNT", "XTENSION", "SIMPLE", "END", "EXTEND")
STRUCTURE += ("TFIELDS", "TFORM1", "TDIM1", "ZIMAGE", "ZCMPTYPE", "THEAP", "EXTVER")
KEPT = (b"NAXIS", b"BITPIX", b"XTENSION", b"SIMPLE", b"PCOUNT", b"GCOUNT", b"TF", b"END ")
VALUES = st.one_of(
    st.integers(-3, 100),
    st.sampled_from((2**31, -(2**63), 10**30)),
    NUMBERS,
    st.booleans(),
    TEXTS,
    st.just(None),
)
EXTENSIONS = ("SCI", "VAR", "MASK", "PSF", "CATALOG", "WHT", "ERR", "DQ", "SCI_G", "NOISECORR", "SATURATED", "OTHER")


CARD = re.compile(rb"[A-Z][A-Z0-9_-]{0,7} *= ")


def card(keyword: str, value: object) -> bytes:
    """A card of 80 bytes, whatever the standard says of its value."""
    shown = f"'{value}'" if isinstance(value, str) else {True: "T", False: "F"}.get(value, value)
    line = f"{keyword:<8}= {shown!s:>20}" if value is not None else f"{keyword:<8}="
    return line.encode("latin-1", "replace")[:80].ljust(80)


@st.composite
def fits_files(draw: st.DrawFn) -> bytes:
    """An extension of other content; cards in the place of others, in any header; then bytes changed."""
    good, more = extensions(), dict[str, Any]()
    name = draw(st.sampled_from((None, *EXTENSIONS)))
    if name is not None:
        odd = odd_arrays().filter(lambda value: value.dtype.kind in "fiu" and value.ndim and value.size)
        changed = [pixels_changed(good[name])] * 3 if name in good and name != "CATALOG" else []
        more[name] = draw(st.one_of(odd, st.sampled_from((SHAPE, SHAPE[1:])).map(np.ones), *changed))
    without = draw(st.lists(st.sampled_from(EXTENSIONS), max_size=1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fits"
        try:
            content = bytearray(write_fits(path, tuple(without), **more).read_bytes())
        except (ValueError, KeyError, TypeError):  # Astropy writes no such image
            content = bytearray(write_fits(path).read_bytes())
    starts = [at for at in range(0, len(content), 80) if CARD.match(content, at)]
    free = [at for at in starts if not content.startswith(KEPT, at)]
    for _ in range(draw(st.integers(0, 5))):
        structural = draw(st.integers(0, 9)) == 9
        keywords = STRUCTURE if structural else KEYWORDS
        new = draw(st.one_of(*[st.builds(card, st.sampled_from(keywords), VALUES)] * 5, st.binary(max_size=80)))
        same = [at for at in starts if content[at : at + 8] == new[:8]]
        at = draw(st.sampled_from(same or (starts if structural else free)))
        content[at : at + 80] = new.ljust(80)[:80]
    return draw(damaged(bytes(content))) if draw(st.integers(0, 3)) == 3 else bytes(content)


@given(npz_files())
@each_half
def test_any_npz_file_is_read_or_refused(content: bytes):
    check(content, ".npz")


@given(fits_files())
@each_half
def test_any_fits_file_is_read_or_refused(content: bytes):
    check(content, ".fits")
