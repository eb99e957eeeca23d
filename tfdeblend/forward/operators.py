"""Linear operators of the forward model y = M R P sum_i T_i s_i u_i, each with its own adjoint.

An operator is called like a function and knows its `adjoint`. Its gradient *is* that adjoint (`tf.custom_gradient`),
which costs one more application instead of the several that automatic differentiation through FFTs needs. Shapes are
batch first: B blends, K sources, C bands, P stamp side, F frame side, H and W the image.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.linalg.operator import LinearOperator, shape_of

MOST_ONE_BY_ONE = 128  # stamps of a batch: the graph grows with them


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

    Pixels of a stamp outside of the frame are lost. On a CPU a moderate number of stamps is cut and padded one by one,
    in graphs that know all sides, for little more than reading them costs. Many stamps, and those on a GPU, take whole
    rows by their index and shift them by a product with one-hot rows: a graph of the same size for any number, even an
    unknown one.

    Args:
      corners: [B, K, 2] integer (y, x) of stamp pixel (0, 0) in the frame; may be negative.
      side: P. frame: F. dtype: of the stamps.
    """

    def __init__(self, corners: tf.Tensor, side: int | tf.Tensor, frame: int | tf.Tensor, dtype: tf.DType = tf.float32):
        self.corners, self.side, self.frame, self.dtype = tf.cast(corners, tf.int32), side, frame, dtype
        self.batch, self.sources = shape_of(corners)[:2]
        number = corners.shape[:2].num_elements()
        known = number is not None and isinstance(side, int) and isinstance(frame, int)
        few = known and number <= MOST_ONE_BY_ONE
        self.one_by_one = few and not tf.config.list_logical_devices("GPU")

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, K, C, P, P] -> [B, C, F, F]."""
        if not self.one_by_one:
            return self._add_rows(x)
        frames = _move(x, self.corners, self.frame)
        blends = [frames[i : i + self.sources] for i in range(0, len(frames), self.sources)]
        return tf.concat([tf.add_n(blend) for blend in blends], 0)

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, F, F] -> [B, K, C, P, P]."""
        if not self.one_by_one:
            return self._take_rows(y)
        stamps = tf.concat(_move(y[:, None], -self.corners, self.side), 0)
        return tf.reshape(stamps, [self.batch, self.sources, y.shape[1], self.side, self.side])

    def each(self, x: tf.Tensor) -> tf.Tensor:
        """T_i without the sum: [B, K, Q, P, P] -> [B, K, Q, F, F]."""
        tall = tf.matmul(self._one_hot(0)[:, :, None], x, transpose_a=True)
        return tf.matmul(tall, self._one_hot(1)[:, :, None])

    def _one_hot(self, axis: int) -> tf.Tensor:
        """[B, K, P, F]: 1 where the stamp's row (axis 0) or column (axis 1) is the frame's."""
        return tf.one_hot(self.corners[..., axis, None] + tf.range(self.side), self.frame, dtype=self.dtype)

    def _columns(self) -> tf.Tensor:
        """[B, K P, F]: the columns of all stamps of a blend."""
        return tf.reshape(self._one_hot(1), [-1, self.sources * self.side, self.frame])

    def _add_rows(self, x: tf.Tensor) -> tf.Tensor:
        """`forward`: every row of the frame takes one row of each stamp, or the empty one below it, for one product."""
        bands = x.shape[2]
        rows = tf.range(self.frame)[:, None] - self.corners[:, None, :, 0]  # [B, F, K] of the stamps
        rows = tf.where((rows >= 0) & (rows < self.side), rows, self.side)[:, None]
        stamps = tf.range(self.sources) * bands + tf.range(bands)[:, None, None]  # [C, 1, K]
        below = tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
        flat = tf.reshape(below, [-1, self.sources * bands * (self.side + 1), self.side])
        taken = tf.gather(flat, stamps * (self.side + 1) + rows, batch_dims=1)  # [B, C, F, K, P]
        wide = tf.reshape(taken, [-1, bands * self.frame, self.sources * self.side])
        return tf.reshape(tf.matmul(wide, self._columns()), [-1, bands, self.frame, self.frame])

    def _take_rows(self, y: tf.Tensor) -> tf.Tensor:
        """`transpose`: one product gives every row of the frame as each stamp's columns see it; stamps take theirs."""
        bands, height = y.shape[1], self.frame + 1  # with an empty row below
        flat = tf.reshape(tf.pad(y, [[0, 0], [0, 0], [0, 1], [0, 0]]), [-1, bands * height, self.frame])
        seen = tf.matmul(flat, self._columns(), transpose_b=True)
        seen = tf.reshape(seen, [-1, bands * height * self.sources, self.side])
        rows = self.corners[:, :, :1] + tf.range(self.side)  # [B, K, P] of the frame
        rows = tf.where((rows >= 0) & (rows < self.frame), rows, self.frame)[:, :, None]
        rows += tf.range(bands)[:, None] * height  # [B, K, C, P]
        return tf.gather(seen, rows * self.sources + tf.range(self.sources)[:, None, None], batch_dims=1)


