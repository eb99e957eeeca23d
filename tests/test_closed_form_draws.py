"""Draws of the closed-form posterior: their scatter is that of its Laplace approximation, each its row's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from simulations import BLEND, simulate

from tfdeblend.diffusion import random
from tfdeblend.diffusion.initial import InitialFit
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.galaxies.moments import moments
from tfdeblend.galaxies.priors import ExponentialPrior
from tfdeblend.inference.closed_form_draws import ClosedFormDraws
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.inference.map_fit import MapFit, MapResult

ROWS, WIDTH = 128, 1.5


class Blends(NamedTuple):
    """Two blends of three galaxies, and what a fit finds."""

    batch: Batch
    found: MapResult
    draws: ClosedFormDraws


@pytest.fixture(scope="module")
def blends() -> Blends:
    scenes = [simulate()[0], simulate(BLEND[:2], seed=1)[0]]
    shape = scene_shape(scenes[0], 32)._replace(blends=2)
    batch = Batch.build(scenes, shape)
    fit = MapFit(ExponentialPrior(2), shape)
    found = fit(batch.tensors, fit.first_latents([moments(scene) for scene in scenes]))
    return Blends(batch, found, ClosedFormDraws(fit.prior, shape._replace(blends=ROWS), WIDTH))


def drawn(blends: Blends, rows: np.ndarray, seed: int = 0) -> InitialFit:
    latent, root = blends.draws.roots(blends.found)
    keys = random.keys(seed, ["blend"], ROWS)
    return blends.draws(blends.batch.tensors.take(rows), tf.gather(latent, rows), tf.gather(root, rows), keys)


def test_positions_scatter_as_their_errors_say(blends: Blends) -> None:
    found = drawn(blends, np.zeros(ROWS, int))
    spread = np.cov(found.offset.numpy()[:, :3].reshape(ROWS, -1).T)
    errors = np.sqrt(np.diagonal(blends.found.summary_covariance.numpy()[0, :3], axis1=1, axis2=2))[:, :2].ravel()
    np.testing.assert_allclose(np.sqrt(np.diag(spread)), WIDTH * errors, rtol=0.25)
    means = found.offset.numpy()[:, :3].mean(0).ravel()
    assert (np.abs(means - blends.found.summary.numpy()[0, :3, :2].ravel()) < 4 * WIDTH * errors / ROWS**0.5).all()


def test_fluxes_are_the_best_ones_of_the_shapes(blends: Blends) -> None:
    flux = drawn(blends, np.zeros(ROWS, int)).flux.numpy()[:, :3]
    best = blends.found.state.flux.numpy()[0, :3]
    np.testing.assert_allclose(np.median(flux, 0), best, rtol=0.05)
    assert (flux.std(0) > 0).all()


def test_a_draw_depends_on_its_row_and_key_alone(blends: Blends) -> None:
    alone, mixed = (drawn(blends, np.arange(ROWS) * step % 2) for step in (0, 1))
    for one, other in zip(alone, mixed, strict=True):
        np.testing.assert_allclose(one[::2], other[::2], rtol=1e-4, atol=1e-4)
    again = drawn(blends, np.zeros(ROWS, int), seed=1)
    assert np.abs(again.offset.numpy() - alone.offset.numpy()).max() > 0


def test_its_options_begin_low_and_recentre_nothing() -> None:
    options = SampleOptions.from_closed_form()
    assert options.steps == 4 and options.schedule.vague is None and options.closed_form_width == WIDTH
    assert options.unknown_scale is not None and not options.unknown_scale.recentre
    assert options.facts()["begin"] == "closed-form draws" and "begin" not in SampleOptions().facts()
    with pytest.raises(ValueError, match="closed_form_width: expected a positive number, received -1"):
        SampleOptions(closed_form_width=-1)
