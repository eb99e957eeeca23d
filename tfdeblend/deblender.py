"""Deblender: scenes in, sources out. Scenes of one shape are fitted together, with one compiled graph."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, overload

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfdeblend.catalog import builder
from tfdeblend.catalog.measure import Shapes, side_wanted
from tfdeblend.catalog.mosaic import Mosaic
from tfdeblend.catalog.result import Calibration, Deblended
from tfdeblend.catalog.statistics import Sample, SampleStatistics
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.plausibility import examined
from tfdeblend.data.psf import fwhm
from tfdeblend.data.scene import READS, Scene
from tfdeblend.diffusion.denoisers import PriorDenoiser
from tfdeblend.errors import DataError, expect
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.shapes import (
    FIT_WORK,
    SAMPLING_WORK,
    BatchShape,
    brightness,
    memory,
    merge_buckets,
    round_buckets,
    scene_shape,
    stamp_side,
)
from tfdeblend.galaxies.moments import moments
from tfdeblend.galaxies.priors import PRIORS, GalaxyPrior
from tfdeblend.inference import parts, priors
from tfdeblend.inference.calibration import CalibratedFit, CalibrationOptions, Calibrations
from tfdeblend.inference.diffusion_sampler import SampleOptions, Samples
from tfdeblend.inference.map_fit import CONVERGED, MapFit, MapOptions, MapResult, graph_shape
from tfdeblend.inference.nuts import NutsOptions
from tfdeblend.inference.parts import Part
from tfdeblend.inference.priors import AutomaticPrior, Compiled, Facts, LearnedPrior, Prior, SampleRun
from tfdeblend.inference.sample_batches import in_turn
from tfdeblend.inference.stars import StarTrial, with_points
from tfdeblend.machine import MEMORY_SHARE, machine_memory

METHODS = ("map", "sample")
LARGEST_BATCH = 64
NUMBERS = 1e7  # in the images' derivatives, that one batch may hold
# Bytes that the result of a large field takes: a pixel and band of the field, a pixel and band of each source's window,
# which is as wide as stamp and PSF, and, times bands + 1, each pair of sources: covariances, and who is tied to whom.
OF_FIELD, OF_SOURCE, OF_PAIR = 60.0, 16.0, 24.0
FIRST_ROUNDS = 8  # of a first fit: many more would not make a galaxy's profile fit a bright star
TRIAL_ROUNDS = 6  # of a trial of stars
SWEEPS = 3  # over the parts of a large scene, at most
MOVED = 0.1  # errors of a flux by which light from beyond a part may move it
KINDS: dict[str, tuple[type, ...]] = {  # of the arguments of a Deblender
    "method": (str,),
    "seed": (int,),
    "batch_size": (int, NoneType),
    "memory": (float, int, NoneType),
    "position_sigma": (float, int),
    "options": (MapOptions,),
    "calibration": (CalibrationOptions,),
    "stamp": (int, NoneType),
    "samples": (int,),
    "sampling": (SampleOptions,),
    "nuts": (NutsOptions,),
}


@dataclass(frozen=True)
class Deblender:
    """Separates the galaxies of blended images, of one observation or of several observations of one field.

    A Deblender compiles a graph for each shape of scenes at its first use, so keep it for further scenes. It can be
    pickled; what was compiled is not, and is made again where it is needed.

    Args:
      prior: what galaxies look like: "exponential", "sersic", "bulge-disk"; "nonparametric" or a learned prior, which
        start from a "bulge-disk" fit. A learned prior is the name of a shipped one, the path of a `.keras` or `.npz`
        file, or a denoiser. "auto": the shipped one for a scene's bands and pixel scale, else "bulge-disk".
      method: "map", the maximum of the posterior, with errors from its curvature there; "sample", draws from it, with
        means, errors and covariances of these: by the reverse diffusion with a learned prior, by NUTS with a
        closed-form one.
      seed: of the random numbers; the MAP draws none.
      background: fit a constant in each band of each observation.
      trust_weights: take weights as they are even where the sky's scatter contradicts them; see `examined`.
      stars: whether bright compact sources of unknown kind are tried as points; see `inference.stars`.
      assume_ab: take bands without zero points as having one and the same; without it a learned prior refuses them.
      batch_size: scenes fitted together; None: as many as fit into memory.
      memory: GB that a fit may take; scenes that need more, by an estimate, are refused. None: 80% of the machine's.
      position_sigma: expected error of the given positions, in pixels; 0 keeps them where they are.
      options: of the fit; see `MapOptions`.
      calibration: how far several observations of a field may be shifted and rescaled; see `CalibrationOptions`.
      stamp: pixels a side that hold a galaxy; None: by the size of the image, and larger where a galaxy is cut.
      samples: how many, at least 2. keep_samples: whether results keep the samples themselves.
      sampling, nuts: see `SampleOptions`, `NutsOptions`.
      few_shapes: where shapes have graphs of their own, take one of few for each scene, whatever the others are: a long
        run then compiles little, and its results do not depend on how it is split up.
      progress: whether the parts of a large scene are counted on standard error as they are done.

    Raises: ValueError for an unknown prior or method, a seed out of range, and too few samples; TypeError for another
      kind of prior.
    """

    prior: str | Path | Prior | PriorDenoiser | AutomaticPrior = "auto"
    method: str = "map"
    seed: int = 0
    background: bool = False
    trust_weights: bool = False
    stars: bool = True
    assume_ab: bool = False
    batch_size: int | None = None
    memory: float | None = None
    position_sigma: float = 0.5
    options: MapOptions = field(default_factory=MapOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    stamp: int | None = None
    samples: int = 16
    keep_samples: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    nuts: NutsOptions = field(default_factory=NutsOptions)
    few_shapes: bool = False
    progress: bool = False
    _prior: Prior | AutomaticPrior = field(init=False, repr=False, compare=False)
    _compiled: Compiled = field(init=False, repr=False, compare=False)
    _search: bool = field(init=False, repr=False, compare=False, default=True)  # residuals for undeclared sources

    def __post_init__(self) -> None:
        for name, kinds in KINDS.items():
            expect(name, getattr(self, name), *kinds)
        object.__setattr__(self, "_prior", priors.find(self.prior))
        object.__setattr__(self, "_compiled", Compiled())
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {self.method!r}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected 0 to {2**31 - 1}, received {self.seed}")
        if self.samples < 2:
            raise ValueError(f"samples: expected at least 2, received {self.samples}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_compiled", "_prior")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def prior_of(self, scene: Scene) -> tuple[Prior, str]:
        """Choose the prior that a scene is fitted under, and say why `auto` chose it."""
        expect("scene", scene, Scene, remedy=READS)
        if isinstance(self._prior, AutomaticPrior):
            return self._prior.choose(scene, self.assume_ab)
        return self._prior, ""

    @overload
    def deblend(self, scenes: Scene | Observation) -> Deblended: ...
    @overload
    def deblend(self, scenes: Sequence[Scene | Observation]) -> list[Deblended]: ...
    def deblend(self, scenes: Scene | Observation | Sequence[Scene | Observation]) -> Deblended | list[Deblended]:
        """Give one result for one scene, a list for several; the sources of an Observation are detected.

        Several observations of one field are one Scene: `Scene([hst, hsc], sources)`.

        Raises: DataError for the first scene that cannot be deblended; `iterate` goes on instead. TypeError for another
          kind of argument.
        """
        return builder.in_order(self.iterate, scenes, self.background)

    def iterate(self, scenes: Sequence[Scene]) -> Iterator[tuple[int, Deblended | Exception]]:
        """Yield (index, result) of every scene as its batch finishes; a scene that cannot be done yields its error.

        Scenes of which a galaxy reaches beyond its stamp are done again with larger ones, see `side_wanted`, and large
        scenes come last, part by part, see `inference.parts`.
        """
        builder.check_scenes(scenes, Scene)
        good: dict[int, Scene] = {}
        fitted: dict[int, Scene] = {}
        choices: dict[int, tuple[Prior, str]] = {}
        for index, scene in enumerate(scenes):
            try:
                good[index], choices[index] = self.prepared(scene)
                fitted[index] = good[index].kept
            except Exception as error:
                yield index, _failure(scene, error)
        large = {index: fitted.pop(index) for index in list(fitted) if parts.is_large(fitted[index])}
        in_parts = ((index, self._in_parts(scene, *choices[index])) for index, scene in large.items())
        for index, result in chain(self._in_turn(fitted, choices), in_parts):
            try:
                yield index, result if isinstance(result, Exception) else builder.with_left_out(result, good[index])
            except Exception as error:
                yield index, _failure(good[index], error)

    def _in_turn(
        self,
        scenes: Mapping[int, Scene],
        choices: Mapping[int, tuple[Prior, str]],
        begun: dict[int, Begun] | None = None,
    ) -> Iterator[tuple[int, Deblended | Exception]]:
        """Results of scenes with stamps of their own images' size, then of those that want larger ones.

        begun: where each fit starts, and afterwards where it ended; None: each starts from its moments.
        """
        wanted: dict[int, Begun] = {}
        begun = dict.fromkeys(scenes, Begun(self.stamp or 0)) if begun is None else begun
        yield from self._in_batches(scenes, choices, begun, wanted if self.stamp is None else None)
        yield from self._in_batches(scenes, choices, wanted, None)
        begun |= wanted

    def _in_parts(self, scene: Scene, prior: Prior, reason: str) -> Deblended | Exception:
        """The result of a large scene, or its error.

        First each part has a closed-form MAP, with the pixels masked where sources shine that it does not have. The
        light of these is then subtracted, and parts of which it moves a flux are fitted again, `SWEEPS` times at most;
        those that it would still move count as not converged. Last, every part is done under another prior or by
        another method, where that is asked for. A background is the mean of what all sources leave over.
        """
        began = time.perf_counter()
        try:
            self._check(scene, prior)
            prior.load()
            self._check_result(scene)
            closed = priors.ClosedFormPrior(prior.initial)
            of_parts = self._for_parts()
            first = of_parts.like(prior=closed, method="map", keep_samples=False)
            sky = _levels(scene, self.background)[0]
            mosaic = Mosaic(scene, parts.split(scene), sky)
            moved = {n: part.masked.less(sky[:, None, None]) for n, part in enumerate(mosaic.parts)}
            fitted: dict[int, Part] = {}
            begun = dict.fromkeys(moved, Begun(self.stamp or 0))
            for _ in range(SWEEPS + 1):
                first._fit_parts(mosaic, moved, closed, reason, begun)
                fitted |= moved
                if self.background:
                    mosaic.sky = mosaic.left_over()
                moved = {n: bare for n, bare in mosaic.bare() if mosaic.largest_pull(fitted[n], bare) > MOVED}
                if not moved:
                    break
            if self.method != first.method or prior.key != closed.key:
                of_parts._fit_parts(mosaic, dict(mosaic.bare()), prior, reason, begun)
            return mosaic.result(time.perf_counter() - began, moved)
        except Exception as error:
            return _failure(scene, error)

    def like(self, **changes: Any) -> Deblender:
        """Make another deblender that uses what this one has compiled."""
        other = replace(self, **changes)
        object.__setattr__(other, "_compiled", self._compiled)
        object.__setattr__(other, "_search", self._search)
        return other

    def _for_parts(self) -> Deblender:
        """Make a deblender for the parts of a field, whose sky and undeclared sources are found in the whole."""
        other = self.like(background=False)
        object.__setattr__(other, "_search", False)
        return other

    def _fit_parts(
        self, mosaic: Mosaic, pieces: Mapping[int, Part], prior: Prior, reason: str, begun: dict[int, Begun]
    ) -> None:
        """Fit some parts, by their number, for a mosaic, with each fit started as `begun` says.

        Raises: the error of the first that fails.
        """
        scenes, own = {number: piece.scene for number, piece in pieces.items()}, {n: begun[n] for n in pieces}
        found = self._in_turn(scenes, dict.fromkeys(scenes, (prior, reason)), own)
        for number, result in tqdm(found, "parts", len(scenes), leave=False, disable=not self.progress, mininterval=1):
            if isinstance(result, Exception):
                raise result
            mosaic.keep(number, result)
        begun |= own

    def prepared(self, scene: Scene) -> tuple[Scene, tuple[Prior, str]]:
        """Examine a scene, and give it with its notes and its `prior_of`.

        Raises: DataError for what cannot be right, see `examined`.
        """
        scene = examined(scene, self.trust_weights, self.background)
        prior, reason = self.prior_of(scene)
        if scene.zeropoints is None and isinstance(prior, LearnedPrior) and len(scene.bands) > 1:
            note = f"no zero points: those of all bands are taken as alike by the prior {prior.name}"
            first, *others = scene.observations
            scene = replace(scene, observations=(replace(first, notes=(*first.notes, note)), *others))
        return scene, (prior, reason)

    def _in_batches(
        self,
        scenes: Mapping[int, Scene],
        choices: Mapping[int, tuple[Prior, str]],
        begun: dict[int, Begun],
        wanted: dict[int, Begun] | None,
    ) -> Iterator[tuple[int, Deblended | Exception]]:
        """Results of the scenes in `begun`, each fitted from the start given there, which becomes where it ended.

        choices: the prior of each scene, and why.
        wanted: takes those that want larger stamps, which yield no result; None: all do.
        """
        buckets: dict[Any, dict[BatchShape, list[int]]] = defaultdict(lambda: defaultdict(list))
        chosen: dict[Any, Prior] = {}
        for index, at in begun.items():
            try:
                prior, _ = choices[index]
                shape = self._shape(scenes[index], prior, at.side)
            except Exception as error:
                yield index, _failure(scenes[index], error)
            else:
                chosen[prior.key] = prior
                buckets[prior.key][shape].append(index)
        for key, shapes in sorted(buckets.items(), key=lambda item: item[0][0]):
            if not self.few_shapes:
                work = SAMPLING_WORK if self.method == "sample" else FIT_WORK
                fixed = {shape: own for shape, own in shapes.items() if self._needs_own_graph(chosen[key], shape)}
                shapes = {shape: own for shape, own in shapes.items() if shape not in fixed}
                shapes |= merge_buckets(round_buckets(fixed), work)
            for shape, members in sorted(shapes.items()):
                most = min(self._batch_size(shape), int(2 ** np.ceil(np.log2(len(members)))))
                members = sorted(members, key=lambda index: brightness(scenes[index]))
                for first in range(0, len(members), most):
                    chunk = members[first : first + most]
                    these, batch = [scenes[i] for i in chunk], shape._replace(blends=most)
                    run = Chunk(self, chunk, these, batch, chosen[key], {i: choices[i][1] for i in chunk}, begun)
                    yield from self._of_chunk(run, wanted)

    def _of_chunk(self, run: Chunk, wanted: dict[int, Begun] | None) -> Iterator[tuple[int, Deblended | Exception]]:
        """The results of a batch; one that fails is done again in halves, until a scene fails alone.

        Halves have the batch's compiled shape, unless it was too large for the memory.
        """
        left, shape = dict(zip(run.indices, run.scenes, strict=True)), run.shape
        try:
            for index, result in run.results(wanted):
                yield index, result
                del left[index]
            return
        except Exception as error:  # which holds the batch's tensors: they are let go before the halves are done
            left = {index: scene for index, scene in left.items() if wanted is None or index not in wanted}
            if len(run.scenes) == 1:
                yield from ((index, _failure(scene, error)) for index, scene in left.items())
                return
            if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
                shape = shape._replace(blends=(len(run.scenes) + 1) // 2)
        indices = list(left)
        half = (len(indices) + 1) // 2
        for part in (indices[:half], indices[half:]):
            if part:
                again = replace(run, indices=part, scenes=[left[i] for i in part], shape=shape)
                yield from self._of_chunk(again, wanted)

    def _check(self, scene: Scene, prior: Prior) -> None:
        """Raises: DataError for a scene that the prior is not for, or that cannot be sampled under it."""
        if self.method == "sample" and not prior.samples:
            expected = f"expected a learned or closed-form one ({', '.join(PRIORS)}) to sample with"
            raise DataError(scene.name, "prior", f"{expected}, received {prior.name}")
        if problem := prior.problem(scene, self.assume_ab):
            raise DataError(scene.name, f"prior {prior.name}", problem)
        if self.stamp is not None and self.stamp < prior.least_stamp:
            expected = f"expected at least {prior.least_stamp} pixels for prior {prior.name}"
            raise DataError(scene.name, "stamp", f"{expected}, received {self.stamp}")

    def _shape(self, scene: Scene, prior: Prior, least: int) -> BatchShape:
        """The scene's bucket, of stamps of `least` pixels or more. Raises: see `_check` and `_check_memory`."""
        self._check(scene, prior)
        prior.load()
        side = stamp_side(scene, max(prior.least_stamp, least)) if self.stamp is None else max(self.stamp, least)
        shape = scene_shape(scene, side, prior.model_sigma, self.background)
        if self.few_shapes and self._needs_own_graph(prior, shape):
            shape = scene_shape(scene, side, prior.model_sigma, self.background, few=True)
        self._check_memory(scene, shape, prior)
        return shape

    def _check_result(self, scene: Scene) -> None:
        """Raises: DataError for a scene whose result would take more memory than it may."""
        most = self.memory or MEMORY_SHARE * machine_memory()
        count, (bands, height, width) = len(scene.sources), scene.observation.shape
        window = (self.stamp or stamp_side(scene)) + max(scene.observation.psf.shape[1:])
        needed = bands * (OF_FIELD * height * width + OF_SOURCE * count * window**2) + OF_PAIR * (bands + 1) * count**2
        if needed > most * 1e9:
            what = f"{count} sources on {height} x {width} pixels, which take about {needed / 1e9:.3g} GB"
            expected = f"expected a field whose result takes at most {most:.3g} GB of memory"
            raise DataError(
                scene.name, "memory", f"{expected}, received {what}", "cut the image smaller, or allow more memory"
            )

    def _check_memory(self, scene: Scene, shape: BatchShape, prior: Prior) -> None:
        """Raises: DataError for a scene whose fit would take more memory than it may."""
        most = self.memory or MEMORY_SHARE * machine_memory()
        needed = memory(shape, _latents(prior.initial, shape.bands)) / 1e9
        if needed > most:
            _, height, width = scene.observation.shape
            what = f"{len(scene.sources)} sources on {height} x {width} pixels, which take about {needed:.3g} GB"
            expected = f"expected a scene whose fit takes at most {most:.3g} GB of memory"
            remedy = "cut the image smaller, or allow more memory"
            raise DataError(scene.name, "memory", f"{expected}, received {what}", remedy)

    def _batch_size(self, shape: BatchShape) -> int:
        reach = max(one.reach for one in shape.exposures)
        neighbours = 2 * reach * (reach + 1)  # of each pixel, that its noise is predicted from
        images = sum(len(one.bands) for one in shape.exposures)
        images *= shape.sources * max(shape.fourier, shape.stamp) ** 2 * 8 + neighbours * shape.side**2
        return self.batch_size or int(np.clip(2 ** np.floor(np.log2(max(NUMBERS / images, 1))), 1, LARGEST_BATCH))

    def map_fit(self, shape: BatchShape, galaxies: type[GalaxyPrior]) -> MapFit:
        """Give the compiled closed-form fit of a shape; those of one `graph_shape` share a graph."""

        def make() -> MapFit:
            return MapFit(galaxies(shape.bands, self.position_sigma), shape, self.options)

        key = "map", galaxies.name, self.position_sigma, self.options, graph_shape(shape, self.options)
        return self._compiled.get(key, make).of(shape)

    def _needs_own_graph(self, prior: Prior, shape: BatchShape) -> bool:
        """Tell whether a shape has a graph to itself: under learned priors, for samples, of several observations, and
        by Adam."""
        closed = self.method == "map" and isinstance(prior, priors.ClosedFormPrior)
        return not closed or graph_shape(shape, self.options).sources > 0


