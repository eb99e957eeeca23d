"""Bayesian galaxy deblending with TensorFlow and Keras.

The public names below load on first use, so that `import tfdeblend` costs milliseconds and no TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfdeblend.version import __version__

if TYPE_CHECKING:
    from tfdeblend.catalog.result import Deblended
    from tfdeblend.client import Client
    from tfdeblend.data.observation import Observation
    from tfdeblend.data.scene import Scene, Source
    from tfdeblend.deblender import Deblender
    from tfdeblend.dust import DustyGalaxy, fit_dust
    from tfdeblend.errors import DataError
    from tfdeblend.io import read
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
    "fit_dust",
    "light_curve",
    "read",
]

_MODULES = {
    "Client": "client",
    "DataError": "errors",
    "Deblended": "catalog.result",
    "Deblender": "deblender",
    "DustyGalaxy": "dust",
    "LightCurve": "transients",
    "Observation": "data.observation",
    "Scene": "data.scene",
    "Source": "data.scene",
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
    return sorted(__all__)
