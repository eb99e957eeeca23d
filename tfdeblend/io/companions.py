"""What names of files say: which field each shows, which part of it, and in which band.

Surveys deliver a field in several files: the image in one, its noise, its mask and its PSF in others whose names differ
by a word, and each band in files of its own. A FITS file belongs to the image beside it whose name is the same but for
such words at its end: `x-image-r.fits.fz` and `x-invvar-r.fits.fz`, `x_drz.fits` and `x_rms.fits`, `x.fits` and
`x.weight.fits`. Words of bands, versions and tiles may follow.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tfdeblend.data.photometry import WAVELENGTHS
from tfdeblend.errors import DataError
from tfdeblend.io.files import SUFFIXES, scene_name
from tfdeblend.io.names import band_letter

IMAGE = frozenset("image img sci science drz drc i2d".split())
WORDS = {  # of the parts of `Contents`, and of other maps, which are not read
    "weights": "invvar ivar ivm wht weight weights wgt wei wt conf",
    "variance": "var variance",
    "sigma": "rms err error sigma std stddev unc uncert uncertainty",
    "mask": "mask msk flag flags dq bpm maskbits",
    "psf": "psf",
    "other": "ctx context coverage depth galdepth psfdepth psfsize nexp expmap exptime seg segm segmap "
    "segmentation chi2 blobmodel model resid residual bkg",
}
PART = {word: part for part, words in WORDS.items() for word in words.split()}
BAND = re.compile(r"[ugrizyjhk]|ks|vis|[nf]uv|w[1-4]|f\d{3,4}(?:w|n|m|lp|x|w2|n2)|mp\d{4}")
CAMERA = ("hsc", "nir", "des")  # words before a band's, as in HSC-I
SECOND = ("r2", "i2")  # filters that took the place of others, after the word hsc
FOLLOWING = re.compile(
    rf"{BAND.pattern}|{'|'.join((*CAMERA, *SECOND))}|v?\d+|tile\d+"
)  # words that may follow that of a part
EUCLID = re.compile(r"^(euc_mer_)(?:bgsub-)?(mosaic-.+_tile\d+)-.*$", re.IGNORECASE)  # ends in a code and a time
TOKEN = re.compile(r"[._\-]*[^._\-]+|[._\-]+$")  # a word, with what separates it from the one before
FRESH = 2e9  # nanoseconds after a change of a folder in which a further one may not show


class Name(NamedTuple):
    """What the name of a file says.

    image: that of its image, in small letters: the name without the words of parts. part: "images", a part of
    `Contents` or "other", as its last word says. field: without the word of its band, too; None where it has none.
    band: that word, or the letter that it stands for (see `names.band_letter`). numbered: the name without each of its
    single letters in turn that are no bands.
    """

    image: str
    part: str = "images"
    word: str = ""
    field: str | None = None
    band: str = ""
    numbered: tuple[str, ...] = ()


def parse(path: Path) -> Name:
    """What a file's name says; that of an NPZ archive, which holds all of a scene, says no part and no band."""
    name = scene_name(path)
    if path.name.endswith(".psf"):  # of PSFEx; `_psfcat` as of DES
        return Name(name.lower().removesuffix("_psfcat"), "psf", "psf")
    if not path.name.lower().endswith(SUFFIXES[1:]):
        return Name(name.lower())
    tokens = TOKEN.findall(EUCLID.sub(r"\1\2", name))
    words = [token.lstrip("._-").lower() for token in tokens]
    first = len(words)
    while first and (words[first - 1] in PART or words[first - 1] in IMAGE or FOLLOWING.fullmatch(words[first - 1])):
        first -= 1
    called = [word for word in words[first:] if word in PART]
    word = called[-1] if called else ""
    part = PART[word] if word else "images"
    spoken = IMAGE | ({"psf"} if part == "psf" else PART.keys())
    kept = [place for place, word in enumerate(words) if place < first or word not in spoken]

    def less(*places: int) -> str:
        return "".join(tokens[place] for place in kept if place not in places)

    before = ["", *words]
    bands = [place for place in kept if BAND.fullmatch(words[place])]
    bands += [place for place in kept if words[place] in SECOND and before[place] == "hsc"]
    letters = [place for place in kept if len(words[place]) == 1 and words[place].isalpha() and place not in bands]
    numbered = tuple(less(place).lower() for place in letters)
    if not bands:
        return Name(less().lower(), part, word, numbered=numbered)
    slot = max(bands)
    text = tokens[slot].lstrip("._-")
    letter = band_letter(f"{before[slot]}-{text}")
    of_band = [slot - 1] if slot - 1 in kept and (before[slot] in CAMERA or letter == before[slot]) else []
    return Name(less().lower(), part, word, less(slot, *of_band), letter if len(letter) == 1 else text, numbered)


