"""A C program runs each signature in a session, as a model server does.

python -m tfdeblend.export.proofs.c_api FOLDER WORK
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tfdeblend.export.proofs import figures

SOURCE = Path(__file__).with_name("session.c")


def main(folder: Path, work: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    library = Path(tf.__file__).parent
    if compiler is None or not (library / "libtensorflow_cc.so.2").exists():
        return figures.report("C API", 0.0, skipped="there is no C compiler, or no library in TensorFlow's wheel")
    program = work / "session"
    options = [f"-I{library / 'include'}", f"-L{library}", f"-Wl,-rpath,{library}"]
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    subprocess.run([compiler, "-O1", "-o", program, SOURCE, *options, *libraries], check=True)
    signatures = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].signature_def
    for kept in sorted(work.glob("*.npz")):
        inputs, expected = figures.load(kept)
        found = _run(program, folder, work, signatures[kept.stem], inputs, expected)
        figures.report(f"C API, {kept.stem}", figures.difference(found, expected), figures.limit(kept.stem))


def _run(program: Path, folder: Path, work: Path, signature, inputs, expected) -> figures.Arrays:
    scratch = work / "tensors"
    scratch.mkdir(exist_ok=True)
    lines = []
    for name, value in inputs.items():
        operation, index = signature.inputs[name].name.split(":")
        value.tofile(scratch / name)
        dims = " ".join(map(str, value.shape))
        lines.append(f"in {operation} {index} {signature.inputs[name].dtype} {scratch / name} {value.ndim} {dims}")
    for name in expected:
        operation, index = signature.outputs[name].name.split(":")
        lines.append(f"out {operation} {index} {scratch / name}.out")
    (scratch / "manifest").write_text("\n".join(lines) + "\n")
    subprocess.run([program, folder, scratch / "manifest"], check=True)
    return {
        name: np.fromfile(f"{scratch / name}.out", value.dtype).reshape(value.shape) for name, value in expected.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
