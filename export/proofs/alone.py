"""python alone.py FOLDER WORK: TensorFlow alone, in a session as a server has it, agrees with the library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # figures.py, without the packages it belongs to

import figures
import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

v1 = tf.compat.v1


def main(folder: Path, work: Path) -> None:
    # Short of free memory, the optimiser sums in temporary variables, in whatever order the terms are done.
    config = ConfigProto()
    config.graph_options.rewrite_options.memory_optimization = RewriterConfig.NO_MEM_OPT
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        _compare(session, v1.saved_model.load(session, [tf.saved_model.SERVING], str(folder)).signature_def, work)
    ours = {"tfdeblend", "export"} & set(sys.modules)
    figures.report("modules of this project that were loaded", float(len(ours)), 0.0)


def _compare(session: Any, signatures: Any, work: Path) -> None:
    def run(name: str, inputs: figures.Arrays) -> figures.Arrays:
        outputs = {key: one.name for key, one in signatures[name].outputs.items()}
        return session.run(outputs, {signatures[name].inputs[key].name: value for key, value in inputs.items()})

    for kept in sorted(work.glob("*.npz")):
        name, (inputs, expected) = kept.stem, figures.load(kept)
        found = run(name, inputs)
        figures.report(f"TensorFlow alone, {name}", figures.difference(found, expected), figures.limit(name))
        blends = len(next(iter(inputs.values())))
        last = {key: value[-1:] for key, value in inputs.items()}
        again = run(name, last)
        if name.startswith("sample"):
            same = all(again[key].tobytes() == run(name, last)[key].tobytes() for key in ("flux", "stamps"))
            figures.report(f"same seed, same bytes, {name}", 0.0 if same else 1.0, 0.0)
        if blends > 1:
            own = {key: value[-1:] for key, value in found.items()}
            limit = figures.LARGEST if name == "denoise" else 0.0
            figures.report(f"alone and beside {blends - 1} others, {name}", figures.difference(again, own), limit)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
