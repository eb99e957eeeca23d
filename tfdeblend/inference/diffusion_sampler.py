"""Samples of p({x_i} | y) with a learned prior: the reverse diffusion of all sources of many blends in one graph.

Rows of the batch are samples: a blend with S of them is there S times. Noise levels end below the pixels' noise.

Flux scales are not taken for granted, least of all the initial fit's: they are drawn along with the galaxies, see
`unknown_scale`. All galaxies then begin at a level of 1.5 of their norm, where little is left of the fit, and one whose
level is ahead of its brighter neighbours' waits there: x_0 is drawn, and noise added to it, so that x_t is forgotten,
until theirs has come down (were x_t kept, the fit's errors would be, too). Positions: each sample's stamp lies at first
at the pixel where a draw from the fit's errors puts the source, then at one that is drawn given x_0, see `centres`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion import centres
from tfdeblend.diffusion.conditioning import CONDITIONINGS, GaussianConditioning, PosteriorDenoiser
from tfdeblend.diffusion.denoisers import PriorDenoiser, pixels
from tfdeblend.diffusion.initial import BlendProblem, InitialFit, check_fits
from tfdeblend.diffusion.linear_gaussian import Normals
from tfdeblend.diffusion.random import KeyedNormals, RandomNumbers
from tfdeblend.diffusion.schedules import BlendSchedule
from tfdeblend.diffusion.steps import STEPS, Step, moment_matched
from tfdeblend.diffusion.unknown_scale import ScaledDenoiser, UnknownScale, amplitudes
from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.likelihood import with_constants
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.linalg.solvers import Solver

LEAST_NORM = 5.0  # in units of the noise: below, an initial fit says nothing of how bright a galaxy is


@dataclass(frozen=True)
class SampleOptions:
    """Says what a sampler is made of.

    Args:
        steps: network evaluations of a sample.
        schedule: the noise levels of each galaxy.
        conditioning: the kind of posterior denoiser.
        solver: of its linear system; None: the conditioning's own, which goes to the end where it can. That makes
            samples reproducible: cut short, a difference of rounding becomes one of a tenth of the posterior's standard
            deviation.
        step: from one noise level to the next. Only `moment_matched` draws an x_0; with others, or with one or two
            steps, galaxies start at the initial fit with noise of the schedule's `largest`.
        unknown_scale: draw flux scales too, and the pixels of galaxies' centres, which needs draws of x_0; None: they
            are the initial fit's.
        closed_form_width: each sample begins at a draw of its own of the closed-form posterior, so many times as wide,
            see `ClosedFormDraws`; None: all begin at the maximum.

    Raises: ValueError for no steps, and for a step that draws x_0 with a conditioning that cannot.
    """

    steps: int = 8
    schedule: BlendSchedule = field(default_factory=BlendSchedule)
    conditioning: type[PosteriorDenoiser] = GaussianConditioning
    solver: Solver | None = None
    step: Step = moment_matched
    unknown_scale: UnknownScale | None = field(default_factory=UnknownScale)
    closed_form_width: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, received {self.steps}")
        if self.closed_form_width is not None and not 0 < self.closed_form_width < np.inf:
            raise ValueError(f"closed_form_width: expected a positive number, received {self.closed_form_width}")
        if self.step is moment_matched and not self.conditioning.has_draws:
            expected = f"expected one that draws no x_0 with {self.conditioning.__name__}, which has no draws"
            raise ValueError(f"step: {expected}, received moment_matched")

    @classmethod
    def from_closed_form(cls, steps: int = 4, level: float = 0.03, width: float = 1.5) -> SampleOptions:
        """Gives those of samples that begin at draws of the closed-form posterior with noise of a low level.

        steps: network evaluations. level: of the noise, in units of the brightest galaxy's norm, but for no galaxy more
        than that of its own: one that is fainter than some 10 sigma hardly leaves its draw. width: of the draws.
        """
        schedule, scales = BlendSchedule(largest=level, vague=None), UnknownScale(recentre=False)
        return cls(steps, schedule, unknown_scale=scales, closed_form_width=width)

    def facts(self) -> dict[str, int | str]:
        """Gives what a result's header says of them."""
        conditioning = next((name for name, kind in CONDITIONINGS.items() if kind is self.conditioning), "other")
        step = next((name for name, step in STEPS.items() if step is self.step), "other")
        facts: dict[str, int | str] = {"steps": self.steps, "sampler": step, "covar": conditioning}
        return facts if self.closed_form_width is None else facts | {"begin": "closed-form draws"}


class Samples(NamedTuple):
    """Samples in N rows, in whitened units.

    stamps: [N, K, C, Q, Q] of the initial fit's side. flux: [N, K, C]. sources: [N, K, C_e, S_e, S_e] as each exposure
    observes them; models: [N, C_e, S_e, S_e] of each, with the constants [N, C_e]. prior_variance: [N, K, C, Q, Q] of
    stamps' pixels before the data, 0 where no learned prior knows them. large: [N, K] galaxies the prior does not know.
    summary: [N, K, 5] of closed-form galaxies, see `GalaxyPrior.summary`, [N, K, 0] of others. unit: [N, K, C, P, P]
    stamps of the prior's side, at unit scale up to their own norm; 0 of what it does not know.
    """

    stamps: tf.Tensor
    flux: tf.Tensor
    sources: tuple[tf.Tensor, ...]
    models: tuple[tf.Tensor, ...]
    constants: tuple[tf.Tensor, ...]
    prior_variance: tf.Tensor
    large: tf.Tensor
    summary: tf.Tensor
    unit: tf.Tensor


