"""Deblender: scenes in, sources out. Groups scenes into buckets of one shape, each fitted with one compiled graph."""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import tensorflow as tf

from tfdeblend.catalog import builder, measure
from tfdeblend.catalog.builder import Facts
from tfdeblend.catalog.measure import side_wanted
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import BlendBatch
from tfdeblend.forward.shapes import BatchShape, brightness, by_count, merge_buckets, scene_shape, stamp_side
from tfdeblend.galaxies import moments
from tfdeblend.galaxies.priors import PRIORS, GalaxyPrior
from tfdeblend.inference import sample_batches
from tfdeblend.inference.annealed import ScoreFit
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions
from tfdeblend.inference.map_fit import MapFit, MapOptions, MapResult
from tfdeblend.inference.nonparametric import NonparametricFit
from tfdeblend.inference.nuts import NutsOptions, NutsSampler
from tfdeblend.inference.sample_batches import Drawn, rows_at_once

AUTOMATIC = "bulge-disk"
NONPARAMETRIC, SEED = "nonparametric", "bulge-disk"
LARGEST_BATCH = 64
METHODS = ("map", "sample")
MEMORY = 1e7  # numbers in the images' derivatives that one batch may hold
LARGEST_RHAT = 1.1  # of chains: above, they have not mixed
CONVERGED = 0.3  # standard deviations to the maximum, over all parameters together: below, a fit counts as done


