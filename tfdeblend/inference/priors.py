"""Priors as objects: whether one fits a scene, how galaxies are fitted under it, and how they are sampled.

A prior is named by a string only at the edge: `find` makes the object.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.data.psf import LARGEST_GAIN
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import random, registry
from tfdeblend.diffusion.denoisers import PriorDenoiser
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.diffusion.registry import PriorFile
from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.shapes import BatchShape, amplifications, by_count
from tfdeblend.galaxies.priors import PRIORS, BulgeDiskPrior, GalaxyPrior
from tfdeblend.inference.annealed import AnnealedFit
from tfdeblend.inference.closed_form_draws import ClosedFormDraws
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions
from tfdeblend.inference.map_fit import MapFit, MapResult
from tfdeblend.inference.nonparametric import NonparametricFit
from tfdeblend.inference.nuts import NutsOptions, NutsSampler
from tfdeblend.inference.sample_batches import Draw, Starts, by_chains, by_diffusion, rows_at_once

AUTO, NONPARAMETRIC = "auto", "nonparametric"
SCALE_TOLERANCE = 0.03  # relative, of the pixel scale that a learned prior is for
LARGEST_RHAT = 1.1  # of chains: above, they have not mixed

Facts = dict[str, str | int | float | bool]  # of a result's header
Refinement = Callable[[Tensors, MapResult], MapResult]


@dataclass
class Compiled:
    """What was compiled, by what it is and the shape it is for; each is made at its first use."""

    made: dict[Any, Any] = field(default_factory=dict)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class SampleRun(NamedTuple):
    """A batch to be sampled.

    fit: the closed-form fit of its shape, and found what it found. tensors: of the batch. scenes: of its rows.
    members: the rows to sample. samples: of each. seed: the user's.
    """

    fit: MapFit
    tensors: Tensors
    found: MapResult
    scenes: Sequence[Scene]
    members: Sequence[int]
    samples: int
    seed: int
    sampling: SampleOptions
    nuts: NutsOptions


class SampleGroup(NamedTuple):
    """Rows of a batch that are drawn together, as many at a time as the shape has blends. facts: of a row's header."""

    shape: BatchShape
    members: Sequence[int]
    draw: Draw
    facts: Callable[[int], Facts]


class Prior(abc.ABC):
    """Stands for what galaxies are taken to look like.

    Attributes:
      name: in headers and messages. least_stamp: pixels a side that the model's stamps must have. model_sigma: of the
        model PSF, in pixels; None: any. initial: the closed-form prior of the fit that fits and samples start from.
      samples: whether it can be sampled.
    """

    name: str
    least_stamp: int = 0
    model_sigma: float | None = None
    initial: type[GalaxyPrior] = BulgeDiskPrior
    samples: bool = True

    def problem(self, scene: Scene, assume_ab: bool = False) -> str | None:
        """Say why the prior is not for a scene, in words that say what was expected and what came; None if it is.

        assume_ab: whether bands without zero points may be taken to have one and the same.
        """
        return None

    @property
    def key(self) -> tuple[Any, ...]:
        """What distinguishes the prior from others, perhaps of the same name."""
        return (self.name,)

    def load(self) -> None:
        """Reads what the prior needs, if that is a file. Raises: DataError for one that is missing or damaged."""
        return None

    @abc.abstractmethod
    def fit(self, initial: MapFit) -> Refinement:
        """The compiled fit under this prior, which starts from what the closed-form fit `initial` found."""

    def sample(self, run: SampleRun, compiled: Compiled) -> Iterator[SampleGroup]:
        """Groups of rows of a batch with what draws their samples. A prior that has no samples raises ValueError."""
        raise ValueError(f"prior: expected one that can be sampled, received {self.name!r}")


