"""What is exported: the preparation in TensorFlow agrees with NumPy's, and models with the library itself."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from hsc import SHIPPED, simulated, small

from tfdeblend.client import blend_arrays
from tfdeblend.data.scene import Scene
from tfdeblend.diffusion import random
from tfdeblend.diffusion.random import KeyedNormals
from tfdeblend.export import normals, preparation, seeds
from tfdeblend.export.bucket import Bucket, blend_specs
from tfdeblend.export.warmup import example
from tfdeblend.forward.batch import Batch, Tensors
from tfdeblend.forward.shapes import scene_shape, stamp_side
from tfdeblend.galaxies import moments

BUCKET = Bucket(SHIPPED, 32)
SIGMA = BUCKET.shape.model_sigma


def given(one: Scene, bucket: Bucket = BUCKET) -> dict[str, tf.Tensor]:
    arrays = blend_arrays(one, bucket.side, bucket.sources, bucket.psf)
    return {name: tf.constant(arrays[name][None], spec.dtype) for name, spec in blend_specs(bucket).items()}


def named(tensors: Tensors) -> dict[str, tf.Tensor]:
    """Those of the batch and of its one exposure."""
    (exposure,) = tensors.exposures
    own = tensors._asdict()
    del own["exposures"]
    return own | exposure._asdict()


def masked(one: Scene) -> Scene:
    """With a band that is all masked, some pixels besides, a star, and an even-sided PSF off its middle."""
    weights = one.observation.weights.copy()
    weights[3], weights[:, 4:9, 11] = 0, 0
    psf = np.pad(one.observation.psf, [[0, 0], [1, 0], [1, 0]])
    observation = replace(one.observation, weights=weights, psf=psf, notes=())
    return Scene((observation,), (replace(one.sources[0], kind="point"), *one.sources[1:]))


@pytest.mark.parametrize("change", [lambda one: one, masked])
def test_preparation_is_that_of_batches(change):
    one = change(small())
    bucket = replace(BUCKET, psf=max(one.observation.psf.shape[1], BUCKET.psf))
    blend, usable = preparation.checked(given(one, bucket), bucket.shape.model_sigma)
    expected, (tensors, scale) = Batch.build([one], bucket.shape), preparation.prepare(blend, bucket.shape)
    assert usable.numpy().all()
    np.testing.assert_allclose(scale, expected.band_scale, rtol=1e-6)
    count = len(one.sources)
    np.testing.assert_array_equal(tensors.corners[:, :count], expected.tensors.corners[:, :count])
    tensors = tensors._replace(corners=expected.tensors.corners)  # padding's are of no matter
    for name, value in named(expected.tensors).items():
        close = {"rtol": 1e-5, "atol": 1e-5 if "kernel" in name else 1e-6}
        np.testing.assert_allclose(named(tensors)[name], value, err_msg=name, **close)


def test_moments_are_those_of_the_library():
    one = masked(small())
    bucket = replace(BUCKET, psf=44)
    radius, ellipticity = preparation.moments(preparation.checked(given(one, bucket), bucket.shape.model_sigma)[0])
    expected = moments.moments(one)
    np.testing.assert_allclose(radius[0, : len(one.sources)], expected[0], rtol=1e-5)
    np.testing.assert_allclose(ellipticity[0, : len(one.sources)], expected[1], atol=1e-5)


def test_a_bucket_is_what_deblender_makes_of_its_scenes():
    """But for the number of sources, which a bucket holds up to its own."""
    one = small()
    sigma = BUCKET.shape.model_sigma
    assert scene_shape(one, stamp_side(one, 66), sigma)._replace(sources=BUCKET.sources) == BUCKET.shape
    closed = Bucket("bulge-disk", 64)
    large = simulated(0)[0]
    assert scene_shape(large, stamp_side(large), 1.0)._replace(sources=closed.sources) == closed.shape


@pytest.mark.parametrize(
    "change",
    [
        {"pixel_scale": -1.0},
        {"psf_center": 43.0},
        {"zeropoints": np.nan},
        {"positions": 400.0},
        {"positions": np.nan},
        {"psfs": 1.0},
        {"images": 1e30},
        {"images": np.nan},
        {"weights": 0.0},
        {"weights": -1.0},
        {"zeropoints": -1000.0},
    ],
)
def test_blends_of_wrong_numbers_are_emptied(change: dict[str, float]):
    blend = {name: tf.constant(value) for name, value in example(BUCKET, 2).items()}
    for name, value in change.items():
        wrong = tf.concat([blend[name][:1], tf.fill(blend[name][1:].shape, tf.cast(value, blend[name].dtype))], 0)
        blend[name] = wrong
    found, usable = preparation.checked(blend, SIGMA)
    assert usable.numpy().tolist() == [True, False]
    tensors = named(preparation.prepare(found, BUCKET.shape)[0])
    assert all(np.isfinite(np.abs(value)).all() for value in tensors.values())
    assert not tensors["weights"][1].numpy().any() and tensors["weights"][0].numpy().any()


@pytest.mark.parametrize(("zeropoint", "used"), [(-1000, False), (-30, False), (31.4, True)])
def test_a_zero_point_of_another_world_is_not_usable(zeropoint: float, used: bool):
    blend = {name: tf.constant(value) for name, value in example(BUCKET).items()}
    blend["zeropoints"] = tf.constant([[zeropoint, 27, 27, 27, 27]], tf.float32)
    assert preparation.checked(blend, SIGMA)[1].numpy().tolist() == [used]


@pytest.mark.parametrize(("sigma", "used"), [(0.8, False), (1.1, True)])
def test_psfs_narrower_than_the_model_psf_are_not_usable(sigma: float, used: bool):
    t = np.arange(BUCKET.psf) - BUCKET.psf // 2
    psf = np.exp(-(t[:, None] ** 2 + t**2) / (2 * sigma**2))
    blend = {name: tf.constant(value) for name, value in example(BUCKET).items()}
    blend["psfs"] = tf.constant(np.broadcast_to(psf / psf.sum(), blend["psfs"].shape), tf.float32)
    assert preparation.checked(blend, SIGMA)[1].numpy().tolist() == [used]


def test_pixels_that_are_not_finite_are_masked():
    blend = {name: tf.constant(value) for name, value in example(BUCKET).items()}
    images, weights = blend["images"].numpy(), blend["weights"].numpy()
    images[0, 1, 2, 3], weights[0, 0, 5, 6], weights[0, 0, 7, 8] = np.nan, np.inf, -1
    wrong = {"images": tf.constant(images), "weights": tf.constant(weights)}
    found, usable = preparation.checked(blend | wrong, SIGMA)
    assert usable.numpy().all() and np.isfinite(found["images"]).all()
    assert (found["weights"].numpy() == 0).sum() == 3


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_keys_are_those_of_the_library(seed: int):
    names = ["blend", "another", ""]
    words = np.array([[seed, zlib.crc32(name.encode())] for name in names]).astype(np.uint32).view(np.int32)
    expected = random.keys(seed, names, 16).reshape(3, 16)
    np.testing.assert_array_equal(seeds.keys(tf.constant(words), 16), expected)


def test_given_normals_are_those_they_were_made_of():
    stamps, side, steps = (2, 3, 5, 8, 8), 32, 3
    made = KeyedNormals(tf.constant([5, 7], tf.int64), stamps, [(5, side)], 4)
    eps = normals.flatten(made, steps)
    assert eps.shape == (2, normals.size(stamps, side, 4, steps))
    found = normals.GivenNormals(eps, stamps, side, 4, steps)
    for step in range(steps):
        np.testing.assert_array_equal(found.positions(tf.constant(step)), made.positions(tf.constant(step)))
        for one, other in zip(
            tf.nest.flatten(found.normals(tf.constant(step))), tf.nest.flatten(made.normals(step)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
