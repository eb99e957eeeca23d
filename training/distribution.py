"""One training on several devices or machines: every replica sees its rows of a step's batch, gradients are added up.

    TF_CONFIG='{"cluster": {"worker": ["one:7000", "two:7000"]}, "task": {"type": "worker", "index": 0}}' \\
        tfdeblend train --config train.json --out runs/train

with `"strategy": "multi_worker"` in the configuration, the same command on each machine with its own index. The
weights are those of one process but for rounding. Of several processes the first, the chief, writes the files.
"""

from __future__ import annotations

import json
import os
from functools import cache
from typing import Any

import keras
import tensorflow as tf

from tfdeblend.errors import DataError
from tfdeblend.io.files import parsing


@cache
def strategy(name: str | None) -> tf.distribute.Strategy:
    """Returns one of `config.STRATEGIES` by name. It must be asked for before TensorFlow does any work.

    Raises: DataError for several processes without TF_CONFIG, which says where they are.
    """
    if name is None:
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    found = _cluster()
    if not found.get("worker") or len(found) > 1:
        received = ", ".join(sorted(found)) if len(found) > 1 else "none"
        expected = f"expected the addresses of the workers alone, received {received}"
        raise DataError("TF_CONFIG", "cluster", expected, "set TF_CONFIG")
    return tf.distribute.MultiWorkerMirroredStrategy()


def _cluster() -> dict[str, list[str]]:
    """Returns the addresses of processes by their task, as TF_CONFIG says."""
    with parsing("TF_CONFIG", "cluster"):
        return dict(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}))


def is_chief(found: tf.distribute.Strategy) -> bool:
    """Tell whether this process writes the files: the only one, or the first."""
    return not _several(found) or found.cluster_resolver.task_id == 0


def _several(found: tf.distribute.Strategy) -> bool:
    """Whether replicas are in several processes."""
    return isinstance(found, tf.distribute.MultiWorkerMirroredStrategy) and found.extended._in_multi_worker_mode()


def of_chief(found: tf.distribute.Strategy, number: int) -> int:
    """Waits for all processes, and returns the number that the chief has given."""
    if not _several(found):
        return number

    def value(context: tf.distribute.InputContext) -> tf.Tensor:
        return tf.constant(number if context.replica_id_in_sync_group == 0 else 0)

    each = found.experimental_distribute_values_from_function(value)
    return int(found.reduce(tf.distribute.ReduceOp.SUM, each, axis=None))


def distributed(found: tf.distribute.Strategy, data: tf.data.Dataset) -> Any:
    """Splits each batch of a dataset into equal parts, one for each replica.

    A batch is made in every process, which then keeps its rows: so its random numbers are those of one process.

    Raises: ValueError for batches that are no multiple of the replicas.
    """
    replicas = found.num_replicas_in_sync
    if replicas == 1:
        return data

    def own(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def parts(tensor: tf.Tensor) -> tf.Tensor:
            if tensor.shape[0] % replicas:
                expected = f"expected a multiple of the {replicas} replicas"
                raise ValueError(f"batch: {expected}, received {tensor.shape[0]}")
            split = tf.reshape(tensor, (replicas, tensor.shape[0] // replicas, *tensor.shape[1:]))
            return split[first : first + here]

        return data.map(lambda *batch: tf.nest.map_structure(parts, batch)).unbatch().prefetch(4)

    return found.distribute_datasets_from_function(own)


class Adam(keras.optimizers.Adam):
    """Clips the gradient of the whole batch, where Keras clips each replica's part before it adds them up."""

    def _clip_gradients(self, grads: list[tf.Tensor]) -> list[tf.Tensor]:
        replica = tf.distribute.get_replica_context()
        return super()._clip_gradients(replica.all_reduce(tf.distribute.ReduceOp.SUM, grads))

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars  # they are sums already


def mend(model: keras.Model) -> None:
    """Makes Keras' `fit` run where replicas are in several processes.

    Keras (3.15) builds a model there from values of all replicas, and takes the mean of scalars along their first axis.
    """
    found = model.distribute_strategy
    if not _several(found):
        return

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        for _, _, values in iterator:
            batch = tf.nest.map_structure(lambda value: found.experimental_local_results(value)[0], next(values))
            break
        with found.scope():
            model._symbolic_build(data_batch=batch)

    step = model.train_step

    def train_step(data: Any) -> dict[str, tf.Tensor]:
        return {name: tf.reshape(value, [1]) for name, value in step(data).items()}

    model._maybe_symbolic_build, model.train_step = build, train_step
