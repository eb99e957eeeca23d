"""Gauss-Newton steps and Laplace covariances against dense algebra and automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend import gauss_newton
from tfdeblend.gauss_newton import NormalEquations

BATCH, BANDS, LATENTS, TERMS, SIDE = 3, 2, 5, 3, 8


class Linear:
    """y = J z + templates f + n with z ~ N(0, 1): its normal equations, and dense algebra."""

    def __init__(self, seed: int = 0, used: tuple[int, ...] = (1, 1, 1)):
        rng = np.random.default_rng(seed)
        self.used = np.array(used)
        self.tangents = rng.normal(size=(BATCH, BANDS, LATENTS, SIDE, SIDE))
        self.templates = rng.normal(size=(BATCH, BANDS, TERMS, SIDE, SIDE)) + 0.5
        self.data = 5 * rng.normal(size=(BATCH, BANDS, SIDE, SIDE))

    def model(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return np.einsum("bclyx,bl->bcyx", self.tangents, z) + np.einsum("bcqyx,bcq->bcyx", self.templates, f)

    def loss(self, z: np.ndarray, f: np.ndarray) -> np.ndarray:
        return 0.5 * ((self.data - self.model(z, f)) ** 2).sum((1, 2, 3)) + 0.5 * (z**2).sum(1)

    def system(self, z: np.ndarray, f: np.ndarray) -> NormalEquations:
        residual = self.data - self.model(z, f)
        used = np.tile(self.used, (BATCH, 1, 1)).astype(float)
        linear = np.einsum("bcqyx,bcryx->bcqr", self.templates, self.templates)
        parts = (
            np.einsum("bclyx,bcmyx->blm", self.tangents, self.tangents) + np.eye(LATENTS),
            np.einsum("bclyx,bcqyx->bclq", self.tangents, self.templates) * used[:, :, None],
            gauss_newton.regular(tf.constant(linear), tf.constant(used)),
            z - np.einsum("bclyx,bcyx->bl", self.tangents, residual),
            -np.einsum("bcqyx,bcyx->bcq", self.templates, residual) * used,
        )
        return NormalEquations(*(tf.constant(part) for part in parts))

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
        return rng.normal(size=(BATCH, LATENTS)), rng.normal(size=(BATCH, BANDS, TERMS)) * self.used


def solution(problem: Linear) -> tuple[np.ndarray, np.ndarray]:
    """The exact maximum: latents [B, L], linear terms [B, C, Q]."""
    terms = np.flatnonzero(problem.used)
    z, f = np.zeros((BATCH, LATENTS)), np.zeros((BATCH, BANDS, TERMS))
    for b in range(BATCH):
        best = np.linalg.solve(*problem.dense(b))
        z[b], f[b][:, terms] = best[:LATENTS], best[LATENTS:].reshape(BANDS, -1)
    return z, f


def solve(system: NormalEquations, damping: float = 0.0, longest: float = 1e9) -> tuple[np.ndarray, ...]:
    """One damped step: latents [B, L], linear terms [B, C, Q], distance [B]."""
    factors = gauss_newton.factorise(system, tf.fill([BATCH], tf.constant(damping, tf.float64)))
    parts = gauss_newton.solve(factors, system.latent_gradient, system.linear_gradient, longest)
    return tuple(part.numpy() for part in parts)


every_use = pytest.mark.parametrize("used", [(1, 1, 1), (1, 0, 1), (1, 1, 0)])


@every_use
def test_one_step_solves_a_linear_problem(used: tuple[int, ...]) -> None:
    problem = Linear(used=used)
    z, f = problem.start()
    step, linear, distance = solve(problem.system(z, f))
    best_z, best_f = solution(problem)
    np.testing.assert_allclose(z + step, best_z, atol=2e-5)
    np.testing.assert_allclose(f + linear, best_f, atol=2e-5)
    # Half the squared distance is what the loss falls by.
    fall = problem.loss(z, f) - problem.loss(best_z, best_f)
    np.testing.assert_allclose(0.5 * distance**2, fall, rtol=1e-5)


def test_nothing_moves_at_the_maximum() -> None:
    problem = Linear()
    step, linear, distance = solve(problem.system(*solution(problem)))
    for value in (step, linear, distance):
        np.testing.assert_allclose(value, 0, atol=1e-6)


@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e3, 1e6])
def test_damped_steps_go_downhill(damping: float) -> None:
    problem = Linear()
    z, f = problem.start()
    step, linear, _ = solve(problem.system(z, f), damping)
    assert (problem.loss(z + step, f + linear) < problem.loss(z, f)).all()


@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e6])
def test_distance_does_not_depend_on_damping(damping: float) -> None:
    """It decides on convergence: a step held short by damping must not look like a short way to go."""
    system = Linear().system(*Linear().start())
    undamped, damped = (solve(system, value)[2] for value in (0, damping))
    np.testing.assert_allclose(damped, undamped, rtol=1e-6)


def test_no_latent_moves_further_than_allowed() -> None:
    problem = Linear()
    z, f = problem.start()
    system = problem.system(z + 50, f)
    step, linear, distance = solve(system, longest=0.5)
    np.testing.assert_allclose(np.abs(step).max(1), 0.5)
    whole, _, far = solve(system)
    np.testing.assert_allclose(step / np.abs(step).max(1, keepdims=True), whole / np.abs(whole).max(1, keepdims=True))
    np.testing.assert_array_equal(distance, far)
    moved = problem.system(z + 50 + step, f + linear)
    np.testing.assert_allclose(moved.linear_gradient, 0, atol=1e-2)  # the linear terms are at their best there


@every_use
def test_laplace_is_the_inverse_of_the_dense_curvature(used: tuple[int, ...]) -> None:
    problem = Linear(used=used)
    covariance = gauss_newton.laplace(problem.system(*problem.start()))
    terms = np.flatnonzero(used)
    for b in range(BATCH):
        dense = np.linalg.inv(problem.dense(b)[0])
        size = np.abs(np.diag(dense)).max()
        np.testing.assert_allclose(covariance.latent[b], dense[:LATENTS, :LATENTS], atol=1e-5 * size)
        linear = covariance.linear[b].numpy()[:, terms][:, :, :, terms].reshape(BANDS * len(terms), -1)
        np.testing.assert_allclose(linear, dense[LATENTS:, LATENTS:], atol=1e-5 * size)


class Bilinear:
    """y = sum_k f_k (T_k + sum_s z_ks D_ks) + b: two sources with two latents each, as `assemble` gets them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.images = tf.constant(rng.normal(size=(BATCH, BANDS, 2, 1, SIDE, SIDE)))
        self.slopes = tf.constant(rng.normal(size=(BATCH, BANDS, 2, 2, SIDE, SIDE)))
        self.data = tf.constant(5 * rng.normal(size=(BATCH, BANDS, SIDE, SIDE)))
        self.latent = tf.constant(rng.normal(size=(BATCH, 2, 2)))
        self.linear = tf.constant(rng.normal(size=(BATCH, BANDS, 3)))

    def unit(self, latent: tf.Tensor) -> tf.Tensor:
        return self.images[:, :, :, 0] + tf.einsum("bckspq,bks->bckpq", self.slopes, latent)

    def residual(self, latent: tf.Tensor, linear: tf.Tensor) -> tf.Tensor:
        model = tf.einsum("bckpq,bck->bcpq", self.unit(latent), linear[..., :2])
        return self.data - model - linear[..., 2, None, None]

    def assemble(self, bend: float = 0.0, used: tuple[int, ...] = (1, 1, 1), held: float = 0.0) -> NormalEquations:
        columns = tf.concat([self.slopes, self.unit(self.latent)[:, :, :, None]], 3)
        columns = tf.reshape(columns, [BATCH, BANDS, 6, SIDE, SIDE])
        columns = tf.concat([columns, tf.ones([BATCH, BANDS, 1, SIDE, SIDE], tf.float64)], 2)
        flat = tf.reshape(columns, [BATCH, BANDS, 7, -1])
        residual = tf.reshape(self.residual(self.latent, self.linear), [BATCH, BANDS, -1])
        normal = tf.matmul(flat, flat, transpose_b=True), tf.linalg.matvec(flat, residual)
        flux = tf.linalg.matrix_transpose(self.linear[..., :2])
        bends = tf.fill(self.latent.shape, tf.constant(bend, tf.float64))
        terms = tf.constant(np.tile(used, (BATCH, 1)), tf.float64)
        curvature = tf.fill([BATCH, BANDS, 3], tf.constant(held, tf.float64))
        return gauss_newton.assemble(*normal, flux, self.latent, bends, terms, curvature)

    def jacobian(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the residual by latents [B, N, L] and linear terms [B, N, C, Q]; the residual [B, N]."""
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([self.latent, self.linear])
            residual = tf.reshape(self.residual(self.latent, self.linear), [BATCH, -1])
        by_latent, by_linear = (tape.batch_jacobian(residual, x) for x in (self.latent, self.linear))
        return tf.reshape(by_latent, [BATCH, -1, 4]).numpy(), by_linear.numpy(), residual.numpy()


@every_use
def test_assembled_equations_are_those_of_the_loss(used: tuple[int, ...]) -> None:
    """Gradient and J^T J + 1 by automatic differentiation of half a chi-square plus half of |z|^2."""
    problem = Bilinear()
    system = problem.assemble(used=used)
    by_latent, by_linear, residual = problem.jacobian()
    by_linear = by_linear * np.array(used)
    gradient = np.einsum("bnl,bn->bl", by_latent, residual) + problem.latent.numpy().reshape(BATCH, 4)
    np.testing.assert_allclose(system.latent_gradient, gradient, rtol=1e-10)
    np.testing.assert_allclose(system.linear_gradient, np.einsum("bncq,bn->bcq", by_linear, residual), atol=1e-9)
    np.testing.assert_allclose(system.latent, np.einsum("bnl,bnm->blm", by_latent, by_latent) + np.eye(4), rtol=1e-10)
    np.testing.assert_allclose(system.mixed, np.einsum("bnl,bncq->bclq", by_latent, by_linear), atol=1e-9)
    own = np.einsum("bncq,bncr->bcqr", by_linear, by_linear) + np.diag(1.0 - np.array(used))
    np.testing.assert_allclose(system.linear, own, atol=2e-6 * own.max())


def test_bent_parameters_only_ever_stiffen_the_curvature() -> None:
    """The second derivative through the parametrisation is data gradient times bend, where that is positive."""
    problem = Bilinear()
    straight, bent = problem.assemble(), problem.assemble(bend=0.7)
    data_gradient = straight.latent_gradient.numpy() - problem.latent.numpy().reshape(BATCH, 4)
    added = (bent.latent - straight.latent).numpy()
    np.testing.assert_allclose(added, [np.diag(row) for row in np.maximum(0.7 * data_gradient, 0)], atol=1e-9)


def test_a_prior_on_linear_terms_adds_its_curvature() -> None:
    problem = Bilinear()
    added = (problem.assemble(held=0.3).linear - problem.assemble().linear).numpy()
    np.testing.assert_allclose(added, np.broadcast_to(0.3 * np.eye(3), added.shape), atol=1e-9)


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
    system = problem.system(z, f)
    step, linear, distance = solve(system)
    assert all(np.isfinite(part).all() for part in (step, linear, distance, *gauss_newton.laplace(system)))
    assert (problem.loss(z + step, f + linear) <= problem.loss(z, f) * (1 + 1e-9)).all()
