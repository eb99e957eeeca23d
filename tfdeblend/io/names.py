"""Names: what surveys call the images, the noise and the masks in their files, and their bands."""

from __future__ import annotations

import re
from typing import NamedTuple

# Of a part of the contents, in the order of preference.
PARTS = {
    "images": ("SCI", "IMAGE"),
    "weights": ("WHT", "WEIGHT", "WEIGHTS", "WGT", "IVAR", "INVVAR", "INVVARIANCE"),
    "variance": ("VAR", "VARIANCE"),
    "sigma": ("ERR", "ERROR", "ERRORS", "RMS", "SIGMA", "STD", "STDDEV", "UNCERT", "UNCERTAINTY"),
    "mask": ("MASK", "MSK", "DQ", "FLAG", "FLAGS", "MASKBITS"),
    "psf": ("PSF",),
    "noise_correlation": ("NOISECORR",),
    "saturated": ("SATURATED",),
}
NOISES = ("variance", "sigma", "weights")  # that is used where a file has several
# Contexts, exposures, parts of the noise and distortions, which say nothing more; and what simulations add.
HARMLESS = re.compile(
    r"CTX|CON|CONTEXT|(VAR|ERR)_(POISSON|RNOISE|FLAT|IMSUB)|HDRTAB|ASDF|WCSDVARR|WCSCORR|D2IMARR|AREA|N?EXP|NIMAGES?"
    r"|EXPTIME|EXPOSURE|COVERAGE|SAMP|TIME|TRUTH\w*|NOISE_?KER(NEL)?|MODEL_?SIG(MA)?"
)

SURVEY_BANDS = re.compile(
    r"(?:hsc|decam|des|lsst)[-_ .]([ugrizy])|hsc[-_ .]([ri])2|([ugriz])[-_ .]mp9\d{3}"
    r"|([ugrizy]) decam .*",
    re.IGNORECASE,
)


def band_letter(name: str) -> str:
    """Give the letter u, g, r, i, z or y of a survey's name of that band, such as HSC-I2, decam_g or g.MP9402.

    Any other name stays as it is: K is no k, nor Y of an infrared camera y.
    """
    known = SURVEY_BANDS.fullmatch(name)
    return name if known is None else next(letter for letter in known.groups() if letter).lower()


class Name(NamedTuple):
    """A name of an extension, taken apart.

    WHT_g is `part` "weights", `word` "WHT", `tag` "g"; SCI2 has the tag "2"; SCI_g_ERR is the noise of SCI_g, as ERR_g.
    """

    part: str
    word: str
    tag: str


def parsed(name: str) -> Name | None:
    """Take apart the name of an extension or key, in any case; None where it is not understood."""
    for part, words in PARTS.items():
        for word in words:
            if match := re.fullmatch(rf"{word}(?:[_.\- ](\w[\w.\-]*)|(\d+))?", name.strip(), re.IGNORECASE):
                tag = match[1] or match[2] or ""
                band, _, last = tag.rpartition("_")
                own = parsed(last) if part == "images" and last else None
                return Name(part, word, tag) if own is None else own._replace(tag=band)
    return None


def is_harmless(name: str) -> bool:
    """Whether nothing is lost where the part of this name is not read."""
    return HARMLESS.fullmatch(name.strip().upper()) is not None


def unread(names: list[str]) -> list[str]:
    """A note that lists the names that are not understood, or that say what another one says, if there are any."""
    return [f"not read, as not understood or given twice: {', '.join(names[:20])}"] if names else []
