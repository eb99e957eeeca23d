"""Settings of expectation-maximisation: frozen dataclasses, read from JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from tfdeblend import em
from tfdeblend.diffusion.conditioning import CONDITIONINGS
from tfdeblend.diffusion.steps import STEPS
from tfdeblend.errors import DataError
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.training.config import HEAD, DenoiserConfig, FitConfig, NetworkConfig, check_strategy, parse

STARTS = ("gaussian", "fits", "prior")


@dataclass(frozen=True)
class StartConfig:
    """The prior that the first iteration samples with.

    Args:
        kind: "gaussian", of `rank` directions, fitted to the blends by `iterations` iterations of its own; "fits", a
            network trained on non-parametric fits of the blends' galaxies; "prior", the learned prior named by `prior`
            (a shipped one, or a .keras file), right or wrong.
    """

    kind: str = "gaussian"
    prior: str | None = None
    rank: int = 64
    iterations: int = 16

    def __post_init__(self) -> None:
        if self.kind not in STARTS:
            raise ValueError(f"start.kind: expected {', '.join(STARTS)}, received {self.kind!r}")
        if (self.kind == "prior") != (self.prior is not None):
            raise ValueError(f'start.prior: expected a prior for kind "prior" only, received {self.prior!r}')


@dataclass(frozen=True)
class SamplingConfig:
    """How an iteration samples, in words that JSON can hold: number of steps, conditioning and step, by name.

    All other settings are those of `em.SAMPLING`.
    """

    steps: int = em.SAMPLING.steps
    conditioning: str = "head"
    step: str = "moment-matched"

    def __post_init__(self) -> None:
        for name, known in (("conditioning", CONDITIONINGS), ("step", STEPS)):
            if getattr(self, name) not in known:
                expected = f"expected one of {', '.join(known)}"
                raise ValueError(f"sampling.{name}: {expected}, received {getattr(self, name)!r}")
        self.options()

    def options(self) -> SampleOptions:
        """Returns them as the sampler takes them."""
        conditioning, step = CONDITIONINGS[self.conditioning], STEPS[self.step]
        return dataclasses.replace(em.SAMPLING, steps=self.steps, conditioning=conditioning, step=step)


@dataclass(frozen=True)
class EMConfig:
    """Says what expectation-maximisation learns from, and how.

    By default every iteration sees all blends (Rozet et al. 2024). With a share below 1 each sees others, as in Barco
    et al. 2024, whose sampling is {"conditioning": "convolved", "step": "ancestral", "steps": 64}.

    Args:
        blends: files, folders or globs of scenes, simulated and real ones together, of which `bands` are used.
        side, pixel_scale, model_sigma: of the prior's stamps; the scale in arcsec, the sigma in pixels.
        iterations: at most; the run ends sooner when the held-out score has not risen for `patience` iterations.
        samples: of each source in an iteration.
        share: of the blends, in an iteration.
        least_signal: norm of a galaxy's fit over the noise; fainter ones are not learned from.
        validation, test: shares of the blends, by name, on which each iteration and, once, the final prior are
            evaluated.
        evaluation_samples: of each of these blends, at least 4.
        least_dispersion: the run ends at iterations that keep less than this share of the dispersion that the
            iterations of a Gaussian prior keep.
        mean_fit, head_fit: of an iteration; first_*: of a network that starts from nothing; of no steps: as in an
            iteration.
        truth, truth_pattern: a folder of stamps, where the truth is known, and the pattern of its files.

    The other fields are those of `DenoiserConfig`.
    """

    name: str
    blends: tuple[str, ...]
    bands: tuple[str, ...]
    side: int
    pixel_scale: float
    mean_fit: FitConfig
    head_fit: FitConfig
    start: StartConfig = field(default_factory=StartConfig)
    first_mean_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=0))
    first_head_fit: FitConfig = field(default_factory=lambda: FitConfig(steps=0))
    model_sigma: float = 1.0
    iterations: int = 8
    samples: int = 1
    share: float = 1.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    least_signal: float = 10.0
    validation: float = 0.1
    test: float = 0.1
    evaluation_samples: int = 8
    patience: int = 3
    least_dispersion: float = 0.7
    truth: str | None = None
    truth_pattern: str = "*"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    head: NetworkConfig = HEAD
    rank: int = 6
    base_rank: int = 0
    noise_median: float = 0.04
    noise_spread: float = 2.0
    scale_jitter: float = 0.2
    seed: int = 0
    strategy: str | None = None

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        for name in ("share", "validation", "test"):
            low = 0 if name == "test" else 1e-6
            if not low <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share of the blends, 0 to 1, received {getattr(self, name)}")
        for name, least in (("iterations", 1), ("samples", 1), ("evaluation_samples", 4), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, received {getattr(self, name)}")
        if self.validation + self.test >= 1:
            raise ValueError(f"validation, test: expected less than all blends, received {self.validation + self.test}")

    @classmethod
    def read(cls, path: Path) -> EMConfig:
        """Reads settings from JSON. Raises: DataError for what is missing, misspelt or of a wrong kind."""
        try:
            return parse(cls, json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(path, None, error) from error

    def lasting(self) -> EMConfig:
        """Leaves out what only says when to stop, and where networks are fitted: it may change while a run goes on."""
        return dataclasses.replace(self, iterations=1, patience=1, least_dispersion=0.0, strategy=None)

    def text(self) -> str:
        """Returns the JSON that `read` takes, with every setting."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def denoiser(self, stamps: Path, start: Path | None, seed: int) -> DenoiserConfig:
        """Returns the settings of one M-step on `stamps`; start: the .keras file to go on from, None: from nothing."""
        scratch = start is None
        return DenoiserConfig(
            name="prior",
            stamps=str(stamps),
            train="train_*.tfrecord",
            held_out="heldout_*.tfrecord",
            bands=self.bands,
            side=self.side,
            pixel_scale=self.pixel_scale,
            model_sigma=self.model_sigma,
            mean_fit=self.first_mean_fit if scratch and self.first_mean_fit.steps else self.mean_fit,
            head_fit=self.first_head_fit if scratch and self.first_head_fit.steps else self.head_fit,
            network=self.network,
            head=self.head,
            rank=self.rank,
            base_rank=self.base_rank,
            noise_median=self.noise_median,
            noise_spread=self.noise_spread,
            scale_jitter=self.scale_jitter,
            seed=seed,
            start=None if scratch else str(start),
            strategy=self.strategy,
        )
