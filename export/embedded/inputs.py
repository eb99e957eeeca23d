"""Requests' tensors, checked against a signature before any memory beyond their own is taken for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfdeblend.export.embedded.body import Body, NotRegular, Span, WrongKind, add, array_of
from tfdeblend.export.embedded.refusal import Refusal, invalid

Arrays = dict[str, np.ndarray]
Specs = dict[str, tf.TensorSpec]
TYPES = {"f": {"float", "int"}, "i": {"int"}, "b": {"bool"}}  # of JSON's values, for each kind of array
KINDS = {"str": "text", "bool": "true or false", "NoneType": "null", "dict": "objects"}


def of_protos(protos: Mapping[str, Any], specs: Specs, most: int) -> Arrays:
    """Reads the inputs of a PredictRequest. most: blends in a request. Raises: Refusal."""
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


def of_json(body: Body, specs: Specs, most: int) -> Arrays:
    """Reads the inputs of a REST body, in rows (`instances`) or in columns (`inputs`). Raises: Refusal."""
    if "inputs" in body.values:
        columns = body.values["inputs"]
        if not isinstance(columns, dict):
            raise invalid("inputs", "an object of named inputs", _kind(columns))
        check_names(columns, specs)
        found = {name: _read(body, name, [columns[name]], spec, most) for name, spec in specs.items()}
    else:
        rows = _rows(body, most)
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise invalid(f"instances[{index}]", "an object of named inputs", _kind(row))
            check_names(row, specs)
        found = {name: _read(body, name, [row[name] for row in rows], spec, most, True) for name, spec in specs.items()}
    check_blends(found)
    return found


def _rows(body: Body, most: int) -> list[Any]:
    rows = body.values["instances"]
    if isinstance(rows, Span) and body.text[rows.start + 1 : rows.end - 1].strip():
        return [rows]
    if not isinstance(rows, list):
        raise invalid("instances", "a list of at least one blend", "none" if isinstance(rows, Span) else _kind(rows))
    if len(rows) > most:
        raise too_many(len(rows), most)
    return rows


def _read(body: Body, name: str, parts: list[Any], spec: tf.TensorSpec, most: int, rows: bool = False) -> np.ndarray:
    """Reads one input: the only part of a column, or a part of each of the rows."""
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    values, shapes, kinds = array_of(dtype), set[tuple[int, ...]](), TYPES[dtype.kind]
    try:
        for part in parts:
            if isinstance(part, Span):
                shapes.add(body.append(part, values, kinds, most * int(np.prod(spec.shape[1:]))))
            elif isinstance(part, list):
                raise WrongKind(_kind(part))
            else:
                add([part], values, kinds)
                shapes.add(())
    except WrongKind as error:
        raise invalid(name, spec.dtype.name, KINDS.get(str(error), error)) from error
    except NotRegular as error:
        raise invalid(name, "a regular array", "one whose rows differ") from error
    except OverflowError as error:
        raise invalid(name, f"numbers that fit into {spec.dtype.name}", "larger ones") from error
    if len(shapes) > 1:
        raise invalid(name, "a regular array", "one whose rows differ")
    shape = ((len(parts),) if rows else ()) + shapes.pop()
    check_shape(name, shape, spec, most)
    return np.frombuffer(values, dtype).reshape(shape)


def _kind(value: Any) -> str:
    """The name of a JSON value's type; of a list that holds more than numbers, that of the first other value."""
    while isinstance(value, list):
        value = next((one for one in value if isinstance(one, str | dict | list)), None)
    return type(value).__name__


def check_names(given: Iterable[str], specs: Specs) -> None:
    """Checks the names of inputs. Raises: Refusal where one is missing or unknown."""
    missing, unknown = sorted(set(specs) - set(given)), sorted(set(given) - set(specs))
    if missing or unknown:
        received = ", ".join([f"no {name}" for name in missing] + [f"unknown {name[:40]!r}" for name in unknown][:5])
        raise invalid("inputs", ", ".join(specs), received)


def check_shape(name: str, shape: Sequence[int], spec: tf.TensorSpec, most: int) -> None:
    """Checks a shape. Raises: Refusal where it is not the signature's, and for no blends or too many."""
    expected = [None, *spec.shape[1:]]
    given = list(shape)
    if len(given) != len(expected) or given[1:] != expected[1:]:
        raise invalid(name, f"shape ({', '.join(['B', *map(str, expected[1:])])})", str(tuple(given))[:100])
    if given[0] < 1:
        raise invalid(name, "at least one blend", given[0])
    if given[0] > most:
        raise too_many(given[0], most)


def check_blends(arrays: Arrays) -> None:
    """Checks that all inputs hold the same number of blends. Raises: Refusal."""
    counts = {name: len(value) for name, value in arrays.items()}
    if len(set(counts.values())) > 1:
        raise invalid(
            "inputs", "as many blends in each", ", ".join(f"{name} {count}" for name, count in counts.items())
        )


def too_many(count: int, most: int) -> Refusal:
    return invalid("inputs", f"at most {most} blends in a request", count)
