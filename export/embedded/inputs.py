"""Requests' tensors, checked against a signature before any memory is taken for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.embedded.refusal import Refusal, invalid

Arrays = dict[str, np.ndarray]
Specs = dict[str, tf.TensorSpec]


def of_protos(protos: Mapping[str, Any], specs: Specs, most: int) -> Arrays:
    """Of a PredictRequest's inputs. most: blends in a request. Raises: Refusal."""
    check_names(protos, specs)
    found = {}
    for name, spec in specs.items():
        proto = protos[name]
        if proto.dtype != spec.dtype.as_datatype_enum:
            try:
                received = tf.dtypes.as_dtype(proto.dtype).name
            except TypeError:
                received = f"dtype {proto.dtype}"
            raise invalid(name, spec.dtype.name, received)
        check_shape(name, [dim.size for dim in proto.tensor_shape.dim], spec, most)
        try:
            found[name] = tf.make_ndarray(proto)
        except (ValueError, TypeError) as error:
            raise invalid(name, "as many numbers as its shape has", " ".join(str(error).split())) from error
    check_blends(found)
    return found


def of_json(body: Any, specs: Specs, most: int) -> tuple[Arrays, bool]:
    """Of a REST body, and whether it came in rows (`instances`). Raises: Refusal."""
    if not isinstance(body, dict) or ("instances" in body) == ("inputs" in body):
        keys = sorted(map(str, body)) if isinstance(body, dict) else type(body).__name__
        raise invalid("body", "an object with either instances or inputs", keys)
    if "inputs" in body:
        columns = body["inputs"]
        if not isinstance(columns, dict):
            columns = {next(iter(specs)): columns} if len(specs) == 1 else {}
        return _columns(columns, specs, most), False
    rows = body["instances"]
    if not isinstance(rows, list) or not rows:
        raise invalid("instances", "a list of at least one blend", type(rows).__name__ if rows else "none")
    if len(rows) > most:
        raise too_many(len(rows), most)
    if len(specs) == 1 and not isinstance(rows[0], dict):
        rows = [{next(iter(specs)): row} for row in rows]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise invalid(f"instances[{index}]", "an object of named inputs", type(row).__name__)
        check_names(row, specs)
    return _columns({name: [row[name] for row in rows] for name in specs}, specs, most), True


def _columns(columns: dict[str, Any], specs: Specs, most: int) -> Arrays:
    check_names(columns, specs)
    found = {}
    for name, spec in specs.items():
        try:
            value = np.array(columns[name])
        except (ValueError, OverflowError, RecursionError) as error:
            raise invalid(name, "a regular array", "one whose rows differ") from error
        allowed = {"f": "fiu", "i": "iu", "b": "b"}[np.dtype(spec.dtype.as_numpy_dtype).kind]
        if value.dtype.kind not in allowed:
            raise invalid(name, spec.dtype.name, _kind(value))
        check_shape(name, value.shape, spec, most)
        if value.dtype.kind in "iu" and spec.dtype.is_integer and value.size:
            limits = np.iinfo(spec.dtype.as_numpy_dtype)
            if value.min() < limits.min or value.max() > limits.max:
                raise invalid(name, f"{limits.min} to {limits.max}", f"{value.min()} to {value.max()}")
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is to the graph
            found[name] = value.astype(spec.dtype.as_numpy_dtype)
    check_blends(found)
    return found


def _kind(value: np.ndarray) -> str:
    return {"U": "text", "O": "an irregular array", "b": "true or false"}.get(value.dtype.kind, value.dtype.name)


def check_names(given: Iterable[str], specs: Specs) -> None:
    """Raises: Refusal where an input is missing or unknown."""
    missing, unknown = sorted(set(specs) - set(given)), sorted(set(given) - set(specs))
    if missing or unknown:
        received = ", ".join([f"no {name}" for name in missing] + [f"unknown {name[:40]!r}" for name in unknown][:5])
        raise invalid("inputs", ", ".join(specs), received)


def check_shape(name: str, shape: Sequence[int], spec: tf.TensorSpec, most: int) -> None:
    """Raises: Refusal for another shape than the signature's, and for no blends or too many."""
    expected = [None, *spec.shape[1:]]
    given = list(shape)
    if len(given) != len(expected) or given[1:] != expected[1:]:
        raise invalid(name, f"shape ({', '.join(['B', *map(str, expected[1:])])})", tuple(given))
    if given[0] < 1:
        raise invalid(name, "at least one blend", given[0])
    if given[0] > most:
        raise too_many(given[0], most)


def check_blends(arrays: Arrays) -> None:
    """Raises: Refusal where inputs do not hold the same number of blends."""
    counts = {name: len(value) for name, value in arrays.items()}
    if len(set(counts.values())) > 1:
        raise invalid(
            "inputs", "as many blends in each", ", ".join(f"{name} {count}" for name, count in counts.items())
        )


def too_many(count: int, most: int) -> Refusal:
    return invalid("inputs", f"at most {most} blends in a request", count)