def find_inputs(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the files that files, folders and globs stand for: sorted, each once.

    Left out are files that another one of them is read with (see `beside`), and in folders hidden ones.

    Raises:
        DataError: nothing found for one of `paths`, or two files of one name, whose outputs would collide.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found = without_companions(sorted({path for given in paths for path in _expand(Path(given))}))
    if not found:
        raise DataError("inputs", "files", "expected files, folders or globs, received none")
    first: dict[str, Path] = {}
    for path in found:
        other = first.setdefault(scene_name(path), path)
        if other is not path:
            raise DataError(path, "name", f"expected a different name for each scene, received {other} too")
    return found


def _expand(given: Path) -> list[Path]:
    if os.path.isfile(given):
        return [given]
    if os.path.isdir(given):
        found = [path for path in given.iterdir() if path.name.lower().endswith(SUFFIXES) and path.is_file()]
        found = [path for path in found if not path.name.startswith(".")]
        expected = f"expected files ending in {', '.join(SUFFIXES)}"
    else:
        found = [Path(path) for path in glob.glob(str(given), recursive=True) if os.path.isfile(path)]
        expected = "expected a file, a folder or a glob that matches files"
    if not found:
        raise DataError(given, "files", f"{expected}, received none")
    return found


def beside(path: Path) -> dict[str, list[Path]]:
    """The files beside an image that hold other parts of its field, by part: of an NPZ archive its PSF alone.

    The PSF is `<name>_psf.fits`, or else the PSFEx model `<name>.psf`. Parts called "other" are none to be read.
    """
    said = parse(path)
    there = _in_folder(path.parent).get(said.image, {}) if said.part == "images" else {}
    found = {part: list(files) for part, files in there.items() if part != "images"}
    if said.part == "images" and said.field is not None:  # masks may be one for all bands
        found = {"mask": list(_in_folder(path.parent).get(said.field.lower(), {}).get("mask", ()))} | found
    if not path.name.lower().endswith(SUFFIXES[1:]):
        found = {part: files for part, files in found.items() if part == "psf"}
    exact = [path.parent / f"{scene_name(path)}{end}" for end in ("_psf.fits", ".psf")]
    named = [file for file in exact if os.path.isfile(file)]  # unlike Path.is_file for names of any length
    return found | ({"psf": named[:1]} if named else {})


def image_of(path: Path) -> Path | None:
    """The image beside a map of its noise, its mask or its PSF; None where there is none."""
    return next(iter(_in_folder(path.parent).get(parse(path).image, {}).get("images", [])), None)


def without_companions(paths: Sequence[Path]) -> list[Path]:
    """Files less those that another one of them is read with."""
    parts = {file for path in paths for files in beside(path).values() for file in files}
    return [path for path in paths if path not in parts]


def _in_folder(folder: Path) -> Mapping[str, Mapping[str, list[Path]]]:
    """The files of a folder by the image that they belong to and the part that they hold."""
    try:
        changed = folder.stat().st_mtime_ns
        listed = _listed if time.time_ns() - changed > FRESH else _listed.__wrapped__
        return listed(folder, changed)
    except OSError:
        return {}


@lru_cache(maxsize=8)
def _listed(folder: Path, changed: int) -> Mapping[str, Mapping[str, list[Path]]]:
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    for name in names:
        if name.lower().endswith((*SUFFIXES, ".psf")):
            said = parse(Path(name))
            found[said.image][said.part].append(folder / name)
    return found


def by_field(paths: Sequence[Path]) -> list[tuple[Path, ...]]:
    """The files of one field together where their names differ by its bands alone; any other by itself.

    Files that are numbered by letters, some of which happen to be names of bands, are fields of their own.
    """
    names = {path: parse(path) for path in paths}
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path, name in names.items():
        if name.field is not None and name.part == "images":
            groups[path.parent, name.field.lower()].append(path)
    numbered = {(path.parent, rest) for path, name in names.items() for rest in name.numbered}
    fields = {
        path: tuple(sorted(group, key=lambda path: _wavelength(names[path].band)))
        for key, group in groups.items()
        if key not in numbered
        for path in group
    }
    return list(dict.fromkeys(fields.get(path, (path,)) for path in paths))


def _wavelength(band: str) -> float:
    """The wavelength of a band in nm, roughly, by which bands are ordered from blue to red."""
    if number := re.match(r"f(\d+)", band, re.IGNORECASE):
        return float(number[1]) * (1 if float(number[1]) >= 200 else 10)
    return WAVELENGTHS.get(band.lower(), 0)


def field_name(paths: Sequence[Path]) -> str:
    """The name of the field that files show: of one file its own, of several theirs without the words of bands."""
    if len(paths) == 1:
        return scene_name(paths[0])
    return (parse(paths[0]).field or "").strip("._-") or paths[0].absolute().parent.name
