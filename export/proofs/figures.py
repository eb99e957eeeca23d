"""Files and figures of the proofs. Needs NumPy alone, so that any runtime can be beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
LARGEST = 1e-5  # relative: the same graph elsewhere
# The same for samples: rounding moves their fluxes by 2e-7. The fluxes' scatter is some hundredth of them, so that its
# covariance moves by 1e-5.
LARGEST_OF_SAMPLES = 3e-5
INDEPENDENT = 1e-4  # of another runtime
UNITS = {"distance": 1.0, "ellipticity": 1.0}  # of what is near zero by nature: rounding shows against these
SEPARATOR = "|"  # between "in" or "out" and a name


def report(name: str, figure: float | str, limit: float | None = None, skipped: str = "") -> None:
    """Prints one line for `check_saved_model`: a number that must be at most `limit`, or a fact."""
    good = True if limit is None or skipped else bool(float(figure) <= limit)
    print(json.dumps({"proof": name, "figure": figure, "limit": limit, "good": good, "skipped": skipped}), flush=True)


def limit(signature: str) -> float:
    """Gives what outputs of a signature may differ by where the same graph runs elsewhere."""
    return LARGEST_OF_SAMPLES if signature.startswith("sample") else LARGEST


def save(path: Path, inputs: Arrays, outputs: Arrays) -> None:
    """Writes the inputs and outputs of a signature."""
    given = {f"in{SEPARATOR}{name}": value for name, value in inputs.items()}
    np.savez(path, allow_pickle=False, **given, **{f"out{SEPARATOR}{name}": value for name, value in outputs.items()})


def load(path: Path) -> tuple[Arrays, Arrays]:
    with np.load(path) as kept:
        parts: dict[str, Arrays] = {"in": {}, "out": {}}
        for key in kept.files:
            way, name = key.split(SEPARATOR)
            parts[way][name] = kept[key]
    return parts["in"], parts["out"]


def difference(found: Arrays, expected: Arrays) -> float:
    """Returns the largest difference of outputs, in units of each or its largest value; infinite for other shapes."""
    worst = 0.0
    if set(found) != set(expected):
        return float("inf")
    for name, value in expected.items():
        if found[name].shape != value.shape:
            return float("inf")
        if value.dtype.kind != "f":
            worst = max(worst, 0.0 if (found[name] == value).all() else float("inf"))
            continue
        scale = max(float(np.abs(value).max()), UNITS.get(name, 1e-30))
        step = float(np.abs(found[name] - value).max()) / scale
        worst = max(worst, step if step == step else float("inf"))
    return worst
