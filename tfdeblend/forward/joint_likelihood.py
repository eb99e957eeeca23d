"""p(y_1 ... y_E | sources): several observations of one field, each on its own pixels. See `Likelihood`, whose names
these are; what is an image there is here a tuple of E."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfdeblend.forward.exposures import View, among_all, as_images, in_a_row
from tfdeblend.forward.field import JointShape
from tfdeblend.forward.likelihood import every_second
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Place
from tfdeblend.linalg.operator import LinearOperator

Images = tuple[tf.Tensor, ...]  # [B, C_e, S_e, S_e] of each exposure e


class JointLikelihood:
    """y_e = g_e M_e R_e sum_i T_i s_i u_i + b_e + n_e, independent of one another: g_e the gains, R_e `Resample`.

    Constants b_e, one of each band of each exposure, have a flat prior and are nowhere: whitened images are without
    them (`WithoutConstant`), which is exact and leaves the sources' linear terms the only ones.

    Args:
      tensors: `Exposures.tensors`. shape: theirs.
    """

    def __init__(self, tensors: dict, shape: JointShape):
        self.shape, self.tensors = shape, tensors
        self.images, self.weights = tensors["images"], tensors["weights"]
        pairs = zip(self.weights, tensors["whitening"], strict=True)
        self.noises = [GaussianNoise(*pair, on_constant=shape.background) for pair in pairs]
        self.place = Place(tensors["corners"], shape.stamp, shape.frame, self.images[0].dtype)
        self.resample = self._resample(tensors["kernel"], tensors["points"])

    def render(self, unit: tf.Tensor, flux: tf.Tensor, background: tf.Tensor) -> Images:
        """Stamps of unit flux [B, K, C or 1, P, P], fluxes [B, K, C] -> images, without what is constant."""
        if unit.shape[2] == 1:
            frame = tf.einsum("bkyx,bkc->bcyx", self.place.each(unit)[:, :, 0], flux)
        else:
            frame = self.place(flux[..., None, None] * unit)
        return self._seen(frame, [resample.__call__ for resample in self.resample])

    def constants(self, model: Images) -> Images:
        """The best b_e [B, C_e] beside a model."""
        parts = zip(self.noises, self.images, model, strict=True)
        return tuple(noise.best_constant(data - image) for noise, data, image in parts)

    def render_each(self, stamps: tf.Tensor) -> Images:
        """[B, K, Q, C or 1, P, P] -> [B, C_e, K Q, S_e, S_e]: Q images of each source, each alone."""
        return self._seen(tf.stop_gradient(self._each(stamps)), [resample.forward for resample in self.resample])

    def gram(self, stamps: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C, N, N] of the whitened images of all exposures, float64; the last, of no image, is 0."""
        frame, total = self._each(stamps), []
        coarse = self._resample(self.tensors["low_kernel"], [at[:, ::2, ::2] for at in self.tensors["points"]], 2)
        seen = self._seen(frame, [resample.forward for resample in coarse])
        for images, noise, exposure in zip(seen, self.noises, self.shape.exposures, strict=True):
            root, constant = tf.split(tf.sqrt(every_second(tf.stack([noise.weights, noise.constant**2], 2))), 2, axis=2)
            columns = tf.concat([images * root, constant], 2)
            columns = tf.reshape(columns, [-1, len(exposure.bands), columns.shape[2], (exposure.side // 2) ** 2])
            products = tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64)
            own, across, square = products[..., :-1, :-1], products[..., :-1, -1:], products[..., -1:, -1:]
            if self.shape.background:
                own -= tf.math.divide_no_nan(across * tf.linalg.matrix_transpose(across), square)
            total.append(among_all(own, exposure.bands, self.shape.bands))
        return tf.pad(tf.add_n(total), [[0, 0], [0, 0], [0, 1], [0, 1]])

    def pull(self, model: Images) -> tf.Tensor:
        """sum_e A_e^T Sigma_e^-1 (y_e - model_e) [B, K, C, P, P]."""
        frames = []
        parts = zip(self.resample, self.noises, self.images, model, self.shape.exposures, strict=True)
        for resample, noise, data, image, exposure in parts:
            frame = resample.adjoint(noise.solve(data - image))
            frames.append(among_all(frame, exposure.bands, self.shape.bands))
        return self.place.adjoint(tf.add_n(frames))

    def project(self, unit: tf.Tensor, model: Images) -> tf.Tensor:
        """J^T Sigma^-1 (y - model) [B, C, K + 1], 0 for the constant."""
        stamps = tf.linalg.matrix_transpose(tf.reduce_sum(self.pull(model) * unit, [3, 4]))
        return tf.pad(stamps, [[0, 0], [0, 0], [0, 1]])

    def chi2(self, model: Images) -> tf.Tensor:
        """[B]."""
        parts = zip(self.noises, self.images, model, strict=True)
        return tf.add_n([noise.chi2(data - image) for noise, data, image in parts])

    def rise(self, old: Images, new: Images) -> tf.Tensor:
        """[B]: chi2(new) - chi2(old)."""
        parts = zip(self.noises, self.images, old, new, strict=True)
        products = (noise.whiten(b - a) * noise.whiten(a + b - 2 * data) for noise, data, a, b in parts)
        return tf.add_n([tf.reduce_sum(product, [1, 2, 3]) for product in products])

    def tolerant(self, error: float, background: tf.Tensor) -> Images:
        """The weights with an error of the model added, a fraction of the data's light."""
        pairs = zip(self.weights, self.images, strict=True)
        return tuple(weights / (1 + weights * (error * tf.nn.relu(data)) ** 2) for weights, data in pairs)

    @property
    def views(self) -> tuple[View, ...]:
        """As `linear_gaussian` sees the exposures."""
        parts = zip(self.shape.exposures, self.noises, self.resample, strict=True)
        return tuple(
            View(own.bands, noise.whiten @ resample, noise.whiten.forward(tf.ones_like(noise.weights)))
            for own, noise, resample in parts
        )

    def data(self, model: Images) -> tf.Tensor:
        """[B, n]: y - model, whitened, of all exposures in a row."""
        parts = zip(self.noises, self.images, model, strict=True)
        return in_a_row([noise.whiten(data - image) for noise, data, image in parts])

    def on_background(self, model: Images, background: tf.Tensor, normals: Images) -> tuple[Images, Images]:
        """The model of sources with constants b_e drawn beside it, by standard normals [B, C_e] each, and those."""
        if not self.shape.background:
            return model, tuple(tf.zeros_like(image[..., 0, 0]) for image in model)
        constants = []
        for noise, best, free in zip(self.noises, self.constants(model), normals, strict=True):
            norm = tf.sqrt(tf.reduce_sum(noise.constant**2, [2, 3]))
            constants.append(best + tf.math.divide_no_nan(free, norm))
        return tuple(m + c[..., None, None] for m, c in zip(model, constants, strict=True)), tuple(constants)

    def left_over(self, normals: tf.Tensor) -> Images:
        """[B, C_e] each: of the standard normals [B, n] in a row that a draw of the sources takes, the part along the
        constants. Whitened images know nothing of those, so that no one has used it."""
        parts = []
        for noise, free in zip(self.noises, as_images(normals, self.views), strict=True):
            norm = tf.sqrt(tf.reduce_sum(noise.constant**2, [2, 3]))
            parts.append(tf.math.divide_no_nan(tf.reduce_sum(noise.constant * free, [2, 3]), norm))
        return tuple(parts)

    def _each(self, stamps: tf.Tensor) -> tf.Tensor:
        """[B, K, Q, C or 1, P, P] -> frames [B, C or 1, K Q, F, F]."""
        _, sources, images, bands, side, _ = stamps.shape
        placed = self.place.each(tf.reshape(stamps, [-1, sources, images * bands, side, side]))
        placed = tf.reshape(placed, [-1, sources * images, bands, *placed.shape[-2:]])
        return tf.transpose(placed, [0, 2, 1, 3, 4])

    def _resample(self, kernels: Images, points: Sequence[tf.Tensor], step: int = 1) -> list[LinearOperator]:
        """Each exposure's, gain included."""
        parts = zip(self.shape.exposures, kernels, points, self.tensors["gain"], strict=True)
        return [
            own.resample(
                kernel * tf.cast(gain[..., None, None], kernel.dtype), at, self.shape.fourier, self.shape.frame, step
            )
            for own, kernel, at, gain in parts
        ]

    def _seen(self, frame: tf.Tensor, resample: list) -> Images:
        """What each exposure sees of a frame [B, C or 1, ..., F, F]."""
        one = frame.shape[1] == 1 and self.shape.bands > 1
        pairs = zip(resample, self.shape.exposures, strict=True)
        return tuple(each(frame if one else tf.gather(frame, own.bands, axis=1)) for each, own in pairs)
