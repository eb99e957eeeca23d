"""Adam on many problems at once: each goes its own way, and the best that it saw is what it returns. Fits by it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from simulations import Galaxy, simulate

from tfdeblend.app.cli import build_parser
from tfdeblend.app.commands import make_deblender
from tfdeblend.catalog import measure
from tfdeblend.deblender import Deblender
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.galaxies.priors import ExponentialPrior
from tfdeblend.inference.map_fit import MapFit, MapOptions
from tfdeblend.linalg.solvers import AdamSolver, BatchedAdam, Objective

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


def test_linear_problems() -> None:
    """x = S^-1 b, of each system as alone."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 6, 6))
    matrices, right = np.eye(6) + root @ root.transpose(0, 2, 1), rng.normal(size=(3, 6))

    def solve(rows: slice) -> np.ndarray:
        solver = AdamSolver([len(right[rows]), 6], dtype=tf.float64)
        system = tf.constant(matrices[rows])
        run = tf.function(lambda b: solver.solve(lambda x: tf.linalg.matvec(system, x), b))
        return run(tf.constant(right[rows])).numpy()

    together = solve(slice(3))
    np.testing.assert_allclose(together, np.linalg.solve(matrices, right[..., None])[..., 0], atol=2e-3)
    np.testing.assert_allclose(solve(slice(1, 2))[0], together[1], rtol=1e-12)


# -- fits

CROWD = (
    Galaxy(12.3, 12.2, (40000, 60000), 1.0, 0.5, (0.2, 0.1)),
    Galaxy(17.6, 20.4, (300, 250), 1.0, 0.4, (-0.1, 0.2)),
    Galaxy(21.1, 10.7, (1500, 500), 2.5, 0.4),
)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_adam_and_newton_end_at_one_maximum(dtype: tf.DType) -> None:
    """To a small part of the errors, bright and faint sources alike, beside any blend; errors are the same."""
    scenes = [simulate()[0], simulate(CROWD, seed=1)[0]]
    shape = scene_shape(scenes[0], 32)._replace(blends=2)
    batch = Batch.build(scenes, shape, dtype)
    prior = ExponentialPrior(shape.bands, dtype=dtype)
    by_newton, by_adam = (MapFit(prior, shape, MapOptions(optimizer=name)) for name in ("newton", "adam"))
    newton, adam = by_newton(batch.tensors), by_adam(batch.tensors)
    other = by_adam(Batch.build([scenes[1], scenes[1]], shape, dtype).tensors)
    errors = np.sqrt(np.einsum("bckck->bkc", newton.covariance.linear))[:, :3]
    assert (adam.distance.numpy() <= 0.03).all() and (adam.steps.numpy() > newton.steps.numpy()).all()
    assert (np.abs(adam.state.flux - newton.state.flux)[:, :3] < 0.03 * errors).all()
    assert (np.abs(other.state.flux - adam.state.flux[1])[:, :3] < 0.03 * errors[1]).all()
    again = np.sqrt(np.einsum("bckck->bkc", adam.covariance.linear))[:, :3]
    np.testing.assert_allclose(again, errors, rtol=1e-2)


@pytest.mark.slow
def test_a_fit_that_adam_leaves_short_says_so() -> None:
    scene, _ = simulate()
    short = Deblender("exponential", options=MapOptions(rounds=1, optimizer="adam")).deblend(scene)
    assert short.header["optimize"] == "adam" and not short.header["converged"]
    assert (np.asarray(short.catalog["flags"]) & measure.NOT_CONVERGED).all()


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer: expected one of newton, adam, received 'sgd'"):
        MapOptions(optimizer="sgd")


def test_the_command_line_takes_the_optimizer() -> None:
    args = build_parser().parse_args(["deblend", "x", "--out", "y", "--prior", "sersic", "--optimizer", "adam"])
    made = make_deblender(args)
    assert isinstance(made, Deblender) and made.options == MapOptions(optimizer="adam")
