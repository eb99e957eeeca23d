"""python alone.py FOLDER WORK: TensorFlow alone loads the model and agrees with the library."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # figures.py, without the packages it belongs to

import figures
import tensorflow as tf


def main(folder: Path, work: Path) -> None:
    model = tf.saved_model.load(str(folder))

    def run(name: str, inputs: figures.Arrays) -> figures.Arrays:
        found = model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in found.items()}

    for kept in sorted(work.glob("*.npz")):
        name, (inputs, expected) = kept.stem, figures.load(kept)
        found = run(name, inputs)
        figures.tell(f"TensorFlow alone, {name}", figures.difference(found, expected), figures.LARGEST)
        blends = len(next(iter(inputs.values())))
        last = {key: value[-1:] for key, value in inputs.items()}
        again = run(name, last)
        if name.startswith("sample"):
            same = all(again[key].tobytes() == run(name, last)[key].tobytes() for key in ("flux", "stamps"))
            figures.tell(f"same seed, same bytes, {name}", 0.0 if same else 1.0, 0.0)
        if blends > 1:
            own = {key: value[-1:] for key, value in found.items()}
            limit = figures.LARGEST if name == "denoise" else 0.0
            figures.tell(f"alone and beside {blends - 1} others, {name}", figures.difference(again, own), limit)
    ours = {"tfdeblend", "export"} & set(sys.modules)
    figures.tell("modules of this project that were loaded", float(len(ours)), 0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
