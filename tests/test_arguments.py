"""Public calls given the wrong kind of thing say in one line what they expected and what they received."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_deblended, make_scene

import tfdeblend
from tfdeblend import io
from tfdeblend.data.observation import Observation
from tfdeblend.data.scene import Scene
from tfdeblend.galaxies.priors import PRIORS
from tfdeblend.inference.priors import ClosedFormPrior

SCENE = make_scene()[0]
ONE, RESULT = SCENE.observation, make_deblended()
DEBLENDER, PLACES = tfdeblend.Deblender("exponential"), SCENE.positions[:, ::-1]
CLIENT = tfdeblend.Client("http://localhost:1", "exponential")
WRONG = {
    "array": np.zeros((3, 4, 5)),
    "path": Path("/there/is/none.fits"),
    "text": "nothing",
    "list of arrays": [np.zeros(3)],
    "number": 2.5,
    "dictionary": {},
    "scene": SCENE,
    "observation": ONE,
    "source": SCENE.sources[0],
    "result": RESULT,
    "table": RESULT.catalog,
    "prior": ClosedFormPrior(PRIORS["sersic"]),
    "class": Scene,
    "none": None,
}
CALLS = {  # by what they take, which the wrong things leave out
    "Deblender(prior)": (tfdeblend.Deblender, {"prior", "class"}),
    "Deblender(seed)": (lambda thing: tfdeblend.Deblender(seed=thing), {}),
    "Deblender(method)": (lambda thing: tfdeblend.Deblender(method=thing), {}),
    "Deblender(options)": (lambda thing: tfdeblend.Deblender(options=thing), {}),
    "deblend": (DEBLENDER.deblend, {"scene", "observation"}),
    "iterate": (lambda thing: next(DEBLENDER.iterate(thing)), {}),
    "iterate a list": (lambda thing: next(DEBLENDER.iterate([thing])), {"scene"}),
    "prior_of": (tfdeblend.Deblender().prior_of, {"scene"}),
    "Client": (tfdeblend.Client, {}),
    "Client.deblend": (CLIENT.deblend, {"scene", "observation"}),
    "Client.iterate": (lambda thing: next(CLIENT.iterate([thing])), {"scene"}),
    "Scene(observations)": (lambda thing: Scene(thing, SCENE.sources), {"observation"}),
    "Scene(sources)": (lambda thing: Scene(ONE, thing), {}),
    "Scene(a source)": (lambda thing: Scene(ONE, (thing,)), {"source"}),
    "from_catalog(observation)": (lambda thing: Scene.from_catalog(thing, PLACES), {"observation"}),
    "from_catalog(catalog)": (lambda thing: Scene.from_catalog(ONE, thing), {"table"}),
    "detect": (Scene.detect, {"observation"}),
    "detect(threshold)": (lambda thing: Scene.detect(ONE, thing), {"number"}),
    "Scene.read": (Scene.read, {}),
    "Observation.read": (Observation.read, {}),
    "read": (tfdeblend.read, {}),
    "read_catalog": (io.read_catalog, {}),
    "Deblended.read": (tfdeblend.Deblended.read, {}),
    "Observation(images)": (Observation, {"array", "list of arrays"}),
    "Observation(weights)": (lambda thing: Observation(ONE.images, thing, ONE.psf), {"none"}),
    "Observation(psf)": (lambda thing: Observation(ONE.images, ONE.weights, thing), {}),
    "Observation(notes)": (lambda thing: Observation(ONE.images, ONE.weights, ONE.psf, notes=thing), {}),
    "select": (ONE.select, {}),
    "fit_dust": (lambda thing: tfdeblend.fit_dust(thing, np.ones(5)), {"scene"}),
    "fit_dust(attenuation)": (lambda thing: tfdeblend.fit_dust(SCENE, thing), {}),
    "light_curve": (lambda thing: tfdeblend.light_curve(thing, PLACES, (3, 3)), {}),
    "light_curve(prior)": (lambda thing: tfdeblend.light_curve([ONE], PLACES, (3, 3), prior=thing), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_wrong_kind_of_thing_is_refused_in_one_line(name: str) -> None:
    call, taken = CALLS[name]
    for kind, thing in WRONG.items():
        if kind in taken:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(thing)  # type: ignore[operator]
        message = str(caught.value)
        assert "expected" in message and "received" in message and "\n" not in message, (kind, message)


def test_the_remedy_is_told() -> None:
    reads = "Scene.read reads files, Scene.from_catalog takes an Observation and positions"
    calls: dict[str, Any] = {
        f"scenes: expected Scene or Observation, received a PosixPath; {reads}": lambda: DEBLENDER.deblend([Path("a")]),
        "observations: expected Observation or list or tuple, received a ndarray; Observation.read reads files, "
        "Observation(images, weights, psf) takes arrays": lambda: Scene(ONE.images, SCENE.sources),
        "sources: expected Source, received a ndarray; Scene.from_catalog takes positions and tables": lambda: Scene(
            ONE, tuple(PLACES)
        ),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Importing it would put the module in the function's place."""
    modules = {module.name for module in pkgutil.iter_modules(tfdeblend.__path__)}
    assert not modules & set(tfdeblend.__all__)
