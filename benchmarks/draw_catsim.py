"""Draw CatSim blends with the Blending ToolKit, in the project's NPZ format and with the truth beside them.

Runs inside the Blending ToolKit's own environment (see `benchmarks/environments.py`), as its pins clash with ours:

    python benchmarks/draw_catsim.py --catalog catsim_sample.fits --out scenes/hsc --survey HSC --n 64 --seed 1

Every file holds what `tfdeblend deblend` reads (`images`, `weights`, `psfs`, `filters`, `peaks`, `zeropoints`,
`pixel_scale`) and `truth` (K,C,H,W): each source alone, PSF-convolved and noiseless, in electrons.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import btk
import numpy as np
from surveycodex.utilities import mag2counts, mean_sky_level

PSF_SIDE = 43
BATCH = 8


def pixel_psfs(batch, side: int = PSF_SIDE) -> np.ndarray:
    """The survey's PSFs (C,side,side) at the pixel scale of the images, pixel response included, each summing to 1.

    `BlendBatch.get_numpy_psf` gives no scale, so that GalSim draws each band at that band's own Nyquist scale: in HSC
    14% too narrow in g and 10% too wide in i. Here the scale is the images' own.
    """
    scale = batch.survey.pixel_scale.to_value("arcsec")
    psfs = np.array([psf.drawImage(nx=side, ny=side, scale=scale).array for psf in batch.psf])
    return psfs / psfs.sum((1, 2), keepdims=True)


def toolkit_psfs(batch, side: int = PSF_SIDE) -> np.ndarray:
    """`get_numpy_psf()` cut to (C,side,side) and renormalised: the wrong widths of `pixel_psfs`' note, as a stress."""
    psfs = batch.get_numpy_psf()
    start = (psfs.shape[-1] - side) // 2
    psfs = psfs[:, start : start + side, start : start + side]
    return psfs / psfs.sum((1, 2), keepdims=True)


def generator(catalog: Path, survey: str, max_number: int, seed: int):
    """An endless iterator over batches of blends of 2 to `max_number` galaxies brighter than i = 25.3."""
    sampling = btk.sampling_functions.DefaultSampling(
        max_number=max_number, min_number=2, stamp_size=11.0, max_shift=3.2, max_mag=25.3, seed=seed
    )
    return btk.draw_blends.CatsimGenerator(
        btk.catalog.CatsimCatalog.from_file(str(catalog)),
        sampling,
        btk.survey.get_surveys(survey),
        batch_size=BATCH,
        add_noise="all",
        seed=seed,
    )


def scene_arrays(batch, index: int, psfs: np.ndarray) -> dict[str, Any]:
    """The arrays of one scene's NPZ file."""
    survey, table = batch.survey, batch.catalog_list[index]
    filters = [survey.get_filter(name) for name in survey.available_filters]
    sky = np.array([mean_sky_level(survey, f).to_value("electron") for f in filters])[:, None, None]
    truth = batch.isolated_images[index][: len(table)]
    return {
        "images": batch.blend_images[index].astype(np.float32),
        "weights": (1 / (sky + np.maximum(truth.sum(0), 0))).astype(np.float32),
        "psfs": psfs.astype(np.float32),
        "filters": np.array([f.name for f in filters]),
        "peaks": np.stack([table["x_peak"], table["y_peak"]], -1).astype(np.float64),
        "zeropoints": np.array([2.5 * np.log10(mag2counts(0, survey, f).to_value("electron")) for f in filters]),
        "pixel_scale": np.array(survey.pixel_scale.to_value("arcsec")),
        "truth": truth.astype(np.float32),
    }


def main() -> None:
    """Write `--n` scenes into `--out`, named `<survey>_<seed>_<number>.npz`."""
    parser = argparse.ArgumentParser(description="Draw CatSim blends with truth by the Blending ToolKit.")
    parser.add_argument("--catalog", type=Path, required=True, help="FITS table of CatSim galaxies")
    parser.add_argument("--out", type=Path, required=True, help="folder for the NPZ files")
    parser.add_argument("--survey", default="HSC", help="HSC, LSST or Euclid_VIS (default HSC)")
    parser.add_argument("--n", type=int, default=64, help="number of blends (default 64)")
    parser.add_argument("--max-number", type=int, default=5, help="most sources in a blend (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--toolkit-psf", action="store_true", help="the PSFs of get_numpy_psf(), whose pixel scale is not the images'"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    draw = generator(args.catalog, args.survey, args.max_number, args.seed)
    for number in range(args.n):
        if number % BATCH == 0:
            batch = next(draw)
            psfs = toolkit_psfs(batch) if args.toolkit_psf else pixel_psfs(batch)
        name = f"{args.survey.lower()}_{args.seed}_{number:03d}.npz"
        np.savez_compressed(args.out / name, **scene_arrays(batch, number % BATCH, psfs))


if __name__ == "__main__":
    main()
