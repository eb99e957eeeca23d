"""p(y | sources): the forward operator of a batch of blends in all exposures, and their noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import tensorflow as tf

from tfdeblend.forward.batch import ExposureTensors, Tensors
from tfdeblend.forward.noise import GaussianNoise
from tfdeblend.forward.operators import Convolve, Place
from tfdeblend.forward.resample import Resample, Shifted
from tfdeblend.forward.shapes import WINGS, BatchShape
from tfdeblend.linalg.operator import LinearOperator, flatten, gather_bands, scatter_bands, shape_of, split

Images = tuple[tf.Tensor, ...]  # [B, C_e, S_e, S_e] of each exposure e


class ForwardOperator(LinearOperator):
    """A: stamps of B blends, K sources each -> whitened pixels of all their exposures in a row.

    (A x)_e = Sigma_e^-1/2 g_e M_e R_e sum_i T_i s_i x_i, with T_i the placement of a stamp in the frame, R_e the
    convolution and resampling, M_e the mask, g_e the gain.

    Args:
      place: sum_i T_i. exposures: what sees the frame. scale: s [B, K, C, 1, 1] or of every pixel,
      from unit scale to flux.
    """

    def __init__(self, place: Place, exposures: Sequence[Exposure], scale: tf.Tensor):
        self.place, self.exposures, self.scale = place, tuple(exposures), scale

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, K, C, P, P] -> [B, n]."""
        return self.observe(self.place.forward(self.scale * x))

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, n] -> [B, K, C, P, P]."""
        return self.scale * self.place.transpose(self.observe_transpose(y))

    def observe(self, frames: tf.Tensor) -> tf.Tensor:
        """[B, C, F, F] -> [B, n]: frames as observed, whitened."""
        return flatten([one.observe.forward(one.of(frames)) for one in self.exposures])

    def at(self, place: Place) -> Self:
        """A of stamps that lie elsewhere."""
        moved = copy.copy(self)
        moved.place = place
        return moved

    def images(self, stamps: tf.Tensor) -> list[tf.Tensor]:
        """Q images of each source, each alone: [B, K, Q, C, P, P] -> [B, C_e, K Q, S_e, S_e] of each exposure."""
        frames = placed_each(self.place, self.scale[:, :, None] * stamps)
        return [one.observe.forward(one.of(frames)) for one in self.exposures]

    def observe_transpose(self, y: tf.Tensor) -> tf.Tensor:
        """The adjoint of `observe`."""
        pairs = zip(self.exposures, split(y, [one.image_shape for one in self.exposures]), strict=True)
        return tf.add_n([one.among_all(one.observe.transpose(image)) for one, image in pairs])


class Likelihood:
    """y_e = g_e M_e R_e sum_i T_i s_i u_i + b_e + n_e of E exposures, n_e Gaussian and independent; masks weigh 0.

    Constants b_e, one of each band of each exposure where the shape has a background, have a flat prior. They are
    eliminated exactly (`WithoutConstant`): rendered images, chi-squares and curvatures are without them.

    Args:
      tensors: of the batch. shape: the batch's.

    Attributes:
      exposures: E of `Exposure`. place: stamps -> frames.
    """

    def __init__(self, tensors: Tensors, shape: BatchShape):
        self.shape, self.corners = shape, tensors.corners
        self.exposures = tuple(Exposure(one, shape, number) for number, one in enumerate(tensors.exposures))
        self.place = Place(tensors.corners, shape.stamp, shape.frame, tensors.arcsec.dtype)

    @property
    def operator(self) -> ForwardOperator:
        """Stamps in flux -> whitened pixels of all exposures."""
        unit = tf.ones([1, 1, 1, 1, 1], self.place.dtype)
        return ForwardOperator(self.place, self.exposures, unit)

    def render(self, unit: tf.Tensor, flux: tf.Tensor) -> Images:
        """Stamps of unit flux [B, K, C or 1, P, P] with fluxes [B, K, C] as images, without their constants."""
        if unit.shape[2] == 1:  # one shape in all bands is placed once, and coloured then
            frame = tf.einsum("bkyx,bkc->bcyx", self.place.each(unit)[:, :, 0], flux)
        else:
            frame = self.place(flux[..., None, None] * unit)
        return tuple(one.project(one.of(frame)) for one in self.exposures)

    def render_each(self, stamps: tf.Tensor) -> Images:
        """[B, K, Q, C or 1, P, P] -> [B, C_e, K Q, S_e, S_e]: Q images of each source, each alone; one band is seen in
        all.

        It is not differentiable: one band's transform is shared by all, which the operators' adjoints do not know of.
        """
        frames = tf.stop_gradient(placed_each(self.place, stamps))
        return tuple(one.project.forward(one.of(frames)) for one in self.exposures)

    def sources(self, stamps: tf.Tensor) -> Images:
        """Stamps in flux [B, K, C, P, P] -> [B, K, C_e, S_e, S_e]: each source as observed."""
        return tuple(tf.transpose(images, [0, 2, 1, 3, 4]) for images in self.render_each(stamps[:, :, None]))

    def gram(self, stamps: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C, N, N] of the whitened images of all exposures, N = K Q, float64; see `Exposure.gram`.

        The columns of J are the stamps [B, K, Q, C or 1, P, P] as observed, every one alone, whitened.
        """
        own = all(one.own.on_model_pixels for one in self.exposures)
        frames = None if own else placed_each(self.place, stamps)
        return tf.add_n([one.among_all(one.gram(stamps, frames, self.corners)) for one in self.exposures])

    def gram_of_one(self, stamps: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C, Q, Q] of one source's stamps [B, Q, C or 1, P, P], exact; number: [B] of the source."""
        corners = tf.gather(self.corners, number[:, None], batch_dims=1)
        place = Place(corners, self.shape.stamp, self.shape.frame, stamps.dtype)
        frames, products = placed_each(place, stamps[:, None]), []
        for one in self.exposures:
            seen = one.observe.forward(one.of(frames))
            _, bands, count, height, width = shape_of(seen)
            flat = tf.cast(tf.reshape(seen, [-1, bands, count, height * width]), tf.float64)
            products.append(one.among_all(tf.matmul(flat, flat, transpose_b=True)))
        return tf.add_n(products)

    def pull(self, model: Images) -> tf.Tensor:
        """A^T Sigma^-1 (y - model) [B, K, C, P, P]: what each pixel of each stamp gains by growing."""
        pairs = zip(self.exposures, model, strict=True)
        frames = [one.among_all(one.observe.adjoint(one.whitened(image))) for one, image in pairs]
        return self.place.adjoint(tf.add_n(frames))

    def slopes(self, unit: tf.Tensor, model: Images) -> tf.Tensor:
        """J^T Sigma^-1 (y - model) [B, C, K] of one stamp a source [B, K, C or 1, P, P]. It is exact."""
        return tf.linalg.matrix_transpose(tf.reduce_sum(self.pull(model) * unit, [3, 4]))

    def chi2(self, model: Images) -> tf.Tensor:
        """[B]: sum_e (y_e - model_e)^T Sigma_e^-1 (y_e - model_e)."""
        pairs = zip(self.exposures, model, strict=True)
        return tf.add_n([one.noise.chi2(one.images - image) for one, image in pairs])

    def misfit(self, model: Images) -> tf.Tensor:
        """[B]: the residual's rms in units of the noise, at least 1."""
        seen = tf.add_n(
            [tf.reduce_sum(tf.cast(one.weights > 0, self.place.dtype), [1, 2, 3]) for one in self.exposures]
        )
        return tf.sqrt(tf.maximum(self.chi2(model) / tf.maximum(seen, 1), 1))

    def rise(self, old: Images, new: Images) -> tf.Tensor:
        """[B]: chi2(new) - chi2(old), free of the cancellation in a difference of two large sums."""
        parts = []
        for one, a, b in zip(self.exposures, old, new, strict=True):
            product = one.noise.whiten(b - a) * one.noise.whiten(a + b - 2 * one.images)
            parts.append(tf.reduce_sum(product, [1, 2, 3]))
        return tf.add_n(parts)

    def tolerant(self, error: float, model: Images) -> Images:
        """The weights with an error of the model added, a fraction of the data's light above its constants."""
        pairs = zip(self.exposures, self.constants(model), strict=True)
        return tuple(one.tolerant(error, constant) for one, constant in pairs)

    def log_prob(self, model: Images) -> tf.Tensor:
        """[B]: log p(y | model) of the unmasked pixels, in nats."""
        return self.log_normalisation() - 0.5 * self.chi2(model)

    def log_normalisation(self) -> tf.Tensor:
        """[B]: log p(y | model) were y the model."""
        return tf.add_n([one.noise.log_normalisation() for one in self.exposures])

    def data(self, model: Images) -> tf.Tensor:
        """[B, n]: y - model, whitened, of all exposures in a row."""
        return flatten([one.whitened(image) for one, image in zip(self.exposures, model, strict=True)])

    # -- constants

    def constants(self, model: Images) -> Images:
        """The best b_e [B, C_e] beside a model of the sources; 0 where the shape has no background."""
        if not self.shape.background:
            return tuple(tf.zeros_like(image[..., 0, 0]) for image in model)
        pairs = zip(self.exposures, model, strict=True)
        return tuple(one.noise.best_constant(one.images - image) for one, image in pairs)

    def drawn_constants(self, model: Images, normals: Images) -> Images:
        """The b_e [B, C_e] drawn from their posterior beside a model, by standard normals [B, C_e] each."""
        best = self.constants(model)
        if not self.shape.background:
            return best
        parts = zip(self.exposures, best, normals, strict=True)
        return tuple(constant + tf.math.divide_no_nan(free, one.constant_norm) for one, constant, free in parts)

    def unused_normals(self, normals: tf.Tensor) -> Images:
        """[B, C_e] each: of the standard normals [B, n] that a draw of the sources takes, the part along the constants.

        Whitened images are without the constants, so that no draw has used it.
        """
        parts = []
        for one, free in zip(self.exposures, split(normals, [one.image_shape for one in self.exposures]), strict=True):
            along = tf.reduce_sum(one.noise.constant * free, [2, 3])
            parts.append(tf.math.divide_no_nan(along, one.constant_norm))
        return tuple(parts)