def first_latents(prior: GalaxyPrior, shape: BatchShape, moments: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(B, K, S) to start a fit from, by `moments.moments` of each scene."""
    start = np.zeros((shape.blends, shape.sources, prior.size), np.float32)
    for row, (radius, ellipticity) in enumerate(moments):
        guess = prior.start(tf.constant(radius, tf.float32), tf.constant(ellipticity, tf.float32)).numpy()
        start[row, : len(radius)] = np.where(np.isfinite(guess), guess, 0)
    return start


@dataclass
class Deblender:
    """Separates the galaxies of blended images.

    Args:
      prior: "exponential", "sersic", "bulge-disk"; "nonparametric" or a learned prior (the name of a shipped one, see
        `registry.shipped`, or a `.keras` or `.npz` file), which start from "bulge-disk". "auto": see `prior_of`.
      method: "map", the maximum of the posterior, with errors from its curvature there; "sample", draws from it, with
        means, errors and covariances of these: by the reverse diffusion with a learned prior, by NUTS with a
        closed-form one.
      seed: of the draws; the MAP draws nothing.
      background: fit a constant in each band besides the sources.
      batch_size: scenes fitted together; None: as many as fit into memory.
      position_sigma: expected error of the given positions, in pixels; 0 keeps them where they are.
      options: of the fit; see `MapOptions`.
      samples: how many, at least 2; keep_samples: the draws themselves, not only what they tell together.
      sampling, nuts: see `SampleOptions`, `NutsOptions`.

    Raises: ValueError for an unknown prior or method, a seed out of range, and too few samples.
    """

    prior: str = "auto"
    method: str = "map"
    seed: int = 0
    background: bool = False
    batch_size: int | None = None
    position_sigma: float = 0.5
    options: MapOptions = field(default_factory=MapOptions)
    samples: int = 16
    keep_samples: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    nuts: NutsOptions = field(default_factory=NutsOptions)
    _nuts: dict[tuple[str, BatchShape], NutsSampler] = field(default_factory=dict, init=False, repr=False)
    _samplers: dict[tuple[str, BatchShape], PosteriorSampler] = field(default_factory=dict, init=False, repr=False)
    _fits: dict[tuple[str, BatchShape], MapFit] = field(default_factory=dict, init=False, repr=False)
    _refinements: dict[tuple[str, BatchShape], NonparametricFit | ScoreFit] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        names = ["auto", *PRIORS, NONPARAMETRIC, *registry.shipped()]
        if self.prior not in names and not registry.is_learned(self.prior):
            raise ValueError(f"prior: expected one of {', '.join(names)}, received {self.prior!r}")
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, received {self.method!r}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected 0 to {2**31 - 1}, received {self.seed}")
        if self.samples < 2:
            raise ValueError(f"samples: expected at least 2, received {self.samples}")

    def prior_of(self, scene: Scene) -> str:
        """The prior for a scene: "auto" is a shipped one for its bands and pixel scale, else "bulge-disk".

        Where the pixel scale is not known, that is enough of a reason for "bulge-disk".
        """
        if self.prior != "auto":
            return self.prior
        if scene.observation.pixel_scale is None:
            return AUTOMATIC
        fitting = [name for name, prior in registry.shipped().items() if prior.problem(scene) is None]
        return fitting[0] if fitting else AUTOMATIC

    def _shape(self, scene: Scene, prior: str, least: int) -> BatchShape:
        """The scene's bucket, of stamps of `least` pixels or more.

        Raises: DataError for a scene that cannot be done with this prior.
        """
        if not registry.is_learned(prior):
            if self.method == "sample" and prior not in PRIORS:
                expected = f"or closed-form one ({', '.join(PRIORS)})"
                raise DataError(scene.name, "prior", f"expected a learned {expected} to sample with, received {prior}")
            return scene_shape(scene, stamp_side(scene, least))
        known = registry.find(prior)
        if problem := known.problem(scene):
            raise DataError(scene.name, f"prior {known.name}", problem)
        known.load()  # so that a damaged file is told as an error of the scene
        return scene_shape(scene, stamp_side(scene, max(known.side + 2, least)), known.model_sigma)

    @overload
    def deblend(self, scenes: Scene | Observation) -> Deblended: ...
    @overload
    def deblend(self, scenes: Sequence[Scene | Observation]) -> list[Deblended]: ...
    def deblend(self, scenes: Scene | Observation | Sequence[Scene | Observation]) -> Deblended | list[Deblended]:
        """One result for one scene, a list for several; an observation's sources are detected.

        Raises: DataError for the first scene that cannot be deblended; `iterate` goes on instead.
        """
        return builder.in_order(self.iterate, scenes)

    def iterate(self, scenes: Sequence[Scene]) -> Iterator[tuple[int, Deblended | Exception]]:
        """(index, result) of every scene as its batch finishes; a scene that cannot be done yields its error.

        Scenes of which a galaxy reaches beyond its stamp are done last, with larger ones, see `side_wanted`.
        """
        larger: dict[int, int] = {}
        for index, result in self._in_batches(scenes, dict.fromkeys(range(len(scenes)), 0), final=False):
            if isinstance(result, int):
                larger[index] = result
            else:
                yield index, result
        for index, result in self._in_batches(scenes, larger, final=True):
            assert not isinstance(result, int)
            yield index, result

    def _in_batches(
        self, scenes: Sequence[Scene], sides: Mapping[int, int], final: bool
    ) -> Iterator[tuple[int, Deblended | Exception | int]]:
        """`iterate` for the scenes that `sides` has, each with stamps of so many pixels or more; unless this is final,
        the side that a scene wants may take the place of its result."""
        buckets: dict[str, dict[BatchShape, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, side in sides.items():
            try:
                prior = self.prior_of(scenes[index])
                buckets[prior][self._shape(scenes[index], prior, side)].append(index)
            except DataError as error:
                yield index, error
        for prior, shapes in sorted(buckets.items()):
            for shape, members in sorted(merge_buckets(shapes).items()):
                most = min(self._batch_size(shape), int(2 ** np.ceil(np.log2(len(members)))))
                shape = shape._replace(blends=most)
                members = sorted(members, key=lambda index: brightness(scenes[index]))
                for first in range(0, len(members), most):
                    chunk = members[first : first + most]
                    yield from self._fit_chunk(chunk, [scenes[i] for i in chunk], shape, prior, final)

    def _batch_size(self, shape: BatchShape) -> int:
        neighbours = 2 * shape.reach * (shape.reach + 1)  # of each pixel, that its noise is predicted from
        images = shape.bands * (shape.sources * max(shape.fourier, shape.stamp) ** 2 * 8 + neighbours * shape.side**2)
        return self.batch_size or int(np.clip(2 ** np.floor(np.log2(max(MEMORY / images, 1))), 1, LARGEST_BATCH))

    def _fit_chunk(
        self, indices: list[int], scenes: list[Scene], shape: BatchShape, prior: str, final: bool
    ) -> Iterator[tuple[int, Deblended | int]]:
        began = time.perf_counter()
        fit = self._fit(shape, prior)
        batch = BlendBatch.build(scenes, shape)
        result = fit(batch, first_latents(fit.prior, shape, [moments.moments(scene) for scene in scenes]))
        rows = list(range(len(scenes)))
        if not final:
            sides = [self._side_wanted(scene, batch, result, row) for row, scene in enumerate(scenes)]
            rows = [row for row in rows if sides[row] <= shape.stamp]
            yield from ((indices[row], side) for row, side in enumerate(sides) if side > shape.stamp)
        if self.method == "sample":
            yield from self._sample_chunk(indices, scenes, rows, batch, fit, result, prior, began)
            return
        if prior not in PRIORS:
            result = self._refinement(fit, prior)(batch, result)
        arrays = tf.nest.map_structure(lambda t: t.numpy(), result)
        milliseconds = 1e3 * (time.perf_counter() - began) / len(scenes)
        for row in rows:
            yield indices[row], self._result(scenes[row], batch, arrays, row, milliseconds, prior)

    def _side_wanted(self, scene: Scene, batch: BlendBatch, fit: MapResult, row: int) -> int:
        """`side_wanted` of one scene of a batch."""
        count, scale = len(scene.sources), batch.band_scale[row]
        stamps = fit.stamps[row, :count].numpy() * scale[:, None, None]
        flux = fit.state.flux[row, :count].numpy().astype(float) * scale
        return side_wanted(scene, stamps, batch.first_pixels(row)[:count], flux)

    def _sample_chunk(
        self,
        indices: list[int],
        scenes: list[Scene],
        chosen: list[int],
        batch: BlendBatch,
        fit: MapFit,
        found: MapResult,
        prior: str,
        began: float,
    ) -> Iterator[tuple[int, Deblended]]:
        """Samples of the `chosen` rows of a batch."""
        if not chosen:
            return
        spent, total = time.perf_counter() - began, len(chosen)

        def gather(
            draw: sample_batches.Drawing, rows: int, members: list[int], facts: Callable[[int], Facts]
        ) -> Iterator[tuple[int, Deblended]]:
            """Results as they are done; what is done with them between is not counted as their time."""
            nonlocal spent
            start = time.perf_counter()
            for one in sample_batches.gather(draw, rows, members, scenes, batch, self.samples, self.keep_samples):
                spent += time.perf_counter() - start
                yield indices[one.row], self._sampled(one, batch, 1e3 * spent / total, prior, facts(one.row))
                start = time.perf_counter()

        if not registry.is_learned(prior):
            sampler = self._chains(fit, prior)
            names = zlib.crc32("\n".join(scene.name for scene in scenes).encode()) >> 1
            chains = sampler(batch.tensors, found.state, (self.seed, names))
            rhat, ess = chains.rhat.numpy(), chains.ess.numpy()
            draw, rows = (
                sample_batches.closed_form(sampler, batch.tensors, chains, (self.seed, names)),
                rows_at_once(batch.shape, total * self.samples),
            )
            yield from gather(
                draw,
                rows,
                chosen,
                lambda row: {"sampler": "nuts", "rhat": float(rhat[row]), "ess": float(ess[row])},
            )
            return
        sampled: Facts = dict(self.sampling.facts())
        for shape, members in by_count(batch.shape, scenes, chosen).items():
            rows = rows_at_once(shape, len(members) * self.samples)
            diffusion, initial = self._sampler(shape._replace(blends=rows), prior), InitialFit.of(found)
            draw = sample_batches.learned(diffusion, batch.tensors, initial, scenes, self.samples, self.seed)
            yield from gather(draw, rows, members, lambda row: sampled)

    def _sampled(self, drawn: Drawn, batch: BlendBatch, milliseconds: float, prior: str, facts: Facts) -> Deblended:
        facts = self._facts(milliseconds, prior) | facts
        return builder.sampled(drawn.tally, drawn.beyond, facts, not float(facts.get("rhat", 1)) > LARGEST_RHAT)

    def _sampler(self, shape: BatchShape, prior: str) -> PosteriorSampler:
        key = prior, shape
        if key not in self._samplers:
            exact = shape._replace(background=self.background)
            self._samplers[key] = PosteriorSampler(exact, registry.find(prior).load(), self.sampling)
        return self._samplers[key]

    def _chains(self, fit: MapFit, prior: str) -> NutsSampler:
        key = prior, fit.shape
        if key not in self._nuts:
            self._nuts[key] = NutsSampler(fit, self.samples, self.nuts)
        return self._nuts[key]

    def _fit(self, shape: BatchShape, prior: str) -> MapFit:
        name = prior if prior in PRIORS else SEED
        if (name, shape) not in self._fits:
            options = replace(self.options, background=self.background)
            self._fits[name, shape] = MapFit(PRIORS[name](shape.bands, self.position_sigma), shape, options)
        return self._fits[name, shape]

    def _refinement(self, seed: MapFit, prior: str) -> NonparametricFit | ScoreFit:
        key = prior, seed.shape
        if key not in self._refinements:
            if prior == NONPARAMETRIC:
                self._refinements[key] = NonparametricFit(seed)
            else:
                self._refinements[key] = ScoreFit(seed, registry.find(prior).load())
        return self._refinements[key]

    def _result(
        self, scene: Scene, batch: BlendBatch, fit: MapResult, row: int, milliseconds: float, prior: str
    ) -> Deblended:
        """Cuts one scene out of a batch's arrays, and puts it back into its own units."""
        count, (bands, height, width) = len(scene.sources), scene.observation.shape
        scale = batch.band_scale[row]
        unit = scale[:, None, None]
        terms = fit.covariance.linear[row]
        flux_cov = np.stack([terms[b, :count, b, :count] * scale[b] ** 2 for b in range(bands)])
        corners = batch.first_pixels(row)[:count]
        center = corners + batch.shape.stamp // 2
        y, x, size, e1, e2 = fit.summary[row, :count].T.astype(float)
        errors = np.sqrt(np.maximum(np.diagonal(fit.summary_covariance[row, :count], axis1=1, axis2=2), 0))
        shapes = measure.Shapes(center[:, 0] + y, center[:, 1] + x, size, e1, e2, errors)
        found = builder.Fitted(
            model=fit.model[row, :, :height, :width] * unit,
            sources=fit.sources[row, :count, :, :height, :width] * unit,
            stamps=fit.stamps[row, :count] * unit,
            corners=corners,
            background=fit.state.background[row] * scale,
            flux=fit.state.flux[row, :count].astype(float) * scale,
            flux_cov=flux_cov,
            shapes=shapes,
            converged=bool(fit.distance[row] <= CONVERGED),
            beyond_prior=fit.beyond_prior[row, :count],
        )
        facts: Facts = {"steps": int(fit.steps[row]), "distance": float(fit.distance[row])}
        facts["modelsig"] = batch.shape.model_sigma
        return builder.fitted(scene, found, self._facts(milliseconds, prior) | facts)

    def _facts(self, milliseconds: float, prior: str) -> Facts:
        return {
            "method": self.method,
            "prior": registry.find(prior).name if registry.is_learned(prior) else prior,
            "seed": self.seed,
            "walltime": milliseconds / 1e3,
        }