class Begun(NamedTuple):
    """Where the fit of a scene begins: with stamps of `side` pixels or more, from its moments, or near the maximum at
    `latent` (K, S) with the sources that were `taken` (K,) as points."""

    side: int
    latent: np.ndarray | None = None
    taken: np.ndarray | None = None


@dataclass
class Chunk:
    """Scenes of one shape and prior that are fitted together: one batch. begun: where each fit starts, which is near
    the maximum for all of them or for none; afterwards where it ended."""

    deblender: Deblender
    indices: list[int]
    scenes: list[Scene]
    shape: BatchShape
    prior: Prior
    reasons: Mapping[int, str]
    begun: dict[int, Begun]

    def results(self, wanted: dict[int, Begun] | None) -> Iterator[tuple[int, Deblended]]:
        """(index, result) of each scene; see `Deblender._in_batches`."""
        began = time.perf_counter()
        self.levels = [_levels(scene, self.shape.background) for scene in self.scenes]
        flattened = [_less(scene, levels) for scene, levels in zip(self.scenes, self.levels, strict=True)]
        self.batch = Batch.build(flattened, self.shape)
        fit = self.deblender.map_fit(self.shape, self.prior.initial)
        tensors, found = self._maximum(fit, flattened)
        rows = list(range(len(self.scenes)))
        sides = dict.fromkeys(rows, self.shape.stamp)
        if wanted is not None:  # of a fit that has not converged, sizes say nothing
            converged = found.distance.numpy() <= CONVERGED
            sides |= {row: self._side_wanted(found, row) for row in rows if converged[row]}
        for row, side in sides.items():
            count, larger = len(self.scenes[row].sources), side > self.shape.stamp
            ended = Begun(side, found.state.latent[row, :count].numpy(), self.taken[row, :count])
            (wanted if larger and wanted is not None else self.begun)[self.indices[row]] = ended
        rows = [row for row in rows if sides[row] == self.shape.stamp]
        if not rows:
            return
        if self.deblender.method == "sample":
            yield from self._sampled(fit, tensors, found, rows, began)
            return
        refinement = "refinement", self.prior.key, self.shape
        found = self.deblender._compiled.get(refinement, lambda: self.prior.fit(fit))(tensors, found)
        arrays = tf.nest.map_structure(lambda tensor: tensor.numpy(), found)
        seconds = (time.perf_counter() - began) / len(self.scenes)
        for row in rows:
            yield self.indices[row], self._fitted(arrays, row, seconds)

    def _maximum(self, fit: MapFit, scenes: Sequence[Scene]) -> tuple[Tensors, MapResult]:
        """The tensors and the closed-form fit of the batch's scenes, less their sky, with points where stars are."""
        tensors, begun = self.batch.tensors, [self.begun[index] for index in self.indices]
        self.taken, near = np.zeros((self.shape.blends, self.shape.sources), bool), begun[0].latent is not None
        if near:
            start = np.zeros((self.shape.blends, self.shape.sources, fit.prior.size), np.float32)
            for row, one in enumerate(begun):
                if one.latent is not None and one.taken is not None:
                    start[row, : len(one.latent)], self.taken[row, : len(one.taken)] = one.latent, one.taken
            tensors = with_points(tensors, self.taken)
        else:
            start = fit.first_latents([moments(scene) for scene in scenes])
        self.calibrations: Calibrations | None = None
        most = self.deblender.options.rounds
        first = min(FIRST_ROUNDS, most)
        if len(self.shape.exposures) > 1:
            key = "calibrated", fit.prior.name, self.shape
            calibrated = self.deblender._compiled.get(key, lambda: CalibratedFit(fit, self.deblender.calibration))
            found, self.calibrations, tensors = calibrated(tensors, start)
        else:
            found = fit(tensors, start, tf.ones([self.shape.blends]) if near else None, first)
        if self.deblender.stars and not near:
            found, tensors, self.taken = self._with_stars(fit, tensors, found, min(TRIAL_ROUNDS, most))
        if most > first:
            found = fit.go_on(tensors, found, most - first)
        return tensors, found

    def _with_stars(
        self, fit: MapFit, tensors: Tensors, found: MapResult, rounds: int
    ) -> tuple[MapResult, Tensors, np.ndarray]:
        """The fit in which sources of unknown kind are points where they look like ones: see `StarTrial`."""
        unknown, width = np.zeros_like(self.taken), np.ones(self.shape.blends)
        for row, scene in enumerate(self.scenes):
            unknown[row, : len(scene.sources)] = [source.kind == "unknown" for source in scene.sources]
            width[row] = np.min(fwhm(scene.observation.psf))
        key = "stars", fit.prior.name, fit.options, graph_shape(self.shape, fit.options)
        trial: StarTrial = self.deblender._compiled.get(key, lambda: StarTrial(fit))
        return trial.of(fit)(tensors, found, unknown, width, rounds)

    def _side_wanted(self, found: MapResult, row: int) -> int:
        """The `side_wanted` of one scene of the batch."""
        scene, scale = self.scenes[row], self.batch.band_scale[row]
        count = len(scene.sources)
        stamps = found.stamps[row, :count].numpy() * scale[:, None, None]
        flux = found.state.flux[row, :count].numpy().astype(float) * scale
        return side_wanted(scene, stamps, self.batch.first_pixels(row)[:count], flux)

    def _fitted(self, found: MapResult, row: int, seconds: float) -> Deblended:
        """Cuts one scene out of a fit's arrays, and puts it back into its own units."""
        scene, scale = self.scenes[row], self.batch.band_scale[row]
        count, bands = len(scene.sources), len(scene.bands)
        terms = found.covariance.linear[row]
        corners = self.batch.first_pixels(row)[:count]
        y, x, size, e1, e2 = found.summary[row, :count].T.astype(float)
        errors = np.sqrt(np.maximum(np.diagonal(found.summary_covariance[row, :count], axis1=1, axis2=2), 0))
        flux = found.state.flux[row, :count].astype(float) * scale
        _check_finite(scene, flux, terms)
        middle = corners + self.shape.stamp // 2
        models, sources, backgrounds = self._images(found.models, found.sources, found.constants, row)
        fit = builder.Fit(
            models=models,
            light=[Windows.whole(images) for images in sources],
            backgrounds=backgrounds,
            stamps=found.stamps[row, :count] * scale[:, None, None],
            corners=corners,
            flux=flux,
            flux_cov=np.stack([terms[b, :count, b, :count] * scale[b] ** 2 for b in range(bands)]),
            shapes=Shapes(middle[:, 0] + y, middle[:, 1] + x, size, e1, e2, errors),
            converged=bool(found.distance[row] <= CONVERGED),
            beyond_prior=found.beyond_prior[row, :count],
            calibration=self._calibration(row),
            taken=self.taken[row, :count],
        )
        own: Facts = {"steps": int(found.steps[row]), "distance": float(found.distance[row])}
        facts = self._facts(seconds, row) | own | {"modelsig": self.shape.model_sigma}
        return builder.build(scene, fit, facts, self.deblender._search)

    def _sampled(
        self, fit: MapFit, tensors: Tensors, found: MapResult, rows: list[int], began: float
    ) -> Iterator[tuple[int, Deblended]]:
        """Results of the rows `rows`, each as soon as its last sample is drawn."""
        deblender, total = self.deblender, len(rows)
        run = SampleRun(
            fit,
            tensors,
            found,
            self.scenes,
            rows,
            deblender.samples,
            deblender.seed,
            deblender.sampling,
            deblender.nuts,
        )
        spent, start = 0.0, began
        for group in self.prior.sample(run, deblender._compiled):
            statistics: dict[int, SampleStatistics] = {}
            for members, drawn in in_turn(group.draw, group.shape, group.members, deblender.samples):
                for place, row in enumerate(members):
                    if row not in statistics:
                        corners = self.batch.first_pixels(row)[: len(self.scenes[row].sources)]
                        sigma, keep = self.shape.model_sigma, deblender.keep_samples
                        statistics[row] = SampleStatistics(self.scenes[row], corners, sigma, keep)
                    statistics[row].add(self._sample(drawn, place, row))
                    if statistics[row].count == deblender.samples:
                        spent += time.perf_counter() - start
                        facts = self._facts(spent / total, row) | group.facts(row)
                        mixed = not float(facts.get("rhat", 1)) > priors.LARGEST_RHAT
                        kept = statistics.pop(row)
                        taken = self.taken[row, : len(self.scenes[row].sources)]
                        calibration, search = self._calibration(row), deblender._search
                        result = builder.build_from_samples(kept, facts, mixed, calibration, taken, search)
                        yield self.indices[row], result
                        start = time.perf_counter()  # what is done with a result meanwhile is not the batch's time

    def _sample(self, drawn: Samples, place: int, row: int) -> Sample:
        """One sample in its scene's own units, cut to its size."""
        scene, scale = self.scenes[row], self.batch.band_scale[row]
        count, unit = len(scene.sources), scale[:, None, None]
        _check_finite(scene, drawn.flux[place, :count])
        models, sources, backgrounds = self._images(drawn.models, drawn.sources, drawn.constants, row, place)
        return Sample(
            models=models,
            sources=sources,
            backgrounds=backgrounds,
            stamps=drawn.stamps[place, :count] * unit,
            flux=drawn.flux[place, :count] * scale,
            prior_variance=drawn.prior_variance[place, :count] * unit**2,
            beyond_prior=drawn.large[place, :count],
            summary=drawn.summary[place, :count] if drawn.summary.shape[-1] else None,
        )

    def _images(
        self,
        models: Sequence[np.ndarray],
        sources: Sequence[np.ndarray],
        constants: Sequence[np.ndarray],
        row: int,
        place: int | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Models, sources and backgrounds of each observation of a scene, cut to its size and in its unit.

        row: of the scene in the batch. place: its row in the arrays, where that is another.
        """
        scene, at = self.scenes[row], row if place is None else place
        count, cut = len(scene.sources), ([], [], [])  # type: ignore[var-annotated]
        for e, one in enumerate(scene.observations):
            _, height, width = one.shape
            unit, level = self.batch.flux_unit(row, scene, e), self.levels[row][e]
            image = unit[:, None, None]
            cut[0].append(models[e][at, :, :height, :width] * image + level[:, None, None])
            cut[1].append(sources[e][at, :count, :, :height, :width] * image)
            cut[2].append(constants[e][at] * unit + level)
        return cut

    def _calibration(self, row: int) -> Calibration | None:
        if self.calibrations is None:
            return None
        shift, gain, error = self.calibrations
        return Calibration(shift[row], tuple(each[row] for each in gain), error[row])

    def _facts(self, seconds: float, row: int) -> Facts:
        deblender = self.deblender
        own: Facts = {"method": deblender.method, "prior": self.prior.name, "priorwhy": self.reasons[self.indices[row]]}
        if deblender.options.optimizer != "newton":
            own["optimize"] = deblender.options.optimizer
        return own | {"seed": deblender.seed, "walltime": seconds}


@cache
def _latents(galaxies: type[GalaxyPrior], bands: int) -> int:
    """How many latents a source has."""
    return galaxies(bands).size


def _failure(scene: Scene, error: Exception) -> DataError:
    """What a scene that cannot be done yields: in one line, of TensorFlow's many the one that says what went wrong."""
    if isinstance(error, DataError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("[[", "Detected at node", "Graph execution error", "File "))]
    received = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    failure = DataError(scene.name, "fit", f"expected numbers that can be fitted, received {received}")
    if not isinstance(error, MemoryError | tf.errors.OpError):  # whose traceback would hold a batch's tensors
        failure.__cause__ = error
    return failure


def _check_finite(scene: Scene, *arrays: np.ndarray) -> None:
    """Raises: DataError for a fit that ended in what is no number."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError(scene.name, "fit", "expected numbers that can be fitted, received some that end in NaN")


def _levels(scene: Scene, background: bool) -> list[np.ndarray]:
    """(C_e,) of each observation: the sky's level, so that what is fitted and taken for light is small beside it; 0
    where no background is fitted."""
    return [one.sky_levels() if background else np.zeros(one.shape[0]) for one in scene.observations]


def _less(scene: Scene, levels: Sequence[np.ndarray]) -> Scene:
    """A scene with levels taken off its images."""
    if not any(level.any() for level in levels):
        return scene
    pairs = zip(scene.observations, levels, strict=True)
    return replace(scene, observations=tuple(one.less(level) for one, level in pairs))
