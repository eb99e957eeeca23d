"""Sample scenes that come with the package, to try it on.

`simulated-hsc-blend` holds five galaxies drawn by GalSim as the Hyper Suprime-Cam's Wide survey would see them, in
grizy, on 60 x 60 pixels of 0.168 arcsec. It is scene 15 of
`tfdeblend simulate --number 24 --size 60 --sources 4-5 --bright 19 --faint 24 --seed 11`. It holds no data of the
survey, and is under the license of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from astropy.table import Table

    from tfdeblend.data.scene import Scene

__all__ = ["load", "names", "path", "truth"]

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """List the names of the sample scenes."""
    return sorted(file.stem for file in FOLDER.glob("*.npz"))


def path(name: str) -> Path:
    """Return the file of a sample scene, which every command takes. Raises: ValueError for a name that is not known."""
    if name not in names():
        raise ValueError(f"name: expected one of {', '.join(names())}, received {name!r}")
    return FOLDER / f"{name}.npz"


def load(name: str) -> Scene:
    """Read a sample scene. Raises: ValueError for a name that is not known."""
    from tfdeblend.data.scene import Scene

    return Scene.read(path(name))


def truth(name: str) -> Table:
    """Read the true sources of a sample scene, a row each in the scene's order.

    Columns: `x`, `y` (pixels), `type`, `magnitude` (AB, i), `redshift`, `radius` (arcsec, half-light) and `flux_<band>`
    (electrons, total).

    Raises: ValueError for a name that is not known.
    """
    from tfdeblend.io import read

    _, table = read(path(name))
    return table
