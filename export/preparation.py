"""Turns a blend as a client sends it into the tensors that the inference graphs take, in TensorFlow.

It is what `Batch.build` and `galaxies.moments` do in NumPy, so that a served graph needs no client code for it. The two
agree to the rounding of float32; a test keeps it so.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdeblend.data.observation import COADD_ZEROPOINT
from tfdeblend.data.psf import LARGEST_GAIN
from tfdeblend.forward.batch import ExposureTensors, Tensors
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies.moments import GAUSSIAN_HALF_LIGHT, HALF, ITERATIONS

BRIGHTEST = 1e7  # of a pixel, in units of its noise: beyond, float32 cannot tell the noise
FARTHEST_ZEROPOINT = 100.0  # from 0, in magnitudes: those of the units in use lie between -49 and 40
FAINTEST_BAND, BRIGHTEST_BAND = 1e-9, 1e9  # of one AB flux in a band's noise, over the bands' mean

Named = dict[str, tf.Tensor]


def prepare(blend: Named, shape: BatchShape) -> tuple[Tensors, tf.Tensor]:
    """Gives the tensors of blends that `checked` has passed, and the noise [B, C] by which bands were divided."""
    images, weights = blend["images"], blend["weights"]
    scale = tf.cast(band_scales(weights, blend["zeropoints"]), images.dtype)
    unit = scale[..., None, None]
    psfs = tf.cast(blend["psfs"], tf.float64)
    is_source = tf.cast(blend["is_source"], images.dtype)
    positions = tf.where(blend["is_source"][..., None], blend["positions"], 0.0)
    first = 2 * tf.floor((tf.floor(positions + 0.5) - shape.stamp // 2) / 2)
    full, small = (
        transfer_function(psfs, blend["psf_center"], shape.model_sigma, side) for side in (shape.fourier, shape.window)
    )
    exposure = ExposureTensors(
        images=images / unit,
        weights=weights * unit * unit,  # unit^2 alone may be too small for float32
        whitening=images[:, :, None][:, :, :0],
        kernel=full,
        coarse_kernel=_low(small),
        points=tf.zeros([tf.shape(images)[0], 0, 0, 2], images.dtype),
        gain=tf.ones_like(scale),
    )
    tensors = Tensors(
        exposures=(exposure,),
        corners=tf.cast(first, tf.int32) + shape.margin,
        centers=tf.cast(positions - first - shape.stamp // 2, images.dtype),
        is_source=is_source,
        is_point=is_source * tf.cast(blend["is_point"], images.dtype),
        arcsec=1 / blend["pixel_scale"],
        band_unit=band_units(blend["zeropoints"], scale),
    )
    return tensors, scale


def checked(blend: Named, model_sigma: float) -> tuple[Named, tf.Tensor]:
    """Gives blends as the signatures take them, see `bucket.blend_specs`, and which [B] can be used.

    model_sigma: of the bucket, pixels.
    Pixels that are not finite, or without a positive finite weight, are masked. A blend that cannot be used becomes a
    point-like PSF and nothing else, so that it fails no other blend of its batch.
    """
    images, weights = blend["images"], blend["weights"]
    seen = tf.math.is_finite(images) & tf.math.is_finite(weights) & (weights > 0)
    masked = {"images": tf.where(seen, images, 0.0), "weights": tf.where(seen, weights, 0.0)}
    usable = _usable(blend | masked) & _wide(blend, model_sigma)
    psfs = blend["psfs"]
    middle = psfs.shape[-1] // 2
    point = tf.constant(np.pad(np.ones((1, 1)), [[middle, psfs.shape[-1] - middle - 1]] * 2), psfs.dtype)
    empty = {name: tf.zeros_like(value) for name, value in blend.items()}
    empty |= {"psfs": point + empty["psfs"], "pixel_scale": tf.ones_like(blend["pixel_scale"])}
    empty["psf_center"] += float(middle)

    def choose(name: str, value: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(usable, [-1] + [1] * (len(value.shape) - 1)), value, empty[name])

    return {name: choose(name, value) for name, value in (blend | masked).items()}, usable


def _usable(blend: Named) -> tf.Tensor:
    """Tells [B] whether any pixel is seen, numbers are finite, pixel scales positive, PSFs of sum 1 about a centre in
    their image, sources on the image, which is no brighter than BRIGHTEST times its noise, and zero points such as
    bands of one instrument have."""
    images, weights = blend["images"], blend["weights"]
    side = images.shape[-1]
    at, used = blend["positions"], blend["is_source"]
    near = tf.reduce_all((at >= -0.5) & (at <= side - 0.5), -1)
    total = tf.reduce_sum(blend["psfs"], [2, 3])
    dim = tf.reduce_all(tf.abs(images) * tf.sqrt(weights) < BRIGHTEST, [1, 2, 3])
    scalars = tf.concat([blend["zeropoints"], blend["psf_center"], blend["pixel_scale"][:, None]], 1)
    finite = tf.reduce_all(tf.math.is_finite(scalars), 1) & tf.reduce_all(tf.abs(total - 1) < 0.05, 1)
    seen = tf.reduce_any(weights > 0, [1, 2, 3])
    unit = band_units(blend["zeropoints"], tf.cast(band_scales(weights, blend["zeropoints"]), images.dtype))
    alike = tf.reduce_all((unit > FAINTEST_BAND) & (unit < BRIGHTEST_BAND), 1)
    alike &= tf.reduce_all(tf.abs(blend["zeropoints"]) < FARTHEST_ZEROPOINT, 1)
    within = (blend["psf_center"] >= 0) & (blend["psf_center"] <= blend["psfs"].shape[-1] - 1)
    return (
        seen
        & alike
        & dim
        & finite
        & (blend["pixel_scale"] > 0)
        & tf.reduce_all(near | ~used, 1)
        & tf.reduce_all(within, 1)
    )


def _wide(blend: Named, model_sigma: float) -> tf.Tensor:
    """Tells [B] whether PSFs are wider than the model PSF: see `shapes.amplification`."""
    side = 64
    psfs = tf.cast(blend["psfs"], tf.float64)
    gain = tf.abs(transfer_function(psfs, blend["psf_center"], model_sigma, side))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    return tf.reduce_all((gain <= LARGEST_GAIN) | (radius > 0.5), [1, 2, 3])


def band_scales(weights: tf.Tensor, zeropoints: tf.Tensor) -> tf.Tensor:
    """Gives the noise of each band [B, C] float64, of weights [B, C, S, S]: see `observation.band_scales`."""
    flat = tf.reshape(tf.cast(weights, tf.float64), [-1, weights.shape[1], int(np.prod(weights.shape[2:]))])
    count = tf.reduce_sum(tf.cast(flat > 0, tf.int32), -1)
    ordered = tf.sort(tf.where(flat > 0, flat, tf.constant(np.inf, tf.float64)), -1)
    middle = tf.stack([tf.maximum(count - 1, 0) // 2, count // 2], -1)
    median = tf.reduce_mean(tf.gather(ordered, tf.minimum(middle, flat.shape[-1] - 1), batch_dims=2), -1)
    seen = tf.cast(count > 0, tf.float64)
    log_noise = -0.5 * tf.math.log(tf.where(count > 0, median, tf.ones_like(median))) - _log_reference(zeropoints)
    number = tf.reduce_sum(seen, -1, keepdims=True)
    typical = tf.reduce_sum(seen * log_noise, -1, keepdims=True) / tf.maximum(number, 1)
    scale = tf.exp(tf.where(count > 0, log_noise, typical) + _log_reference(zeropoints))
    return tf.where(number > 0, scale, tf.ones_like(scale))


def band_units(zeropoints: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Gives one AB flux in each band's whitened units [B, C], their geometric mean being 1."""
    log_unit = _log_reference(zeropoints) - tf.math.log(tf.cast(scale, tf.float64))
    return tf.cast(tf.exp(log_unit - tf.reduce_mean(log_unit, -1, keepdims=True)), scale.dtype)


