"""Settings of expectation-maximisation: frozen dataclasses, read from JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from tfdeblend import em
from tfdeblend.diffusion.conditioning import CONDITIONINGS
from tfdeblend.diffusion.steps import STEPS
from tfdeblend.inference.diffusion_sampler import SampleOptions
from training.config import HEAD, DenoiserConfig, FitConfig, NetworkConfig, parse

STARTS = ("gaussian", "fits", "prior")


@dataclass(frozen=True)
class StartConfig:
    """What the first lap samples with.

    kind: "gaussian", fitted to the blends by `laps` laps of its own, of `rank` directions; "fits", a network trained
    on non-parametric fits of the blends' galaxies; "prior", the learned prior named by `prior` (a shipped one, or a
    .keras file), right or wrong.
    """

    kind: str = "gaussian"
    prior: str | None = None
    rank: int = 64
    laps: int = 16

    def __post_init__(self) -> None:
        if self.kind not in STARTS:
            raise ValueError(f"start.kind: expected {', '.join(STARTS)}, received {self.kind!r}")
        if (self.kind == "prior") != (self.prior is not None):
            raise ValueError(f'start.prior: expected a prior for kind "prior" only, received {self.prior!r}')


@dataclass(frozen=True)
class SamplingConfig:
    """How a lap samples, in words that JSON can hold: the step and the conditioning, by name, and their number.

    What else samples of laps have is `em.SAMPLING`.
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
        """Gives them as the sampler takes them."""
        conditioning, step = CONDITIONINGS[self.conditioning], STEPS[self.step]
        return dataclasses.replace(em.SAMPLING, steps=self.steps, conditioning=conditioning, step=step)


@dataclass(frozen=True)
class EMConfig:
    """What `train_em` learns from, and how. Rozet's laps by default; Barco's have a share below 1, so that each sees
    other blends, and sampling {"conditioning": "convolved", "step": "ancestral", "steps": 64}.

    blends: files, folders or globs of scenes, simulated and real ones together, of which `bands` are used. side,
    pixel_scale (arcsec), model_sigma (pixels): of the prior's stamps. laps: at most; it ends sooner when the held-out
    score has not risen for `patience` laps. samples: of each source in a lap. share: of the blends, in a lap.
    least_signal: norm of a galaxy's fit over the noise; those below teach nothing that the prior did not say.
    validation, test: shares of the blends, by name, that laps and, once, the end are judged on, with `judged` samples
    each, at least 4. least_dispersion: laps that keep less than this share of the dispersion that a Gaussian prior's
    laps keep end the run.
    mean_fit, head_fit: of a lap; first_*: of a network that starts from nothing, of no steps: as in a lap.
    truth: a folder of stamps, where truth is known, and `truth_pattern` of its files. The rest: see `DenoiserConfig`.
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
    laps: int = 8
    samples: int = 1
    share: float = 1.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    least_signal: float = 10.0
    validation: float = 0.1
    test: float = 0.1
    judged: int = 8
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

    def __post_init__(self) -> None:
        for name in ("share", "validation", "test"):
            low = 0 if name == "test" else 1e-6
            if not low <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a share of the blends, 0 to 1, received {getattr(self, name)}")
        for name, least in (("laps", 1), ("samples", 1), ("judged", 4), ("patience", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, received {getattr(self, name)}")
        if self.validation + self.test >= 1:
            raise ValueError(f"validation, test: expected less than all blends, received {self.validation + self.test}")

    @classmethod
    def read(cls, path: Path) -> EMConfig:
        """Raises: ValueError for what is missing, misspelt or of a wrong kind."""
        try:
            return parse(cls, json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def lasting(self) -> EMConfig:
        """Without what only says when to stop, which may change while a run goes on."""
        return dataclasses.replace(self, laps=1, patience=1, least_dispersion=0.0)

    def text(self) -> str:
        """The JSON that `read` takes, every setting spelt out."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def denoiser(self, stamps: Path, start: Path | None, seed: int) -> DenoiserConfig:
        """The training of one M-step, on `stamps`; start: the .keras file to go on from, None: from nothing."""
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
        )
