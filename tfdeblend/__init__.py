"""Bayesian galaxy deblending with TensorFlow and Keras.

The public names below load on first use, so that `import tfdeblend` costs milliseconds and no TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfdeblend.version import __version__

if TYPE_CHECKING:
    from tfdeblend.deblended import Deblended
    from tfdeblend.deblender import Deblender
    from tfdeblend.dust import DustyGalaxy, fit_dust
    from tfdeblend.errors import DataError
    from tfdeblend.io import read
    from tfdeblend.joint import deblend_together
    from tfdeblend.observation import Observation
    from tfdeblend.scene import Scene, Source
    from tfdeblend.serving import Client
    from tfdeblend.transients import LightCurve, light_curve

__all__ = [
    "Client",
    "DataError",
    "Deblended",
    "Deblender",
    "DustyGalaxy",
    "LightCurve",
    "Observation",
    "Scene",
    "Source",
    "__version__",
    "deblend_together",
    "fit_dust",
    "light_curve",
    "read",
]

_MODULES = {
    "Client": "serving",
    "DataError": "errors",
    "Deblended": "deblended",
    "Deblender": "deblender",
    "DustyGalaxy": "dust",
    "LightCurve": "transients",
    "Observation": "observation",
    "Scene": "scene",
    "Source": "scene",
    "deblend_together": "joint",
    "fit_dust": "dust",
    "light_curve": "transients",
    "read": "io",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tfdeblend' has no attribute '{name}'")
    value = getattr(import_module(f"tfdeblend.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
