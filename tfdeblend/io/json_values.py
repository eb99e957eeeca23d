"""Tables, headers and arrays as the plain values that JSON holds."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.table import Table


def plain(value: Any) -> Any:
    """Turn a scalar, string, array, list or mapping into JSON's types; masked, NaN and infinite numbers become None."""
    if value is None or value is np.ma.masked:
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(value)


def rows(table: Table) -> list[dict[str, Any]]:
    """Turn a table into a list with a dictionary a row, its values as of `plain`."""
    return [plain(dict(zip(table.colnames, row, strict=True))) for row in table.iterrows()]


def dumps(document: Any, indent: int | None = 2) -> str:
    """Write a value as a JSON document that any parser reads: without NaN and infinities."""
    return json.dumps(plain(document), indent=indent, allow_nan=False)