def _move(x: tf.Tensor, corners: tf.Tensor, target: int) -> list[tf.Tensor]:
    """Images moved to `corners` [B, K, 2]: what falls outside is cut off, and zeros are elsewhere.

    [B, K, C, D, D], or [B, 1, C, D, D] for the same image K times -> B K times [1, C, T, T], T = `target`.
    """
    (own, bands, side), (batch, sources) = x.shape[1:4], corners.shape[:2]
    images = tf.reshape(x, [-1, bands, side, side])
    corners = tf.clip_by_value(tf.reshape(corners, [-1, 2]), -side, target)  # beyond, nothing of an image is seen
    first, last = tf.clip_by_value(corners, 0, target), tf.clip_by_value(corners + side, 0, target)
    number = np.arange(batch * sources) // (sources // own)  # of the image that each one takes
    begin = tf.concat([tf.constant(np.stack([number, 0 * number], 1), corners.dtype), first - corners], 1)
    size = tf.concat([tf.constant([[1, bands]] * len(number), corners.dtype), last - first], 1)
    around = tf.pad(tf.stack([first, target - last], 2), [[0, 0], [2, 0], [0, 0]])  # [B K, 4, 2]
    places = zip(*(tf.unstack(values) for values in (begin, size, around)), strict=True)
    moved = [tf.pad(tf.slice(images, at, extent), paddings) for at, extent, paddings in places]
    for image in moved:
        image.set_shape([1, bands, target, target])
    return moved


class Convolve(LinearOperator):
    """Convolution of a frame with one kernel a band, cut to the image: F^-1[F(x) kernel], no wrap-around.

    Args:
      kernel: [B, C, N, N // 2 + 1] complex transfer function on the N x N Fourier grid (see `psf.transfer_function`).
      side: N. margin: frame pixels around the image on every side. image: (H, W) to cut out.
    """

    def __init__(self, kernel: tf.Tensor, side: int, margin: int, image: tuple[int, int]):
        # As two real tensors: not every runtime takes complex ones into a loop.
        self.kernel = tf.math.real(kernel), tf.math.imag(kernel)
        self.side, self.margin, self.image = side, margin, image

    def forward(self, x: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., F, F] -> [B, C, ..., H, W]; any number of images a band."""
        full = self._filter(x, self._kernel(x))
        m, (height, width) = self.margin, self.image
        return full[..., m : m + height, m : m + width]

    def transpose(self, y: tf.Tensor) -> tf.Tensor:
        """[B, C, ..., H, W] -> [B, C, ..., F, F], F = H + 2 margin."""
        m, (height, width) = self.margin, self.image
        far = [[0, 0]] * (len(y.shape) - 2) + [[m, m], [m, m]]
        full = self._filter(tf.pad(y, far), self._kernel(y, -1.0))
        return full[..., : height + 2 * m, : width + 2 * m]

    def _kernel(self, x: tf.Tensor, sign: float = 1.0) -> tf.Tensor:
        """The transfer function, or with sign -1 its conjugate, with as many axes as x."""
        extra = len(x.shape) - len(self.kernel[0].shape)
        _, bands, *frequencies = shape_of(self.kernel[0])
        shape = [-1, bands, *[1] * extra, *frequencies]
        real, imaginary = (tf.reshape(part, shape) for part in self.kernel)
        return tf.complex(real, sign * imaginary)

    def _filter(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        n = [self.side, self.side]
        spectrum = tf.signal.rfft2d(x, fft_length=n)
        spectrum.set_shape([*x.shape[:-2], None, None])  # an FFT whose side is known at run time loses them
        product = spectrum * kernel
        full = tf.signal.irfft2d(product, fft_length=n)
        full.set_shape([*product.shape[:-2], None, None])
        return full
