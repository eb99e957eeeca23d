"""Do usual mistakes pass in silence? `python -m benchmarks.usual_mistakes --out DIR`.

Blends of simulated galaxies, and of real ones seen as by HSC, are deblended as they are, and again with each of the
mistakes that new users make. A mistake passes clean on a blend if it is not refused and brings no note and no flag that
the right input does not have. Beside it stands the flux error that it causes, in the median over the sources, and the
number of right inputs that get a note: false alarms, on these blends and on others.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import shift, zoom

from benchmarks.correlated import smoothed
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.noise_correlation import draw
from tfdeblend.data.observation import Observation
from tfdeblend.data.plausibility import examined
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError
from tfdeblend.simulation.parametric import Population
from tfdeblend.simulation.real_galaxies import RealPopulation
from tfdeblend.simulation.scenes import SceneConfig, SimulatedScene, Simulator
from tfdeblend.simulation.surveys import SURVEYS

HSC = SURVEYS["hsc"]
SIDE = 48  # pixels
SKY = 10.0  # noise that images are scaled to, so that weights in another form differ

Mistake = Callable[[Scene], Scene]


def changed(**change: Callable[[Observation], Any]) -> Mistake:
    """The scene with fields of its observation changed."""

    def make(scene: Scene) -> Scene:
        seen = scene.observation
        return replace(scene, observations=(replace(seen, **{name: of(seen) for name, of in change.items()}),))

    return make


def moved(of: Callable[[np.ndarray], np.ndarray]) -> Mistake:
    """The scene with other positions (K, 2) of (y, x)."""
    return lambda scene: Scene.from_catalog(scene.observation, of(scene.positions)[:, ::-1])


def raised(sigmas: float) -> Mistake:
    """The scene with a sky of so many sigma a pixel."""
    return changed(images=lambda seen: seen.images + sigmas * np.median(seen.weights, (1, 2))[:, None, None] ** -0.5)


def psf(of: Callable[[np.ndarray], np.ndarray]) -> Mistake:
    """The scene with other PSFs, each band's by itself."""

    def normalised(seen: Observation) -> np.ndarray:
        bands = [np.maximum(of(band.astype(float)), 0) for band in seen.psf]
        return np.stack([band / band.sum() for band in bands])

    return changed(psf=normalised)


