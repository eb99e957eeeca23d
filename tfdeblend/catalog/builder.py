"""Build a scene's result from the arrays that an inference found, here or on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.table import Table

from tfdeblend.catalog import measure
from tfdeblend.catalog.result import Calibration, Deblended, SampleCatalog, View, positions_in_views
from tfdeblend.catalog.statistics import SampleStatistics
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.detection import residual_detections
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import READS, Scene
from tfdeblend.errors import expect
from tfdeblend.version import __version__

Facts = dict[str, str | int | float | bool]  # of a result's header


@dataclass(frozen=True, eq=False)
class Fit:
    """A maximum of the posterior of a scene, in the scene's own units and cut to its size.

    Args:
        models: E times (C_e,H,W), backgrounds included.
        light: of the sources in each of E observations.
        backgrounds: E times (C_e,).
        stamps: (K,C,P,P).
        corners: (K,2), see `Deblended`.
        flux: (K,C).
        flux_cov: (C,K,K).
        shapes: positions in the model frame, as the stamps are.
        converged: whether the fit has, of all sources together or (K,) of each.
        beyond_prior: (K,) galaxies that a learned prior could not know.
        calibration: shifts and gains of the observations, where they were fitted.
        taken: (K,) as points, though they were not declared so.
    """

    models: Sequence[np.ndarray]
    light: Sequence[Windows]
    backgrounds: Sequence[np.ndarray]
    stamps: np.ndarray
    corners: np.ndarray
    flux: np.ndarray
    flux_cov: np.ndarray
    shapes: measure.Shapes
    converged: bool | np.ndarray
    beyond_prior: np.ndarray
    calibration: Calibration | None = None
    taken: np.ndarray | bool = False


def build(scene: Scene, fit: Fit, facts: Facts, search: bool = True) -> Deblended:
    """Build the result of a maximum: what each observation shows, what is undeclared there, catalogue and header.

    facts: of the header, `walltime` in seconds among them. search: whether the residual is searched for sources.
    """
    positions = positions_in_views(scene, fit.shapes.positions, fit.calibration)
    bare = Deblended(
        scene=scene,
        views=_views(scene, positions, fit.models, fit.light, fit.backgrounds, search),
        stamps=fit.stamps.astype(np.float32),
        corners=fit.corners,
        flux_cov=fit.flux_cov,
        catalog=Table(),
        calibration=fit.calibration,
    )
    table = measure.catalog(bare, fit.shapes, fit.flux, 1e3 * float(facts["walltime"]), fit.converged, fit.taken)
    table["flags"] |= np.where(fit.beyond_prior, measure.BEYOND_PRIOR, 0)
    bare = _with_noise_noted(_with_colours_noted(bare, fit.flux))
    return replace(bare, header=_header(bare, facts) | {"converged": bool(np.all(fit.converged))}, catalog=table)


def build_from_samples(
    statistics: SampleStatistics,
    facts: Facts,
    mixed: bool = True,
    calibration: Calibration | None = None,
    taken: np.ndarray | bool = False,
    search: bool = True,
) -> Deblended:
    """Build the result of samples: their means, with their deviations and covariances as errors.

    facts, search: as for `build`. mixed: whether chains have; else all sources are flagged as not converged. taken: see
    `Fit`.
    """
    scene, shapes = statistics.scene, statistics.mean_shapes()
    models, backgrounds = ([sums.mean for sums in each] for each in (statistics.models, statistics.backgrounds))
    light = [Windows.whole(sums.mean) for sums in statistics.sources]
    positions = positions_in_views(scene, shapes.positions, calibration)
    views = _views(scene, positions, models, light, backgrounds, search)
    bare = Deblended(
        scene=scene,
        views=tuple(
            replace(view, light_std=Windows.whole(sums.deviation))
            for view, sums in zip(views, statistics.sources, strict=True)
        ),
        stamps=statistics.stamps.mean.astype(np.float32),
        corners=statistics.corners,
        flux_cov=statistics.flux_covariance(),
        catalog=Table(),
        calibration=calibration,
        samples=np.stack(statistics.samples) if statistics.keep else None,
        sample_catalog=statistics.catalog(),
        prior_share=statistics.prior_share(),
    )
    table = measure.catalog(bare, shapes, np.mean(statistics.flux, 0), 1e3 * float(facts["walltime"]), mixed, taken)
    if len(views) == 1:
        table = measure.with_chi2(table, np.mean(statistics.local_chi2, 0), views)
    table["flags"] |= np.where(statistics.beyond_prior, measure.BEYOND_PRIOR, 0)
    own: Facts = {
        "samples": statistics.count,
        "ppchi2": float(np.mean(statistics.chi2)),
        "modelsig": statistics.model_sigma,
    }
    bare = _with_noise_noted(_with_colours_noted(bare, np.mean(statistics.flux, 0)))
    return replace(bare, header=_header(bare, facts) | own, catalog=table)


def _with_noise_noted(result: Deblended) -> Deblended:
    """Note on each observation whose residuals are far smaller than its weights say."""
    text = "the weights state more noise than there is, errors are overstated"
    sizes = [view.chi2 for view in result.views]
    stated = [
        f"the chi-square per pixel is {size:.2g}: {text}" if size < measure.SMALL_CHI2 else None for size in sizes
    ]
    return _with_notes(result, stated)


def _with_colours_noted(result: Deblended, flux: np.ndarray) -> Deblended:
    """Note on the first observation that the colours of most sources are those of nothing in the sky. flux: (K,C)."""
    bands = measure.bluer_than_anything(result.scene, flux, measure.flux_errors(result.flux_cov))
    if bands is None:
        return result
    blue, red = bands
    text = (
        f"most sources are bluer in {blue} - {red} than any star or galaxy: are the bands in order, the zero points AB?"
    )
    return _with_notes(result, [text, *[None] * (len(result.views) - 1)])


def _with_notes(result: Deblended, notes: Sequence[str | None]) -> Deblended:
    """Add a note to each observation that has one, in the scene and in what it shows."""
    if not any(notes):
        return result
    views, observations = [], []
    for view, own, note in zip(result.views, result.scene.observations, notes, strict=True):
        new = (note,) if note else ()
        observations.append(replace(own, notes=(*own.notes, *new)))
        views.append(replace(view, observation=replace(view.observation, notes=(*view.observation.notes, *new))))
    return replace(result, views=tuple(views), scene=replace(result.scene, observations=tuple(observations)))


def with_left_out(result: Deblended, scene: Scene) -> Deblended:
    """Complete the result for `scene.kept` by the sources that were not fitted: without light, their fluxes unknown."""
    out = scene.left_out
    if not out.any():
        return result

    def spread(part: Any, *axes: int, empty: float = 0) -> Any:
        for axis in axes if part is not None else ():
            full = np.full((*part.shape[:axis], len(out), *part.shape[axis + 1 :]), empty, part.dtype)
            np.moveaxis(full, axis, 0)[~out] = np.moveaxis(part, axis, 0)
            part = full
        return part

    of_samples = result.sample_catalog
    if of_samples is not None:
        unknown = {name: spread(getattr(of_samples, name), 1, empty=np.nan) for name in ("flux", "shapes")}
        of_samples = SampleCatalog(**unknown, group=spread(of_samples.group, 0, empty=-1))
    places = positions_in_views(scene, scene.positions, result.calibration)
    views = []
    for view, declared in zip(result.views, places, strict=True):
        declared[~out] = view.positions
        deviation = None if view.light_std is None else view.light_std.spread(~out)
        views.append(replace(view, positions=declared, light=view.light.spread(~out), light_std=deviation))
    return replace(
        result,
        scene=scene,
        views=tuple(views),
        stamps=spread(result.stamps, 0),
        corners=spread(result.corners, 0),
        flux_cov=spread(result.flux_cov, 1, 2, empty=np.nan),
        catalog=measure.with_left_out(result.catalog, scene),
        samples=spread(result.samples, 1),
        sample_catalog=of_samples,
        prior_share=spread(result.prior_share, 0, empty=np.nan),
    )


def in_order(
    iterate: Callable[[Sequence[Scene]], Iterator[tuple[int, Deblended | Exception]]],
    scenes: Scene | Observation | Sequence[Scene | Observation],
    background: bool = False,
) -> Deblended | list[Deblended]:
    """Return what `iterate` gives for one scene or several, in their order; sources of observations are detected.

    background: whether images are searched less the levels of their sky.

    Raises: DataError of the first scene that cannot be done; TypeError for what is neither a scene nor an observation.
    """
    single = isinstance(scenes, Scene | Observation)
    several = [scenes] if isinstance(scenes, Scene | Observation) else scenes
    check_scenes(several, Scene, Observation)
    ready = [one if isinstance(one, Scene) else Scene.detect(one, background=background) for one in several]
    results: dict[int, Deblended] = {}
    for index, result in iterate(ready):
        if isinstance(result, Exception):
            raise result
        results[index] = result
    ordered = [results[index] for index in range(len(ready))]
    return ordered[0] if single else ordered


def check_scenes(scenes: Any, *kinds: type) -> None:
    """Check that `scenes` is a list of things of these kinds. Raises: TypeError in one line."""
    listed = isinstance(scenes, Sequence) and not isinstance(scenes, str | bytes)
    if not listed:
        expected = f"a {' or an '.join(kind.__name__ for kind in kinds)}, or a list of them"
        raise TypeError(f"scenes: expected {expected}, received a {type(scenes).__name__}; {READS}")
    for one in scenes:
        expect("scenes", one, *kinds, remedy=READS)


def _views(
    scene: Scene,
    positions: Sequence[np.ndarray],
    models: Sequence[np.ndarray],
    light: Sequence[Windows],
    backgrounds: Sequence[np.ndarray],
    search: bool,
) -> tuple[View, ...]:
    """Put together what each observation shows. positions: E times (K,2); search: see `build`; the others see `Fit`."""
    views = []
    parts = zip(positions, models, light, backgrounds, strict=True)
    for number, (places, model, windows, background) in enumerate(parts):
        fitted = scene.fitted(number)
        views.append(
            View(
                observation=fitted,
                model=model.astype(np.float32, copy=False),
                light=windows,
                background=background,
                positions=places,
                scale=scene.maps[number].area ** -0.5,
                undeclared=residual_detections(fitted, model, places) if search else None,
            )
        )
    return tuple(views)


def _header(result: Deblended, facts: Facts) -> dict[str, Any]:
    own: Facts = {"version": __version__, "temperature": 1.0, "chi2": result.chi2}
    return own | facts | measure.describe_scene(result.scene)
