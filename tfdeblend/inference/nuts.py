"""Samples of p({galaxies} | y) with a closed-form prior: the No-U-Turn sampler over latents and fluxes.

The MAP's curvature whitens: a chain walks in u, where the Gaussian approximation of the posterior is N(0, 1), so that
one step length fits all directions and no mass matrix has to be learnt. The posterior is the fit's own, model error
included. Sampler and step-size adaptation are TensorFlow Probability's (Hoffman & Gelman 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.likelihood import Images, with_constants
from tfdeblend.galaxies import normal_equations
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.inference.diffusion_sampler import Samples
from tfdeblend.inference.map_fit import MapFit


@dataclass(frozen=True)
class NutsOptions:
    """Sets how long chains are.

    Args:
        chains: of each blend.
        warmup: steps that adapt the step length and are dropped.
        draws: kept of each chain, at least.
        depth: of the trees, at most 2^depth gradients a step.
        acceptance: that the adaptation aims at.
    """

    chains: int = 2
    warmup: int = 100
    draws: int = 100
    depth: int = 6
    acceptance: float = 0.8


class NutsResult(NamedTuple):
    """state: whitened units, [B, S, ...]. rhat: [B] the largest potential scale reduction of any whitened parameter
    (Gelman & Rubin 1992), of chains that start about one maximum: no proof that there is no other. ess: [B] the
    smallest effective number of samples in all draws."""

    state: MapState
    rhat: tf.Tensor
    ess: tf.Tensor


class Whitening:
    """u [B, D] <-> latents and fluxes: the Laplace approximation at `center`, whose rendered scenes are `model`.

    Fluxes follow the latents as their best values would, with a spread of their own. What no data constrain (padding,
    bands that are all masked) stays where it is, its u free and N(0, 1).
    """

    def __init__(self, posterior: GalaxyPosterior, center: MapState, model: Images):
        system, _ = posterior.normal_equations(center, model)
        curvature, gain, linear = normal_equations.eliminate(system)
        dtype = center.latent.dtype
        eye = tf.eye(curvature.shape[-1], dtype=tf.float64)
        covariance = tf.linalg.inv(curvature + 1e-9 * eye)
        self.latent_root = tf.cast(
            tf.linalg.cholesky(0.5 * (covariance + tf.linalg.matrix_transpose(covariance))), dtype
        )
        self.gain = tf.cast(gain, dtype)
        self.linear_root = tf.cast(tf.linalg.cholesky(linear), dtype)
        self.posterior, self.center = posterior, center
        seen = tf.reduce_any(system.mixed != 0, 2)  # a flux that data constrain is coupled to the latents
        self.used = tf.cast(posterior.tensors.is_source, dtype)[:, None] * tf.cast(seen, dtype)  # [B, C, K]
        self.number, (self.bands, self.terms) = curvature.shape[-1], gain.shape[1:3]

    @property
    def size(self) -> int:
        """D."""
        return self.number + self.bands * self.terms

    def state(self, u: tf.Tensor) -> MapState:
        latent = tf.linalg.matvec(self.latent_root, u[:, : self.number])
        own = tf.reshape(u[:, self.number :], [-1, self.bands, self.terms])
        own = tf.linalg.triangular_solve(self.linear_root, own[..., None], adjoint=True)[..., 0]
        linear = self.used * (own - tf.linalg.matvec(self.gain, latent[:, None]))
        move = self.posterior.state_of(latent, linear)
        return MapState(*(old + new for old, new in zip(self.center, move, strict=True)))

    def unused(self, u: tf.Tensor) -> tf.Tensor:
        """[B]: -log N(u; 0, 1) of what is not used."""
        own = tf.reshape(u[:, self.number :], [-1, self.bands, self.terms])
        return 0.5 * tf.reduce_sum((1 - self.used) * own**2, [1, 2])

    def constrained(self) -> tf.Tensor:
        """[B, D]: whether a component of u belongs to a real source, and data constrain it."""
        real = tf.repeat(self.posterior.tensors.is_source, self.posterior.prior.size, 1)
        return tf.concat([real, tf.reshape(self.used, [-1, self.bands * self.terms])], 1) > 0


class NutsSampler:
    """Compiled for the shape of a fit.

    Args:
      fit: whose posterior is sampled. samples: S, of each blend.
    """

    def __init__(self, fit: MapFit, samples: int, options: NutsOptions = NutsOptions()):
        self.fit, self.samples, self.options = fit, samples, options
        self._run = tf.function(self._sample, autograph=False, reduce_retracing=True)
        self.render = tf.function(self._render, autograph=False)

    def __call__(self, tensors: Tensors, center: MapState, seeds: np.ndarray) -> NutsResult:
        """Samples B blends, one after the other: what is drawn for a blend depends on no other.

        The same seed gives the same samples but for the order of sums on several threads, which a long chain amplifies.

        Args:
          tensors, center: of the blends, and the fit's state for them. seeds: [B, 2] int32 of the blends.
        """
        return self._run(tensors, center, tf.constant(seeds, tf.int32))

    def _sample(self, tensors: Tensors, center: MapState, seeds: tf.Tensor) -> NutsResult:
        states = tf.nest.map_structure(lambda t: tf.TensorSpec([self.samples, *t.shape[1:]], t.dtype), center)
        figure = tf.TensorSpec([], self.fit.prior.dtype)
        signature = NutsResult(states, figure, figure)
        return tf.map_fn(lambda one: self._chains(*one), (tensors, center, seeds), fn_output_signature=signature)

    def _chains(self, tensors: Tensors, center: MapState, seed: tf.Tensor) -> NutsResult:
        """The result of one blend, without the dimension B. All its chains are run together."""
        options = self.options
        tensors, center = tf.nest.map_structure(lambda t: tf.stack([t] * options.chains), (tensors, center))
        exact = self.fit.posterior(tensors)
        posterior = self.fit.tolerant(exact, exact.model(center))
        model = posterior.model(center)
        white = Whitening(posterior, center, model)

        def log_prob(u: tf.Tensor) -> tf.Tensor:
            state = white.state(u)
            return -posterior.rise(center, model, state, posterior.model(state)) - white.unused(u)

        kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
            tfp.mcmc.NoUTurnSampler(
                log_prob, tf.fill([options.chains, 1], 1.5 * white.size**-0.25), max_tree_depth=options.depth
            ),
            num_adaptation_steps=int(0.8 * options.warmup),
            target_accept_prob=tf.constant(options.acceptance, self.fit.prior.dtype),
        )
        every = -(-self.samples // options.chains)  # of a chain
        apart = max(-(-options.draws // every), 1)
        first = 1.5 * tf.random.stateless_normal([options.chains, white.size], seed, dtype=self.fit.prior.dtype)
        drawn = tfp.mcmc.sample_chain(
            every * apart,
            first,
            kernel=kernel,
            num_burnin_steps=options.warmup,
            trace_fn=None,
            seed=seed + tf.constant([0, 1], tf.int32),
        )  # [draws, chains, D]
        constrained = white.constrained()[0]
        if options.chains > 1:
            rhat = tf.reduce_max(tf.where(constrained, tfp.mcmc.potential_scale_reduction(drawn), 1))
            ess = tfp.mcmc.effective_sample_size(drawn, filter_beyond_positive_pairs=True, cross_chain_dims=1)
        else:
            rhat = tf.constant(np.nan, self.fit.prior.dtype)
            ess = tfp.mcmc.effective_sample_size(drawn[:, 0], filter_beyond_positive_pairs=True)
        # Draws that alternate about the mean may drive the estimate beyond infinity, to negative numbers.
        ess = tf.where(constrained & (ess > 0), ess, tf.cast(every * apart * options.chains, ess.dtype))
        kinds = tf.nest.map_structure(lambda t: t.dtype, center)
        states = tf.map_fn(white.state, drawn[apart - 1 :: apart], fn_output_signature=kinds)
        states = tf.nest.map_structure(lambda t: tf.reshape(t, [-1, *t.shape[2:]])[: self.samples], states)
        return NutsResult(states, rhat, tf.reduce_min(ess))

    def _render(self, tensors: Tensors, state: MapState, seeds: tf.Tensor) -> Samples:
        """What states look like, a row each. seeds: [N, 2] of each sample, for the constants drawn beside them."""
        posterior = self.fit.posterior(tensors)
        likelihood, stamps = posterior.likelihood, posterior.stamps(state)
        sources = likelihood.sources(stamps)
        whole = tuple(tf.reduce_sum(images, 1) for images in sources)
        flux = state.flux * tensors.is_source[..., None]
        bands = [number for number, _ in self.fit.shape.images]
        free = tf.map_fn(
            lambda seed: tf.random.stateless_normal([sum(bands)], seed, dtype=flux.dtype),
            seeds,
            fn_output_signature=tf.TensorSpec([sum(bands)], flux.dtype),
        )
        constants = likelihood.drawn_constants(whole, tuple(tf.split(free, bands, 1)))
        none = tf.zeros_like(flux[..., 0])
        return Samples(
            stamps=stamps,
            sources=sources,
            flux=flux,
            constants=constants,
            models=with_constants(whole, constants),
            prior_variance=tf.zeros_like(stamps),
            large=none > 0,
            summary=self.fit.prior.summary(state.latent, posterior.frame),
            unit=stamps[..., :0, :0],
        )
