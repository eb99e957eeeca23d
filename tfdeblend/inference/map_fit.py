"""The MAP of closed-form galaxies for a batch of blends, by Newton or by Adam, whose curvature gives errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdeblend.forward.batch import OF_PIXELS, OF_SOURCES, ExposureTensors, Tensors
from tfdeblend.forward.likelihood import Images, Likelihood, with_constants
from tfdeblend.forward.shapes import BatchShape
from tfdeblend.galaxies import normal_equations
from tfdeblend.galaxies.normal_equations import Laplace, NormalEquations
from tfdeblend.galaxies.posterior import GalaxyPosterior, MapState
from tfdeblend.galaxies.priors import GalaxyPrior
from tfdeblend.inference.adam import AdamOptions, AdamSteps
from tfdeblend.linalg.operator import shape_of

OPTIMIZERS = ("newton", "adam")
# How far a latent may move in one step, in standard deviations of its prior.
FIRST_RADIUS, WIDEST_RADIUS = 0.5, 4.0
# The prior of the latents is first multiplied by so much, and softened by the factor whenever the maximum is within so
# many standard deviations, times the misfit. Under a stiff prior there is one maximum, and what grows out of it is the
# same from wherever a fit starts: of 227 sources in CatSim blends, 91% end within 0.1 sigma of one another without, and
# all with.
STIFFEST, SOFTENING, SETTLED = 1024.0, 32.0, 5.0  # powers of two, so that the softest is 1 to the last bit
CONVERGED = 0.3  # standard deviations to the maximum, over all parameters together, within which a fit counts as done
STALLED = 10.0  # tolerances: a fit ends with a round that gains less than a step of this length would
# A step is tried again at the length where its parabola has its minimum, if that is so many times its own or a fraction
# of it: SHORTEST to LONGEST.
RESCALED, SHORTEST, LONGEST = 2.0, 0.1, 30.0
AS_SAID = 0.4  # of the slope: a fall of the loss as predicted; a full step to a minimum falls by half of it


@dataclass(frozen=True)
class MapOptions:
    """Sets how the maximum is climbed to, and what its errors allow for.

    Args:
        rounds: at most so many times the curvature is computed, and `steps` Newton steps are taken with it. Trials of
            stars and fits with larger stamps have rounds of their own.
        tolerance: a blend has converged when Newton's next step would move no flux by more than this many of its
            errors, and all parameters together by less than CONVERGED standard deviations, or when a round gains
            nothing; by Adam, when it is within this many standard deviations of the maximum.
        model_error: of the data's brightness, as a fraction: no galaxy is a Sersic profile to the precision of a bright
            one's pixels, and without it the misfit of a bright galaxy outweighs the faint neighbour. Part of the
            weights that the fit and its errors use.
        profile_error: of a galaxy's flux, as a fraction, which its profile does not know: light of clumps and wings
            that no Sersic profile has. Added to the errors of a maximum's fluxes, not to those of samples; points have
            none.
        optimizer: "newton", or "adam": Keras' Adam in as many rounds, by `adam`, to the same maximum; under a learned
            prior it solves each noise level's problem, too. Non-parametric images are fitted by Adam in any case.
    """

    rounds: int = 30
    steps: int = 3
    tolerance: float = 0.02
    model_error: float = 0.01
    profile_error: float = 0.03
    optimizer: str = "newton"
    adam: AdamOptions = field(default_factory=AdamOptions)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, received {self.optimizer!r}")


class MapResult(NamedTuple):
    """What a fit found, as tensors, in whitened units.

    state: see MapState. models: of each exposure [B, C_e, S_e, S_e], constants included; constants: of each [B, C_e].
    sources: of each [B, K, C_e, S_e, S_e] as observed. stamps [B, K, C, P, P]. chi2 [B]. distance [B] to the maximum in
    standard deviations. steps [B]. stiffness [B] of the latents' prior where it stopped; unfinished [B]: for want of
    rounds. covariance: the Laplace approximation. summary [B, K, 5] and its covariance
    [B, K, 5, 5]: see `GalaxyPrior.summary`. beyond_prior [B, K]: galaxies that a learned prior, if there was one, could
    not know.
    """

    state: MapState
    models: Images
    constants: Images
    sources: Images
    stamps: tf.Tensor
    chi2: tf.Tensor
    distance: tf.Tensor
    steps: tf.Tensor
    stiffness: tf.Tensor
    unfinished: tf.Tensor
    covariance: Laplace
    summary: tf.Tensor
    summary_covariance: tf.Tensor
    beyond_prior: tf.Tensor


def seen(likelihood: Likelihood, stamps: tf.Tensor, model: Images) -> dict[str, Any]:
    """What a `MapResult` says of stamps in flux [B, K, C, P, P] that give a model without constants."""
    constants = likelihood.constants(model)
    return {
        "models": with_constants(model, constants),
        "constants": constants,
        "sources": likelihood.sources(stamps),
        "stamps": stamps,
        "chi2": likelihood.chi2(model),
    }


class Progress(NamedTuple):
    """Where the rounds of B blends stand.

    radius: [B] of the trust region. distance: [B] see `MapResult`. stiffness: [B] see `GalaxyPosterior`. steps: [B].
    active: [B] not done yet. system: the curvature at `state`.
    """

    state: MapState
    radius: tf.Tensor
    distance: tf.Tensor
    stiffness: tf.Tensor
    steps: tf.Tensor
    active: tf.Tensor
    system: NormalEquations


class Trial(NamedTuple):
    """A move that a step may make: the images where it leads, by how much the loss rises [B], and how far the latents
    move at most [B]."""

    move: MapState
    model: Images
    rise: tf.Tensor
    length: tf.Tensor


class MapFit:
    """The fit for one batch shape. Make it once, call it for every batch of that shape.

    Maximises log p(y | z, flux) + log p(z): see `GalaxyPosterior`. It is compiled at its first call. By Newton's method
    one graph serves batches of any number of blends, and, of one exposure, of any number of sources and pixels: see
    `graph_shape` and `of`.
    """

    def __init__(self, prior: GalaxyPrior, shape: BatchShape, options: MapOptions = MapOptions()):
        self.prior, self.shape, self.options = prior, shape, options
        self._adam = AdamSteps(prior, shape, options.adam) if options.optimizer == "adam" else None
        self._run = tf.function(self._fit, autograph=False)
        self._start = tf.function(prior.start, autograph=False)
        self._graph: list[Callable[..., MapResult]] = []  # one, after the first call, which copies of `of` share

    def of(self, shape: BatchShape) -> MapFit:
        """Make the same fit, with the same graph, for batches of another shape of the same `graph_shape`.

        Raises: ValueError for another.
        """
        if graph_shape(shape, self.options) != graph_shape(self.shape, self.options):
            raise ValueError(f"shape: expected one of the same graph as {self.shape}, received {shape}")
        other = copy.copy(self)
        other.shape = shape
        return other

    def first_latents(self, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Latents [B, K, S] to start from, by the `moments` of each scene.

        Each scene's are computed alone, in a graph of one shape, so that they do not depend on the others.
        """
        count, dtype = self.shape.sources, self.prior.dtype.as_numpy_dtype
        start = np.zeros((self.shape.blends, count, self.prior.size), dtype)
        for row, (radius, ellipticity) in enumerate(found):
            missing = (0, count - len(radius))
            padded = np.pad(radius, missing, constant_values=1), np.pad(ellipticity, (missing, (0, 0)))
            guess = self._start(*(tf.constant(part, self.prior.dtype) for part in padded)).numpy()[: len(radius)]
            start[row, : len(radius)] = np.where(np.isfinite(guess), guess, 0)
        return start

    def __call__(
        self,
        tensors: Tensors,
        start: np.ndarray | tf.Tensor | None = None,
        stiffness: tf.Tensor | None = None,
        rounds: int | None = None,
    ) -> MapResult:
        """Fits blends of this fit's shape.

        Args:
          start: latents [B, K, S] to start from; None: the prior's centre. Fluxes need no start: they are linear.
          stiffness: [B] of the latents' prior to begin with, 1 near the maximum; None: as stiff as it gets.
          rounds: at most so many; None: as many as the options say.
        """
        if start is None:
            start = tf.zeros([self.shape.blends, self.shape.sources, self.prior.size], self.prior.dtype)
        if stiffness is None:
            stiffness = tf.fill([self.shape.blends], tf.constant(STIFFEST, self.prior.dtype))
        most = tf.constant(self.options.rounds if rounds is None else rounds)
        arguments = tensors, tf.cast(start, self.prior.dtype), stiffness, most
        if not tf.executing_eagerly():
            return self._within_graph(*arguments)
        if not self._graph:
            self._graph.append(self._run.get_concrete_function(*self._specs(*arguments)))
        return self._graph[0](*arguments, self.sides)

    def _within_graph(self, *arguments: Any) -> MapResult:
        """Fit within another graph, which fixes all sizes but, by Newton, the number of blends."""
        free = [None] if self._adam is None else []
        specs = tf.nest.map_structure(
            lambda x: tf.TensorSpec([*free, *x.shape[len(free) :]] if len(x.shape) else [], x.dtype), arguments
        )

        def fit(tensors: Tensors, first: tf.Tensor, stiffness: tf.Tensor, rounds: tf.Tensor) -> MapResult:
            return self._fit(tensors, first, stiffness, rounds, None)

        run = tf.function(fit, autograph=False)
        found = run.get_concrete_function(*specs)(*arguments)
        tensors: Tensors = arguments[0]
        for tensor in tf.nest.flatten(found):
            tensor.set_shape([tensors.is_source.shape[0], *tensor.shape[1:]])
        return found

    @property
    def sides(self) -> tf.Tensor:
        """[4]: pixels of frame, margin, FFTs and stamps, for a graph that serves any; see `with_sides`."""
        return tf.constant([self.shape.frame, self.shape.margin, self.shape.fourier, self.shape.stamp])

    def _specs(self, tensors: Tensors, start: tf.Tensor, stiffness: tf.Tensor, most: tf.Tensor) -> tuple[Any, ...]:
        """Give the specs of the graph's arguments, `sides` last, which leave free what `graph_shape` does."""
        fixed = graph_shape(self.shape, self.options)
        blends, sources, pixels = (not number for number in (fixed.blends, fixed.sources, fixed.frame))

        def spec(tensor: tf.Tensor, *free: bool) -> tf.TensorSpec:
            """Give the spec of a tensor, of which some of the first axes are free."""
            flags = (*free, *[False] * len(tensor.shape))[: len(tensor.shape)]
            lengths = zip(tensor.shape, flags, strict=True)
            return tf.TensorSpec([None if open_ else length for length, open_ in lengths], tensor.dtype)

        def exposure_spec(one: ExposureTensors) -> ExposureTensors:
            image = {name: spec(getattr(one, name), blends, False, pixels, pixels) for name in OF_PIXELS}
            whitening = spec(one.whitening, blends, False, False, pixels, pixels)
            return one._replace(
                **image, whitening=whitening, points=spec(one.points, blends), gain=spec(one.gain, blends)
            )

        given = tensors._replace(
            exposures=tuple(exposure_spec(one) for one in tensors.exposures),
            **{name: spec(getattr(tensors, name), blends, sources) for name in OF_SOURCES},
            arcsec=spec(tensors.arcsec, blends),
            band_unit=spec(tensors.band_unit, blends),
        )
        return given, spec(start, blends, sources), spec(stiffness, blends), spec(most), spec(self.sides)

    def go_on(self, tensors: Tensors, found: MapResult, rounds: int) -> MapResult:
        """Goes on, for at most so many rounds, with the blends that are unfinished."""
        rows = found.unfinished.numpy()
        if not rows.any():
            return found
        further = self(alone(tensors, rows), found.state.latent, found.stiffness, rounds)
        return of_rows(rows, further._replace(steps=found.steps + further.steps), found)

    def posterior(self, tensors: Tensors, sides: tf.Tensor | None = None) -> GalaxyPosterior:
        """The posterior of the blends with these tensors, by their own weights.

        sides: those of the blends' shape within a graph of any; None: those of this fit's.
        """
        shape = self.shape if sides is None else with_sides(self.shape, self.options, sides)
        return GalaxyPosterior(self.prior, shape, tensors)

    def _fit(
        self,
        tensors: Tensors,
        first: tf.Tensor,
        stiffness: tf.Tensor,
        rounds: tf.Tensor,
        sides: tf.Tensor | None,
    ) -> MapResult:
        exact = self.posterior(tensors, sides)
        unit = exact.unit(first)
        state = MapState(first, exact.solve_fluxes(unit))
        posterior = self.tolerant(exact, exact.likelihood.render(unit, state.flux))
        end = self._maximum(posterior, state, stiffness, rounds)
        covariance = normal_equations.laplace(end.system)
        summary, spread = posterior.summary(end.state.latent, covariance.latent)
        stamps, model = posterior.stamps_and_model(end.state)
        found = seen(posterior.likelihood, stamps, model)
        return MapResult(
            state=end.state,
            **found | {"chi2": exact.likelihood.chi2(model)},
            distance=end.distance,
            steps=end.steps,
            stiffness=end.stiffness,
            unfinished=end.active,
            covariance=covariance._replace(linear=covariance.linear + self._profile_variance(posterior, end.state)),
            summary=summary,
            summary_covariance=spread,
            beyond_prior=tf.zeros_like(tensors.is_source, tf.bool),
        )

    def _profile_variance(self, posterior: GalaxyPosterior, state: MapState) -> tf.Tensor:
        """The variance of fluxes that profiles do not know [B, C, K, C, K], which is diagonal."""
        error = self.options.profile_error * state.flux * (1 - posterior.tensors.is_point[..., None])
        variance = tf.cast(tf.linalg.matrix_transpose(error) ** 2, tf.float64)  # [B, C, K]
        _, bands, sources = shape_of(variance)
        flat = tf.linalg.diag(tf.reshape(variance, [-1, bands * sources]))
        return tf.reshape(flat, [-1, bands, sources, bands, sources])

    def tolerant(self, exact: GalaxyPosterior, model: Images) -> GalaxyPosterior:
        """The posterior with the model's own error added to the noise's variance; model: the scenes as rendered, from
        which the constants follow.

        The brightness that it is a fraction of is the data's, less the constants of a first fit: where it matters the
        noise is a hundred times fainter, and weights that depend on no model leave one objective to all steps.
        """
        return exact.reweighted(exact.likelihood.tolerant(self.options.model_error, model))

    def _maximum(
        self, posterior: GalaxyPosterior, state: MapState, stiffness: tf.Tensor, rounds: tf.Tensor
    ) -> Progress:
        """Rounds of steps with one curvature, which costs as much as several gradients; the prior softens.

        A blend is done when a round finds it converged at once, or gains nothing; it then leaves the batch. The last
        round takes no step, and has the prior as it is: it is there for the curvature where the fit ends, and what is
        active then is unfinished.
        """
        bands, sources, like = self.shape.bands, posterior.sources, tf.cast(stiffness, tf.float64)
        number, batch = sources * self.prior.size, tf.shape(stiffness)[:1]
        start = Progress(
            state=state,
            radius=FIRST_RADIUS * tf.ones_like(like),
            distance=np.inf * tf.ones_like(like),
            stiffness=stiffness,
            steps=tf.zeros_like(stiffness, tf.int32),
            active=tf.reduce_any(posterior.tensors.is_source > 0, 1),  # what is empty has nothing to be done
            system=NormalEquations(
                latent=tf.eye(number, batch_shape=batch, dtype=tf.float64),
                mixed=tf.zeros([batch[0], bands, number, sources], tf.float64),
                linear=tf.eye(sources, batch_shape=[batch[0], bands], dtype=tf.float64),
                now=tf.zeros([batch[0], bands, sources], tf.float64),
            ),
        )

        def advance(count: tf.Tensor, whole: Progress) -> tuple[tf.Tensor, Progress]:
            rows = tf.where(whole.active)[:, 0]
            some = tf.nest.map_structure(lambda t: tf.gather(t, rows), whole)
            last = count == rounds
            stiffness = tf.where(last, tf.ones_like(some.stiffness), some.stiffness)
            own = posterior.take(rows, stiffness)
            if self._adam is None:
                some = self._round(own, some, tf.where(last, 0, self.options.steps))
            else:
                some = self._adam_round(self._adam, own, some, rows, last)
            some = some._replace(active=some.active | last)
            return count + 1, tf.nest.map_structure(
                lambda old, new: tf.tensor_scatter_nd_update(old, rows[:, None], new), whole, some
            )

        def unfinished(count: tf.Tensor, whole: Progress) -> tf.Tensor:
            return tf.reduce_any(whole.active) & (count <= rounds)

        return tf.while_loop(unfinished, advance, [0, start])[1]

    def _round(self, posterior: GalaxyPosterior, now: Progress, steps: tf.Tensor) -> Progress:
        """At most `steps` steps with the curvatures of where they start: Gauss-Newton's and the exact one."""
        model = posterior.model(now.state)
        system, second = posterior.normal_equations(now.state, model)
        both = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), system, normal_equations.exact(system, second))
        factors = normal_equations.factorise(both)

        def step(count, state, model, radius, distance, active, tried):
            return count + 1, *self._step(posterior, factors, state, model, radius, distance, active, tried)

        start = [0, now.state, model, now.radius, now.distance, now.active, tf.zeros_like(now.steps)]
        loop = tf.while_loop(lambda count, *rest: (count < steps) & tf.reduce_any(rest[4]), step, start)
        _, state, images, radius, distance, _, tried = loop
        gain = -posterior.rise(now.state, model, state, images)
        least = (STALLED * self.options.tolerance) ** 2 / 2  # nats
        stalled = (gain < least) & ((gain > 0) | (distance <= CONVERGED))  # a step that led uphill is tried shorter
        settled = distance < SETTLED * tf.cast(posterior.likelihood.misfit(images), distance.dtype)
        end = now._replace(state=state, radius=radius, distance=distance, system=system)
        return self._softer(end, tried, settled, stalled)

    def _adam_round(
        self, adam: AdamSteps, posterior: GalaxyPosterior, now: Progress, rows: tf.Tensor, last: tf.Tensor
    ) -> Progress:
        """Steps of Adam in coordinates that are made by the exact curvature of where they start."""
        system, second = posterior.normal_equations(now.state, posterior.model(now.state))
        enough = tf.where(now.stiffness > 1, SETTLED, self.options.tolerance)
        enough = tf.cast(tf.where(last, np.inf, enough), self.prior.dtype)
        curvature = normal_equations.exact(system, second)
        state, distance, taken = adam.round(posterior, curvature, now.state, rows, enough)
        end, stalled = now._replace(state=state, distance=distance, system=system), tf.zeros_like(now.active)
        misfit = posterior.likelihood.misfit(posterior.model(state))
        return self._softer(end, taken, distance < SETTLED * tf.cast(misfit, distance.dtype), stalled)

    def _softer(self, end: Progress, taken: tf.Tensor, settled: tf.Tensor, stalled: tf.Tensor) -> Progress:
        """The end of a round of so many steps: a blend near its maximum under a stiff prior, which has `settled`, goes
        on from there under a softer one, and so does one that `stalled`."""
        stiff = end.stiffness > 1
        ready = stiff & (settled | stalled)
        return end._replace(
            stiffness=tf.where(ready, tf.maximum(end.stiffness / SOFTENING, 1), end.stiffness),
            radius=tf.where(ready, tf.constant(FIRST_RADIUS, end.radius.dtype), end.radius),
            distance=tf.where(ready, tf.constant(np.inf, end.distance.dtype), end.distance),  # unknown under this one
            steps=end.steps + taken,
            active=((taken > 0) & ~stalled) | stiff,
        )

    def _step(self, posterior, factors, state, model, radius, distance, active, tried):
        """A step by the exact curvature, the last of the two, or, where the loss does not fall as that says, by the
        better of both, at the length that suits the loss; none, and a smaller trust region, if it leads uphill."""
        gradient = posterior.gradient(state, model)
        twice = (tf.concat([part, part], 0) for part in (*gradient, radius))
        latent, linear, length = (tf.split(part, 2) for part in normal_equations.solve(factors, *twice))
        plain, newton = (posterior.state_of(*each) for each in zip(latent, linear, strict=True))
        other = _trial(posterior, state, model, newton)
        as_said = other.rise < AS_SAID * posterior.slope_along(gradient, newton)

        def better() -> Trial:
            one = _trial(posterior, state, model, plain)
            return _choose(as_said | (other.rise < one.rise), other, one)

        first = tf.cond(tf.reduce_all(as_said | ~active), lambda: other, better)
        slope = posterior.slope_along(gradient, first.move)
        best = self._rescaled(posterior, state, model, first, slope, radius, active)
        distance = tf.where(active, length[1], distance)
        moved = tf.reduce_max(tf.abs(linear[1]) / tf.split(factors.errors, 2)[1], [1, 2])
        moved = tf.where(other.length < 0.9 * radius, moved, np.inf)  # by a step that the region did not cut
        active &= (moved > self.options.tolerance) | (distance > CONVERGED)
        downhill = active & (best.rise < 0)
        reached = MapState(*(old + by for old, by in zip(state, best.move, strict=True)))
        state, model = _choose(downhill, reached, state), _choose(downhill, best.model, model)
        # The region widens where a step ended at its edge and the loss fell about as its slope and curvature say.
        at_edge = (first.length > 0.9 * radius) & (first.rise < AS_SAID * slope)
        next_radius = tf.where(at_edge, 2 * radius, radius)
        next_radius = tf.where(
            first.rise > 0.25 * slope, tf.clip_by_value(best.length, radius / 4, radius), next_radius
        )
        next_radius = tf.where(best.rise < 0, next_radius, radius / 4)
        radius = tf.where(active, tf.clip_by_value(next_radius, 1e-6, WIDEST_RADIUS), radius)
        return state, model, radius, distance, active, tried + tf.cast(active, tf.int32)

    def _rescaled(self, posterior, state, model, first: Trial, slope, radius, active) -> Trial:
        """The step, or the same one shorter or longer, to the minimum of the parabola through its slope and its rise.

        A step is too long where the loss is not quadratic, and too short where its curvature is too large: at the edges
        of masks, where one at every second pixel sees more of a galaxy than the data do.
        """
        curvature = tf.maximum(2 * (first.rise - slope), -slope / LONGEST)
        factor = tf.maximum(tf.math.divide_no_nan(-slope, curvature), SHORTEST)
        factor = tf.minimum(factor, tf.cast(radius / tf.maximum(first.length, 1e-9), factor.dtype))
        worth = active & ((factor > RESCALED) | (factor < 1 / RESCALED))
        factor = tf.where(worth, factor, tf.ones_like(factor))[:, None, None]

        def again() -> Trial:
            other = _trial(posterior, state, model, MapState(*(factor * part for part in first.move)))
            return _choose(other.rise < first.rise, other, first)

        return tf.cond(tf.reduce_any(worth), again, lambda: first)


