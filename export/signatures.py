"""Defines the signatures of an exported model: functions of named tensors with the blends as their first dimension.

Blends are done one by one within a graph (`rowwise`): what comes out does not depend on the others of a batch, no batch
needs padding, and no size of a batch is compiled again. Only `denoise` is a network on all rows at once, whose sums may
round differently in batches of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfdeblend.deblender import CONVERGED
from tfdeblend.diffusion import registry
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.diffusion.random import RandomNumbers
from tfdeblend.export import normals, preparation, seeds
from tfdeblend.export.bucket import SAMPLES, STEPS, Bucket, blend_specs
from tfdeblend.forward.batch import Tensors
from tfdeblend.galaxies.priors import PRIORS, BulgeDiskPrior
from tfdeblend.inference.annealed import AnnealedFit
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions, Samples
from tfdeblend.inference.map_fit import MapFit, MapResult

Named = dict[str, tf.Tensor]
Specs = dict[str, tf.TensorSpec]
Concrete = Any  # tf.types.experimental.ConcreteFunction
SAMPLE, SAMPLE_EPS = f"sample_{SAMPLES}", f"sample_{SAMPLES}_eps"
AT_ONCE = 4  # blends of a batch that are worked on side by side


class Prepared(NamedTuple):
    """The tensors of B blends, and the noise [B, C] by which their bands were divided."""

    tensors: Tensors
    band_scale: tf.Tensor


class Inference:
    """Computes what a bucket's model does; `weights` are the variables it reads.

    `signatures` gives functions by name: `map`, and of a learned prior `start`, `sample_16`, `sample_16_eps`,
    `denoise`. Their outputs are in the image's own units, but those of `start` in units of each band's noise.
    """

    def __init__(self, bucket: Bucket):
        self.bucket, self.shape = bucket, bucket.shape
        closed_form = BulgeDiskPrior if bucket.is_learned else PRIORS[bucket.prior]
        self.fit = MapFit(closed_form(bucket.channels), self.shape)
        self.weights: list[tf.Variable] = []
        if bucket.is_learned:
            self.denoiser = registry.find(bucket.prior).load()
            self.weights = [variable.value for variable in self.denoiser.variables]
            self.refinement = AnnealedFit(self.fit, self.denoiser)
            rows = self.shape._replace(blends=SAMPLES)
            self.sampler = PosteriorSampler(rows, self.denoiser, SampleOptions(steps=STEPS))

    def signatures(self) -> dict[str, Concrete]:
        """Gives them by name; each takes its tensors as keywords and gives them by name."""
        blend = blend_specs(self.bucket)
        rows: dict[str, tuple[Callable[[Named], Named], Specs]] = {"map": (self._map, blend)}
        if self.bucket.is_learned:
            seed = {"seed": tf.TensorSpec([None, 2], tf.int32, "seed")}
            rows["start"] = (self._start, blend)
            rows[SAMPLE] = (self._sample, blend | seed)
            rows[SAMPLE_EPS] = (self._sample_eps, blend | self._start_specs(blend) | self._eps_spec())
        found = {name: rowwise(function, specs) for name, (function, specs) in rows.items()}
        if self.bucket.is_learned:
            c, p, _ = self.denoiser.stamp_shape
            x, sigma = tf.TensorSpec([None, c, p, p], tf.float32, "x"), tf.TensorSpec([None], tf.float32, "sigma")
            found["denoise"] = _concrete(self._denoise, {"x": x, "sigma": sigma})
        return found

    # -- of one blend

    def _map(self, blend: Named) -> Named:
        blend, usable, batch, found = self._fitted(blend)
        if self.bucket.is_learned:
            found = self.refinement(batch.tensors, found)
        (exposure,), (model,) = batch.tensors.exposures, found.models
        valid = tf.reduce_sum(tf.cast(exposure.weights > 0, tf.float32), [1, 2, 3])
        chi2 = tf.reduce_sum(exposure.weights * (exposure.images - model) ** 2, [1, 2, 3])
        values = self._fluxes(batch, found) | self._shapes(batch, found)
        unit = batch.band_scale[..., None, None]
        values |= {
            "chi2": chi2 / tf.maximum(valid, 1),
            "distance": tf.cast(found.distance, tf.float32),
            "converged": found.distance <= CONVERGED,
            "steps": found.steps,
            "background": found.constants[0] * batch.band_scale,
            "model": model * unit,
            "sources": found.sources[0] * unit[:, None],
            "stamps": found.stamps * unit[:, None],
            "beyond_prior": found.beyond_prior,
        }
        return _of_usable(values, usable)

    def _start(self, blend: Named) -> Named:
        _, usable, _, found = self._fitted(blend)
        initial = InitialFit.of(found)._asdict()
        return {f"start_{name}": value for name, value in initial.items()} | {"usable": usable}

    def _sample(self, blend: Named) -> Named:
        keys = tf.reshape(seeds.keys(blend.pop("seed"), SAMPLES), [SAMPLES])
        _, usable, batch, found = self._fitted(blend)
        drawn = self._drawn(batch, InitialFit.of(found), self.sampler.normals(keys))
        return _of_usable(self._samples(batch, drawn), usable)

    def _sample_eps(self, blend: Named) -> Named:
        initial = InitialFit(**{name: blend.pop(f"start_{name}") for name in InitialFit._fields})
        eps = tf.reshape(blend.pop("eps"), [SAMPLES, -1])
        blend, usable = preparation.checked(blend, self.shape.model_sigma)
        batch = Prepared(*preparation.prepare(blend, self.shape))
        given = normals.GivenNormals(eps, self._stamps(), self.shape.side, self.sampler.rank, STEPS)
        return _of_usable(self._samples(batch, self._drawn(batch, initial, given)), usable)

    def _denoise(self, inputs: Named) -> Named:
        """Gives E[x | x_t] and the pixels' variances of stamps at unit scale x [B, C, P, P] with noise of sigma [B]."""
        mean, covariance = self.denoiser.posterior(inputs["x"], inputs["sigma"])
        return {"mean": mean, "variance": covariance.variance}

    # -- parts

    def _fitted(self, blend: Named) -> tuple[Named, tf.Tensor, Prepared, MapResult]:
        blend, usable = preparation.checked(blend, self.shape.model_sigma)
        batch = Prepared(*preparation.prepare(blend, self.shape))
        radius, ellipticity = (tf.cast(t, tf.float32) for t in preparation.moments(blend))
        first = self.fit.prior.start(radius, ellipticity)
        real = tf.math.is_finite(first) & (batch.tensors.is_source > 0)[..., None]
        return blend, usable, batch, self.fit(batch.tensors, tf.where(real, first, tf.zeros_like(first)))

    def _fluxes(self, batch: Prepared, found: MapResult) -> Named:
        scale = tf.cast(batch.band_scale, tf.float64)
        covariance = tf.einsum("bckcl->bckl", found.covariance.linear) * scale[..., None, None] ** 2
        real = tf.cast(batch.tensors.is_source, tf.float64)
        covariance *= real[:, None, :, None] * real[:, None, None]
        errors = tf.sqrt(tf.linalg.matrix_transpose(tf.linalg.diag_part(covariance)))
        flux = found.state.flux * batch.band_scale[:, None] * batch.tensors.is_source[..., None]
        return {
            "flux": flux,
            "flux_err": tf.cast(errors, tf.float32),
            "flux_cov": tf.cast(covariance, tf.float32),
        }

    def _shapes(self, batch: Prepared, found: MapResult) -> Named:
        corners = batch.tensors.corners - self.shape.margin
        errors = tf.sqrt(tf.maximum(tf.cast(tf.linalg.diag_part(found.summary_covariance), tf.float32), 0))
        middle = tf.cast(corners + self.shape.stamp // 2, tf.float64)
        return {
            "corners": corners,
            "positions": middle + tf.cast(found.summary[..., :2], tf.float64),
            "position_err": errors[..., :2],
            "size": found.summary[..., 2],
            "size_err": errors[..., 2],
            "ellipticity": found.summary[..., 3:],
            "ellipticity_err": errors[..., 3:],
        }

    def _drawn(self, batch: Prepared, initial: InitialFit, random: RandomNumbers) -> Samples:
        def rows(tensor: tf.Tensor) -> tf.Tensor:
            """Repeats what each sample has for its own; transfer functions serve all."""
            return tensor if tensor.dtype.is_complex else tf.repeat(tensor, SAMPLES, 0)

        tensors, initial = tf.nest.map_structure(rows, (batch.tensors, initial))
        return self.sampler.sample(tensors, initial, random)

    def _samples(self, batch: Prepared, drawn: Samples) -> Named:
        """Gives the outputs of one blend's samples, [1, S, ...] each, and those of all together."""
        scale = batch.band_scale
        unit = scale[..., None, None]
        flux = drawn.flux * scale[:, None]
        offset = (flux - tf.reduce_mean(flux, 0)) / (SAMPLES - 1) ** 0.5
        of_each = {
            "stamps": drawn.stamps * unit[:, None],
            "sources": drawn.sources[0] * unit[:, None],
            "flux": flux,
            "background": drawn.constants[0] * scale,
            "model": drawn.models[0] * unit,
        }
        together = {
            "corners": (batch.tensors.corners - self.shape.margin)[0],
            "flux_err": tf.sqrt(tf.reduce_sum(offset**2, 0)),
            "flux_cov": tf.einsum("skc,slc->ckl", offset, offset),
            "prior_variance": tf.reduce_mean(drawn.prior_variance, 0) * unit[0] ** 2,
            "beyond_prior": tf.reduce_any(drawn.large, 0),
        }
        return {name: value[None] for name, value in (of_each | together).items()}

    def _stamps(self) -> tuple[int, ...]:
        return SAMPLES, self.shape.sources, *self.denoiser.stamp_shape

    def _eps_spec(self) -> Specs:
        number = normals.size(self._stamps(), self.shape.side, self.sampler.rank, STEPS)
        return {"eps": tf.TensorSpec([None, SAMPLES, number], tf.float32, "eps")}

    def _start_specs(self, blend: Specs) -> Specs:
        one = {name: tf.TensorSpec([1, *spec.shape[1:]], spec.dtype) for name, spec in blend.items()}
        found = tf.function(self._start, [one], autograph=False).get_concrete_function().structured_outputs
        specs = {name: tf.TensorSpec([None, *t.shape[1:]], t.dtype, name) for name, t in found.items()}
        return {name: spec for name, spec in specs.items() if name.startswith("start_")}


def _concrete(function: Callable[[Named], Named], specs: Specs) -> Concrete:
    return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)


