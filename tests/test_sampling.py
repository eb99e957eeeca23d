"""Samples of blends with a learned prior: the same alone and in a batch, what the results hold, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf
from hsc import SHIPPED, simulated

from tfdeblend import plots
from tfdeblend.catalog.result import Deblended
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.diffusion import random, registry, steps
from tfdeblend.diffusion.conditioning import MMPS, ConvolvedLikelihood
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.diffusion.unknown_scale import UnknownScale
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import BatchShape, fast_fourier_size, scene_shape, stamp_side
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.inference.diffusion_sampler import PosteriorSampler, SampleOptions, Samples
from tfdeblend.inference.evidence import EvidenceSampler, estimate
from tfdeblend.inference.map_fit import MapFit

FEW = SampleOptions(steps=3)


def sampler(**changes) -> Deblender:
    return Deblender(SHIPPED, "sample", samples=4, keep_samples=True, sampling=FEW, **changes)


@pytest.fixture(scope="module")
def pair() -> list[Deblended]:
    return sampler().deblend([simulated(0)[0], simulated(1)[0]])


def test_samples_say_what_the_catalogue_says(pair: list[Deblended]):
    result = pair[0]
    samples, count = result.samples, len(result.sources)
    assert samples is not None and samples.shape[:2] == (4, count)
    flux = samples.sum((3, 4), dtype=float)  # light beyond the stamps is added to each sample alike
    deviation = flux.std(0, ddof=1)
    for b, band in enumerate(result.scene.observation.bands):
        np.testing.assert_allclose(result.catalog[f"flux_err_{band}"], deviation[:, b], rtol=1e-3)
    np.testing.assert_allclose(result.stamps, samples.mean(0), atol=1e-4 * samples.max())
    np.testing.assert_allclose(result.flux_cov[2], np.cov(flux[..., 2].T, ddof=1), rtol=1e-3, atol=1e-6)
    assert result.sources_std is not None and result.sources_std.shape == result.sources.shape
    assert np.nanmin(result.prior_share) >= 0


def test_a_blend_is_the_same_alone(pair: list[Deblended]):
    """Solves go to the end: cut short, batches of other shapes would stop at other iterations."""
    alone = sampler().deblend(simulated(1)[0])
    spread = pair[1].samples.std(0).max()
    np.testing.assert_allclose(alone.samples, pair[1].samples, atol=1e-3 * spread)


def fitted(scene: Scene) -> tuple[BatchShape, InitialFit]:
    """The shape of a batch of this scene alone, with room for four sources, and its initial fit."""
    denoiser = registry.find(SHIPPED).load()
    shape = scene_shape(scene, stamp_side(scene, denoiser.stamp_shape[1] + 2), denoiser.model_sigma)
    shape = shape._replace(sources=4)
    tensors = Batch.build([scene], shape).tensors
    return shape, InitialFit.of(MapFit(PRIORS["bulge-disk"](shape.bands), shape)(tensors))


def drawn(scene: Scene, shape: BatchShape, fit: InitialFit, samples: int = 4, options: SampleOptions = FEW) -> Samples:
    """Of a scene alone; rows beyond the samples are the first ones again."""
    batch = Batch.build([scene] * shape.blends, shape)
    fits = tf.nest.map_structure(lambda t: tf.repeat(t, shape.blends, 0), fit)
    keys = tf.constant(random.keys(0, [scene.name], samples)[np.arange(shape.blends) % samples])
    return diffusion(shape, options)(batch.tensors, fits, keys)


@lru_cache
def diffusion(shape: BatchShape, options: SampleOptions) -> PosteriorSampler:
    """Compiled once for all tests."""
    return PosteriorSampler(shape, registry.find(SHIPPED).load(), options)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "of"), [(1, 5e-5), (3, 1e-3)])
def test_a_blend_is_the_same_in_a_larger_bucket(number: int, of: float):
    """More places for sources, a larger image and rows beside it: draws belong to sources and pixels, not to shapes.

    One step by the largest pixel, more by the largest deviation.
    """
    scene = simulated(1)[0]
    count = len(scene.sources)
    small, fit = fitted(scene)
    (exposure,) = small.exposures
    wide = {"frame": small.frame + 16, "fourier": fast_fourier_size(small.fourier + 16)}
    large = small._replace(**wide, exposures=(exposure._replace(side=exposure.side + 16),), blends=6)
    found = []
    for shape, sources, fits in ((small, count, fit.first(count)), (large, small.sources, fit)):
        shape = shape._replace(sources=sources, blends=max(shape.blends, 4))
        found.append(drawn(scene, shape, fits, options=SampleOptions(steps=number)).stamps.numpy())
    assert count < small.sources
    unit = found[0].max() if number == 1 else found[0].std(0).max()
    np.testing.assert_allclose(found[1][:4, :count], found[0], atol=of * unit)
    np.testing.assert_allclose(found[1][4:], found[1][:2], atol=of * unit)


@pytest.mark.slow
def test_a_wrong_initial_fit_is_forgotten():
    """One that has made the galaxies five times too bright or too faint, by their samples' mean fluxes."""
    scene, samples = simulated(1)[0], 16
    shape, fit = fitted(scene)
    count = len(scene.sources)
    shape, fit, found = shape._replace(sources=count, blends=samples), fit.first(count), []
    for wrong in (1.0, 0.2, 5.0):
        given = fit._replace(stamps=wrong * fit.stamps, flux=wrong * fit.flux)
        found.append(drawn(scene, shape, given, samples).flux.numpy().sum(2))
    mean, error = np.mean(found, 1), np.std(found, 1) / samples**0.5
    for other in (1, 2):
        np.testing.assert_array_less(np.abs(mean[other] - mean[0]), 4 * np.hypot(error[other], error[0]))


