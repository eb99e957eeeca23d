"""What a model server reads beside the graph is what it expects.

python -m tfdeblend.export.proofs.configuration FOLDER WORK
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config import model_server_config_pb2

from tfdeblend.export import pruned
from tfdeblend.export.layout import WARM_UP
from tfdeblend.export.proofs import figures
from tfdeblend.export.signatures import SAMPLE_EPS

SERVING = Path(__file__).parents[1] / "serving"
FORBIDDEN = {"EagerPyFunc", "PyFunc", "PyFuncStateless", "XlaLaunch"}
CONTROL, WEIGHTS = (
    {"StatefulPartitionedCall", "While"},
    {
        "AssignVariableOp",
        "DisableCopyOnRead",
        "MergeV2Checkpoints",
        "ReadVariableOp",
        "RestoreV2",
        "SaveV2",
        "VarHandleOp",
        "VarIsInitializedOp",
    },
)  # all else that TensorFlow calls stateful would outlive a request


def main(folder: Path, work: Path) -> None:
    tool = Path(sys.executable).with_name("saved_model_cli")
    command = [str(tool), "show", "--dir", str(folder), "--all"]
    shown = subprocess.run(command, capture_output=True, text=True).stdout
    signatures = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].signature_def
    names = [name for name in signatures if not name.startswith("__")]
    missing = [name for name in names if f"signature_def['{name}']" not in shown]
    figures.report("signatures that saved_model_cli does not show", float(len(missing)), 0.0)
    scalars = [n for n in names for i in (*signatures[n].inputs.values(), *signatures[n].outputs.values()) if _fixed(i)]
    figures.report("tensors whose first dimension is not free", float(len(scalars)), 0.0)
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((SERVING / "models.config").read_text(), config)
    wrong = [one.name for one in config.model_config_list.config if one.base_path != f"/models/{one.name}"]
    figures.report("models in models.config whose folder is another's", float(len(wrong)), 0.0)
    _graph(folder)
    if SAMPLE_EPS in names:
        random = {op for op in _operations(pruned.write(folder, SAMPLE_EPS, work / SAMPLE_EPS)) if "Random" in op}
        figures.report(f"random operations of {SAMPLE_EPS}", float(len(random)), 0.0)
    _warm_up(folder, names)


def _fixed(info) -> bool:
    return not info.tensor_shape.dim or info.tensor_shape.dim[0].size != -1


def _graph(folder: Path) -> None:
    ops = _operations(folder)
    stateful = {op for op in ops if (known := op_def_registry.get(op)) and known.is_stateful}
    refused = stateful - CONTROL - WEIGHTS | ops & FORBIDDEN
    figures.report("operations a server refuses, or that keep a state beside the weights", float(len(refused)), 0.0)
    compiled = any(f.attr["_XlaMustCompile"].b for f in _graph_def(folder).library.function)
    figures.report("functions that must be compiled by XLA", float(compiled), 0.0)


def _graph_def(folder: Path):
    return SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def


def _operations(folder: Path) -> set[str]:
    graph = _graph_def(folder)
    return {node.op for function in graph.library.function for node in function.node_def} | {n.op for n in graph.node}


def _warm_up(folder: Path, names: list[str]) -> None:
    model = tf.saved_model.load(str(folder))
    replayed = set()
    for record in tf.data.TFRecordDataset(str(folder / WARM_UP)):
        request = PredictionLog.FromString(record.numpy()).predict_log.request
        given = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in request.inputs.items()}
        model.signatures[request.model_spec.signature_name](**given)
        replayed.add(request.model_spec.signature_name)
    figures.report("signatures without a warm-up record that replays", float(len(set(names) - replayed)), 0.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