def rowwise(one: Callable[[Named], Named], specs: Specs) -> Concrete:
    """Makes a function of named tensors [B, ...] that applies `one`, of tensors [1, ...], to each blend."""
    single = {name: tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, name) for name, spec in specs.items()}
    found = _concrete(lambda blend: one(dict(blend)), single).structured_outputs
    outputs = {name: tf.TensorSpec(t.shape[1:], t.dtype) for name, t in found.items()}

    def row(blend: Named) -> Named:
        found = one({name: value[None] for name, value in blend.items()})
        return {name: found[name][0] for name in outputs}

    def apply(blends: Named) -> Named:
        return tf.map_fn(row, blends, fn_output_signature=outputs, parallel_iterations=AT_ONCE)

    return _concrete(apply, specs)


def _of_usable(values: Named, usable: tf.Tensor) -> Named:
    """Turns numbers of a blend that could not be used into NaN, so that nobody takes them for a result."""

    def blank(value: tf.Tensor) -> tf.Tensor:
        if not value.dtype.is_floating:
            return value
        flag = tf.reshape(usable, [-1] + [1] * (len(value.shape) - 1))
        return tf.where(flag, value, tf.constant(float("nan"), value.dtype))

    return {name: blank(value) for name, value in values.items()} | {"usable": usable}