class ClosedFormPrior(Prior):
    """Takes galaxies for Sersic profiles, see `tfdeblend.galaxies.priors`. Samples are drawn by NUTS."""

    def __init__(self, galaxies: type[GalaxyPrior]):
        self.name, self.initial = galaxies.name, galaxies

    def fit(self, initial: MapFit) -> Refinement:
        return lambda tensors, found: found

    def sample(self, run: SampleRun, compiled: Compiled) -> Iterator[SampleGroup]:
        for shape, members in by_count(run.fit.shape, run.scenes, run.members, fewer=False).items():
            yield self._chains(run, compiled, shape, members)

    def _chains(self, run: SampleRun, compiled: Compiled, shape: BatchShape, members: list[int]) -> SampleGroup:
        """Runs the chains of scenes with about as many sources, by each scene's own random numbers."""
        alone = shape._replace(blends=1)
        key, of = ("chains", self.name, alone, run.samples), (run.fit.prior, alone, run.fit.options)
        sampler: NutsSampler = compiled.get(key, lambda: NutsSampler(MapFit(*of), run.samples, run.nuts))
        names = [run.scenes[row].name for row in members]
        keys = random.keys(run.seed, names, 1 + run.samples).view(np.int32).reshape(len(members), -1, 2)
        tensors = run.tensors.first_sources(shape.sources)
        center = tf.nest.map_structure(lambda t: t[:, : shape.sources], run.found.state)
        own, start = tf.nest.map_structure(lambda t: tf.gather(t, members), (tensors, center))
        chains = sampler(own, start, keys[:, 0])
        facts: dict[int, Facts] = {
            row: {"sampler": "nuts", "rhat": float(rhat), "ess": float(ess)}
            for row, rhat, ess in zip(members, chains.rhat.numpy(), chains.ess.numpy(), strict=True)
        }
        draw = by_chains(sampler, tensors, chains, members, keys[:, 1:])
        rows = rows_at_once(shape, len(members), run.samples)
        return SampleGroup(shape._replace(blends=rows), members, draw, facts.__getitem__)


class NonparametricPrior(Prior):
    """Takes galaxies for non-negative images that fall from their centre along every ray: `inference.nonparametric`."""

    name = NONPARAMETRIC
    samples = False

    def fit(self, initial: MapFit) -> Refinement:
        return NonparametricFit(initial)


class LearnedPrior(Prior):
    """Takes galaxies from a denoiser, a network's or a Gaussian's. Samples are drawn by the reverse diffusion.

    Args:
      source: the file of a learned prior, or a denoiser.
    """

    def __init__(self, source: PriorFile | PriorDenoiser):
        if isinstance(source, PriorDenoiser):
            bands, side, _ = source.stamp_shape
            names = tuple(source.bands) or tuple(f"band{band}" for band in range(bands))
            path, scale, sigma = Path("denoiser"), source.pixel_scale, source.model_sigma
            self.file = PriorFile(getattr(source, "name", "denoiser"), path, names, side, scale, sigma)
            self._denoiser: PriorDenoiser | None = source
        else:
            self.file, self._denoiser = source, None
        self.name, self.least_stamp, self.model_sigma = self.file.name, self.file.side + 2, self.file.model_sigma

    @property
    def denoiser(self) -> PriorDenoiser:
        """The denoiser, read at its first use. Raises: DataError for a file that is missing or damaged."""
        return self._denoiser or self.file.load()

    def problem(self, scene: Scene, assume_ab: bool = False) -> str | None:
        """Why not, see `mismatch`; the file need not have been read for that."""
        return mismatch(self.file, scene, assume_ab)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.name, str(self.file.path), id(self._denoiser)

    def load(self) -> None:
        self.denoiser  # noqa: B018

    def fit(self, initial: MapFit) -> Refinement:
        return AnnealedFit(initial, self.denoiser)

    def sample(self, run: SampleRun, compiled: Compiled) -> Iterator[SampleGroup]:
        options = run.sampling
        facts: Facts = dict(options.facts())
        for shape, members in by_count(run.fit.shape, run.scenes, run.members).items():
            for depth, some in _by_depth(run, shape, members).items():
                rows = rows_at_once(shape, len(some), run.samples)
                narrow = shape._replace(blends=rows)
                sampler = compiled.get(
                    ("diffusion", self.key, narrow, options, depth),
                    partial(PosteriorSampler, narrow, self.denoiser, options, depth=depth),
                )
                names = [scene.name for scene in run.scenes]
                initial = self._initial(run, compiled, narrow)
                draw = by_diffusion(sampler, run.tensors, initial, names, run.samples, run.seed)
                yield SampleGroup(narrow, some, draw, lambda row: facts)

    def _initial(self, run: SampleRun, compiled: Compiled, shape: BatchShape) -> InitialFit | Starts:
        """What samples begin at: the closed-form fit's maximum, or draws about it."""
        width = run.sampling.closed_form_width
        if width is None:
            return InitialFit.of(run.found)
        key = "closed-form draws", run.fit.prior.name, shape, width
        draws: ClosedFormDraws = compiled.get(key, partial(ClosedFormDraws, run.fit.prior, shape, width))
        latent, root = draws.roots(run.found)
        return lambda tensors, rows, keys: draws(tensors, tf.gather(latent, rows), tf.gather(root, rows), keys)


