"""A SavedModel with a single signature, as its default: for runtimes that know no other, such as OpenVINO."""

from __future__ import annotations

import shutil
from pathlib import Path

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel


def write(folder: Path, signature: str, target: Path) -> Path:
    """Copies a model with only what `signature` needs; returns `target`."""
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    kept = graph.signature_def[signature]
    outputs = [info.name.split(":")[0] for info in kept.outputs.values()]
    default = type(kept).FromString(kept.SerializeToString())
    graph.ClearField("signature_def")
    graph.signature_def["serving_default"].CopyFrom(default)
    _keep(graph.graph_def.node, _reached({node.name: node for node in graph.graph_def.node}, outputs, graph))
    _keep(graph.graph_def.library.function, _functions(graph.graph_def), lambda function: function.signature.name)
    target.mkdir(parents=True)
    (target / "saved_model.pb").write_bytes(saved.SerializeToString())
    shutil.copytree(folder / "variables", target / "variables")
    return target


def _reached(nodes: dict, outputs: list[str], graph) -> set[str]:
    """Names the nodes that outputs, and the restoring of variables, depend on."""
    saver = graph.saver_def
    pending = [*outputs, *(name.split(":")[0] for name in (saver.filename_tensor_name, saver.save_tensor_name))]
    pending.append(saver.restore_op_name)
    pending += [node.name for node in nodes.values() if node.op in ("VarHandleOp", "Placeholder", "NoOp")]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found and name in nodes:
            found.add(name)
            pending += [source.lstrip("^").split(":")[0] for source in nodes[name].input]
    return found


def _functions(graph_def) -> set[str]:
    """Names the functions that the graph's nodes call, directly or not."""
    library = {function.signature.name: function for function in graph_def.library.function}
    pending, found = list(graph_def.node), set()
    while pending:
        for value in pending.pop().attr.values():
            for name in [value.func.name, *(func.name for func in value.list.func)]:
                if name and name not in found:
                    found.add(name)
                    pending += list(library[name].node_def) if name in library else []
    return found


def _keep(items, names: set[str], name_of=lambda item: item.name) -> None:
    kept = [item for item in items if name_of(item) in names]
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del items[:]
    items.extend(copies)
