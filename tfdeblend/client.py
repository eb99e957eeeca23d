"""Sends scenes to a model server, and makes the results of `Deblender` of its answers.

    Client("grpc://localhost:8500").deblend(scene)

The server may be TensorFlow Serving or `tfdeblend serve`. Sources are detected here, and catalogues are made
here; the inference between is the server's.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from tfdeblend.catalog import builder, measure
from tfdeblend.catalog.result import Deblended
from tfdeblend.catalog.statistics import Sample, SampleStatistics
from tfdeblend.catalog.windows import Windows
from tfdeblend.data.observation import Observation
from tfdeblend.data.psf import LARGEST_GAIN, MODEL_SIGMA, pixels_per_arcsec, psf_center
from tfdeblend.data.scene import Scene
from tfdeblend.deblender import Deblender
from tfdeblend.errors import DataError, expect
from tfdeblend.forward.shapes import IMAGE_SIDES, SOURCE_COUNTS, amplifications
from tfdeblend.inference.diffusion_sampler import SampleOptions
from tfdeblend.inference.priors import Prior
from tfdeblend.transport import SAMPLES, STEPS, Arrays, Model, ServerError, connect

SIGNATURES = {"map": "map", "sample": f"sample_{SAMPLES}"}


@dataclass
class Client:
    """Deblends scenes on a server.

    Args:
      url: grpc://HOST:PORT or http://HOST:PORT.
      prior, method, seed, keep_samples, trust_weights, assume_ab: as for `Deblender`.
      timeout: seconds for one scene. at_once: scenes on their way together, so that the server can batch them.

    Raises: ValueError for a wrong argument; see `deblend`, too.
    """

    url: str
    prior: str = "auto"
    method: str = "map"
    seed: int = 0
    keep_samples: bool = False
    trust_weights: bool = False
    assume_ab: bool = False
    timeout: float = 600.0
    at_once: int = 8
    _models: dict[str, Model | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        expect("url", self.url, str)
        # Which prior a scene has, and checks of the rest.
        trust, assume = self.trust_weights, self.assume_ab
        self._local = Deblender(self.prior, self.method, self.seed, trust_weights=trust, assume_ab=assume)
        self._server = connect(self.url, self.timeout)
        self._finding = Lock()

    def deblend(self, scenes: Scene | Observation | Sequence[Scene | Observation]) -> Deblended | list[Deblended]:
        """Gives one result for one scene, a list for several; an observation's sources are detected.

        Raises: DataError for the first scene that cannot be deblended; `iterate` goes on instead.
        """
        return builder.in_order(self.iterate, scenes)

    def iterate(self, scenes: Sequence[Scene]) -> Iterator[tuple[int, Deblended | Exception]]:
        """Yields (index, result) of every scene as it is done; a scene that cannot be done yields its error."""
        builder.check_scenes(scenes, Scene)
        pool = ThreadPoolExecutor(self.at_once)
        try:
            waiting = {pool.submit(self._one, scene): index for index, scene in enumerate(scenes)}
            for done in as_completed(waiting):
                error = done.exception()
                yield waiting.pop(done), error if isinstance(error, Exception) else done.result()
        finally:
            pool.shutdown(cancel_futures=True)  # nobody waits for the others

    def _one(self, scene: Scene) -> Deblended:
        began = time.perf_counter()
        whole, (prior, reason) = self._local.prepared(scene)
        scene = whole.kept
        try:
            model = self._model(scene, prior)
            arrays = blend_arrays(scene, model.side, model.sources, model.psf)
            if self.method == "sample":
                arrays["seed"] = np.array([self.seed, zlib.crc32(scene.name.encode())]).astype(np.uint32).view(np.int32)
            found = self._server.predict(model.name, SIGNATURES[self.method], {k: v[None] for k, v in arrays.items()})
        except ServerError as error:
            raise DataError(scene.name, "server", str(error)) from error
        found = {name: value[0] for name, value in found.items()}
        if not found["usable"]:
            expected = "expected numbers that the model can take, see its card"
            raise DataError(scene.name, "server", f"{expected}, received others: the server refused the scene")
        facts: builder.Facts = {"method": self.method, "seed": self.seed, "walltime": time.perf_counter() - began}
        facts |= {"prior": prior.name, "priorwhy": reason}
        if self.method == "sample":
            facts |= SampleOptions(steps=STEPS).facts()
            result = sampled(scene, found, facts, model.model_sigma, self.keep_samples)
        else:
            result = fitted(scene, found, facts | {"modelsig": model.model_sigma})
        return builder.with_left_out(result, whole)

    def _model(self, scene: Scene, prior: Prior) -> Model:
        """Finds the smallest model of the prior that the server has and the scene fits into."""
        bands, height, width = scene.observation.shape
        psf, count = max(scene.observation.psf.shape[1:]), len(scene.sources)
        if (number := len(scene.observations)) > 1:
            raise DataError(scene.name, "observations", f"expected one, which servers know alone, received {number}")
        if scene.observation.noise_correlation is not None:
            raise DataError(scene.name, "noise_correlation", "expected white noise, which servers know alone")
        sigma = prior.model_sigma or MODEL_SIGMA
        problem = prior.problem(scene, self.assume_ab)
        if problem is None and max(amplifications(scene, sigma)) > LARGEST_GAIN:
            problem = f"expected PSFs wider than a Gaussian of sigma {sigma:g} pixel, received a narrower one"
        if problem:
            raise DataError(scene.name, f"prior {prior.name}", problem)
        sides = [side for side in IMAGE_SIDES if side >= max(height, width)]
        counts = [number for number in SOURCE_COUNTS if number >= count]
        for side, number in sorted(((s, k) for s in sides for k in counts), key=lambda size: size[0] ** 2 * size[1]):
            name = f"{prior.name}_{side}x{number}"
            with self._finding:
                if name not in self._models:
                    self._models[name] = self._server.model(name, sigma)
                model = self._models[name]
            if model and model.bands == bands and model.psf >= psf:
                return model
        expected = f"expected a model {prior.name}_SIDExSOURCES for {max(height, width)} pixels, {count} sources"
        raise DataError(scene.name, "server", f"{expected}, {bands} bands, PSFs of {psf} pixels, received none")


def blend_arrays(scene: Scene, side: int, sources: int, psf: int) -> Arrays:
    """Makes the arrays that a model takes of a scene, without the batch's dimension: see `export/README.md`."""
    observation, count = scene.observation, len(scene.sources)
    bands, height, width = observation.shape
    images, weights = np.zeros((2, bands, side, side), np.float32)
    images[:, :height, :width], weights[:, :height, :width] = observation.images, observation.weights
    psfs = np.zeros((bands, psf, psf), np.float32)
    h, w = observation.psf.shape[1:]
    psfs[:, :h, :w] = observation.psf
    positions, is_source, is_point = np.zeros((sources, 2)), np.zeros(sources, bool), np.zeros(sources, bool)
    positions[:count], is_source[:count] = scene.positions, True
    is_point[:count] = [source.kind == "point" for source in scene.sources]
    zeropoints = np.zeros(bands) if observation.zeropoints is None else observation.zeropoints
    return {
        "images": images,
        "weights": weights,
        "psfs": psfs,
        "psf_center": np.array(psf_center(observation.psf), np.float32),
        "positions": positions,
        "is_source": is_source,
        "is_point": is_point,
        "pixel_scale": np.array(1 / pixels_per_arcsec(scene), np.float32),
        "zeropoints": np.asarray(zeropoints, np.float32),
    }


