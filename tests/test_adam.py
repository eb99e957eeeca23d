"""Adam on many problems at once: each goes its own way, and the best that it saw is what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend.linalg.solvers import BatchedAdam, Objective

CENTERS = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 4.0], [0.2, 0.1, -0.1]])


def quadratic(centers: np.ndarray) -> Objective:
    """Half a chi-square with its minimum, 0, at `centers` [B, 3]."""

    def objective(values: list[tf.Tensor]) -> tf.Tensor:
        return 0.5 * tf.reduce_sum((values[0] - centers) ** 2, 1)

    return objective


def rosenbrock(values: list[tf.Tensor]) -> tf.Tensor:
    x, y = values[0][:, 0], values[0][:, 1]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def minimize(objective: Objective, start: np.ndarray, steps: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """(variables, steps taken), in a compiled graph as the fits do."""
    first = tf.constant(start, tf.float64)
    adam = BatchedAdam([first.shape], steps, dtype=tf.float64, **options)  # type: ignore[arg-type]
    (best,), taken = tf.function(lambda value: adam.minimize(objective, [value]))(first)
    return best.numpy(), taken.numpy()


def test_quadratics() -> None:
    best, taken = minimize(quadratic(CENTERS), np.zeros((4, 3)), 400, tolerance=1e-3)
    np.testing.assert_allclose(best, CENTERS, atol=1e-3)
    assert taken[1] == 0  # started at its minimum
    assert (taken[[0, 2, 3]] > 5).all()


def test_rosenbrock_valley() -> None:
    starts = np.array([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0], [1.0, 1.0]])
    best, taken = minimize(rosenbrock, starts, 4000, learning_rate=0.05, tolerance=1e-4)
    np.testing.assert_allclose(best, 1, atol=0.02)
    assert taken[3] == 0


def test_problems_do_not_see_their_neighbours() -> None:
    """Alone, in any order, and beside problems that blow up, a problem takes the same way to the last bit."""
    starts = np.array([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0]])
    together, taken = minimize(rosenbrock, starts, 50)
    for row in range(3):
        alone, alone_taken = minimize(rosenbrock, starts[row : row + 1], 50)
        np.testing.assert_array_equal(alone[0], together[row])
        assert alone_taken[0] == taken[row]

    def broken(values: list[tf.Tensor]) -> tf.Tensor:
        return rosenbrock(values) * tf.constant([1.0, np.nan, 1.0], tf.float64)

    beside, _ = minimize(broken, starts[[0, 1, 2]], 50)
    np.testing.assert_array_equal(beside[[0, 2]], together[[0, 2]])
    reordered, _ = minimize(rosenbrock, starts[::-1], 50)
    np.testing.assert_array_equal(reordered[::-1], together)


@pytest.mark.parametrize("rate", [0.01, 0.5, 30.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_best_iterate_is_kept(steps: int, rate: float) -> None:
    """However wild the steps, the result is the best point at which the objective was evaluated."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def record(x: np.ndarray, value: np.ndarray) -> np.ndarray:
        seen.append((x.copy(), value.copy()))
        return value

    def objective(values: list[tf.Tensor]) -> tf.Tensor:
        value = rosenbrock(values)
        with tf.control_dependencies([tf.numpy_function(record, [values[0], value], tf.float64)]):
            return tf.identity(value)

    best, _ = minimize(objective, np.array([[-1.2, 1.0], [0.0, 3.0]]), steps, learning_rate=rate)
    for row in range(2):
        values = [value[row] for _, value in seen]
        np.testing.assert_array_equal(best[row], seen[int(np.argmin(values))][0][row])
        assert values[0] >= min(values)


@pytest.mark.parametrize("behind", [np.nan, np.inf, -np.inf])
def test_non_finite_objectives_are_never_returned(behind: float) -> None:
    """A cliff behind which the objective is not finite: the result stays in front of it."""

    def cliff(values: list[tf.Tensor]) -> tf.Tensor:
        x = values[0][:, 0]
        return tf.where(x > 0.95, tf.constant(behind, tf.float64), (x - 1) ** 2)

    stuck, taken = minimize(cliff, np.full((3, 1), 2.0), 100)
    np.testing.assert_array_equal(stuck, 2.0)
    np.testing.assert_array_equal(taken, 0)
    best, taken = minimize(cliff, np.zeros((3, 1)), 100, tolerance=1e-6)
    assert ((best > 0.5) & (best <= 0.95)).all()
    assert (taken < 100).all()


def test_converged_problems_are_frozen() -> None:
    """A problem within its tolerance stays where it is while the others go on; counts say so."""
    start = CENTERS + np.array([[5e-3], [0.0], [1.0], [0.5]])
    best, taken = minimize(quadratic(CENTERS), start, 300, tolerance=1e-2)
    np.testing.assert_array_equal(best[:2], start[:2])
    np.testing.assert_array_equal(taken[:2], 0)
    assert (np.abs(best[2:] - CENTERS[2:]) <= 1e-2).all()
    assert (taken[2:] > 0).all() and (taken[2:] < 300).all()


def test_a_second_run_starts_afresh() -> None:
    adam = BatchedAdam([[4, 3]], 30, dtype=tf.float64)
    run = tf.function(lambda start: adam.minimize(quadratic(CENTERS), [start])[0][0])
    first = run(tf.ones([4, 3], tf.float64)).numpy()
    run(tf.fill([4, 3], tf.constant(-7.0, tf.float64)))
    np.testing.assert_array_equal(run(tf.ones([4, 3], tf.float64)), first)


def test_several_variables_of_any_rank() -> None:
    targets = [np.full((2, 3, 4), 0.5), np.array([1.0, -1.0])]

    def objective(values: list[tf.Tensor]) -> tf.Tensor:
        first = 0.5 * tf.reduce_sum((values[0] - targets[0]) ** 2, [1, 2])
        return first + 0.5 * (values[1] - targets[1]) ** 2

    adam = BatchedAdam([[2, 3, 4], [2]], 300, tolerance=1e-4, dtype=tf.float64)
    start = [tf.zeros([2, 3, 4], tf.float64), tf.zeros([2], tf.float64)]
    best, _ = tf.function(lambda: adam.minimize(objective, start))()
    for value, target in zip(best, targets, strict=True):
        np.testing.assert_allclose(value, target, atol=1e-3)
