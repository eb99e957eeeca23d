"""Samples of p({x_i} | y) with a learned prior: the reverse diffusion of all sources of many blends in one graph.

Rows of the batch are samples: a blend with S of them is there S times. Noise levels end below the pixels' noise.

Flux scales are not taken for granted, least of all the seed's. The prior of a galaxy in flux is that of r x with r
unknown, evenly in log r; given a draw x_0 on the way, r is drawn anew from p(r | x_0), a log-normal of the denoiser's
`scale_jitter` about |x_0| (a Gibbs step, for which levels stay what they are in flux), and V leaves it open besides.
All begin at a level of 1.5 of their norm, where little is left of the seed, and one whose level is ahead of its
brighter neighbours' waits there: x_0 is drawn and noised anew, forgetting x_t, until theirs has come down (were x_t
kept, the seed's errors would be, too). Positions: each sample's stamp lies at first at the pixel where a draw from the
seed's errors puts the source, then, given x_0, at one that is drawn anew, see `centres`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.diffusion import centres
from tfdeblend.diffusion.conditioning import DRAWABLE, METHODS, PosteriorDenoiser, Prior
from tfdeblend.diffusion.denoisers import Denoiser, flux_scale, pixels
from tfdeblend.diffusion.initial import Seed, SeededBlends, SeedOptions, check_fits
from tfdeblend.diffusion.random import Draws, NormalDraws
from tfdeblend.diffusion.steps import DRAWS_X0, SAMPLERS, Noise, bridge
from tfdeblend.diffusion.unknown_scale import OpenScale, Rescaled
from tfdeblend.forward.likelihood import Likelihood
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.inference.evidence import Path, log_likelihood

LEAST_NORM = 5.0  # in units of the noise: below, a seed says nothing of how bright a galaxy is
NEAR = SeedOptions(least_norm=LEAST_NORM)
LARGEST_RESCALING = 100.0  # of a flux scale, from the seed's


@dataclass(frozen=True)
class SampleOptions:
    """steps: network evaluations of a sample. covariance: see `posterior`. sampler: see `samplers`.

    iterations, tolerance: of the solve in a step, see `gaussian_step`. Solves to the end make samples reproducible: cut
    short, a difference of rounding becomes one of a tenth of the posterior's standard deviation.

    vague: the noise level of a first draw, in units of each galaxy's norm; fainter ones wait there. largest: the level
    from which the brightest galaxy then goes down, in units of its norm. smallest: the last one, in units of the
    pixels' noise; not below `faintest` of the norm. rho: of the levels' spacing.
    rescale: draw flux scales too. Without, with one or two steps, or where `sampler` draws no x_0, there is no such
    first draw: galaxies start at the seed with noise of the largest level. open_scale: where scales are drawn, let the
    head's V leave them as open as the noise does, see `OpenScale`; without, they move by `scale_jitter` a step.
    recentre: draw the pixels of galaxies' centres anew as well, see `centres`; only where scales are, and x_0.
    evidence: estimate log p(y) as well, see `for_evidence`. Flux scales and positions are then the seed's, about which
    the samples scatter too little: take other samples for errors.
    """

    steps: int = 8
    covariance: str = "head"
    sampler: str = "moment-matched"
    iterations: int = 80
    tolerance: float = 1e-5
    largest: float = 0.3
    vague: float = 1.5
    smallest: float = 0.3
    faintest: float = 1e-4
    rho: float = 7.0
    rescale: bool = True
    open_scale: bool = True
    recentre: bool = True
    evidence: bool = False

    @classmethod
    def for_evidence(cls, steps: int = 24) -> SampleOptions:
        """Levels that reach further: what they leave out is missing from the divergence."""
        return cls(steps, iterations=300, largest=1.0, smallest=0.1, evidence=True)

    def __post_init__(self) -> None:
        for name, known in (("covariance", METHODS), ("sampler", tuple(SAMPLERS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, received {getattr(self, name)!r}")
        if self.sampler in DRAWS_X0 and self.covariance not in DRAWABLE:
            others = ", ".join(sorted(set(SAMPLERS) - set(DRAWS_X0)))
            expected = f"expected one of {others} with covariance {self.covariance}, which cannot be drawn from"
            raise ValueError(f"sampler: {expected}, received {self.sampler!r}")
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, received {self.steps}")
        if self.evidence and (self.sampler != "moment-matched" or self.covariance not in DRAWABLE):
            expected = f"expected the moment-matched sampler and a covariance of {', '.join(DRAWABLE)}"
            raise ValueError(f"evidence: {expected}, received {self.sampler}, {self.covariance}")


class Samples(NamedTuple):
    """Of N rows, in whitened units. stamps [N, K, C, Q, Q] of the seed's side; sources [N, K, C, S, S] as observed;
    flux [N, K, C]; background [N, C]; model [N, C, S, S]; prior_variance [N, K, C, Q, Q] of stamps' pixels before the
    data, 0 where no learned prior knows them; large [N, K] galaxies the prior does not know; summary [N, K, 5] of
    closed-form galaxies, see `GalaxyPrior.summary`, [N, K, 0] of others. log_evidence [N]: see `evidence`, NaN where
    not asked for or not known; log_scale [N, K] of the samples' norms at unit scale. unit [N, K, C, P, P]: stamps of
    the prior's side, at unit scale up to that norm; 0 of what it does not know."""

    stamps: tf.Tensor
    sources: tf.Tensor
    flux: tf.Tensor
    background: tf.Tensor
    model: tf.Tensor
    prior_variance: tf.Tensor
    large: tf.Tensor
    summary: tf.Tensor
    log_evidence: tf.Tensor
    log_scale: tf.Tensor
    unit: tf.Tensor


