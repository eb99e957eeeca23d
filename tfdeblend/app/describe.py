"""What is installed, and what a file holds: the answers of `tfdeblend info`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tfdeblend.data.observation import Observation

PACKAGES = (
    "tensorflow",
    "tensorflow-probability",
    "tf-keras",
    "keras",
    "numpy",
    "astropy",
    "galsim",
    "sep",
    "matplotlib",
)


def packages() -> dict[str, Any]:
    """Versions, looked up without importing the packages."""

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version(), "packages": {package: installed(package) for package in PACKAGES}}


def file(path: Path, psf: str | None = None, mask_planes: Sequence[str | int] | None = None) -> dict[str, Any]:
    """What a scene or a result holds. Raises: DataError where it cannot be read."""
    from tfdeblend import io
    from tfdeblend.catalog import files

    if is_result(path):
        result = files.read(path)
        undeclared = None if result.undeclared is None else len(result.undeclared)
        found: dict[str, Any] = {
            "sources": len(result.catalog),
            "chi2": result.chi2,
            "undeclared": undeclared,
            **result.header,
        }
        further = {one.name: observation(one) for one in result.scene.observations[1:]}
        found |= {"observations": further} if further else {}
        return {"file": str(path), "content": "result", **observation(result.scene.observation), **found}
    read, catalog = io.read(path, psf=psf, mask_planes=mask_planes)
    sources = "no catalogue" if catalog is None else len(catalog)
    return {"file": str(path), "content": "scene", **observation(read), "sources": sources, "notes": list(read.notes)}


def is_result(path: Path) -> bool:
    """Whether a file was written by `tfdeblend.catalog.files.write`."""
    from astropy.io import fits

    if path.suffix == ".npz":
        return False
    try:
        with fits.open(path) as hdus:
            return "STAMPS" in hdus
    except OSError:
        return False


def observation(observed: Observation) -> dict[str, Any]:
    """Shape, bands, PSF width, noise and masks."""
    from tfdeblend.data.psf import fwhm

    valid, scale = observed.weights > 0, observed.pixel_scale
    noise = [np.median(w[v] ** -0.5) if v.any() else None for w, v in zip(observed.weights, valid, strict=True)]
    return {
        "shape": observed.images.shape,
        "bands": observed.bands,
        "unit": observed.unit,
        "zeropoints": observed.zeropoints,
        "pixel_scale": scale,
        "psf_fwhm": fwhm(observed.psf) * (scale or 1),
        "psf_fwhm_unit": "arcsec" if scale else "pixel",
        "noise": noise,
        "masked": 1 - valid.mean(),
    }
