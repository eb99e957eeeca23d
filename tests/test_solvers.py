"""Solvers of many systems at once, against dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.linalg.solvers import GMRES, ConjugateGradients

BATCH, SIZE = 3, 12


def systems(symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """S [B, n, n], ever worse conditioned, and b [B, n]."""
    rng = np.random.default_rng(0)
    s = rng.standard_normal((BATCH, SIZE, SIZE)) * np.array([0.1, 0.3, 1.0])[:, None, None]
    return np.eye(SIZE) + (s @ s.swapaxes(1, 2) if symmetric else s), rng.standard_normal((BATCH, SIZE))


@pytest.mark.parametrize("solver", [ConjugateGradients(max_steps=100), GMRES(max_steps=SIZE)])
def test_solutions_are_those_of_dense_matrices(solver: ConjugateGradients | GMRES):
    s, right = systems(isinstance(solver, ConjugateGradients))
    found = solver.solve(lambda x: tf.linalg.matvec(s, x), tf.constant(right))
    np.testing.assert_allclose(found, np.linalg.solve(s, right[..., None])[..., 0], atol=1e-9)


def test_a_system_is_done_whatever_its_neighbours_do():
    s, right = systems(symmetric=True)
    solver = ConjugateGradients(rtol=1e-2)
    together = solver.solve(lambda x: tf.linalg.matvec(s, x), tf.constant(right))
    for i in range(BATCH):
        alone = solver.solve(lambda x, i=i: tf.linalg.matvec(s[i : i + 1], x), tf.constant(right[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-12)
        residual = np.linalg.norm(s[i] @ together[i].numpy() - right[i])
        assert 1e-9 < residual / np.linalg.norm(right[i]) < 1e-2


def test_a_solve_that_is_cut_short_leaves_less_the_longer_it_takes():
    s, right = systems(symmetric=False)
    left = []
    for steps in range(1, 6):
        x = GMRES(steps).solve(lambda x: tf.linalg.matvec(s, x), tf.constant(right)).numpy()
        left.append(np.linalg.norm(np.einsum("bij,bj->bi", s, x) - right, axis=1))
    assert (np.diff(left, axis=0) < 1e-12).all()
