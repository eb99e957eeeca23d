"""PSFs over a field as a Python function, which settings hold by its name: `model.py:psf` or `package.module:psf`.

A name travels to workers and tells two runs apart, which functions themselves do not.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tfdeblend.errors import DataError
from tfdeblend.io.atomic import sha256

NAME = re.compile(r"(?P<where>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def named(text: str | None) -> bool:
    """Tell whether a text is the name of a function, not of a file."""
    return text is not None and NAME.fullmatch(text) is not None and not Path(text).is_file()


def absolute(text: str) -> str:
    """Name the same file or function by a name that holds in every folder."""
    match = NAME.fullmatch(text) if named(text) else None
    if match is None:
        return str(Path(text).resolve())
    return f"{Path(match['where']).resolve()}:{match['function']}" if match["where"].endswith(".py") else text


def source(text: str) -> Path:
    """Find the file in which a function is written. Raises: DataError where there is none."""
    where = _parts(text)[0]
    if where.endswith(".py"):
        path = Path(where)
    else:
        try:
            spec = None if where == "__main__" else importlib.util.find_spec(where)  # a worker has another one
        except (ImportError, ValueError):
            spec = None
        path = Path(spec.origin) if spec is not None and spec.origin else Path(where)
    if not path.is_file():
        raise DataError("psf", None, f"expected a file or a module with the function {text}, received none")
    return path


def find(text: str) -> Callable[[float, float, str], Any]:
    """Find the function of this name, as its file stands now. Raises: DataError where there is none."""
    return _found(text, sha256(source(text)))


@lru_cache(8)
def _found(text: str, digest: str) -> Callable[[float, float, str], Any]:
    where, name = _parts(text)
    try:
        module = _from_file(Path(where), digest) if where.endswith(".py") else _module(where)
    except Exception as error:  # whatever the module does
        received = f"{type(error).__name__}: {error}"
        raise DataError("psf", None, f"expected a module that can be imported, received {received}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError("psf", None, f"expected a function {name} (x, y, band) in {where}, received {function!r}")
    return function


def _parts(text: str) -> tuple[str, str]:
    where, _, name = text.rpartition(":")
    return where, name


def _from_file(path: Path, digest: str) -> ModuleType:
    name = f"{path.stem}_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    """Import a module, again where this process has it already: a worker may be older than the file."""
    known = sys.modules.get(name)
    return importlib.import_module(name) if known is None else importlib.reload(known)
