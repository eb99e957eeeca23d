"""A runtime that is not TensorFlow makes samples of given random numbers.

python -m tfdeblend.export.proofs.openvino_run FOLDER WORK
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from tfdeblend.export import pruned
from tfdeblend.export.proofs import figures

SIGNATURE = "sample_16_eps"


def main(folder: Path, work: Path) -> None:
    name = f"OpenVINO, {SIGNATURE}"
    if not (work / f"{SIGNATURE}.npz").exists():
        return figures.report(name, 0.0, skipped="a closed-form prior has no such signature")
    try:
        os.environ.setdefault("OPENVINO_TELEMETRY", "0")
        import openvino
    except ImportError:
        return figures.report(name, 0.0, skipped="the package openvino is not installed")
    inputs, expected = figures.load(work / f"{SIGNATURE}.npz")
    model = openvino.convert_model(str(pruned.write(folder, SIGNATURE, work / "single")))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({port: inputs[_name(port.get_names(), inputs)] for port in compiled.inputs})
    outputs = {}
    for port, value in found.items():
        key = _name(port.get_names(), expected)
        outputs[key] = np.asarray(value).astype(expected[key].dtype)
    figures.report(name, figures.difference(outputs, expected), figures.INDEPENDENT)


def _name(names: set[str], known: figures.Arrays) -> str:
    """Of a port's names, that of the signature."""
    return next(name for name in sorted(names, key=len) if name in known)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
