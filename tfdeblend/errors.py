"""The error that every bad input ends in."""

from __future__ import annotations


class DataError(ValueError):
    """Input that cannot be used: `DataError(file, field, problem)`.

    The message is one line, "<file>: <field>: expected ..., received ...". The three parts stay apart in `args`, so
    that a reader can put the file's path in place of the name an inner check knew.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(" ".join(str(part).split()) for part in parts))

    def __str__(self) -> str:
        return ": ".join(self.args)