def _log_reference(zeropoints: tf.Tensor) -> tf.Tensor:
    """Gives the log of `observation.reference_flux` [B, C] float64."""
    return 0.4 * np.log(10) * (tf.cast(zeropoints, tf.float64) - COADD_ZEROPOINT)


def transfer_function(psfs: tf.Tensor, center: tf.Tensor, model_sigma: float, side: int) -> tf.Tensor:
    """Gives F[PSF] / F[model PSF]: see `psf.transfer_function`; by products with waves, which know no whole pixels.

    Args:
      psfs: [B, C, Q, Q] float64. center: [B, 2] (y, x), pixel coordinates in them of the PSFs' origin.
    Returns:
      [B, C, side, side // 2 + 1] complex64.
    """
    rows, columns = (_waves(center[:, axis], psfs.shape[-1], side) for axis in (0, 1))
    half = columns[:, :, : side // 2 + 1]
    along = tf.matmul(rows[:, :, None], psfs)  # [2, B, C, N, Q]: real and imaginary parts
    both = tf.matmul(along[:, None], half[None, :, :, None], transpose_b=True)  # [2, 2, B, C, N, N // 2 + 1]
    t = np.minimum(np.arange(side), side - np.arange(side))
    gauss = np.exp(-0.5 * (t / model_sigma) ** 2)
    model = np.fft.fft(gauss / gauss.sum()).real
    blur = tf.constant(model[:, None] * model[: side // 2 + 1])
    real, imaginary = (both[0, 0] - both[1, 1]) / blur, (both[0, 1] + both[1, 0]) / blur
    return tf.complex(tf.cast(real, tf.float32), tf.cast(imaginary, tf.float32))


def _waves(center: tf.Tensor, size: int, side: int) -> tf.Tensor:
    """Gives every frequency's wave over pixels [2, B, N, Q], real and imaginary; 0 where the grid has no room."""
    origin = tf.cast(center, tf.float64)[:, None]
    pixel = tf.range(size, dtype=tf.float64)
    keep = tf.abs(pixel - tf.floor(origin)) < min(side // 2, size)
    phase = -2 * np.pi * np.fft.fftfreq(side)[:, None] * (pixel - origin)[:, None]
    room = tf.cast(keep, tf.float64)[:, None]
    return tf.stack([tf.cos(phase) * room, tf.sin(phase) * room])


def _low(transfer: tf.Tensor) -> tf.Tensor:
    """Keeps the frequencies that every second pixel can tell: see `batch`."""
    quarter = transfer.shape[2] // 4
    return tf.concat([transfer[:, :, :quarter], transfer[:, :, -quarter:]], 2)[..., : quarter + 1] / 4


def moments(blend: Named) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives half-light radius in arcsec [B, K] and ellipticity [B, K, 2] to start from, float64: `galaxies.moments`."""
    images, weights = (tf.cast(blend[name], tf.float64) for name in ("images", "weights"))
    total = tf.reduce_sum(weights, 1)
    seen = tf.reduce_sum(weights * images, 1)
    image = tf.where(total > 0, seen / tf.sqrt(tf.where(total > 0, total, 1.0)), 0.0)
    covariance = adaptive_moments(_symmetric_cutouts(image, tf.round(blend["positions"])))
    psf = tf.reduce_mean(tf.cast(blend["psfs"], tf.float64), 1)
    intrinsic = covariance - adaptive_moments(_around_peak(psf)[:, None])
    intrinsic = tf.where(tf.math.is_finite(intrinsic), intrinsic, 0.0)
    yy, yx, xx = tf.unstack(tf.clip_by_value(intrinsic, -1e3, 1e3), axis=-1)
    area = tf.sqrt(tf.maximum(yy * xx - yx**2, 0.05**2))
    trace = tf.maximum(yy + xx, 1e-3)
    e1, e2 = (xx - yy) / (trace + 2 * area), 2 * yx / (trace + 2 * area)
    shrink = 0.8 / tf.maximum(tf.sqrt(e1**2 + e2**2), 0.8)
    radius = GAUSSIAN_HALF_LIGHT * tf.sqrt(area) * tf.cast(blend["pixel_scale"], tf.float64)[:, None]
    return radius, tf.stack([e1 * shrink, e2 * shrink], -1)


def adaptive_moments(stamps: tf.Tensor) -> tf.Tensor:
    """Gives the covariance [B, K, 3] of stamps [B, K, P, P] about pixel P // 2: see `galaxies.moments`."""
    side = stamps.shape[-1]
    y, x = np.indices((side, side)) - side // 2
    products = tf.constant(np.stack([y * y, y * x, x * x]).reshape(3, -1), stamps.dtype)
    flat = tf.maximum(tf.reshape(stamps, [-1, stamps.shape[1], side**2]), 0)
    covariance = tf.constant([4.0, 0.0, 4.0], stamps.dtype) * tf.ones_like(flat[..., :1])
    for _ in range(ITERATIONS):
        yy, yx, xx = tf.unstack(covariance, axis=-1)
        inverse = tf.stack([xx, -2 * yx, yy], -1) / tf.maximum(yy * xx - yx**2, 1e-3)[..., None]
        weighted = flat * tf.exp(-0.5 * tf.einsum("bki,in->bkn", inverse, products))
        total = tf.reduce_sum(weighted, -1, keepdims=True)
        measured = 2 * tf.einsum("bkn,in->bki", weighted, products) / tf.maximum(total, 1e-30)
        yy, yx, xx = tf.unstack(tf.where(total > 0, measured, covariance), axis=-1)
        yy, xx = (tf.clip_by_value(t, 0.5, HALF**2) for t in (yy, xx))
        limit = 0.9 * tf.sqrt(yy * xx)
        covariance = tf.stack([yy, tf.clip_by_value(yx, -limit, limit), xx], -1)
    return covariance


def _cutouts(images: tf.Tensor, middle: tf.Tensor) -> tf.Tensor:
    """Cuts [B, K, 2 HALF + 1, 2 HALF + 1] out of [B, H, W] about [B, K, 2], 0 beyond the images."""
    height, width = images.shape[1:]
    padded = tf.pad(images, [[0, 0], [HALF, HALF], [HALF, HALF]])
    at = tf.clip_by_value(tf.cast(middle, tf.int32), 0, [height - 1, width - 1])
    rows, columns = (at[..., axis, None] + tf.range(2 * HALF + 1) for axis in (0, 1))
    some = tf.gather(padded, rows, axis=1, batch_dims=1)  # [B, K, 25, W + 2 HALF]
    return tf.linalg.matrix_transpose(tf.gather(tf.linalg.matrix_transpose(some), columns, axis=2, batch_dims=2))


def _symmetric_cutouts(images: tf.Tensor, middle: tf.Tensor) -> tf.Tensor:
    """Takes the fainter of each pair of pixels opposite to each other across the source."""
    cut = _cutouts(images, middle)
    return tf.minimum(cut, cut[..., ::-1, ::-1])


def _around_peak(psf: tf.Tensor) -> tf.Tensor:
    """Cuts [B, 2 HALF + 1, 2 HALF + 1] out of [B, Q, Q] with the brightest pixel in the middle."""
    side = psf.shape[-1]
    peak = tf.argmax(tf.reshape(psf, [-1, side**2]), -1, output_type=tf.int32)
    return _cutouts(psf, tf.stack([peak // side, peak % side], -1)[:, None])[:, 0]
