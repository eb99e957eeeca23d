"""Expectation-maximisation and held-out scores against the closed forms of Gaussian worlds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import tensorflow as tf

from tfdeblend import em
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene, Source
from tfdeblend.diffusion.conditioning import TO_THE_END
from tfdeblend.diffusion.gaussian import GaussianDenoiser
from tfdeblend.diffusion.initial import BlendProblem, InitialFit
from tfdeblend.diffusion.schedules import BlendSchedule
from tfdeblend.errors import DataError
from tfdeblend.forward.batch import Batch
from tfdeblend.forward.shapes import scene_shape
from tfdeblend.inference.diffusion_sampler import LEAST_NORM, SampleOptions

SIDE, RANK, SIGMA = 8, 3, 1.0
PIXELS = SIDE**2
SCALE = 20.0  # of the initial fits, in units of the noise
EXACT = SampleOptions(4, BlendSchedule(largest=30.0), solver=replace(TO_THE_END, max_steps=200), unknown_scale=None)


def moments(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """mu, C of galaxies at unit scale: a bump, a floor and RANK directions."""
    t = np.arange(SIDE) - SIDE // 2
    bump = np.exp(-(t[:, None] ** 2 + t**2) / 8).ravel()
    factor = bump * rng.standard_normal((RANK, PIXELS)) * 0.15
    return 0.25 * bump, factor.T @ factor + np.diag(0.01 * bump + 0.002)


@dataclass
class World:
    """Blends of two galaxies each, drawn from N(mu, C), with their matrices A and data y, whitened."""

    shard: em.Shard
    gram: np.ndarray  # (B, 2 PIXELS, 2 PIXELS): A^T A
    pulled: np.ndarray  # (B, 2 PIXELS): A^T y
    square: np.ndarray  # (B,): y^T y

    @classmethod
    def draw(cls, number: int, mu: np.ndarray, c: np.ndarray, rng: np.random.Generator) -> World:
        t = np.arange(-7, 8)
        psf = np.exp(-(t[:, None] ** 2 + t**2) / (2 * 1.7**2))
        scenes, root = [], np.linalg.cholesky(c)
        for index in range(number):
            first = rng.integers(12, 18, 2)
            places = [first, first + rng.permutation([4, rng.integers(-2, 3)])]
            blank = Observation(
                np.zeros((1, 32, 32)), np.ones((1, 32, 32)), psf[None] / psf.sum(), name=f"gaussian_{index}"
            )
            scenes.append(Scene(blank, tuple(Source(float(y), float(x)) for y, x in places)))
        shape = scene_shape(scenes[0], 16, SIGMA)._replace(blends=em.BLENDS, sources=2)
        a = np.stack([matrix(scene, shape) for scene in scenes])
        truth = mu + (rng.standard_normal((number, 2, PIXELS)) @ root.T)
        y = np.einsum("bni,bi->bn", a, truth.reshape(number, -1))
        y += rng.standard_normal(y.shape)
        seen = [
            Scene(Observation(y[i].reshape(1, 32, 32), blank.weights, blank.psf, name=scene.name), scene.sources)
            for i, scene in enumerate(scenes)
        ]
        gram, pulled = (
            np.stack([one.T @ one for one in a]),
            np.stack([one.T @ two for one, two in zip(a, y, strict=True)]),
        )
        return cls(em.Shard(tuple(seen), shape, initial_fits(seen, shape)), gram, pulled, (y**2).sum(1))

    def posteriors(self, mu: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (B, 2, PIXELS) and covariances (B, 2, PIXELS, PIXELS) of each source."""
        inverse, both = np.kron(np.eye(2), np.linalg.inv(c)), np.tile(mu, 2)
        s = np.linalg.inv(inverse + self.gram)
        m = (s @ (inverse @ both + self.pulled)[..., None])[..., 0]
        blocks = s.reshape(-1, 2, PIXELS, 2, PIXELS)
        return m.reshape(-1, 2, PIXELS), np.einsum("bkikj->bkij", blocks)

    def iteration(self, mu: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """mu' = mean m_j, C' = mean[S_j + (m_j - mu')(m_j - mu')^T], and the mean S_j."""
        m, s = (x.reshape(-1, *x.shape[2:]) for x in self.posteriors(mu, c))
        after = m.mean(0)
        return after, s.mean(0) + (m - after).T @ (m - after) / len(m), s.mean(0)

    def evidence(self, mu: np.ndarray, c: np.ndarray) -> float:
        """Of all blends, in nats, by what n - 2 PIXELS dimensions that A does not reach leave out of it."""
        s, m = np.kron(np.eye(2), c), np.tile(mu, 2)
        total = 0.0
        for gram, pulled, square in zip(self.gram, self.pulled, self.square, strict=True):
            left = pulled - gram @ m  # A^T (y - A m)
            inner = np.eye(len(s)) + s @ gram
            chi2 = square - m @ (pulled + left) - left @ np.linalg.solve(inner, s @ left)
            total -= 0.5 * chi2 + 0.5 * np.linalg.slogdet(inner)[1]
        return total


def initial_fits(scenes: list[Scene], shape) -> InitialFit:
    """Of norm SCALE, at the sources' whole pixels, which are taken to be right."""
    number, q = len(scenes), shape.stamp
    batch = Batch.build(scenes, shape._replace(blends=number))
    offset = np.round(batch.tensors.centers.numpy()).astype(int)
    stamps = np.zeros((number, 2, 1, q, q), np.float32)
    for b in range(number):
        for k in range(2):
            stamps[b, k, 0, q // 2 + offset[b, k, 0], q // 2 + offset[b, k, 1]] = SCALE
    nothing = np.zeros((number, 2, 2, 2), np.float32)
    return InitialFit(stamps, stamps.sum((3, 4)), offset.astype(np.float32), nothing)


def matrix(scene: Scene, shape) -> np.ndarray:
    """(n, 2 PIXELS): the operator that samplers see, one unit vector after another."""
    many = shape._replace(blends=2 * PIXELS)
    one = Batch.build([scene], shape._replace(blends=1)).tensors, initial_fits([scene], shape)
    tensors, fit = tf.nest.map_structure(lambda t: tf.repeat(tf.constant(t), 2 * PIXELS, 0), one)
    problem = BlendProblem(tensors, many, fit, SIDE, LEAST_NORM)
    unit = tf.constant(np.eye(2 * PIXELS, dtype=np.float32).reshape(-1, 2, 1, SIDE, SIDE))
    seen = problem.operator.forward(unit)
    return seen.numpy().reshape(2 * PIXELS, -1).T.astype(float)


def denoiser(mu: np.ndarray, c: np.ndarray, rank: int) -> GaussianDenoiser:
    """The best diagonal and factor: c is of that kind."""
    values, vectors = np.linalg.eigh(c - np.diag(np.full(PIXELS, np.linalg.eigvalsh(c)[0] * 0.9)))
    factor = (np.sqrt(np.maximum(values[-rank:], 0)) * vectors[:, -rank:]).T
    diagonal = np.maximum(np.diag(c) - (factor**2).sum(0), 1e-4)
    parts = (x.astype(np.float32).reshape(-1, 1, SIDE, SIDE) for x in (mu, diagonal, factor))
    mean, diagonal, factor = parts
    return GaussianDenoiser(mean[0], diagonal[0], factor, model_sigma=SIGMA)


def dense(prior: GaussianDenoiser) -> tuple[np.ndarray, np.ndarray]:
    rows = np.reshape(prior.prior.factor, (-1, PIXELS)).astype(float)
    return np.ravel(prior.mean).astype(float), np.diag(np.ravel(prior.prior.diagonal)).astype(float) + rows.T @ rows


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    return World.draw(48, *moments(rng), rng)


@pytest.fixture(scope="module")
def expectation() -> em.Expectation:
    """Compiled once; every test brings its own prior of rank RANK."""
    return em.Expectation(denoiser(*moments(np.random.default_rng(0)), RANK), EXACT)


def test_closed_form_iterations_never_lower_the_evidence(world: World):
    mu, c = np.full(PIXELS, 0.1), 0.02 * np.eye(PIXELS)
    values = [world.evidence(mu, c)]
    for _ in range(6):
        mu, c, _ = world.iteration(mu, c)
        values.append(world.evidence(mu, c))
    assert (np.diff(values) > 0).all()


def test_the_samples_are_the_closed_form_iteration(world: World, expectation: em.Expectation):
    """The E-step's moments are mu' and C' to their Monte Carlo error, from a prior that is wrong."""
    prior = denoiser(np.full(PIXELS, 0.1), 0.02 * np.eye(PIXELS), RANK)
    expectation.use(prior)
    found = [drawn.unit[: len(rows), :, 0] for rows, drawn in expectation.draw(world.shard, 8, 1)]
    x = np.concatenate(found).reshape(-1, PIXELS).astype(float)
    mu, c, s = world.iteration(*dense(prior))
    assert len(x) == 48 * 8 * 2
    z = (x.mean(0) - mu) / np.sqrt(np.diag(s) / len(x))
    assert np.abs(z).max() < 4.5 and z.std() < 1.3
    moved = ((x - mu) ** 2).mean(0)
    # A pixel's squares scatter by what is drawn about the means: var = 2 s^2 + 4 s (m - mu)^2, on average.
    error = np.sqrt(4 * np.diag(s) * np.diag(c) / len(x))
    assert np.abs((moved - np.diag(c)) / error).max() < 4.5


def test_iterations_of_a_gaussian_prior_raise_the_evidence(world: World, expectation: em.Expectation):
    """By factor analysis of samples: the evidence falls by no more than their noise, and nears the closed form's."""
    prior = denoiser(np.full(PIXELS, 0.1), 0.02 * np.eye(PIXELS), RANK)
    expectation.use(prior)
    mu, c = dense(prior)
    values = [world.evidence(mu, c)]
    for iteration in range(6):
        drawn = [d.unit[: len(rows), :, 0] for rows, d in expectation.draw(world.shard, 4, iteration)]
        images = np.concatenate(drawn).reshape(-1, 1, SIDE, SIDE)
        prior = GaussianDenoiser.fit(images, RANK, em.FACTOR_ITERATIONS)
        expectation.use(prior)
        values.append(world.evidence(*dense(prior)))
        mu, c, _ = world.iteration(mu, c)
    exact = world.evidence(mu, c)
    noise = 0.5 * PIXELS * (RANK + 2) / 4  # half a nat a parameter, over the samples of a source
    assert (np.diff(values) > -noise).all()
    assert values[-1] > values[0] + 0.7 * (exact - values[0])


def test_an_iteration_is_a_function_of_prior_shard_and_seed(world: World, expectation: em.Expectation, tmp_path):
    expectation.use(denoiser(*moments(np.random.default_rng(0)), RANK))
    first = expectation.stamps(world.shard, 1, 5)
    world.shard.write(tmp_path / "shard.npz")
    again = em.Shard.read(tmp_path / "shard.npz", {scene.name: scene for scene in world.shard.scenes})
    assert again.shape == world.shard.shape
    second, other = (expectation.stamps(shard, 1, seed) for shard, seed in ((again, 5), (world.shard, 6)))
    np.testing.assert_allclose(second.images, first.images, atol=1e-6)
    assert np.abs(other.images - first.images).max() > 0.01
    np.testing.assert_allclose((first.images**2).sum((1, 2, 3)), 1, rtol=1e-5)
    assert len(expectation.stamps(world.shard, 1, 5, least_signal=2 * SCALE).images) == 0


def test_thinned_halves_are_independent():
    """y + n' and y - n': uncorrelated noise, of twice the variance."""
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.5, 2, (1, 96, 96)) * (rng.uniform(size=(1, 96, 96)) > 0.1)
    images = np.where(weights > 0, rng.standard_normal(weights.shape) / np.sqrt(np.maximum(weights, 1e-9)), 0)
    psf = np.ones((1, 3, 3)) / 9
    scene = Scene(Observation(images, weights, psf, name="noise"), (Source(5.0, 5.0),))
    thinned = em.thin(scene, 0)
    valid = weights > 0
    seen = thinned.scene.observation
    one, two = ((x * np.sqrt(seen.weights))[valid] for x in (seen.images, thinned.images))
    assert np.std(one) == pytest.approx(1, abs=0.03) and np.std(two) == pytest.approx(1, abs=0.03)
    assert np.corrcoef(one, two)[0, 1] == pytest.approx(0, abs=4 / np.sqrt(valid.sum()))
    assert (seen.weights[~valid] == 0).all()
    np.testing.assert_array_equal(em.thin(scene, 0).images, thinned.images)


def ensemble(sources: int, spread: float, shift: float, number: int, samples: int) -> np.ndarray:
    """(number, 3) scores of blends whose galaxies' fluxes are Gaussian, by samples whose deviations are off by a factor
    `spread` and whose means by `shift` deviations."""
    rng = np.random.default_rng(3)
    y, x = np.indices((24, 24))
    places = [(8, 8), (15, 14)][:sources]
    shapes = np.stack([np.exp(-((y - p) ** 2 + (x - q) ** 2) / 12.0) for p, q in places])
    scores = []
    for index in range(number):
        truth, told = rng.standard_normal((2, sources))
        drawn = told + spread * rng.standard_normal((samples, sources)) + shift
        true, models = (3 * np.tensordot(f - told, shapes, 1)[..., None, :, :] for f in (truth + told, drawn))
        images = true + rng.standard_normal((1, 24, 24))
        blank = Observation(np.zeros((1, 24, 24)), np.ones((1, 24, 24)), np.ones((1, 3, 3)) / 9, name=f"{index}")
        scene = Scene(blank, tuple(Source(float(p), float(q)) for p, q in places))
        scores.append(em.evaluate(scene, images, models, 0)[:3])
    return np.array(scores)


@pytest.mark.parametrize("samples", [6, 16])
def test_the_right_posterior_scores_best(samples: int):
    """Of samples that scatter too little or too much, or are off; and error and spread are alike if all is right."""
    right = ensemble(2, 1.0, 0.0, 400, samples)
    for spread, shift in ((0.5, 0.0), (2.0, 0.0), (1.0, 0.7)):
        wrong = ensemble(2, spread, shift, 400, samples)
        gain = right[:, 0] - wrong[:, 0]
        assert gain.mean() > 3 * gain.std() / 20
    _, error, variance = right.mean(0)
    assert error == pytest.approx(variance, rel=0.15)
    assert ensemble(2, 0.5, 0.0, 400, samples)[:, 2].mean() < 0.35 * error


def test_log_gaussian_has_no_bias():
    """Its mean over samples of any number is the density itself."""
    rng = np.random.default_rng(5)
    truth = 0.7
    for number in (8, 32):
        samples = 2 + 1.5 * rng.standard_normal((number, 100000))
        found = em.log_gaussian(np.full(samples.shape[1], truth), samples)
        exact = -0.5 * ((truth - 2) / 1.5) ** 2 - np.log(1.5) - 0.5 * np.log(2 * np.pi)
        assert found.mean() == pytest.approx(exact, abs=4 * found.std() / 316)


def test_samples_score_by_the_shard(world: World, expectation: em.Expectation):
    """What `score` tells of a Gaussian world under its own prior is calibrated."""
    thinned = [em.thin(scene, 3) for scene in world.shard.scenes]
    scenes = [one.scene for one in thinned]
    halves = {scene.name: one.images for scene, one in zip(scenes, thinned, strict=True)}
    shard = em.Shard(tuple(scenes), world.shard.shape, world.shard.initial)
    expectation.use(denoiser(*moments(np.random.default_rng(0)), RANK))
    found = {scene.name: one[:4] for scene, one in em.score(expectation, shard, halves, 8, 0)}
    values = np.array(list(found.values()))
    assert len(found) == len(scenes)
    error, spread = values[:, 1].mean(), values[:, 2].mean()
    assert error == pytest.approx(spread, abs=4 * values[:, 1].std() / np.sqrt(len(values)))
    assert values[:, 0].mean() < 0
    pixels = scenes[0].observation.valid.sum()
    assert values[:, 3].mean() == pytest.approx(1, abs=4 * np.sqrt(2 / pixels / len(values)))


def test_initial_stamps_are_centred_as_samples_are(world: World):
    """The initial fits are single pixels, wherever in their stamps: at unit norm in the middle."""
    found = em.initial_stamps(world.shard, SIDE)
    expected = np.zeros((1, SIDE, SIDE))
    expected[0, SIDE // 2, SIDE // 2] = 1
    np.testing.assert_allclose(found, np.broadcast_to(expected, (96, 1, SIDE, SIDE)), atol=1e-6)
    assert len(em.initial_stamps(world.shard, SIDE, 2 * SCALE)) == 0


def test_an_iteration_of_a_gaussian_prior_by_unit_stamps(world: World, expectation: em.Expectation):
    """`gaussian_iteration` moves a wrong mean towards the galaxies', and keeps the prior's rank."""
    mu, _ = moments(np.random.default_rng(0))
    expectation.use(denoiser(np.full(PIXELS, 0.1), 0.02 * np.eye(PIXELS), RANK))
    em.gaussian_iteration(expectation, [world.shard], 0)
    prior = expectation.denoiser
    assert isinstance(prior, GaussianDenoiser)
    unit = mu / np.linalg.norm(mu)
    mean = np.ravel(prior.mean)
    assert prior.rank == RANK
    assert mean @ unit / np.linalg.norm(mean) > 0.9 > np.full(PIXELS, 0.1) @ unit / 0.8
    with pytest.raises(DataError, match="expected at least 6 galaxies"):
        em.fit_gaussian(np.zeros((3, 1, SIDE, SIDE)), prior, 0, RANK)


def test_an_empty_file_of_samples_is_no_stamps(tmp_path):
    em.Stamps(np.zeros((0, 1, 8, 8), np.float32), np.array([], str), np.array([], int)).write(tmp_path / "a.tfrecord")
    with pytest.raises(FileNotFoundError, match="found none"):
        from tfdeblend.training.datasets import read_stamps

        read_stamps(tmp_path)


def test_bands_are_selected_or_refused():
    observation = Observation(np.ones((3, 8, 8)), np.ones((3, 8, 8)), np.ones((3, 3, 3)) / 9, ("g", "r", "i"))
    assert observation.select(["i", "g"]).bands == ("i", "g")
    with pytest.raises(DataError, match="expected some of g, r, i, received z"):
        observation.select(["z"])
