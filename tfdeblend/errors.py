"""DataError, which every input that cannot be used ends in, and the check of what kind of thing an argument is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

LONGEST = 500  # characters that a problem may have
CALLED = {int: "a whole number", float: "a number", str: "text"}


class DataError(ValueError):
    """Reports input that cannot be used, in one line: "<source>: <field>: <problem>; <remedy>".

    Args:
        source: where the input comes from: a file, the name of an observation, an option of the command line.
        field: the part of it that is wrong: a key, an extension, a column; None where the source itself is.
        problem: "expected X, received Y".
        remedy: what to do about it, where that is not plain.
    """

    source: str
    field: str | None
    problem: str
    remedy: str | None

    def __init__(self, source: object, field: object, problem: object, remedy: object = None) -> None:
        shown = one_line(problem)  # values and other libraries' errors may be of any length
        parts = (source, field, shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ...", remedy)
        # The parts are the arguments of the exception too, by which it is pickled on its way between processes.
        super().__init__(*(None if part is None else one_line(part) for part in parts))
        self.source, self.field, self.problem, self.remedy = self.args

    def __str__(self) -> str:
        line = ": ".join(part for part in (self.source, self.field, self.problem) if part is not None)
        return line if self.remedy is None else f"{line}; {self.remedy}"

    def at(self, source: object, field: object = None) -> DataError:
        """Report the same problem under another source, and another field where one is given.

        Checks know an observation by its name and its fields; who reads a file says which file and key these are.
        """
        return type(self)(source, self.field if field is None else field, self.problem, self.remedy)


def one_line(text: object) -> str:
    """Text in one line, with escapes for what cannot be printed: control characters, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(str(text).split()))


def expect(what: str, value: Any, *kinds: type, remedy: str | None = None) -> None:
    """Check that an argument of a public call is of one of `kinds`; NumPy's numbers are numbers.

    Raises: TypeError in one line, "<what>: expected X, received a Y; <remedy>".
    """
    plain = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
    if isinstance(plain, kinds) and not (isinstance(plain, bool) and bool not in kinds):
        return
    expected = " or ".join(CALLED.get(kind, kind.__name__) for kind in kinds)
    received = "None" if value is None else f"a {type(value).__name__}"
    raise TypeError(f"{what}: expected {expected}, received {received}" + (f"; {remedy}" if remedy else ""))


def as_path(value: Any) -> Path:
    """Convert a path given as text or otherwise. Raises: TypeError in one line for what is none."""
    if not isinstance(value, str | os.PathLike):
        expect("path", value, str, Path)
    return Path(value)