class Galaxies(NamedTuple):
    """The state of the reverse diffusion.

    x: [N, K, C, P, P] at a noise level. begin: [N, K, 2] where its stamps begin. scale: [N, K] r, of the norms.
    first_scale: [N, K] r as the first draw of x_0 gave it, in which levels are measured.
    """

    x: tf.Tensor
    begin: tf.Tensor
    scale: tf.Tensor
    first_scale: tf.Tensor


class PosteriorSampler:
    """Draws samples; compiled for one shape, whose `blends` are rows.

    Args:
      denoiser: of stamps smaller than the shape's.
      least_norm: of a galaxy, in units of the noise, below which the initial fit says nothing of it.
      depth: by how much several exposures together have less noise than that unit.
    """

    def __init__(
        self,
        shape: BatchShape,
        denoiser: PriorDenoiser,
        options: SampleOptions = SampleOptions(),
        least_norm: float = LEAST_NORM,
        depth: float = 1.0,
    ):
        check_fits(shape, denoiser)
        schedule = replace(options.schedule, smallest=options.schedule.smallest / depth)
        options, least_norm = replace(options, schedule=schedule), least_norm / depth
        self.shape, self.denoiser, self.options, self.least_norm = shape, denoiser, options, least_norm
        gives_x0 = options.step is moment_matched and options.steps > 1
        scaled = options.unknown_scale
        self.widened = scaled is not None and scaled.widened and options.step is moment_matched
        vague = options.schedule.vague is not None
        self.draws_first = gives_x0 and vague and scaled is not None and options.steps > 2
        self.recentres = gives_x0 and scaled is not None and scaled.recentre
        self.schedule = options.schedule if self.draws_first else replace(options.schedule, vague=None)
        self._run = tf.function(self._keyed, autograph=False)

    def __call__(self, tensors: Tensors, fit: InitialFit, keys: tf.Tensor) -> Samples:
        """Draws one sample a row: a pure function of the row and its key ([N] int64, see `random.keys`)."""
        return self._run(tensors, fit, keys)

    @property
    def rank(self) -> int:
        """Counts the directions of the galaxies' covariance."""
        return self.denoiser.rank + self.widened

    def normals(self, keys: tf.Tensor) -> KeyedNormals:
        """Gives the random numbers of rows with these keys [N]."""
        shape = self.shape.blends, self.shape.sources, *self.denoiser.stamp_shape
        return KeyedNormals(keys, shape, self.shape.images, self.rank)

    def _keyed(self, tensors: Tensors, fit: InitialFit, keys: tf.Tensor) -> Samples:
        return self.sample(tensors, fit, self.normals(keys))

    def sample(self, tensors: Tensors, fit: InitialFit, random: RandomNumbers) -> Samples:
        """Draws one sample a row from given random numbers."""
        steps, unknown_scale = self.options.steps, self.options.unknown_scale
        problem = self.problem(tensors, fit, random)
        normals = random.normals(tf.constant(0))
        galaxies = self.start(problem, normals.back, normals.scale)

        def advance(count: tf.Tensor, galaxies: Galaxies) -> tuple[tf.Tensor, Galaxies]:
            sigma, after = (self.level(problem, count + i, galaxies.first_scale) for i in range(2))
            normals = random.normals(count + 1)
            x, x0 = self.options.step(self.posterior(problem, galaxies), galaxies.x, sigma, after, normals)
            galaxies = galaxies._replace(x=x)
            if x0 is not None and unknown_scale is not None:
                least = self.least_norm / tf.maximum(self._norm(problem), 1e-6)  # bright enough to have been found
                scale = unknown_scale.draw(x0, self.denoiser.scale_jitter, normals.scale, least)
                galaxies = galaxies._replace(scale=scale)
            if self.draws_first:
                galaxies = self._wait(problem, count, galaxies, sigma, x0, normals.back)
            if self.recentres:
                galaxies = self._recentre(problem, galaxies, x0, random.positions(count + 1))
            return count + 1, galaxies

        _, galaxies = tf.while_loop(lambda count, _: count < steps - 1, advance, [tf.constant(0), galaxies])
        posterior, last = self.posterior(problem, galaxies), self.level(problem, steps - 1, galaxies.first_scale)
        if posterior.has_draws:
            x = posterior.draw(galaxies.x, last, normals.draw)
        else:
            x = posterior.denoise(galaxies.x, last)
        return self._samples(problem, galaxies._replace(x=x), normals.draw)

    def problem(self, tensors: Tensors, fit: InitialFit, random: RandomNumbers) -> BlendProblem:
        """Poses the rows' problems, with the sources where a draw from the fit's errors puts them."""
        covariance = fit.offset_covariance
        if self.recentres:
            covariance += tf.constant(centres.AT_FIRST**2 * np.eye(2), covariance.dtype)
        shift = correlated(covariance, random.positions(tf.constant(0)))
        return BlendProblem(tensors, self.shape, fit, self.denoiser.stamp_shape[1], self.least_norm, shift)

    def start(self, problem: BlendProblem, noise: tf.Tensor, normals: tf.Tensor) -> Galaxies:
        """Starts at the initial fit with noise of the first level, and scales r that are off as a prior's are."""
        ones = tf.ones_like(normals)
        x = problem.start + pixels(self.level(problem, 0, ones)) * noise
        scale = ones if self.options.unknown_scale is None else tf.exp(self.denoiser.scale_jitter * normals)
        return Galaxies(x, problem.begin, scale, ones)

    def level(self, problem: BlendProblem, index: tf.Tensor | int, first_scale: tf.Tensor) -> tf.Tensor:
        """Gives the noise level of a step [N, K]."""
        norm = self._norm(problem)
        return self.schedule.level(tf.convert_to_tensor(index), self.options.steps, norm, first_scale)

    def posterior(self, problem: BlendProblem, galaxies: Galaxies) -> PosteriorDenoiser:
        """Conditions the prior of galaxies of these scales, with stamps that begin there, on the data."""
        denoiser = ScaledDenoiser(self.denoiser, galaxies.scale, self.widened)
        return self.options.conditioning(denoiser, problem.at(galaxies.begin), self.options.solver)

    def _norm(self, problem: BlendProblem) -> tf.Tensor:
        """Gives the fitted galaxies' norms in units of the noise [N, K]."""
        return tf.maximum(problem.galaxy[:, :, 0, 0, 0] * problem.norm, self.least_norm)

    def _wait(self, problem: BlendProblem, count: tf.Tensor, galaxies: Galaxies, sigma, x0, noise) -> Galaxies:
        """Adds noise to x_0 instead of stepping on, where a galaxy is at its largest level."""
        waits = sigma >= self.schedule.waiting(galaxies.first_scale)
        first_scale = tf.where(count == 0, galaxies.scale, galaxies.first_scale)
        again = x0 + pixels(self.level(problem, count + 1, first_scale)) * noise
        return galaxies._replace(x=tf.where(pixels(waits), again, galaxies.x), first_scale=first_scale)

    def _recentre(self, problem: BlendProblem, galaxies: Galaxies, x0: tf.Tensor, normals: tf.Tensor) -> Galaxies:
        """Draws the pixels of the galaxies' centres given x_0."""
        begin, covariance = galaxies.begin, problem.fit.offset_covariance
        # OpenVINO converts no MatrixDiagPart, which tf.linalg.diag_part would leave in the exported graph.
        variance = tf.stack([covariance[..., 0, 0], covariance[..., 1, 1]], -1)
        shift = centres.pixel_shift(x0, problem.offset_from_fit(begin), variance, normals)
        moved = problem.clipped_begin(begin + shift)
        return galaxies._replace(x=centres.recentred(galaxies.x, moved - begin), begin=moved)

    def _samples(self, problem: BlendProblem, galaxies: Galaxies, normals: Normals) -> Samples:
        """Gives what galaxies without noise look like; normals are those of the last draw."""
        problem = problem.at(galaxies.begin)
        stamps, unit = problem.stamps(galaxies.x), galaxies.x
        sources = problem.sources(stamps)
        likelihood, open_scale = problem.likelihood, self.options.unknown_scale
        if open_scale is not None and open_scale.amplitude_width:
            a = amplitudes(likelihood, sources, open_scale.amplitude_width, normals)[..., None, None]
            stamps, unit = a * stamps, a * unit
            pairs = zip(likelihood.exposures, sources, strict=True)
            sources = tuple(tf.gather(a, one.bands, axis=2) * each for one, each in pairs)
        light = tuple(tf.reduce_sum(each, 1) for each in sources)
        constants = likelihood.drawn_constants(light, likelihood.unused_normals(normals.data))
        before = problem.galaxy * (problem.scale * pixels(galaxies.scale)) ** 2 * self.denoiser.variance
        flux = problem.flux(stamps)
        return Samples(
            stamps=stamps,
            flux=flux,
            sources=sources,
            models=with_constants(light, constants),
            constants=constants,
            prior_variance=problem.cut.forward(before),
            large=problem.large[:, :, 0, 0, 0] > 0,
            summary=flux[..., :0],
            unit=problem.galaxy * unit,
        )


def correlated(covariance: tf.Tensor, normals: tf.Tensor) -> tf.Tensor:
    """Draws from N(0, covariance) by normals [..., 2] and the Cholesky root of 2 x 2 matrices in closed form."""
    yy, yx, xx = covariance[..., 0, 0] + 1e-8, covariance[..., 1, 0], covariance[..., 1, 1] + 1e-8
    first = tf.sqrt(yy)
    along = yx / first
    rest = tf.sqrt(tf.maximum(xx - along**2, 0))
    return tf.stack([first * normals[..., 0], along * normals[..., 0] + rest * normals[..., 1]], -1)