def fitted(scene: Scene, found: Arrays, facts: builder.Facts) -> Deblended:
    """Makes the result of what a model's `map` found."""
    count, (_, height, width) = len(scene.sources), scene.observation.shape
    own = {name: found[name][:count] for name in ("positions", "size", "ellipticity", "corners", "flux")}
    errors = [found["position_err"], found["size_err"][:, None], found["ellipticity_err"]]
    (y, x), (e1, e2) = own["positions"].T, own["ellipticity"].T.astype(float)
    shapes = measure.Shapes(y, x, own["size"].astype(float), e1, e2, np.concatenate(errors, 1)[:count].astype(float))
    fit = builder.Fit(
        models=[found["model"][:, :height, :width]],
        light=[Windows.whole(found["sources"][:count, :, :height, :width])],
        backgrounds=[found["background"]],
        stamps=found["stamps"][:count],
        corners=own["corners"],
        flux=own["flux"].astype(float),
        flux_cov=found["flux_cov"][:, :count, :count].astype(float),
        shapes=shapes,
        converged=bool(found["converged"]),
        beyond_prior=found["beyond_prior"][:count],
    )
    own_facts: builder.Facts = {"steps": int(found["steps"]), "distance": float(found["distance"])}
    return builder.build(scene, fit, facts | own_facts)


def sampled(scene: Scene, found: Arrays, facts: builder.Facts, model_sigma: float, keep: bool) -> Deblended:
    """Makes the result of a model's samples."""
    count, (_, height, width) = len(scene.sources), scene.observation.shape
    statistics = SampleStatistics(scene, found["corners"][:count], model_sigma, keep)
    for each in range(len(found["flux"])):
        statistics.add(
            Sample(
                models=[found["model"][each, :, :height, :width]],
                sources=[found["sources"][each, :count, :, :height, :width]],
                backgrounds=[found["background"][each]],
                stamps=found["stamps"][each, :count],
                flux=found["flux"][each, :count].astype(float),
                prior_variance=found["prior_variance"][:count],
                beyond_prior=found["beyond_prior"][:count],
            )
        )
    return builder.build_from_samples(statistics, facts)
