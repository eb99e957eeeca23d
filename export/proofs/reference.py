"""What the library itself gives, before anything was written.

python -m tfdeblend.export.proofs.reference FOLDER WORK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdeblend.export import warmup
from tfdeblend.export.bucket import Bucket
from tfdeblend.export.proofs import figures
from tfdeblend.export.signatures import SAMPLE_EPS, Inference


def bucket_of(folder: Path) -> Bucket:
    config = json.loads((folder / "assets" / "config.json").read_text())
    return Bucket(config["prior"], config["side"], config["sources"], config["psf"], tuple(config["bands"]))


def main(folder: Path, work: Path) -> None:
    bucket = bucket_of(folder)
    signatures = Inference(bucket).signatures()
    rng = np.random.default_rng(1)
    for name, function in signatures.items():
        blends = 1 if name == SAMPLE_EPS else 2 if name.startswith("sample") else 3
        inputs = warmup.inputs(bucket, signatures, name, blends)
        if "eps" in inputs:
            inputs["eps"] = rng.normal(size=inputs["eps"].shape).astype(np.float32)
        if "seed" in inputs:
            inputs["seed"] = np.arange(2 * blends, dtype=np.int32).reshape(blends, 2)
        if "x" in inputs:
            inputs["x"] = rng.normal(size=inputs["x"].shape).astype(np.float32)
        outputs = function(**{key: tf.constant(value) for key, value in inputs.items()})
        figures.save(work / f"{name}.npz", inputs, {key: value.numpy() for key, value in outputs.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
