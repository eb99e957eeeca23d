"""The body of a REST request: JSON whose arrays of numbers are read row by row, into no more memory than they need.

Python's own reader makes an object of every number, which takes up to twenty times as much as the text. Here it reads
what stands around the arrays, in which they are left as `Span`s, and then each array's rows, one after the other.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdeblend.export.embedded.refusal import Refusal, invalid

AROUND = 2**20  # bytes: more text around the arrays no request has
PIECE = 2**16  # bytes of a row that are read at a time
DEEPEST = 8  # lists within each other
TOKEN, END_OF_STRING, END_OF_RUN = (
    re.compile(rb"""["\[]|NaN|-?Infinity"""),
    re.compile(rb'(?:[^"\\]|\\.)*+"', re.DOTALL),
    re.compile(rb'[{}"]'),
)
ROW = re.compile(rb"\[([^\[\]]*)\]")  # a list that holds no other
SPACE = b" \t\r\n"


@dataclass(frozen=True)
class Span:
    """Where an array, or a number that is not finite, stands in the text."""

    start: int
    end: int


class NotRegular(Exception):
    """Says that rows of an array differ."""


class WrongKind(Exception):
    """Says by its name of which type a value is that an array cannot hold."""


class Body:
    """Args:
    text: of the request.

    Attributes: values: what it says, with a `Span` for each array that holds neither text nor objects.

    Raises: Refusal for text that is no JSON, or more around its arrays than a request has.
    """

    def __init__(self, text: bytearray):
        self.text = text
        around, spans = bytearray(), deque[Span]()
        for piece in self._pieces():
            if isinstance(piece, Span):
                spans.append(piece)
                around += b"NaN"
            else:
                around += piece
            if len(around) > AROUND:
                raise invalid("body", f"at most {AROUND} bytes beside arrays of numbers", "more")

        def span(_: str) -> Span:
            if not spans:  # a number that is not finite stands beside text or objects, or in a list without an end
                raise ValueError("a list of numbers and others")
            return spans.popleft()

        try:
            self.values = json.loads(around, parse_constant=span)
        except (ValueError, RecursionError) as error:
            raise _no_json(error) from error

    def _pieces(self) -> Any:
        """Yields the text around arrays, and where these are."""
        text, place = self.text, 0
        while token := TOKEN.search(text, place):
            yield text[place : token.start()]
            start, place = token.span()
            if token[0] == b'"':
                if not (end := END_OF_STRING.match(text, place)):
                    raise _no_json("text without an end")
                place = end.end()
                yield text[start:place]
            elif token[0] == b"[":
                run = END_OF_RUN.search(text, place)
                end_of_run = run.start() if run else len(text)
                place = text.rfind(b"]", place, end_of_run) + 1
                if place:
                    yield Span(start, place)
                else:
                    place = end_of_run
                    yield text[start:place]
            else:
                yield Span(start, place)
        yield text[place:]

    def append(self, span: Span, values: array, kinds: set[str], most: int) -> tuple[int, ...]:
        """Reads the numbers of an array, and returns its shape.

        Args:
          values: to which they are added. kinds: the names of the types that they may have. most: numbers that
            `values` may hold.

        Raises: NotRegular, WrongKind, Refusal; OverflowError for a number that `values` cannot hold.
        """
        text = self.text
        if text[span.start] != ord("["):
            add([float(bytes(text[span.start : span.end]).replace(b"Infinity", b"inf"))], values, kinds)
            return ()
        levels: _Levels | None = None
        place = span.start
        for row in ROW.finditer(text, span.start, span.end):
            between = bytes(text[place : row.start()]).translate(None, SPACE)
            place = row.end()
            if levels is None:
                levels = _Levels(between)
            else:
                levels.turn(between)
            before = len(values)
            for piece in self._row(*row.span(1)):
                add(piece, values, kinds)
                if len(values) > most:
                    raise invalid("inputs", f"at most {most} numbers", "more")
            levels.add(len(values) - before)
        if levels is None:
            raise NotRegular
        return levels.end(bytes(text[place : span.end]).translate(None, SPACE))

    def _row(self, start: int, end: int) -> Any:
        """Yields the values of a row, a few at a time."""
        place, whole = start, end - start <= PIECE
        while True:
            comma = -1 if whole else self.text.find(b",", place + PIECE, end)
            last = end if comma < 0 else comma
            piece = self.text[place:last]
            try:
                found = json.loads(b"[" + piece + b"]")
            except (ValueError, RecursionError) as error:
                raise _no_json(error) from error
            if not found and not whole:
                raise _no_json("a comma before an end")
            yield found
            if comma < 0:
                return
            place = comma + 1


class _Levels:
    """How many values or lists each level of an array has, so far: the outermost first.

    Args: between: the brackets before its first row.
    """

    def __init__(self, between: bytes):
        self.depth = len(between)
        if between != b"[" * self.depth or self.depth >= DEEPEST:
            raise NotRegular
        self.sizes: list[int | None] = [None] * (self.depth + 1)
        self.seen = [0] * self.depth

    def add(self, number: int) -> None:
        """Counts a row of so many values."""
        self._set(self.depth, number)
        if self.depth:
            self.seen[-1] += 1

    def turn(self, between: bytes) -> None:
        """Counts the lists that end between two rows."""
        closed = between.find(b",")
        if not 0 <= closed < self.depth or between != b"]" * closed + b"," + b"[" * closed:
            raise NotRegular
        self._close(closed)

    def end(self, between: bytes) -> tuple[int, ...]:
        """Returns the shape, after the brackets behind the last row."""
        if between != b"]" * self.depth:
            raise NotRegular
        self._close(self.depth)
        return tuple(size or 0 for size in self.sizes)

    def _close(self, number: int) -> None:
        for level in range(self.depth - 1, self.depth - 1 - number, -1):
            self._set(level, self.seen[level])
            self.seen[level] = 0
            if level:
                self.seen[level - 1] += 1

    def _set(self, level: int, size: int) -> None:
        if self.sizes[level] not in (None, size):
            raise NotRegular
        self.sizes[level] = size


def add(numbers: list[Any], values: array, kinds: set[str]) -> None:
    """Adds numbers to an array. Raises: WrongKind, OverflowError."""
    if wrong := {type(one).__name__ for one in numbers} - kinds:
        raise WrongKind(min(wrong))
    values.extend(numbers)


def array_of(dtype: np.dtype) -> array:
    """Makes an empty array whose buffer is of a NumPy type."""
    return array("b" if dtype.kind == "b" else dtype.char)


def _no_json(reason: object) -> Refusal:
    return invalid("body", "JSON", str(reason)[:200])
