"""Images of one model frame on other pixels: another scale, rotated, flipped, shifted, through another PSF.

With p = M q + t the place in the model frame of pixel q of an observation, an image of that observation is

    y(q) = |det M| f(M q + t),   F[f](k) = X(k) P_obs(M^T k) / P_model(k),

X the transform of the frame's pixels, P the PSFs' (pixels included). f is a trigonometric polynomial: it is known
between the pixels, too, and evaluated there by a transform at unequal spacings (Dutt and Rokhlin 1993). The flux of a
source is X(0), and with it that of y. Nothing is approximated but the evaluation, to `EVALUATION_ERROR`, as long as
the observation samples its PSF well: frequencies beyond its Nyquist's are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdeblend.linalg.operator import LinearOperator

OVERSAMPLING = 2  # of the grid between whose points a polynomial is interpolated
TAPS = 7  # grid points a side of the interpolation kernel exp(b sqrt(1 - (2 u / TAPS)^2)), b = 2.3 TAPS
STEEPNESS = 2.30 * TAPS  # (Barnett, Magland and af Klinteberg 2019)
EVALUATION_ERROR = 1e-6  # of the largest value; measured


class Resample(LinearOperator):
    """The light of a frame, through a PSF, at points anywhere: f(p), F[f] = F[x] kernel, without wrap-around.

    Args:
      kernel: [B, C, L, L // 2 + 1] complex transfer function at the lowest frequencies of an N x N Fourier grid, 0 at
        the highest of them (see `resampled_transfer`).
      points: [B, H, W, 2] in pixels (y, x) of the frame. Beyond half of the padding around the frame, f is 0.
      side: N. frame: F <= N.

    One kernel and one set of points, of B = 1, serve any number of blends.
    """

    def __init__(self, kernel: tf.Tensor, points: tf.Tensor, side: int, frame: int):
        self.side, self.frame, self.kept = side, frame, kernel.shape[-2]
        self.grid, self.image, self.common = OVERSAMPLING * self.kept, points.shape[1:3], points.shape[0] == 1
        kernel = kernel * tf.cast(_sharpening(self.kept), kernel.dtype)
        self.kernel = tf.math.real(kernel), tf.math.imag(kernel)  # not every runtime takes complex tensors into a loop
        inside = _inside(points, side, frame)
        place = tf.reshape(points * (self.grid / side), [-1, self.image[0] * self.image[1], 2])
        first = tf.floor(place - (TAPS / 2 - 1))
        taps = first[..., None] + tf.range(TAPS, dtype=points.dtype)  # [B, H W, 2, TAPS]
        weights = _window(2 / TAPS * (taps - place[..., None]))
        seen = tf.reshape(tf.cast(inside, points.dtype), [-1, place.shape[1], 1, 1])
        weights = seen * weights[..., 0, :, None] * weights[..., 1, None, :]
        taps = tf.math.floormod(tf.cast(taps, tf.int64), self.grid)
        # [B H W, B grid^2], 0 but for the taps of each point in its own blend's grid.
        blends, number = tf.shape(taps, tf.int64)[0], tf.size(weights, tf.int64) // TAPS**2
        column = taps[..., 0, :, None] * self.grid + taps[..., 1, None, :]
        column += tf.range(blends)[:, None, None, None] * self.grid**2
        row = tf.repeat(tf.range(number), TAPS**2)
        self.interpolation = tf.SparseTensor(
            tf.stack([row, tf.reshape(column, [-1])], 1), tf.reshape(weights, [-1]), [number, blends * self.grid**2]
        )

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., F, F] -> [B, C, ..., H, W]; any number of images a band."""
        n = [self.side, self.side]
        spectrum = _resize(tf.signal.rfft2d(x, fft_length=n), self.kept, self.kept // 2 + 1)
        spectrum = _resize(spectrum * _with_axes(self.kernel, x), self.grid, self.grid // 2 + 1)
        fine = (self.grid / self.side) ** 2 * tf.signal.irfft2d(spectrum, fft_length=[self.grid] * 2)
        images = fine.shape[1:-2]  # more than x's where the kernels of all bands see one band of it
        flat = tf.reshape(fine, [*self._blends(images), self.grid**2])
        return tf.reshape(self._interpolate(flat), [-1, *images, *self.image])

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., H, W] -> [B, C, ..., F, F]."""
        flat = tf.reshape(y, [*self._blends(y.shape[1:-2]), self.image[0] * self.image[1]])
        fine = tf.reshape(self._spread(flat), [-1, *y.shape[1:-2], self.grid, self.grid])
        spectrum = _resize(tf.signal.rfft2d(fine), self.kept, self.kept // 2 + 1)
        spectrum = _resize(spectrum * _with_axes(self.kernel, y, -1.0), self.side, self.side // 2 + 1)
        return tf.signal.irfft2d(spectrum, fft_length=[self.side] * 2)[..., : self.frame, : self.frame]

    def _blends(self, images: Any) -> tuple[int, int]:
        """How blends and their images are laid out: with points in common, all are images of one."""
        return (1, -1) if self.common else (-1, int(np.prod(images)))

    def _interpolate(self, fine: tf.Tensor) -> tf.Tensor:
        """[B, Q, grid^2] -> [B, Q, H W]."""
        return self._apply(fine, self.image[0] * self.image[1], adjoint=False)

    def _spread(self, values: tf.Tensor) -> tf.Tensor:
        """[B, Q, H W] -> [B, Q, grid^2]; the adjoint."""
        return self._apply(values, self.grid**2, adjoint=True)

    def _apply(self, x: tf.Tensor, pixels: int, adjoint: bool) -> tf.Tensor:
        images = tf.shape(x)[1]
        columns = tf.reshape(tf.transpose(x, [0, 2, 1]), [-1, images])
        y = tf.sparse.sparse_dense_matmul(self.interpolation, columns, adjoint_a=adjoint)
        return tf.transpose(tf.reshape(y, [-1, pixels, images]), [0, 2, 1])


class Shifted(LinearOperator):
    """`Resample` at points that are a grid of whole pixels, all of them shifted: a convolution, without interpolation.

    Args:
      kernel, side, frame: see `Resample`. points: [B, H, W, 2], each `step` pixels from the next along both axes.
    """

    def __init__(self, kernel: tf.Tensor, points: tf.Tensor, side: int, frame: int, step: int = 1):
        self.side, self.frame, self.kept, self.step, self.image = side, frame, kernel.shape[-2], step, points.shape[1:3]
        self.inside = tf.cast(_inside(points, side, frame), points.dtype)
        n = 2 * np.pi / side * np.fft.fftfreq(self.kept, 1 / self.kept)
        ky, kx = tf.constant(n, points.dtype), tf.constant(np.abs(n[: self.kept // 2 + 1]), points.dtype)
        first = points[:, 0, 0]
        angle = first[:, :1, None] * ky[:, None] + first[:, 1:, None] * kx
        kernel = kernel * tf.complex(tf.cos(angle), tf.sin(angle))[:, None]
        self.kernel = tf.math.real(kernel), tf.math.imag(kernel)

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., F, F] -> [B, C, ..., H, W]; any number of images a band."""
        spectrum = _resize(tf.signal.rfft2d(x, fft_length=[self.side] * 2), self.kept, self.kept // 2 + 1)
        spectrum = _resize(spectrum * _with_axes(self.kernel, x), self.side, self.side // 2 + 1)
        fine = tf.signal.irfft2d(spectrum, fft_length=[self.side] * 2)
        height, width = (self.step * number for number in self.image)
        seen = fine[..., : height : self.step, : width : self.step]
        return seen * self._mask(seen)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., H, W] -> [B, C, ..., F, F]."""
        y = y * self._mask(y)
        if self.step > 1:
            y = _spaced(y, self.step)
        spectrum = _resize(tf.signal.rfft2d(y, fft_length=[self.side] * 2), self.kept, self.kept // 2 + 1)
        spectrum = _resize(spectrum * _with_axes(self.kernel, y, -1.0), self.side, self.side // 2 + 1)
        return tf.signal.irfft2d(spectrum, fft_length=[self.side] * 2)[..., : self.frame, : self.frame]

    def _mask(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(self.inside, [-1, *[1] * (len(x.shape) - 3), *self.image])


def _inside(points: tf.Tensor, side: int, frame: int) -> tf.Tensor:
    """[B, H, W] bool: up to half of the padding around the frame."""
    pad = (side - frame) / 2
    return tf.reduce_all((points >= -pad) & (points <= frame - 1 + pad), -1)


def _spaced(y: tf.Tensor, step: int) -> tf.Tensor:
    """[..., H, W] -> [..., step H, step W] with zeros between."""
    height, width = y.shape[-2:]
    y = tf.pad(y[..., None, :, None], [[0, 0]] * (len(y.shape) - 1) + [[0, step - 1], [0, 0], [0, step - 1]])
    return tf.reshape(y, [*y.shape[:-4], height * step, width * step])


def _with_axes(kernel: tuple[tf.Tensor, tf.Tensor], x: tf.Tensor, sign: float = 1.0) -> tf.Tensor:
    """A transfer function, or with sign -1 its conjugate, with as many axes as x."""
    shape = [-1, kernel[0].shape[1], *[1] * (len(x.shape) - 4), *kernel[0].shape[2:]]
    real, imaginary = (tf.reshape(part, shape) for part in kernel)
    return tf.complex(real, sign * imaginary)


def _window(u: tf.Tensor) -> tf.Tensor:
    """The interpolation kernel at u, 1 at its ends."""
    return tf.exp(STEEPNESS * (tf.sqrt(tf.maximum(1 - u**2, 0)) - 1))


def _sharpening(kept: int) -> np.ndarray:
    """(L, L // 2 + 1): one over the transform of the interpolation kernel, which it takes back."""
    u = (np.arange(2000) + 0.5) / 2000
    window = np.exp(STEEPNESS * (np.sqrt(1 - u**2) - 1))
    n = np.fft.fftfreq(kept, 1 / kept)[:, None] / (OVERSAMPLING * kept)
    profile = TAPS / 2000 * (window * np.cos(np.pi * TAPS * n * u)).sum(1)
    return 1 / (profile[:, None] * profile[: kept // 2 + 1])


def _resize(spectrum: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Half a spectrum [..., n, m] with more frequencies, which are 0, or only the lowest."""
    height, width = spectrum.shape[-2:]
    half = min(height, rows) // 2
    middle = tf.zeros_like(spectrum[..., :1, :])
    middle = tf.repeat(middle, max(rows - 2 * half, 0), axis=-2)
    both = tf.concat([spectrum[..., :half, :], middle, spectrum[..., height - half :, :]], -2)
    after = [[0, 0]] * (len(spectrum.shape) - 1) + [[0, max(columns - width, 0)]]
    return tf.pad(both[..., :columns], after)
