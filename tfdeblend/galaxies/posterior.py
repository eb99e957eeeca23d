"""The posterior of closed-form galaxies in a batch of blends: its value, its gradient and its curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import Tensors
from tfdeblend.forward.likelihood import Images, Likelihood
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies import fluxes, normal_equations, profiles
from tfdeblend.galaxies.normal_equations import NormalEquations, SecondOrder
from tfdeblend.galaxies.priors import Frame, GalaxyPrior, draw
from tfdeblend.linalg.operator import shape_of

ROUNDING = 3e-6  # of float32 products: added to their diagonal, it keeps them positive definite
BRIGHT = 100.0  # signal-to-noise, all bands together, above which a percent of the curvature is too much
FLUX_REFINEMENTS = 3  # the curvature is good to 1%, and each refinement gains as much


class MapState(NamedTuple):
    """Where a fit stands, in whitened units: latents [B, K, S] and fluxes [B, K, C]."""

    latent: tf.Tensor
    flux: tf.Tensor


class GalaxyPosterior:
    """-log p(y | z, flux) - log p(z) - log p(flux), up to a constant, of B blends; made inside of a compiled graph.

    It is half a chi-square, z ~ N(0, 1), and `fluxes` that are flat where positive: no number here carries units. B may
    be unknown to the graph.

    Args:
      prior: of the galaxies. shape: of the batch. tensors: of the batch.
      stiffness: [B] by which the latents' prior is multiplied, for starts far from the maximum; None: 1.
    """

    def __init__(self, prior: GalaxyPrior, shape: BatchShape, tensors: Tensors, stiffness: tf.Tensor | None = None):
        self.prior, self.shape, self.tensors = prior, shape, tensors
        self.likelihood = Likelihood(tensors, shape)
        self.sources = shape_of(tensors.is_source)[1]
        self.stiffness = tf.ones_like(tensors.arcsec) if stiffness is None else stiffness
        like = tf.ones_like(tensors.is_source)
        arcsec = tensors.arcsec[:, None] * like
        self.frame = Frame(tensors.centers, arcsec, tensors.is_point, shape.model_sigma * like)

    def reweighted(self, weights: Sequence[tf.Tensor]) -> GalaxyPosterior:
        """The same with other weights of each exposure."""
        return GalaxyPosterior(self.prior, self.shape, self.tensors.reweighted(weights), self.stiffness)

    def take(self, rows: tf.Tensor, stiffness: tf.Tensor) -> GalaxyPosterior:
        """The posterior of some of the blends, by their row."""
        tensors = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), self.tensors)
        return GalaxyPosterior(self.prior, self.shape, tensors, stiffness)

    # -- what is seen

    def mixture(self, latent: tf.Tensor) -> profiles.Mixture:
        """The unit-flux sources of latents [B, K, S], around their stamps' centres."""
        return self.prior.mixture(latent, self.frame)

    def unit(self, latent: tf.Tensor) -> tf.Tensor:
        """Stamps [B, K, C or 1, P, P] of unit flux."""
        return profiles.render(self.mixture(latent), self.shape.stamp)

    def stamps(self, state: MapState) -> tf.Tensor:
        """[B, K, C, P, P] in flux."""
        return self._real(state.flux)[..., None, None] * self.unit(state.latent)

    def model(self, state: MapState) -> Images:
        """The rendered scenes in all exposures, without constants."""
        return self.stamps_and_model(state)[1]

    def stamps_and_model(self, state: MapState) -> tuple[tf.Tensor, Images]:
        """Render the sources [B, K, C, P, P] in flux, and the scenes in all exposures, without constants."""
        unit, flux = self.unit(state.latent), self._real(state.flux)
        return flux[..., None, None] * unit, self.likelihood.render(unit, flux)

    # -- value and gradient

    def loss(self, state: MapState) -> tf.Tensor:
        """[B]."""
        prior = self.stiffness * tf.reduce_sum(state.latent**2, [1, 2])
        return 0.5 * (self.likelihood.chi2(self.model(state)) + prior + fluxes.penalty(state.flux))

    def rise(self, old: MapState, old_model: Images, new: MapState, new_model: Images) -> tf.Tensor:
        """[B]: how much the loss rises from old to new, free of the cancellation in a difference of two large sums."""
        data = self.likelihood.rise(old_model, new_model)
        prior = self.stiffness * tf.reduce_sum((new.latent - old.latent) * (new.latent + old.latent), [1, 2])
        return 0.5 * (data + prior + fluxes.penalty(new.flux) - fluxes.penalty(old.flux))

    def gradient(self, state: MapState, model: Images) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Float64, as the normal equations order them, at `state`, whose rendered scenes are `model`: of the loss by
        the latents [B, L], of the data's part by the fluxes [B, C, K], and the fluxes themselves [B, C, K]."""
        pulled = self.likelihood.pull(model)
        with tf.GradientTape() as tape:
            tape.watch(state)
            value = -tf.reduce_sum(pulled * self.stamps(state))
        by_latent, by_flux = tape.gradient(value, state, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        by_latent += self.stiffness[:, None, None] * state.latent
        linear, now = (tf.cast(tf.linalg.matrix_transpose(flux), tf.float64) for flux in (by_flux, state.flux))
        flat = tf.reshape(by_latent, [-1, self.sources * self.prior.size])
        return tf.cast(flat, tf.float64), linear, now

    def slope_along(self, gradient: tuple[tf.Tensor, ...], move: MapState) -> tf.Tensor:
        """[B]: the loss' derivative along a move of latents and fluxes, by its `gradient`."""
        by_latent, by_flux, now = gradient
        flat = tf.reshape(move.latent, [-1, self.sources * self.prior.size])
        by_flux = tf.linalg.matrix_transpose(by_flux + fluxes.curvature(now) * now)
        along = tf.reduce_sum(by_latent * tf.cast(flat, tf.float64), 1)
        along += tf.reduce_sum(by_flux * tf.cast(move.flux, tf.float64), [1, 2])
        return tf.cast(along, self.prior.dtype)

    def state_of(self, latent: tf.Tensor, linear: tf.Tensor) -> MapState:
        """Latents [B, L] and fluxes [B, C, K], as the normal equations order them, as a state."""
        latent = tf.reshape(tf.cast(latent, self.prior.dtype), [-1, self.sources, self.prior.size])
        return MapState(latent, self._fluxes(linear))

    def solve_fluxes(self, unit: tf.Tensor) -> tf.Tensor:
        """The best fluxes [B, K, C] for stamps of unit flux [B, K, C or 1, P, P]."""
        likelihood, used = self.likelihood, tf.cast(self.tensors.is_source, tf.float64)[:, None]
        gram = normal_equations.regular(likelihood.gram(self._real(unit[:, :, None])), used)

        def refine(count: tf.Tensor, best: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            model = likelihood.render(unit, self._real(self._fluxes(best)))
            slope = likelihood.slopes(unit, model)
            right = tf.linalg.matvec(gram, best) + tf.cast(slope, tf.float64) * used
            return count + 1, fluxes.solve(gram, right, best)

        start = [0, tf.zeros_like(gram[..., 0])]
        _, best = tf.while_loop(lambda count, _: count < FLUX_REFINEMENTS, refine, start)
        return self._fluxes(best)

    def _fluxes(self, linear: tf.Tensor) -> tf.Tensor:
        """[B, C, K] -> [B, K, C], in the fit's precision."""
        return tf.linalg.matrix_transpose(tf.cast(linear, self.prior.dtype))

    def _real(self, x: tf.Tensor) -> tf.Tensor:
        """[B, K, ...], zero where the source is padding."""
        return x * tf.reshape(self.tensors.is_source, [-1, self.sources] + [1] * (len(x.shape) - 2))

    # -- curvature

    def normal_equations(self, state: MapState, model: Images) -> tuple[NormalEquations, SecondOrder]:
        """The Gauss-Newton curvature at `state`, whose rendered scenes are `model`, and what it leaves out."""
        likelihood = self.likelihood
        images, mixing = self.tangents(state.latent)
        gram = normal_equations.mix(self._gram(self._real(images), mixing, state.flux), mixing)
        system = normal_equations.assemble(
            gram, state.flux, self.tensors.is_source, self.prior.size, tf.cast(self.stiffness, tf.float64)
        )
        pulled = self._real(likelihood.pull(model))
        mixture, (d_weight, d_exponent) = self._jacobian(
            lambda z, frame: profiles.coefficients(self.prior.mixture(z, frame)), state.latent
        )
        part = profiles.contract(mixture, d_weight, d_exponent, pulled, state.flux)
        latent = part.second + self._second_order(state.latent, part)
        return system, SecondOrder(-tf.cast(latent, tf.float64), -tf.cast(part.slope, tf.float64))

    def _gram(self, images: tf.Tensor, mixing: tf.Tensor, flux: tf.Tensor) -> tf.Tensor:
        """`Likelihood.gram` of each source's images [B, K, I, 1, P, P], exact for those of the brightest source.

        Its flux may be known to a thousandth, and what sampling every second pixel gets wrong would pass for knowledge
        of its shape. With L L^T its block as it is and E E^T the exact one, E L^-1 takes one to the other; applied to
        its rows and columns it leaves the whole positive. Below a signal-to-noise of BRIGHT it stays as it is.

        Args:
          mixing: see `tangents`. flux: [B, K, C].
        """
        gram, sources, count = self.likelihood.gram(images), self.sources, images.shape[2]
        brightest = tf.argmax(tf.reduce_sum(flux**2, 2), 1, output_type=tf.int32)
        here = tf.one_hot(brightest, sources, dtype=gram.dtype)
        blocks = tf.reshape(gram, [-1, self.shape.bands, sources, count, sources, count])
        block = tf.einsum("bk,bckikj->bcij", here, blocks)
        light = tf.gather(flux[..., None] * tf.transpose(mixing[:, :, :, -1], [0, 2, 1, 3]), brightest, batch_dims=1)
        light = tf.cast(light, gram.dtype)  # [B, C, I], what its own light holds of its images
        rows = tf.where(tf.einsum("bci,bcij,bcj->b", light, block, light) > BRIGHT**2)[:, 0]

        def corrected() -> tf.Tensor:
            some, number, block_of, here_of = (tf.gather(x, rows) for x in (images, brightest, block, here))
            likelihood = self.take(rows, tf.gather(self.stiffness, rows)).likelihood
            exact = likelihood.gram_of_one(tf.gather(some, number, batch_dims=1), number)
            root, exact_root = (
                tf.linalg.cholesky(each + tf.linalg.diag(ROUNDING * tf.linalg.diag_part(block_of) + 1e-30))
                for each in (block_of, exact)
            )
            change = tf.linalg.matrix_transpose(
                tf.linalg.triangular_solve(root, tf.linalg.matrix_transpose(exact_root), adjoint=True)
            )
            one = tf.eye(count, dtype=gram.dtype)
            known = tf.reduce_all(tf.math.is_finite(change), [2, 3])  # not of a few pixels less a constant
            change = tf.where(known[..., None, None], change, one)
            change = one + here_of[:, None, :, None, None] * (change - one)[:, :, None]  # [B, C, K, I, I]
            half = tf.einsum("bckij,bckjlm->bckilm", change, tf.gather(blocks, rows))
            full = tf.reshape(tf.einsum("bclmj,bckilj->bckilm", change, half), [-1, *shape_of(gram)[1:]])
            return tf.tensor_scatter_nd_update(gram, rows[:, None], full)

        return tf.cond(tf.size(rows) > 0, corrected, lambda: gram)

    def tangents(self, latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images [B, K, I, 1, P, P] that span all derivatives of the unit-flux sources, and what each of a source's
        derivatives, by its S latents and, last, by its flux, holds of them [B, C, K, S + 1, I].

        Components look alike in all bands, which differ only in how much of each they hold: so few images are enough.
        """
        (shape, share), (by_shape, by_share) = self._jacobian(self.prior.anatomy, latent)  # [B, K, S, D, 5 and C]
        frame, side = _of_copies(self.frame), self.shape.stamp
        images = []
        for table, one in zip(self.prior.tables, tf.unstack(shape, axis=2), strict=True):
            (weight, exponent), derivatives = slopes(
                lambda x, table=table: profiles.coefficients(draw(x, frame, table)), one, one.shape[-1]
            )
            images.append(profiles.render_tangents(weight, exponent, derivatives[0], derivatives[1], side))
        own = tf.einsum("bkdc,bksdm->bcksdm", share, by_shape)
        own = tf.concat([own, tf.einsum("bksdc->bcksd", by_share)[..., None]], -1)
        flux = tf.einsum("bkdc->bckd", share)[:, :, :, None, :, None]
        mixing = tf.concat([own, tf.pad(flux, [[0, 0]] * 5 + [[shape.shape[-1], 0]])], 3)
        size, components, count = mixing.shape[3:]
        return (
            tf.concat(images, 2),
            tf.reshape(mixing, [-1, self.shape.bands, self.sources, size, components * count]),
        )

    def _second_order(self, latent: tf.Tensor, part: profiles.Contraction) -> tf.Tensor:
        """[B, K, S, S]: the mixtures' second derivatives by the latents, contracted with what each coefficient does."""

        def slope(latent: tf.Tensor, frame: Frame) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(latent)
                weight, exponent = profiles.coefficients(self.prior.mixture(latent, frame))
                value = tf.reduce_sum(weight * part.by_weight[:, :, None])
                value += tf.reduce_sum(exponent * part.by_exponent[:, :, None])
            return [tape.gradient(value, latent)]

        _, (second,) = self._jacobian(slope, latent)
        return 0.5 * (second + tf.linalg.matrix_transpose(second))

    def summary(self, latent: tf.Tensor, covariance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`GalaxyPrior.summary` [B, K, 5] of all sources, and its covariance [B, K, 5, 5] by linear propagation of that
        of the latents [B, L, L]."""
        (value,), (by_latent,) = self._jacobian(self.prior.summary, latent)  # [B, K, S, 5]
        size = self.prior.size
        blocks = tf.reshape(covariance, [-1, self.sources, size, self.sources, size])
        own = tf.einsum("bksku->bksu", blocks)
        by_latent = tf.cast(by_latent, tf.float64)
        return value, tf.matmul(tf.matmul(by_latent, own, transpose_a=True), by_latent)

    def _jacobian(self, function, latent: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Values [B, K, ...] and derivatives [B, K, S, ...] of function(latent, frame) by each latent."""
        frame = _of_copies(self.frame)
        return slopes(lambda z: function(z, frame), latent, self.prior.size)


def _of_copies(frame: Frame) -> Frame:
    """[B, K, 1] for the copies of each source that `slopes` makes."""
    return Frame(*(tf.expand_dims(part, 2) for part in frame))


def slopes(function, x: tf.Tensor, count: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Values of function(x) [..., ...] and derivatives [..., count, ...] by the first `count` components of x [..., S].

    By differences: the function sees 2 count + 1 copies of x at once, each moved along another axis but the last. They
    are good to 1e-4 in float32, enough for a curvature, and their graph is much smaller than automatic derivatives'.
    """
    dtype = x.dtype.as_numpy_dtype
    step = np.cbrt(np.finfo(dtype).eps).astype(dtype)
    axes = np.eye(count, x.shape[-1], dtype=dtype)
    moves = tf.constant(step * np.concatenate([axes, -axes, 0 * axes[:1]]))
    along = len(x.shape) - 1
    results = tf.nest.flatten(function(x[..., None, :] + moves))
    split = [tf.split(result, [count, count, 1], along) for result in results]
    return [tf.squeeze(last, along) for _, _, last in split], [(a - b) / (2 * step) for a, b, _ in split]