@pytest.mark.slow
@pytest.mark.parametrize("recentre", [True, False])
def test_a_wrong_pixel_is_forgotten(recentre: bool):
    """Of a fit that lies a pixel off along y; by where the brightest galaxy's stamps begin."""
    scene, samples = simulated(1)[0], 16
    shape, fit = fitted(scene)
    count = len(scene.sources)
    shape, fit = shape._replace(sources=count, blends=samples), fit.first(count)
    begin = []
    for off in (0.0, 1.0):
        given = fit._replace(offset=fit.offset + tf.constant([off, 0.0]))
        found = drawn(scene, shape, given, samples, replace(FEW, unknown_scale=UnknownScale(recentre=recentre)))
        begin.append((found.prior_variance.numpy().sum((2, 4)) > 0).argmax(2).mean(0))
    brightest = fit.stamps.numpy()[0].sum((1, 2, 3)).argmax()
    wrong = np.abs(begin[1] - begin[0])[brightest]
    assert wrong < 0.6 if recentre else wrong > 0.8


@pytest.mark.parametrize(
    ("options", "widened"),
    [
        (SampleOptions(), True),
        (SampleOptions(unknown_scale=UnknownScale(widened=False)), False),
        (SampleOptions(unknown_scale=None), False),
        (SampleOptions(step=steps.ancestral), False),
    ],
)
def test_scales_are_open_where_they_are_drawn(options: SampleOptions, widened: bool):
    scene = simulated(1)[0]
    denoiser = registry.find(SHIPPED).load()
    shape = scene_shape(scene, stamp_side(scene, denoiser.stamp_shape[1] + 2), denoiser.model_sigma)
    assert PosteriorSampler(shape, denoiser, options).rank == denoiser.rank + widened


@pytest.mark.slow
def test_the_same_seed_gives_the_same_samples(pair: list[Deblended]):
    """But for rounding: on busy threads sums may be taken in another order."""
    scenes = [simulated(0)[0], simulated(1)[0]]
    again, other = sampler().deblend(scenes), sampler(seed=1).deblend(scenes)
    spread = pair[0].samples.std(0).max()
    np.testing.assert_allclose(again[0].samples, pair[0].samples, atol=1e-3 * spread)
    assert np.abs(other[0].samples - pair[0].samples).max() > spread


def test_samples_are_written_and_read_back(pair: list[Deblended], tmp_path):
    pair[0].write(tmp_path / "a.fits")
    back = Deblended.read(tmp_path / "a.fits")
    for name in ("samples", "sources_std", "prior_share"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pair[0], name))
    assert back.header["samples"] == 4


def test_samples_are_shown(pair: list[Deblended]):
    figure = plots.samples(pair[0])
    assert len(figure.axes) == min(len(pair[0].sources), 6) * (4 + 4) + 2  # and two bars of colours
    with pytest.raises(ValueError, match="expected a result with its samples"):
        plots.samples(replace(pair[0], samples=None))


@pytest.mark.slow
def test_evidence_leaves_the_data_unit_alone():
    """In a unit k times smaller the density of n pixels is k^-n times as large."""
    scene = simulated(0)[0]
    observation, unit = scene.observation, 8.0
    scaled = replace(
        observation,
        images=observation.images * unit,
        weights=observation.weights / unit**2,
        zeropoints=observation.zeropoints + 2.5 * np.log10(unit),
    )
    scenes = [scene, Scene(scaled, scene.sources)]
    shape, fit = fitted(scene)
    fits = tf.nest.map_structure(lambda t: tf.repeat(t, 2, 0), fit)
    sampler = EvidenceSampler(shape._replace(blends=4), registry.find(SHIPPED).load(), steps=3)
    batch = Batch.build(scenes, shape._replace(blends=2))
    (one, error), (other, _) = estimate(sampler, scenes, batch, fits, samples=4)
    assert np.isfinite(one) and error > 0
    assert other - one == pytest.approx(-observation.valid.sum() * np.log(unit), abs=0.5)


def test_refuses_what_it_cannot_sample():
    with pytest.raises(ValueError, match="samples: expected at least 2, received 1"):
        Deblender(SHIPPED, "sample", samples=1)
    with pytest.raises(ValueError, match="steps: expected at least 1, received 0"):
        SampleOptions(steps=0)
    for conditioning in (MMPS, ConvolvedLikelihood):
        with pytest.raises(ValueError, match=f"step: .* with {conditioning.__name__}, .*received moment_matched"):
            SampleOptions(conditioning=conditioning)
    with pytest.raises(DataError, match="expected a learned or closed-form one"):
        Deblender("nonparametric", "sample").deblend(simulated(0)[0])