def graph_shape(shape: BatchShape, options: MapOptions) -> BatchShape:
    """Give what the graph of a fit is fixed to: a shape, with 0 for the numbers that may be any.

    By Newton these are the blends, and, of one exposure, the sources and all sides.
    """
    if options.optimizer != "newton":
        return shape
    if len(shape.exposures) > 1:
        return shape._replace(blends=0)
    own = shape.exposures[0]._replace(side=0)
    return shape._replace(blends=0, sources=0, frame=0, margin=0, fourier=0, stamp=0, exposures=(own,))


def with_sides(shape: BatchShape, options: MapOptions, sides: tf.Tensor) -> BatchShape:
    """Give a shape with sides [4] that are known only when the graph runs, where `graph_shape` leaves them free."""
    if graph_shape(shape, options).frame:
        return shape
    frame, margin, fourier, stamp = tf.unstack(sides)
    shape = shape._replace(frame=frame, margin=margin, fourier=fourier, stamp=stamp)
    return shape._replace(exposures=(shape.exposures[0]._replace(side=shape.side),))


def _trial(posterior: GalaxyPosterior, state: MapState, model: Images, move: MapState) -> Trial:
    """Where a move from a state with these images leads."""
    reached = MapState(*(old + by for old, by in zip(state, move, strict=True)))
    images = posterior.model(reached)
    rise = posterior.rise(state, model, reached, images)
    rise = tf.where(tf.math.is_finite(rise), rise, tf.fill(tf.shape(rise), tf.constant(np.inf, rise.dtype)))
    return Trial(move, images, rise, tf.cast(tf.reduce_max(tf.abs(move.latent), [1, 2]), tf.float64))


def _choose(flag: tf.Tensor, yes, no):
    """Takes `yes` where the flag [B] of a blend is set, else `no`; both are structures of tensors [B, ...]."""

    def one(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(flag, [-1] + [1] * (len(a.shape) - 1)), a, b)

    return tf.nest.map_structure(one, yes, no)


def alone(tensors: Tensors, rows: np.ndarray) -> Tensors:
    """The tensors of some rows [B]; the others are empty."""
    here = tf.cast(rows, tensors.is_source.dtype)
    emptied = tensors.reweighted([one.weights * here[:, None, None, None] for one in tensors.exposures])
    return emptied._replace(is_source=tensors.is_source * here[:, None])


def of_rows(rows: np.ndarray, yes: MapResult, no: MapResult) -> MapResult:
    """Takes the result `yes` of the blends that `rows` [B] marks, and `no` of the others."""

    def one(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reshape(tf.constant(rows), [-1] + [1] * (len(a.shape) - 1)), a, b)

    return tf.nest.map_structure(one, yes, no)
