"""p(y_1 ... y_E | sources): several observations of one field, each on its own pixels. See `Likelihood`, whose names
these are; what is an image there is here a tuple of E."""

from __future__ import annotations

import tensorflow as tf

from tfdeblend.exposures import JointShape
from tfdeblend.likelihood import every_second
from tfdeblend.noise import GaussianNoise
from tfdeblend.operators import Place
from tfdeblend.resample import Resample

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
        self.images, self.weights, self.gains = tensors["images"], tensors["weights"], tensors["gain"]
        pairs = zip(self.weights, tensors["whitening"], strict=True)
        self.noises = [GaussianNoise(*pair, on_constant=shape.background) for pair in pairs]
        self.place = Place(tensors["corners"], shape.stamp, shape.frame, self.images[0].dtype)
        self.views = [
            Resample(kernel, points, shape.fourier, shape.frame)
            for kernel, points in zip(tensors["kernel"], tensors["points"], strict=True)
        ]

    def render(self, unit: tf.Tensor, flux: tf.Tensor, background: tf.Tensor) -> Images:
        """Stamps of unit flux [B, K, C or 1, P, P], fluxes [B, K, C] -> images, without what is constant."""
        if unit.shape[2] == 1:
            frame = tf.einsum("bkyx,bkc->bcyx", self.place.each(unit)[:, :, 0], flux)
        else:
            frame = self.place(flux[..., None, None] * unit)
        return self._seen(frame, [view.__call__ for view in self.views])

    def constants(self, model: Images) -> Images:
        """The best b_e [B, C_e] beside a model."""
        parts = zip(self.noises, self.images, model, strict=True)
        return tuple(noise.best_constant(data - image) for noise, data, image in parts)

    def render_each(self, stamps: tf.Tensor) -> Images:
        """[B, K, Q, C or 1, P, P] -> [B, C_e, K Q, S_e, S_e]: Q images of each source, each alone."""
        return self._seen(tf.stop_gradient(self._each(stamps)), [view.forward for view in self.views])

    def gram(self, stamps: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C, N, N] of the whitened images of all exposures, float64; the last, of no image, is 0."""
        frame, total = self._each(stamps), []
        lows, points = self.tensors["low_kernel"], self.tensors["points"]
        coarse = [
            Resample(low, at[:, ::2, ::2], self.shape.fourier, self.shape.frame)
            for low, at in zip(lows, points, strict=True)
        ]
        seen = self._seen(frame, [view.forward for view in coarse])
        for images, noise, exposure in zip(seen, self.noises, self.shape.exposures, strict=True):
            root, constant = tf.split(tf.sqrt(every_second(tf.stack([noise.weights, noise.constant**2], 2))), 2, axis=2)
            columns = tf.concat([images * root, constant], 2)
            columns = tf.reshape(columns, [-1, len(exposure.bands), columns.shape[2], (exposure.side // 2) ** 2])
            products = tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64)
            own, across, square = products[..., :-1, :-1], products[..., :-1, -1:], products[..., -1:, -1:]
            if self.shape.background:
                own -= tf.math.divide_no_nan(across * tf.linalg.matrix_transpose(across), square)
            total.append(self._among_all(own, exposure.bands))
        return tf.pad(tf.add_n(total), [[0, 0], [0, 0], [0, 1], [0, 1]])

    def pull(self, model: Images) -> tf.Tensor:
        """sum_e A_e^T Sigma_e^-1 (y_e - model_e) [B, K, C, P, P]."""
        frames = []
        parts = zip(self.views, self.noises, self.gains, self.images, model, self.shape.exposures, strict=True)
        for view, noise, gain, data, image, exposure in parts:
            frame = view.adjoint(gain[..., None, None] * noise.solve(data - image))
            frames.append(self._among_all(frame, exposure.bands))
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

    def _each(self, stamps: tf.Tensor) -> tf.Tensor:
        """[B, K, Q, C or 1, P, P] -> frames [B, C or 1, K Q, F, F]."""
        _, sources, images, bands, side, _ = stamps.shape
        placed = self.place.each(tf.reshape(stamps, [-1, sources, images * bands, side, side]))
        placed = tf.reshape(placed, [-1, sources * images, bands, *placed.shape[-2:]])
        return tf.transpose(placed, [0, 2, 1, 3, 4])

    def _seen(self, frame: tf.Tensor, views: list) -> Images:
        """What each exposure sees of a frame [B, C or 1, ..., F, F]."""
        seen = []
        for view, gain, exposure in zip(views, self.gains, self.shape.exposures, strict=True):
            own = frame if frame.shape[1] == 1 and self.shape.bands > 1 else tf.gather(frame, exposure.bands, axis=1)
            image = view(own)
            seen.append(tf.reshape(gain, [-1, gain.shape[1], *[1] * (len(image.shape) - 2)]) * image)
        return tuple(seen)

    def _among_all(self, own: tf.Tensor, bands: tuple[int, ...]) -> tf.Tensor:
        """[B, C_e, ...] -> [B, C, ...], 0 in the bands that an exposure lacks."""
        parts, nothing = dict(zip(bands, tf.unstack(own, axis=1), strict=True)), tf.zeros_like(own[:, 0])
        return tf.stack([parts.get(band, nothing) for band in range(self.shape.bands)], 1)