def placed_each(place: Place, stamps: tf.Tensor) -> tf.Tensor:
    """Stamps [B, K, Q, C or 1, P, P], each alone in a frame: [B, C or 1, K Q, F, F]."""
    _, sources, images, bands, side, _ = shape_of(stamps)
    placed = place.each(tf.reshape(stamps, [-1, sources, images * bands, side, side]))
    placed = tf.reshape(placed, [-1, sources * images, bands, *shape_of(placed)[-2:]])
    return tf.transpose(placed, [0, 2, 1, 3, 4])


def with_constants(model: Images, constants: Images) -> Images:
    """Images with their constants [B, C_e] added."""
    return tuple(image + constant[..., None, None] for image, constant in zip(model, constants, strict=True))


class Exposure:
    """y = g M R x + b + n of one exposure: g its gains, R convolution and resampling, M its mask, b a constant a band.

    A constant, where there is one, has a flat prior and is eliminated exactly: whitened images are without it.

    Args:
      tensors: of the exposure. shape: of the batch. number: of the exposure in it.

    Attributes:
      bands: its C_e bands, by their number among the model's. project: frames [B, C_e, ..., F, F] -> images
      [B, C_e, ..., S_e, S_e], gain included. noise: n. observe: the same, whitened.
    """

    def __init__(self, tensors: ExposureTensors, shape: BatchShape, number: int):
        self.tensors, self.shape, self.own = tensors, shape, shape.exposures[number]
        self.bands, self.images, self.weights = self.own.bands, tensors.images, tensors.weights
        self.noise = GaussianNoise(tensors.weights, tensors.whitening, on_constant=shape.background)
        self.project = self.projection(tensors.points)
        self.observe = self.noise.whiten @ self.project

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C_e, S_e, S_e)."""
        return len(self.bands), self.own.side, self.own.side

    @property
    def constant_norm(self) -> tf.Tensor:
        """[B, C_e]: one over the standard deviation of its constants."""
        return tf.sqrt(tf.reduce_sum(self.noise.constant**2, [2, 3]))

    def of(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ...] -> [B, C_e, ...]: its own bands; one band that stands for all stays one."""
        return x if x.shape[1] == 1 < self.shape.bands else gather_bands(x, self.bands)

    def among_all(self, own: tf.Tensor) -> tf.Tensor:
        """[B, C_e, ...] -> [B, C, ...], 0 in the bands that it lacks."""
        return scatter_bands(own, self.bands, self.shape.bands)

    def projection(self, points: tf.Tensor, kernel: tf.Tensor | None = None, step: int = 1) -> LinearOperator:
        """Frames -> images at `points` or every `step`-th of them, through `kernel` or its own, with its gain."""
        kernel = self.tensors.kernel if kernel is None else kernel
        own, fourier, frame = self.own, self.shape.fourier, self.shape.frame
        if own.on_model_pixels:
            return Convolve(kernel, fourier, self.shape.margin, (own.side, own.side))
        kernel = kernel * tf.cast(self.tensors.gain[..., None, None], kernel.dtype)
        if own.aligned:
            return Shifted(kernel, points, fourier, frame, step)
        return Resample(kernel, points, fourier, frame)

    def whitened(self, model: tf.Tensor) -> tf.Tensor:
        """[B, C_e, S_e, S_e]: y - model, whitened."""
        return self.noise.whiten(self.images - model)

    def tolerant(self, error: float, constant: tf.Tensor) -> tf.Tensor:
        """Weights [B, C_e, S_e, S_e] with an error of the model added, a fraction of the data's light.

        constant: [B, C_e] of the images, which is not light.
        """
        light = tf.nn.relu(self.images - constant[..., None, None])
        return self.weights / (1 + self.weights * (error * light) ** 2)

    # -- curvature

    def gram(self, stamps: tf.Tensor, frames: tf.Tensor | None, corners: tf.Tensor) -> tf.Tensor:
        """J^T J [B, C_e, N, N] of whitened images, N = K Q, float64.

        The columns of J are the stamps [B, K, Q, C or 1, P, P] as observed, every one alone, whitened; where noise is
        correlated, the stamps as if no pixel were masked. It is taken at every second pixel, for about a fifth of the
        time: through a PSF that is sampled well, images and weights need no more, and a curvature is good to 1%, to 2%
        for galaxies that fill their stamp, and to some 10% on other pixels than the model's whose PSF is narrower than
        three of them.

        Args:
          frames: [B, C or 1, N, F, F] the stamps in the frame; unused on the model's own pixels. corners: [B, K, 2].
        """
        halved = every_second(tf.stack([self.weights, self.noise.constant**2], 2))
        if self.own.on_model_pixels:
            whole = self._windowed_products(stamps, corners, halved)
        else:
            points = self.tensors.points[:, ::2, ::2]
            coarse = self.projection(points, self.tensors.coarse_kernel, 2)
            whole = _products(coarse.forward(self.of(frames)), halved)
        own, across, square = whole[..., :-1, :-1], whole[..., :-1, -1:], whole[..., -1:, -1:]
        if self.shape.background:
            own -= tf.math.divide_no_nan(across * tf.linalg.matrix_transpose(across), square)
        return own

    def _windowed_products(self, stamps: tf.Tensor, corners: tf.Tensor, halved: tf.Tensor) -> tf.Tensor:
        """[B, C_e, N + 1, N + 1]: each stamp is seen in a window of its own; one band is in memory at a time."""
        _, sources, images, bands, side, _ = shape_of(stamps)
        half = self.shape.window // 2
        flat = tf.reshape(tf.transpose(stamps, [3, 0, 1, 2, 4, 5]), [bands, -1, sources * images, side, side])
        wings = [[0, 0]] * 3 + [[WINGS, WINGS]] * 2
        spectra = [self._low(tf.signal.rfft2d(one)) for one in tf.unstack(tf.pad(flat, wings))]
        place = Place((corners - self.shape.margin - WINGS) // 2, half, self.own.side // 2, stamps.dtype)
        products: list[tf.Tensor] = []
        for band in range(len(self.bands)):
            # Each band waits for the one before it: run side by side they would need five times the memory.
            with tf.control_dependencies(products[-1:]):
                spectrum = spectra[min(band, bands - 1)] * self.tensors.coarse_kernel[:, band, None]
            seen = tf.signal.irfft2d(spectrum, fft_length=[half, half])
            placed = place.each(tf.reshape(seen, [-1, sources, images, half, half]))
            placed = tf.reshape(placed, [-1, 1, sources * images, *shape_of(placed)[-2:]])
            products.append(_products(placed, halved[:, band : band + 1]))
        return tf.concat(products, 1)

    def _low(self, spectrum: tf.Tensor) -> tf.Tensor:
        """[..., W, W // 2 + 1] -> [..., W // 2, W // 4 + 1]: the frequencies that every second pixel can tell."""
        quarter = self.shape.window // 4
        return tf.concat([spectrum[..., :quarter, :], spectrum[..., -quarter:, :]], -2)[..., : quarter + 1]


def _products(images: tf.Tensor, halved: tf.Tensor) -> tf.Tensor:
    """[B, C, N + 1, N + 1] float64: products of images [B, C, N, S, S] and the constant 1, all whitened.

    halved: [B, C, 2, S, S] what whitens the images and the constant, squared.
    """
    root, constant = tf.split(tf.sqrt(halved), 2, axis=2)
    columns = tf.concat([images * root, constant], 2)
    _, bands, number, height, width = shape_of(columns)
    columns = tf.reshape(columns, [-1, bands, number, height * width])
    return tf.cast(tf.matmul(columns, columns, transpose_b=True), tf.float64)


def every_second(weights: tf.Tensor) -> tf.Tensor:
    """[B, C, Q, S, S], S even -> [B, C, Q, S // 2, S // 2]: every second pixel takes half the weight of either
    neighbour, along both axes; the last pixel, whose other neighbour is outside, gives all of it."""
    for _ in range(2):
        even, odd = weights[..., ::2], weights[..., 1::2]
        before = tf.concat([tf.zeros_like(odd[..., :1]), odd[..., :-1]], -1)
        after = tf.concat([odd[..., :-1], 2 * odd[..., -1:]], -1)
        weights = tf.linalg.matrix_transpose(even + 0.5 * (before + after))
    return weights
