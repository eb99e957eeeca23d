"""One scene's result from the arrays that an inference found, whether here or on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.table import Table

from tfdeblend.catalog import flags, measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.statistics import Tally
from tfdeblend.data.detection import residual_detections
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.version import __version__

Facts = dict[str, str | int | float | bool]  # of a result's header


@dataclass(frozen=True, eq=False)
class Fitted:
    """A maximum of the posterior, in the scene's own units, cut to its size; see `Deblended`.

    flux: (K, C). converged: whether the fit has. beyond_prior: (K,) galaxies that a learned prior could not know.
    """

    model: np.ndarray
    sources: np.ndarray
    stamps: np.ndarray
    corners: np.ndarray
    background: np.ndarray
    flux: np.ndarray
    flux_cov: np.ndarray
    shapes: measure.Shapes
    converged: bool
    beyond_prior: np.ndarray


def fitted(
    scene: Scene,
    found: Fitted,
    facts: Facts,
    others: Sequence[flags.View] = (),
    photometry: measure.Photometry | None = None,
) -> Deblended:
    """The result of a maximum.

    Args:
      facts: of its header, `walltime` in seconds among them. others, photometry: of other observations of the scene,
        for the catalogue; see `measure.catalog`.
    """
    shapes = found.shapes
    bare = Deblended(
        scene=scene,
        model=found.model.astype(np.float32),
        sources=found.sources.astype(np.float32),
        stamps=found.stamps.astype(np.float32),
        corners=found.corners,
        background=found.background,
        flux_cov=found.flux_cov,
        catalog=Table(),
        undeclared=residual_detections(scene.observation, found.model, np.stack([shapes.y, shapes.x], 1)),
    )
    milliseconds = 1e3 * float(facts["walltime"])
    table = measure.catalog(bare, shapes, found.flux, milliseconds, found.converged, others, photometry)
    table["flags"] |= np.where(found.beyond_prior, flags.BEYOND_PRIOR, 0)
    return replace(bare, header=_header(bare, facts) | {"converged": found.converged}, catalog=table)


def sampled(
    tally: Tally,
    beyond: np.ndarray,
    facts: Facts,
    mixed: bool = True,
    others: Sequence[flags.View] = (),
    photometry: measure.Photometry | None = None,
) -> Deblended:
    """The result of samples.

    Args:
      beyond: (K,) galaxies that the prior does not know. facts, others, photometry: as for `fitted`. mixed: whether
      chains have.
    """
    scene, shapes, model = tally.scene, tally.mean_shapes(), tally.mean("model")
    bare = Deblended(
        scene=scene,
        model=model,
        sources=tally.mean("sources"),
        stamps=tally.mean("stamps"),
        corners=tally.corners,
        background=np.mean(tally.background, 0),
        flux_cov=tally.flux_covariance(),
        catalog=Table(),
        undeclared=residual_detections(scene.observation, model, np.stack([shapes.y, shapes.x], 1)),
        samples=np.stack(tally.samples) if tally.keep else None,
        sources_std=tally.deviation("sources"),
        prior_share=tally.prior_share(),
    )
    own: Facts = {"samples": tally.count, "ppchi2": float(np.mean(tally.chi2)), "modelsig": tally.model_sigma}
    milliseconds = 1e3 * float(facts["walltime"])
    table = measure.catalog(bare, shapes, np.mean(tally.flux, 0), milliseconds, mixed, others, photometry)
    if not others:
        table["chi2"] = np.mean(tally.local_chi2, 0)
    off = table["chi2"] > measure.LARGE_CHI2
    table["flags"] = (table["flags"] & ~flags.BAD_FIT) | np.where(off, flags.BAD_FIT, 0)
    table["flags"] |= np.where(beyond, flags.BEYOND_PRIOR, 0)
    return replace(bare, header=_header(bare, facts) | own, catalog=table)


def in_order(
    iterate: Callable[[Sequence[Scene]], Iterator[tuple[int, Deblended | Exception]]],
    scenes: Scene | Observation | Sequence[Scene | Observation],
) -> Deblended | list[Deblended]:
    """What `iterate` gives for one scene, or for several in their order; an observation's sources are detected.

    Raises: DataError of the first scene that cannot be done.
    """
    single = isinstance(scenes, Scene | Observation)
    several = [scenes] if isinstance(scenes, Scene | Observation) else list(scenes)
    ready = [s if isinstance(s, Scene) else Scene.detect(s) for s in several]
    results: dict[int, Deblended] = {}
    for index, result in iterate(ready):
        if isinstance(result, Exception):
            raise result
        results[index] = result
    ordered = [results[index] for index in range(len(ready))]
    return ordered[0] if single else ordered


def _header(result: Deblended, facts: Facts) -> Facts:
    own: Facts = {"version": __version__, "temperature": 1.0, "chi2": result.chi2}
    return own | facts | measure.describe_scene(result.scene)
