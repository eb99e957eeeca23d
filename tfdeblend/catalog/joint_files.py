"""Results for several observations of one field, as FITS: what `results` has for the first of them, and besides

    MODEL_<NAME>, RESIDUAL_<NAME> (C,H,W), SOURCES_<NAME> (K,C,H,W), IMAGES_<NAME>, WEIGHTS_<NAME> (C,H,W), PSF_<NAME>
                    of each other observation, on its own pixels and in its own unit
    SOURCES_STD_<NAME> (K,C,H,W), SAMPLES_<NAME> (S,K,C,P,P) in its bands, where sampled and where kept
    STAMPS_<NAME>   (K,C,P,P) in its bands, and in the pixels and the unit of CATALOG
    FLUXCOV_<NAME>  (C,K,K) in its bands, in the unit of CATALOG
    CALIBRATION     a row a band of each: observation, band, shift_y, shift_x and their errors (pixels of the first),
                    gain, background (in the observation's unit), chi2 a pixel

`results.read_fits` reads the first observation's result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits

from tfdeblend.catalog.files import image_hdu, table_hdu, write_fits

if TYPE_CHECKING:
    from tfdeblend.catalog.joint_result import JointDeblended


def write_joint(result: JointDeblended, path: str | Path) -> None:
    """Write a result, whole or not at all, over any file of that name."""
    others = range(1, len(result.exposures.observations))
    more = [hdu for e in others for hdu in _hdus(result, e)]
    write_fits(result.first, path, [*more, table_hdu(result.calibration_table, "CALIBRATION")])


def _hdus(result: JointDeblended, e: int) -> list[fits.ImageHDU]:
    one, exposures = result.exposures.observations[e], result.exposures
    name = one.name.encode("ascii", "replace").decode().upper()
    bands = [exposures.bands.index(band) for band in one.bands]
    own, frame = (
        None if observation.wcs is None else observation.wcs.to_header(relax=True)
        for observation in (one, exposures.observations[0])
    )
    images = {
        "MODEL": result.models[e],
        "RESIDUAL": np.where(one.valid, one.images - result.models[e], np.nan),
        "SOURCES": result.sources[e],
        "IMAGES": one.images,
        "WEIGHTS": one.weights,
    }
    if result.sources_std is not None:
        images["SOURCES_STD"] = result.sources_std[e]
    hdus = [image_hdu(data.astype(np.float32), f"{key}_{name}", own, one.unit) for key, data in images.items()]
    hdus.append(image_hdu(result.stamps[:, bands].astype(np.float32), f"STAMPS_{name}", frame, None))
    if result.samples is not None:
        hdus.append(image_hdu(result.samples[:, :, bands], f"SAMPLES_{name}", frame, None))
    plain = {"PSF": one.psf, "FLUXCOV": result.flux_cov[bands]}
    return hdus + [fits.ImageHDU(data, name=f"{key}_{name}") for key, data in plain.items()]
