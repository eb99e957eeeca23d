"""The layout of a folder of models: BASE/<model>/<version>/."""

from __future__ import annotations

from pathlib import Path

WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"


def versions(model: Path) -> list[int]:
    """Lists the versions of a model, in order: its folders whose names are whole numbers."""
    if not model.is_dir():
        return []
    return sorted(int(path.name) for path in model.iterdir() if path.is_dir() and path.name.isdecimal())