def resampled(factor: float) -> Mistake:
    """The scene with PSFs on pixels that are finer by a factor."""
    return psf(lambda band: zoom(band, (round(len(band) * factor) // 2 * 2 + 1) / len(band), order=3))


def correlated(scene: Scene) -> Scene:
    """The scene with further noise, four times what it had, that is correlated as that of a drizzled image."""
    seen = scene.observation
    rho = np.repeat(smoothed(0.7)[None], len(seen.bands), 0)
    images = seen.images + draw(rho, seen.weights / 16, 0)
    return replace(scene, observations=(replace(seen, images=images, weights=seen.weights / 17),))


def two_units(scene: Scene) -> Scene:
    """The scene seen twice, the second time in another unit that nothing tells."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.cdelt, wcs.wcs.crval, wcs.wcs.crpix = np.array([-1, 1]) * HSC.pixel_scale / 3600, [150, 2], [SIDE / 2] * 2
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    first = replace(scene.observation, wcs=wcs)
    other = replace(first, name="other", images=5 * first.images, weights=first.weights / 25)
    return replace(scene, observations=(first, other))


def inverted(seen: Observation) -> np.ndarray:
    """Weights with the pixels masked that show sources, and no others."""
    bright = (seen.images * np.sqrt(seen.weights)).max(0) > 5
    return np.where(bright, 0, seen.weights)


MISTAKES: dict[str, Mistake] = {
    "sigma as weights": changed(weights=lambda seen: seen.weights**-0.5),
    "variance as weights": changed(weights=lambda seen: 1 / seen.weights),
    "1 / sigma as weights": changed(weights=lambda seen: np.sqrt(seen.weights)),
    "exposure time as weights": changed(weights=lambda seen: np.full(seen.weights.shape, 1200.0)),
    "weights of another unit": changed(weights=lambda seen: seen.weights * 16),
    "positions (y, x)": moved(lambda places: places[:, ::-1]),
    "positions from 1": moved(lambda places: places + 1),
    "magnitudes as images": changed(
        images=lambda seen: np.where(seen.images > 0, 27 - 2.5 * np.log10(np.maximum(seen.images, 1e-9)), np.nan),
        weights=lambda seen: np.full(seen.weights.shape, 25.0),
    ),
    "bands reversed": changed(images=lambda seen: seen.images[::-1], weights=lambda seen: seen.weights[::-1]),
    "PSF on finer pixels": resampled(4),
    "PSF on coarser pixels": resampled(0.5),
    "PSF off by a pixel": psf(lambda band: shift(band, (1, 0))),
    "PSF cut": psf(lambda band: band[len(band) // 2 - 4 : len(band) // 2 + 5, len(band) // 2 - 4 : len(band) // 2 + 5]),
    "sky of 0.2 sigma": raised(0.2),
    "sky of 0.5 sigma": raised(0.5),
    "sky of 5 sigma": raised(5),
    "pixel scale in degrees": changed(pixel_scale=lambda seen: HSC.pixel_scale / 3600),
    "no zero points": changed(zeropoints=lambda seen: None, unit=lambda seen: None),
    "noise correlated": correlated,
    "two units": two_units,
    "mask inverted": changed(weights=inverted),
}
LEARNED = ("no zero points", "bands reversed")  # mistakes that only a learned prior makes anything of


@dataclass(frozen=True)
class Outcome:
    """What one mistake led to on one blend: how it was reported, "" if it was not, and the errors of the fluxes."""

    reported: str
    errors: tuple[float, ...]


def blends(number: int, galaxies: Path | None) -> list[SimulatedScene]:
    """Blends of two or three galaxies, simulated or of a GalSim catalogue of real ones."""
    population = Population(20, 23.5) if galaxies is None else RealPopulation(str(galaxies), 20, 23.5)
    config = SceneConfig(HSC, population, (2, 3), "clustered", "white", SIDE, seed=26)
    return [Simulator(config).scene(index) for index in range(number)]


def scene_of(drawn: SimulatedScene) -> Scene:
    """The right input, all bands of one zero point as in coadds, in a unit in which the noise is SKY and more."""
    seen = drawn.scene.observation
    if seen.zeropoints is None:
        raise ValueError("expected zero points of a survey")
    noise = np.median(seen.weights, (1, 2)) ** -0.5 * 10 ** (0.4 * (27 - seen.zeropoints))
    unit = 10 ** (0.4 * (27 - seen.zeropoints)) * SKY / noise.min()
    zeropoints = np.full(len(unit), 27 + 2.5 * np.log10(SKY / noise.min()))
    images, weights = seen.images * unit[:, None, None], seen.weights / unit[:, None, None] ** 2
    one = replace(seen, images=images, weights=weights, zeropoints=zeropoints, unit="count")
    return replace(drawn.scene, observations=(one,))


def notes_of(scene: Scene) -> set[str]:
    return {note for one in scene.observations for note in one.notes}


def outcomes(
    deblender: Deblender, right: Sequence[Scene], known: Sequence[Deblended], mistake: Mistake
) -> Iterator[Outcome]:
    """Yields the outcome of one mistake on each blend, given the results of the right input."""
    for scene, good in zip(right, known, strict=True):
        try:
            wrong = mistake(scene)
            result = deblender.deblend(wrong)
        except DataError as error:
            yield Outcome(f"refused: {error.problem}", ())
            continue
        if not isinstance(result, Deblended):
            raise TypeError("expected one result")
        new = notes_of(result.scene) - notes_of(good.scene)
        before, now = (np.asarray(one.catalog["flags"]) for one in (good, result))
        raised = int(np.bitwise_or.reduce(now & ~before)) if len(now) == len(before) else 0
        reported = next(iter(sorted(new)), f"flag {raised}" if raised else "")
        share = np.abs(result.flux[:, : good.flux.shape[1]] / good.flux - 1) if len(now) == len(before) else np.zeros(0)
        yield Outcome(reported, tuple(np.nan_to_num(share, nan=1.0).ravel().tolist()))


def false_alarms(scenes: Sequence[Scene]) -> list[str]:
    """The notes of examination on right inputs, a line each; refusals too."""
    found = []
    for scene in scenes:
        try:
            new = notes_of(examined(scene)) - notes_of(scene)
        except DataError as error:
            new = {str(error)}
        found += [f"{scene.name}: {'; '.join(sorted(new))}"] if new else []
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for mistakes.json")
    parser.add_argument("--number", type=int, default=6, help="of blends, of simulated and of real galaxies each")
    parser.add_argument("--right", type=int, default=200, help="of simulated blends that are examined alone")
    parser.add_argument("--only", nargs="*", default=list(MISTAKES), help="some of the mistakes, by name")
    options = parser.parse_args(arguments)
    data = Path(os.environ.get("TFDEBLEND_DATA", "../shared/data"))
    drawn = blends(options.number, None)
    if (data / "hst_galaxies").is_dir():
        drawn += blends(options.number, data / "hst_galaxies")
    right, deblender = [scene_of(one) for one in drawn], Deblender("bulge-disk")
    known = deblender.deblend(right)
    report: dict[str, Any] = {"blends": len(right), "mistakes": {}}
    print(f"{'mistake':<26}{'clean':>9}{'flux error':>12}  reported by, on the first blend where it was")
    for name in options.only:
        used = Deblender("hsc-grizy-64") if name in LEARNED else deblender
        found = list(outcomes(used, right, known, MISTAKES[name]))
        clean, errors = sum(not one.reported for one in found), [error for one in found for error in one.errors]
        reported = next((one.reported for one in found if one.reported), "nothing")
        size = float(np.median(errors)) if errors else None
        report["mistakes"][name] = {"clean": clean, "flux_error": size, "reported": [one.reported for one in found]}
        print(
            f"{name:<26}{clean:>4} / {len(found):<2}{'-' if size is None else f'{size:.3f}':>12}  {reported}",
            flush=True,
        )
    groups = {"simulated": [one.scene for one in (blends_of_all(options.right))]}
    for folder in ("hsc_blends", "scenes"):
        groups[folder] = [Scene.read(path) for path in sorted((data / folder).glob("*.npz"))]
    for name, scenes in groups.items():
        noted = false_alarms(scenes)
        report[name] = {"scenes": len(scenes), "noted": noted}
        print(f"right inputs, {name}: {len(noted)} of {len(scenes)} noted", *noted, sep="\n  ")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "mistakes.json").write_text(json.dumps(report, indent=1))


def blends_of_all(number: int) -> Iterator[SimulatedScene]:
    """Blends of one to five galaxies of all surveys in turn."""
    simulators = [Simulator(SceneConfig(survey, Population(), seed=27)) for survey in SURVEYS.values()]
    return (simulators[index % len(simulators)].scene(index) for index in range(number))


if __name__ == "__main__":
    main()
