"""Steps, their trust region and Laplace covariances against dense algebra and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.galaxies import fluxes, normal_equations
from tfdeblend.galaxies.normal_equations import NormalEquations, SecondOrder

BATCH, BANDS, LATENTS, TERMS, SIDE = 3, 2, 5, 3, 8  # TERMS: fluxes
LEVEL = 500.0  # of linear terms, far from where fluxes turn negative


class Linear:
    """y = J z + templates f + n with z ~ N(0, 1): its normal equations, and dense algebra."""

    def __init__(self, seed: int = 0, used: tuple[int, ...] = (1, 1, 1)):
        rng = np.random.default_rng(seed)
        self.used = np.array(used)
        self.tangents = rng.normal(size=(BATCH, BANDS, LATENTS, SIDE, SIDE))
        self.templates = rng.normal(size=(BATCH, BANDS, TERMS, SIDE, SIDE)) + 0.5
        self.data = 5 * rng.normal(size=(BATCH, BANDS, SIDE, SIDE)) + LEVEL * self.templates[:, :, self.used > 0].sum(2)

    def model(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return np.einsum("bclyx,bl->bcyx", self.tangents, z) + np.einsum("bcqyx,bcq->bcyx", self.templates, f)

    def loss(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return 0.5 * ((self.data - self.model(z, f)) ** 2).sum((1, 2, 3)) + 0.5 * (z**2).sum(1)

    def system(self, f: np.ndarray) -> NormalEquations:
        used = np.tile(self.used, (BATCH, 1, 1)).astype(float)
        linear = np.einsum("bcqyx,bcryx->bcqr", self.templates, self.templates)
        parts = (
            np.einsum("bclyx,bcmyx->blm", self.tangents, self.tangents) + np.eye(LATENTS),
            np.einsum("bclyx,bcqyx->bclq", self.tangents, self.templates) * used[:, :, None],
            normal_equations.regular(tf.constant(linear), tf.constant(used)),
            f,
        )
        return NormalEquations(*(tf.constant(part) for part in parts))

    def gradient(self, z: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the loss by latents, of its data part by linear terms."""
        residual = self.data - self.model(z, f)
        by_linear = -np.einsum("bcqyx,bcyx->bcq", self.templates, residual) * self.used
        return z - np.einsum("bclyx,bcyx->bl", self.tangents, residual), by_linear

    def dense(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Curvature and right-hand side at the origin over (latents, then the terms in use, band by band)."""
        terms = np.flatnonzero(self.used)
        columns = np.zeros((LATENTS + BANDS * len(terms), BANDS, SIDE * SIDE))
        columns[:LATENTS] = self.tangents[b].reshape(BANDS, LATENTS, -1).swapaxes(0, 1)
        for c in range(BANDS):
            rows = slice(LATENTS + c * len(terms), LATENTS + (c + 1) * len(terms))
            columns[rows, c] = self.templates[b, c, terms].reshape(len(terms), -1)
        flat = columns.reshape(len(columns), -1)
        prior = np.diag((np.arange(len(columns)) < LATENTS).astype(float))
        return flat @ flat.T + prior, flat @ self.data[b].ravel()

    def start(self, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(BATCH, LATENTS)), (LEVEL + rng.normal(size=(BATCH, BANDS, TERMS))) * self.used


def solution(problem: Linear) -> tuple[np.ndarray, np.ndarray]:
    """The exact maximum: latents [B, L], linear terms [B, C, Q]."""
    terms = np.flatnonzero(problem.used)
    z, f = np.zeros((BATCH, LATENTS)), np.zeros((BATCH, BANDS, TERMS))
    for b in range(BATCH):
        best = np.linalg.solve(*problem.dense(b))
        z[b], f[b][:, terms] = best[:LATENTS], best[LATENTS:].reshape(BANDS, -1)
    return z, f


def solve(problem: Linear, z: np.ndarray, f: np.ndarray, radius: float = 1e9) -> tuple[np.ndarray, ...]:
    """One step from (z, f): latents [B, L], linear terms [B, C, Q], distance [B]."""
    factors = normal_equations.factorise(problem.system(f))
    parts = normal_equations.solve(
        factors, *problem.gradient(z, f), f, tf.fill([BATCH], tf.constant(radius, tf.float64))
    )
    return tuple(part.numpy() for part in parts)


every_use = pytest.mark.parametrize("used", [(1, 1, 1), (1, 0, 1), (1, 1, 0)])


@every_use
def test_one_step_solves_a_linear_problem(used: tuple[int, ...]) -> None:
    problem = Linear(used=used)
    z, f = problem.start()
    step, linear, distance = solve(problem, z, f)
    best_z, best_f = solution(problem)
    np.testing.assert_allclose(z + step, best_z, atol=2e-3)
    np.testing.assert_allclose(f + linear, best_f, atol=2e-3)  # the ridge of 1e-6 holds back 500
    # Half the squared distance is what the loss falls by.
    fall = problem.loss(z, f) - problem.loss(best_z, best_f)
    np.testing.assert_allclose(0.5 * distance**2, fall, rtol=1e-4)


def test_nothing_moves_at_the_maximum() -> None:
    problem = Linear()
    step, _, distance = solve(problem, *solution(problem))
    np.testing.assert_allclose(step, 0, atol=1e-3)
    np.testing.assert_allclose(distance, 0, atol=1e-5)


@pytest.mark.parametrize("radius", [1e-6, 0.1, 1.0])
def test_short_steps_go_downhill_and_know_how_far_it_is(radius: float) -> None:
    """No latent moves further than allowed, one moves just so far, and `distance` is that of the whole way."""
    problem = Linear()
    z, f = problem.start()
    step, linear, distance = solve(problem, z + 50, f, radius)
    np.testing.assert_allclose(np.abs(step).max(1), radius, rtol=1e-4)
    np.testing.assert_array_equal(distance, solve(problem, z + 50, f)[2])
    assert (problem.loss(z + 50 + step, f + linear) < problem.loss(z + 50, f)).all()
    _, by_linear = problem.gradient(z + 50 + step, f + linear)
    np.testing.assert_allclose(by_linear, 0, atol=0.1)  # the linear terms are at their best there


def test_what_curves_downwards_is_walked_down() -> None:
    """The step of an indefinite curvature is that of its absolute value."""
    problem = Linear()
    z, f = problem.start()
    system = problem.system(f)
    factors = normal_equations.factorise(
        system._replace(latent=system.latent - 110 * tf.eye(LATENTS, dtype=tf.float64))
    )
    assert (factors.values.numpy() < 0).any(1).all()
    gradient, by_linear = problem.gradient(z, f)
    far = tf.fill([BATCH], tf.constant(1e9, tf.float64))
    step = normal_equations.solve(factors, gradient, by_linear, f, far)[0].numpy()
    values, vectors = factors.values.numpy(), factors.vectors.numpy()
    move = -np.linalg.solve(system.linear.numpy(), by_linear[..., None])
    reduced = gradient + np.einsum("bclq,bcq->bl", system.mixed.numpy(), move[..., 0])
    expected = -np.einsum("blm,bm,bkm,bk->bl", vectors, 1 / np.abs(values), vectors, reduced)
    np.testing.assert_allclose(step, expected, rtol=1e-8)
    assert (np.einsum("bl,bl->b", step, reduced) < 0).all()


def test_fluxes_are_held_where_negative() -> None:
    """The best fluxes are those that minimise the data's parabola with the penalty, component by component."""
    gram = tf.constant(np.broadcast_to(np.diag([2.0, 0.5, 3.0]), (1, 1, 3, 3)))
    right = tf.constant([[[-40.0, 8.0, -6.0]]], tf.float64)
    found = fluxes.solve(gram, right, tf.zeros([1, 1, 3], tf.float64)).numpy()[0, 0]
    wall = 1 / fluxes.NEGATIVE_FLUX**2
    np.testing.assert_allclose(found, [-40 / (2 + wall), 16, -6 / (3 + wall)])


@every_use
def test_laplace_is_the_inverse_of_the_dense_curvature(used: tuple[int, ...]) -> None:
    problem = Linear(used=used)
    covariance = normal_equations.laplace(problem.system(problem.start()[1]))
    terms = np.flatnonzero(used)
    for b in range(BATCH):
        dense = np.linalg.inv(problem.dense(b)[0])
        size = np.abs(np.diag(dense)).max()
        np.testing.assert_allclose(covariance.latent[b], dense[:LATENTS, :LATENTS], atol=1e-5 * size)
        linear = covariance.linear[b].numpy()[:, terms][:, :, :, terms].reshape(BANDS * len(terms), -1)
        np.testing.assert_allclose(linear, dense[LATENTS:, LATENTS:], atol=1e-5 * size)


class Bilinear:
    """y = sum_k f_k (T_k + sum_s z_ks D_ks): two sources with two latents each, as `assemble` gets them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.images = tf.constant(rng.normal(size=(BATCH, BANDS, 2, 1, SIDE, SIDE)))
        self.slopes = tf.constant(rng.normal(size=(BATCH, BANDS, 2, 2, SIDE, SIDE)))
        self.data = tf.constant(5 * rng.normal(size=(BATCH, BANDS, SIDE, SIDE)))
        self.latent = tf.constant(rng.normal(size=(BATCH, 2, 2)))
        self.linear = tf.constant(rng.normal(size=(BATCH, BANDS, 2)))

    def unit(self, latent: tf.Tensor) -> tf.Tensor:
        return self.images[:, :, :, 0] + tf.einsum("bckspq,bks->bckpq", self.slopes, latent)

    def residual(self, latent: tf.Tensor, linear: tf.Tensor) -> tf.Tensor:
        return self.data - tf.einsum("bckpq,bck->bcpq", self.unit(latent), linear)

    def assemble(self, used: tuple[int, ...] = (1, 1)) -> NormalEquations:
        columns = tf.concat([self.slopes, self.unit(self.latent)[:, :, :, None]], 3)
        flat = tf.reshape(columns, [BATCH, BANDS, 6, -1])
        flux = tf.linalg.matrix_transpose(self.linear)
        terms = tf.constant(np.tile(used, (BATCH, 1)), tf.float64)
        return normal_equations.assemble(
            tf.matmul(flat, flat, transpose_b=True), flux, terms, 2, tf.ones([BATCH], tf.float64)
        )

    def jacobian(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the residual by latents [B, N, L] and linear terms [B, N, C, Q]; the residual [B, N]."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([self.latent, self.linear])
            residual = tf.reshape(self.residual(self.latent, self.linear), [BATCH, -1])
        by_latent, by_linear = (tape.batch_jacobian(residual, x) for x in (self.latent, self.linear))
        return tf.reshape(by_latent, [BATCH, -1, 4]).numpy(), by_linear.numpy(), residual.numpy()


@pytest.mark.parametrize("used", [(1, 1), (0, 1), (1, 0)])
def test_assembled_equations_are_those_of_the_loss(used: tuple[int, ...]) -> None:
    """J^T J + 1 by automatic differentiation of half a chi-square plus half of |z|^2."""
    problem = Bilinear()
    system = problem.assemble(used=used)
    by_latent, by_linear, _ = problem.jacobian()
    by_linear = by_linear * np.array(used)
    np.testing.assert_allclose(system.latent, np.einsum("bnl,bnm->blm", by_latent, by_latent) + np.eye(4), rtol=1e-10)
    np.testing.assert_allclose(system.mixed, np.einsum("bnl,bncq->bclq", by_latent, by_linear), atol=1e-9)
    own = np.einsum("bncq,bncr->bcqr", by_linear, by_linear) + np.diag(1.0 - np.array(used))
    np.testing.assert_allclose(system.linear, own, atol=2e-6 * own.max())


def test_with_second_order_terms_the_curvature_is_the_whole_second_derivative() -> None:
    """By latents of one source, and by its latents and fluxes; other blocks are Gauss-Newton's."""
    problem = Bilinear()
    rng = np.random.default_rng(1)
    second = SecondOrder(
        tf.constant(rng.normal(size=(BATCH, 2, 2, 2))), tf.constant(rng.normal(size=(BATCH, 2, 2, BANDS)))
    )
    system = problem.assemble()
    whole = normal_equations.exact(system, second)
    latent = (whole.latent - system.latent).numpy().reshape(BATCH, 2, 2, 2, 2)
    mixed = (whole.mixed - system.mixed).numpy().reshape(BATCH, BANDS, 2, 2, 2)
    for k in (0, 1):
        np.testing.assert_allclose(latent[:, k, :, k], second.latent[:, k], atol=1e-12)
        np.testing.assert_allclose(latent[:, k, :, 1 - k], 0, atol=1e-12)
        np.testing.assert_allclose(mixed[:, :, k, :, k], np.moveaxis(second.mixed[:, k].numpy(), 2, 1), atol=1e-12)
        np.testing.assert_allclose(mixed[:, :, k, :, 1 - k], 0, atol=1e-12)


def test_mixing_images_mixes_their_products() -> None:
    rng = np.random.default_rng(2)
    images, mixing = rng.normal(size=(BATCH, BANDS, 2, 3, 20)), rng.normal(size=(BATCH, BANDS, 2, 4, 3))

    def gram(x: np.ndarray) -> np.ndarray:
        flat = x.reshape(BATCH, BANDS, -1, 20)
        return flat @ flat.swapaxes(2, 3)

    mixed = normal_equations.mix(tf.constant(gram(images)), tf.constant(mixing))
    np.testing.assert_allclose(mixed, gram(mixing @ images), atol=1e-10)


def singular(kind: str) -> Linear:
    problem = Linear()
    if kind == "twins":
        problem.templates[:, :, 1] = problem.templates[:, :, 0]
    if kind == "blank templates":
        problem.templates[:, :, 1] = 0
    if kind == "no data":
        problem.templates *= 0
        problem.tangents *= 0
    if kind == "extreme":
        problem.templates[:, :, 1] *= 1e-6
        problem.templates[:, :, 2] *= 1e6
    return problem


@pytest.mark.parametrize("kind", ["twins", "blank templates", "no data", "extreme"])
def test_degenerate_problems_stay_finite(kind: str) -> None:
    problem = singular(kind)
    z, f = problem.start()
    step, linear, distance = solve(problem, z, f)
    covariance = normal_equations.laplace(problem.system(f))
    assert all(np.isfinite(part).all() for part in (step, linear, distance, *covariance))
    assert (problem.loss(z + step, f + linear) <= problem.loss(z, f) * (1 + 1e-9)).all()
