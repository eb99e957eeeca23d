"""Linear operators of the forward model y = M R P sum_i T_i s_i u_i, each with its own adjoint.

An operator is called like a function and knows its `adjoint`. Its gradient *is* that adjoint (`tf.custom_gradient`),
which costs one more application instead of the several that automatic differentiation through FFTs needs. Shapes are
batch first: B blends, K sources, C bands, P stamp side, F frame side, H and W the image.
"""

from __future__ import annotations

import abc

import tensorflow as tf


class LinearOperator(abc.ABC):
    """A linear map between batches of real tensors. Subclasses give `forward` and `transpose`; gradients follow."""

    @abc.abstractmethod
    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """A x."""

    @abc.abstractmethod
    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """A^T y."""

    @property
    def adjoint(self) -> LinearOperator:
        """The operator A^T; its adjoint is this operator again."""
        return Adjoint(self)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def apply(x: tf.Tensor):
            return self.forward(x), lambda dy: self.adjoint(dy)

        return apply(x)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        return Composition(self, other)


class Adjoint(LinearOperator):
    """A^T as an operator of its own."""

    def __init__(self, operator: LinearOperator):
        self.operator = operator

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.operator.transpose(x)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return self.operator.forward(y)

    @property
    def adjoint(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """A B: first B, then A."""

    def __init__(self, last: LinearOperator, first: LinearOperator):
        self.last, self.first = last, first

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.last.forward(self.first.forward(x))

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return self.first.transpose(self.last.transpose(y))


class Scale(LinearOperator):
    """x -> s x, elementwise with broadcasting from `s`: flux scales, masks, square roots of weights.

    `s` must broadcast to the shape of x, never the other way round: the adjoint would have to sum.
    """

    def __init__(self, factor: tf.Tensor):
        self.factor = factor

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        return self.factor * x

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return self.factor * y


class Shift(LinearOperator):
    """Sub-pixel shift of band-limited stamps: Fourier interpolation along rows, then along columns.

    Args:
      offset: [..., 2] shift in pixels, (y, x); positive moves the light to larger indices.
      side: P, the stamps' side. Light within |offset| of the edge wraps around (the shift is periodic).
    """

    def __init__(self, offset: tf.Tensor, side: int):
        self.rows = shift_matrix(offset[..., 0], side)
        self.columns = shift_matrix(offset[..., 1], side)

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[..., P, P] -> [..., P, P]."""
        return tf.matmul(tf.matmul(self.rows, x), self.columns, transpose_b=True)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        return tf.matmul(tf.matmul(self.rows, y, transpose_a=True), self.columns)


def shift_matrix(offset: tf.Tensor, side: int) -> tf.Tensor:
    """The P x P matrix of a periodic band-limited shift: the Dirichlet kernel D(i - j - offset), D(0) = 1.

    [...] -> [..., P, P]. For even P the Nyquist frequency is shared between its two signs, which keeps the matrix real.
    """
    index = tf.range(side, dtype=offset.dtype)
    distance = index[:, None] - index[None, :] - offset[..., None, None]
    pi = tf.constant(3.141592653589793, offset.dtype)
    denominator = (tf.tan if side % 2 == 0 else tf.sin)(pi * distance / side)
    safe = tf.abs(denominator) > 1e-5
    kernel = tf.sin(pi * distance) / (side * tf.where(safe, denominator, tf.ones_like(denominator)))
    return tf.where(safe, kernel, tf.ones_like(kernel))


class Place(LinearOperator):
    """sum_i T_i: puts K stamps into one frame, each with its corner at a whole pixel, and adds them up.

    Whole-pixel placement as two matrix products with one-hot rows, T_i u = Y_i u X_i^T. On a CPU that is faster than
    gathering, it batches, and pixels of a stamp that fall outside of the frame simply have no row.

    Args:
      corners: [B, K, 2] integer (y, x) of stamp pixel (0, 0) in the frame; may be negative.
      side: P. frame: F. dtype: of the stamps.
    """

    def __init__(self, corners: tf.Tensor, side: int, frame: int, dtype: tf.DType = tf.float32):
        pixels = corners[..., None] + tf.range(side, dtype=corners.dtype)
        self.rows = tf.one_hot(pixels[:, :, 0], frame, axis=2, dtype=dtype)  # [B, K, F, P]
        self.columns = tf.one_hot(pixels[:, :, 1], frame, axis=2, dtype=dtype)

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, K, C, P, P] -> [B, C, F, F]."""
        batch, sources, bands, side = x.shape[0], x.shape[1], x.shape[2], x.shape[3]
        frame = self.rows.shape[2]
        rows = tf.reshape(x, [batch, sources, bands * side, side])
        wide = tf.reshape(tf.matmul(rows, self.columns, transpose_b=True), [batch, sources, bands, side, frame])
        stacked = tf.reshape(tf.transpose(wide, [0, 2, 1, 3, 4]), [batch, bands, sources * side, frame])
        picker = tf.reshape(tf.transpose(self.rows, [0, 2, 1, 3]), [batch, 1, frame, sources * side])
        return tf.matmul(picker, stacked)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, F, F] -> [B, K, C, P, P]."""
        tall = tf.matmul(self.rows[:, :, None], y[:, None], transpose_a=True)
        return tf.matmul(tall, self.columns[:, :, None])

    def each(self, x: tf.Tensor) -> tf.Tensor:
        """T_i without the sum: [B, K, Q, P, P] -> [B, K, Q, F, F]."""
        return tf.matmul(tf.matmul(self.rows[:, :, None], x), self.columns[:, :, None], transpose_b=True)


class Convolve(LinearOperator):
    """Convolution of a frame with one kernel a band, cut to the image: F^-1[F(x) kernel], no wrap-around.

    Args:
      kernel: [B, C, N, N // 2 + 1] complex transfer function on the N x N Fourier grid (see `batch.transfer_function`).
      side: N. margin: frame pixels around the image on every side. image: (H, W) to cut out.
    """

    def __init__(self, kernel: tf.Tensor, side: int, margin: int, image: tuple[int, int]):
        self.kernel, self.side, self.margin, self.image = kernel, side, margin, image

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., F, F] -> [B, C, ..., H, W]; any number of images a band."""
        full = self._filter(x, self._kernel(x))
        m, (height, width) = self.margin, self.image
        return full[..., m : m + height, m : m + width]

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., H, W] -> [B, C, ..., F, F], F = H + 2 margin."""
        m, (height, width) = self.margin, self.image
        far = [[0, 0]] * (len(y.shape) - 2) + [[m, m], [m, m]]
        full = self._filter(tf.pad(y, far), tf.math.conj(self._kernel(y)))
        return full[..., : height + 2 * m, : width + 2 * m]

    def spectrum(self, x: tf.Tensor) -> tf.Tensor:
        """Frames [..., F, F] in Fourier space [..., N, N // 2 + 1]."""
        return tf.signal.rfft2d(x, fft_length=[self.side, self.side])

    def observe(self, spectrum: tf.Tensor, band: int) -> tf.Tensor:
        """Spectra [B, M, N, N // 2 + 1] through one band's kernel, as images [B, M, H, W]."""
        full = tf.signal.irfft2d(spectrum * self.kernel[:, band, None], fft_length=[self.side, self.side])
        m, (height, width) = self.margin, self.image
        return full[..., m : m + height, m : m + width]

    def _kernel(self, x: tf.Tensor) -> tf.Tensor:
        extra = len(x.shape) - len(self.kernel.shape)
        return tf.reshape(self.kernel, self.kernel.shape[:2] + [1] * extra + self.kernel.shape[2:])

    def _filter(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        n = [self.side, self.side]
        return tf.signal.irfft2d(tf.signal.rfft2d(x, fft_length=n) * kernel, fft_length=n)
