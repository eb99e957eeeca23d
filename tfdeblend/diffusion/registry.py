"""Learned priors: which are shipped, what they are for, and reading them: networks from `.keras` files, Gaussians from
the `.npz` files that `GaussianDenoiser.save` writes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeblend.errors import DataError

if TYPE_CHECKING:
    from tfdeblend.diffusion.denoisers import NeuralDenoiser

FOLDER = Path(__file__).parents[1] / "weights"
SUFFIX, GAUSSIAN = ".keras", ".npz"


@dataclass(frozen=True)
class PriorFile:
    """Names the file of a learned prior, and says what the prior is for.

    Args:
        bands: C names.
        side: pixels of its stamps.
        pixel_scale: arcsec.
        model_sigma: pixels, of the stamps' PSF.
        sha256: of the file, where it is known beforehand.
        description: one line.
    """

    name: str
    path: Path
    bands: tuple[str, ...]
    side: int
    pixel_scale: float
    model_sigma: float
    sha256: str | None = None
    description: str = ""

    def load(self) -> Any:
        """Read the `NeuralDenoiser` or `GaussianDenoiser`, once.

        Raises: DataError for a file that is missing, damaged or something else.
        """
        return _load(self.path, self.sha256)

    def network(self) -> NeuralDenoiser:
        """Make a copy of the network to train on. Raises: DataError as `load`, and for a Gaussian prior."""
        denoiser = self.load()
        if self.path.suffix == GAUSSIAN:
            raise DataError(self.path, "prior", f"expected a network ({SUFFIX}), received a Gaussian prior")
        return denoiser.without_optimizer()


@functools.cache
def shipped() -> dict[str, PriorFile]:
    """List the priors that come with the package, by name: of several that fit, "auto" takes the first."""
    found = {}
    for path in sorted(FOLDER.glob("*.json"), key=lambda path: path.stem):
        card = json.loads(path.read_text())
        found[path.stem] = PriorFile(
            path.stem,
            path.with_suffix(SUFFIX),
            tuple(card["bands"]),
            card["side"],
            card["pixel_scale"],
            card["model_sigma"],
            card["sha256"],
            card["description"],
        )
    return found


def find(name: str) -> PriorFile:
    """Find the shipped prior of that name, or that of a file.

    Raises: DataError for neither, or a file that cannot be read.
    """
    known = shipped()
    if name in known:
        return known[name]
    if not is_file(name):
        raise DataError(
            "prior", None, f"expected {', '.join(known)} or a {SUFFIX} or {GAUSSIAN} file, received {name!r}"
        )
    denoiser = _load(Path(name), None)
    bands, side, _ = denoiser.stamp_shape
    names = denoiser.bands or tuple(f"band{band}" for band in range(bands))
    return PriorFile(Path(name).stem, Path(name), names, side, denoiser.pixel_scale, denoiser.model_sigma)


def is_file(name: str) -> bool:
    """Tell whether a prior's name is that of a file."""
    return name.endswith((SUFFIX, GAUSSIAN))


def is_learned(name: str) -> bool:
    """Tell whether a prior's name is that of a shipped one or of a file."""
    return is_file(name) or name in shipped()


@functools.cache
def _load(path: Path, sha256: str | None) -> Any:
    from tfdeblend.diffusion import files

    try:
        known = sha256 is not None
        if known and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise DataError(path, "prior", f"expected SHA-256 {sha256}, received another: the file is damaged")
        if not path.is_file():
            path.open("rb").close()  # says what is wrong with it
            raise DataError(path, "prior", f"expected a {path.suffix} file, received something else")
    except OSError as error:
        raise DataError(path, "prior", f"expected a {path.suffix} file, received {error.strerror}") from error
    return files.read_gaussian(path) if path.suffix == GAUSSIAN else files.read_network(path, trusted=known)