class PosteriorSampler:
    """Compiled for one shape, whose `blends` are rows.

    Args:
      denoiser: of stamps smaller than the shape's. near: what the prior does not know stays near the seed.
      kind: of the likelihood; of a joint one, what is an image in `Samples` is a tuple, one an exposure.
    """

    def __init__(
        self,
        shape: BatchShape,
        denoiser: Denoiser,
        options: SampleOptions = SampleOptions(),
        near: SeedOptions = NEAR,
        kind: type[Likelihood] = Likelihood,
    ):
        check_fits(shape, denoiser)
        self.shape, self.denoiser, self.options, self.near, self.kind = shape, denoiser, options, near, kind
        self.draws = options.covariance in DRAWABLE
        self.rescales = options.rescale and not options.evidence
        opens = options.open_scale and self.rescales and options.sampler in DRAWS_X0 and options.covariance == "head"
        self.prior = OpenScale(denoiser) if opens else denoiser
        several = self.rescales and options.sampler in DRAWS_X0 and options.steps > 1
        self.recentres = options.recentre and several
        self.begins_anew = several and options.steps > 2
        self._run = tf.function(self._keyed, autograph=False)

    def __call__(self, tensors: dict[str, tf.Tensor], seed: Seed, keys: tf.Tensor) -> Samples:
        """One sample a row: a pure function of the row and its key ([N] int64, see `draws.keys`)."""
        return self._run(tensors, seed, keys)

    def draws_of(self, keys: tf.Tensor) -> Draws:
        """The random numbers of rows with these keys [N]."""
        shape = self.shape.blends, self.shape.sources, *self.denoiser.stamp_shape
        return Draws(keys, shape, self.shape.images, self.prior.rank)

    def level(self, index: tf.Tensor, norm: tf.Tensor, begun: tf.Tensor) -> tf.Tensor:
        """[N, K]: the noise level in units of each galaxy's norm at the seed's scale.

        In flux all sources of a blend share one level, so that a bright one is settled before a faint one beside it
        is; one whose largest level is below the blend's waits there.

        Args:
          norm: [N, K] the seeds', in units of the noise. begun: [N, K] r as the first draw of x_0 told it.
        """
        options, norm = self.options, tf.maximum(norm, 1e-6)
        anew = int(self.begins_anew)
        largest = self.largest(begun)
        top = options.largest * tf.reduce_max(begun * norm, 1, keepdims=True)
        first = tf.maximum(top, 2 * options.smallest)
        ends = first ** (1 / options.rho), options.smallest ** (1 / options.rho)
        part = tf.cast(index - anew, norm.dtype) / max(options.steps - 1 - anew, 1)
        together = ((1 - part) * ends[0] + part * ends[1]) ** options.rho
        own = tf.minimum(tf.maximum(together / norm, options.faintest), largest)
        return tf.where(index < anew, largest, own)

    def largest(self, begun: tf.Tensor) -> tf.Tensor:
        """[N, K]: each galaxy's largest level, at which it waits."""
        if self.begins_anew:
            return max(self.options.vague, self.options.largest) * begun
        return self.options.largest * tf.ones_like(begun)

    def _keyed(self, tensors: dict[str, tf.Tensor], seed: Seed, keys: tf.Tensor) -> Samples:
        return self.sample(tensors, seed, self.draws_of(keys))

    def sample(self, tensors: dict[str, tf.Tensor], seed: Seed, draws: NormalDraws) -> Samples:
        """One sample a row from given random numbers."""
        options, side, step = self.options, self.denoiser.stamp_shape[1], SAMPLERS[self.options.sampler]
        scatter = seed.offset_covariance
        if self.recentres:
            scatter += tf.constant(centres.AT_FIRST**2 * np.eye(2), scatter.dtype)
        shift = correlated(scatter, draws.positions(tf.constant(0))) * float(not options.evidence)
        blends = SeededBlends(tensors, self.shape, seed, side, self.near, shift, self.kind)
        norm = tf.maximum(blends.galaxy[:, :, 0, 0, 0] * blends.norm, self.near.least_norm)

        def posterior(rescaling: tf.Tensor, begin: tf.Tensor) -> PosteriorDenoiser:
            prior = Prior(Rescaled(self.prior, rescaling), blends.mean, blends.spread)
            return PosteriorDenoiser(
                prior, blends.at(begin).blend, blends.data, options.covariance, options.iterations, options.tolerance
            )

        def advance(
            count: tf.Tensor, x: tf.Tensor, rescaling: tf.Tensor, begun: tf.Tensor, begin: tf.Tensor, path: Path
        ):
            normals, back, free = draws.normals(count + 1)
            sigma, after = self.level(count, norm, begun), self.level(count + 1, norm, begun)
            end = posterior(rescaling, begin)
            moved, x0 = step(end, x, sigma, after, Noise(normals, back))
            if options.evidence:
                mean, gain = end.mean_and_gain(x, sigma)
                expected = bridge(x, mean, sigma, after, 0.0)
                path = path.step(blends.galaxy * gain, moved - expected, sigma, after, count == 0)
            if self.rescales and x0 is not None:
                rescaling = self._rescale(x0, free, norm)
            if self.begins_anew:
                waits = sigma >= self.largest(begun)
                begun = tf.where(count == 0, rescaling, begun)
                anew = x0 + pixels(self.level(count + 1, norm, begun)) * back
                moved = tf.where(pixels(waits), anew, moved)
            if self.recentres:
                variance = tf.stack([seed.offset_covariance[..., axis, axis] for axis in (0, 1)], -1)
                move = centres.moves(x0, blends.stray(begin), variance, draws.positions(count + 1))
                begin, before = blends.reachable(begin + move), begin
                moved = centres.recentred(moved, begin - before)
            return count + 1, moved, rescaling, begun, begin, path

        normals, back, free = draws.normals(tf.constant(0))
        begun = tf.ones_like(free)
        first = self.level(tf.constant(0), norm, begun)
        rescaling = tf.exp(self.denoiser.scale_jitter * free) if self.rescales else begun
        start = blends.start.stamps + pixels(first) * back
        loop = [tf.constant(0), start, rescaling, begun, blends.begin, Path.above(first)]
        _, x, rescaling, begun, begin, path = tf.while_loop(lambda count, *_: count < options.steps - 1, advance, loop)
        last = self.level(tf.constant(options.steps - 1), norm, begun)
        end, blends = posterior(rescaling, begin), blends.at(begin)
        found = end.draw(x, last, normals) if self.draws else end.mean(x, last)
        stamps = blends.stamps(found)
        sources = blends.sources(stamps)
        whole = tf.nest.map_structure(lambda each: tf.reduce_sum(each, 1), sources)
        free = blends.likelihood.left_over(normals.data)
        model, background = blends.likelihood.on_background(whole, found.background, free)
        large = blends.large[:, :, 0, 0, 0] > 0
        log_evidence = tf.fill([self.shape.blends], tf.constant(np.nan, draws.dtype))
        if options.evidence:
            mean, gain = end.mean_and_gain(x, last)
            path = path.step(blends.galaxy * gain, found.stamps - mean, last, last, tf.constant(options.steps == 1))
            known = ~tf.reduce_any(large, 1)
            log_evidence = tf.where(known, log_likelihood(blends, found.stamps) - path.end(), log_evidence)
        before = blends.galaxy * (blends.scale * rescaling[..., None, None, None]) ** 2 * self.denoiser.variance
        before = blends.cut.forward(before)
        flux = blends.flux(stamps)
        scale = flux_scale(found.stamps)
        log_scale = tf.where(scale > 0, tf.math.log(tf.maximum(scale, 1e-30)), tf.zeros_like(scale))
        unit = blends.galaxy * found.stamps
        return Samples(
            stamps, sources, flux, background, model, before, large, flux[..., :0], log_evidence, log_scale, unit
        )

    def _rescale(self, x0: tf.Tensor, free: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
        """r ~ p(r | x_0) [N, K]; of a galaxy bright enough to have been found."""
        scale = flux_scale(x0) * tf.exp(self.denoiser.scale_jitter * free)
        least = tf.maximum(self.near.least_norm / tf.maximum(norm, 1e-6), 1 / LARGEST_RESCALING)
        return tf.clip_by_value(scale, least, LARGEST_RESCALING)


def correlated(covariance: tf.Tensor, normals: tf.Tensor) -> tf.Tensor:
    """N(0, covariance) from standard normals [..., 2], by the Cholesky root of the 2 x 2 matrices in closed form."""
    yy, yx, xx = covariance[..., 0, 0] + 1e-8, covariance[..., 1, 0], covariance[..., 1, 1] + 1e-8
    first = tf.sqrt(yy)
    along = yx / first
    rest = tf.sqrt(tf.maximum(xx - along**2, 0))
    return tf.stack([first * normals[..., 0], along * normals[..., 0] + rest * normals[..., 1]], -1)
