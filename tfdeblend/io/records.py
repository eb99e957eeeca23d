"""Tables and headers as plain Python values, for JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.table import Table


def plain(value: Any) -> Any:
    """A scalar, string, array, list or mapping as what JSON knows; masked, NaN and infinite numbers become None."""
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
    """A dictionary a row."""
    return [plain(dict(zip(table.colnames, row, strict=True))) for row in table.iterrows()]


def dumps(document: Any, indent: int | None = 2) -> str:
    """One JSON document that any parser reads: no NaN, no infinities."""
    return json.dumps(plain(document), indent=indent, allow_nan=False)
