"""A SavedModel in a session, which is how TensorFlow Serving runs it."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from tfdeblend.export.embedded.batcher import Arrays

v1 = tf.compat.v1


class Runtime:
    """Runs the signatures of a model, several batches side by side.

    A session gives each run a step of its own. Functions of `tf.saved_model.load` share one: where TensorFlow's
    optimiser, short of free memory, sums into temporary variables, those of batches side by side meet: "AlreadyExists".

    Attributes: signatures: as the model tells of itself. specs: of each signature's inputs.
    """

    def __init__(self, folder: Path):
        config = ConfigProto()
        config.graph_options.rewrite_options.memory_optimization = RewriterConfig.NO_MEM_OPT
        graph = tf.Graph()
        with graph.as_default():
            self._session = v1.Session(graph=graph, config=config)
            defined = v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(folder)).signature_def
        self.signatures: dict[str, SignatureDef] = {k: v for k, v in defined.items() if not k.startswith("__")}
        self.specs = {name: _specs(own) for name, own in self.signatures.items()}
        self._calls = {name: self._callable(own) for name, own in self.signatures.items()}

    def __call__(self, signature: str, arrays: Arrays) -> Arrays:
        found = self._calls[signature](*(arrays[name] for name in sorted(arrays)))
        return dict(zip(sorted(self.signatures[signature].outputs), found, strict=True))

    def close(self) -> None:
        self._session.close()

    def _callable(self, signature: SignatureDef):
        outputs, inputs = (
            [infos[name].name for name in sorted(infos)] for infos in (signature.outputs, signature.inputs)
        )
        return self._session.make_callable(outputs, inputs)


def _specs(signature: SignatureDef) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(one.tensor_shape, one.dtype, name) for name, one in sorted(signature.inputs.items())}