def mismatch(prior: PriorFile, scene: Scene, assume_ab: bool = False) -> str | None:
    """Why a learned prior is not for a scene, or None; one without a pixel scale is taken to have the prior's.

    assume_ab: whether bands without zero points are taken to have one and the same; a single band needs none.
    """
    scale = scene.observation.pixel_scale
    if scene.bands != prior.bands:
        in_order = "" if len(scene.observations) == 1 else ", in this order"
        return f"expected bands {', '.join(prior.bands)}{in_order}, received {', '.join(scene.bands)}"
    if scale and abs(scale / prior.pixel_scale - 1) > SCALE_TOLERANCE:
        return f"expected pixels of {prior.pixel_scale:g} arcsec, received {scale:.4g}"
    if scene.zeropoints is None and len(scene.bands) > 1 and not assume_ab:
        expected = "expected zero points, which set the colours (--zeropoints)"
        return f"{expected}, received none; --assume-ab (Deblender(assume_ab=True)) takes them as alike"
    if max(amplifications(scene, prior.model_sigma)) > LARGEST_GAIN:
        wide = f"a Gaussian of sigma {prior.model_sigma:g} pixel"
        return f"expected PSFs wider than {wide}, received a narrower one"
    return None


def _by_depth(run: SampleRun, shape: BatchShape, members: Sequence[int]) -> dict[float, list[int]]:
    """Rows by `depth`."""
    groups: dict[float, list[int]] = {}
    for row in members:
        groups.setdefault(depth(run, shape, row), []).append(row)
    return groups


def depth(run: SampleRun, shape: BatchShape, row: int) -> float:
    """By how much all exposures together have less noise in a pixel of the model than the deepest band's first, to half
    a factor of two: noise levels end below it."""
    if len(shape.exposures) == 1:
        return 1.0
    total, scene = np.zeros(shape.bands), run.scenes[row]
    for own, pixels, tensors in zip(shape.exposures, scene.maps, run.tensors.exposures, strict=True):
        for band, seen in zip(own.bands, tensors.weights[row].numpy(), strict=True):
            total[band] += pixels.area * (np.median(seen[seen > 0]) if (seen > 0).any() else 0)
    return float(2 ** (np.ceil(2 * max(np.log2(total.max()) / 2, 0)) / 2))


class AutomaticPrior:
    """Chooses the shipped learned prior for a scene's bands and pixel scale, else `bulge-disk`."""

    name = AUTO

    def choose(self, scene: Scene, assume_ab: bool = False) -> tuple[Prior, str]:
        """Choose the prior for a scene, and say why.

        Of the shipped ones it is the first that fits; else the reason of the nearest one is given, one for the scene's
        bands if there is one. A pixel scale that is not known is reason enough.
        """
        reasons = []
        for file in registry.shipped().values():
            prior, expected = LearnedPrior(file), f"expected pixels of {file.pixel_scale:g} arcsec, received none"
            problem = prior.problem(scene, assume_ab)
            if problem is None and scene.observation.pixel_scale is None:
                problem = f"{expected} (--pixel-scale)"
            if problem is None:
                return prior, "bands, pixels and PSF are its own"
            reasons.append((scene.bands != file.bands, f"{file.name}: {problem}"))
        own = [reason for other, reason in reasons if not other]
        listed = f"no learned prior has the bands {', '.join(scene.bands)}"
        return ClosedFormPrior(BulgeDiskPrior), own[0] if own else listed


def names() -> list[str]:
    """List the names that `find` knows."""
    return [AUTO, *PRIORS, NONPARAMETRIC, *registry.shipped()]


def find(prior: str | Path | Prior | PriorDenoiser | AutomaticPrior) -> Prior | AutomaticPrior:
    """Find the prior of a name or of a file (`.keras`, `.npz`), or give the object itself.

    Raises: ValueError for a name that is not known; DataError for a file that cannot be read; TypeError for another
      kind of object.
    """
    if isinstance(prior, Prior | AutomaticPrior):
        return prior
    if isinstance(prior, PriorDenoiser):
        return LearnedPrior(prior)
    if not isinstance(prior, str | Path):
        expected = "expected the name of a prior, the path of one, or a prior"
        raise TypeError(f"prior: {expected}, received a {type(prior).__name__}")
    name = str(prior)
    if name == AUTO:
        return AutomaticPrior()
    if name == NONPARAMETRIC:
        return NonparametricPrior()
    if name in PRIORS:
        return ClosedFormPrior(PRIORS[name])
    if registry.is_learned(name):
        return LearnedPrior(registry.find(name))
    raise ValueError(f"prior: expected one of {', '.join(names())}, or a file, received {name!r}")
