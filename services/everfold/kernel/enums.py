"""The door for enums: a number that this build does not know, as a newer SDK sends, is carried, and shown as it is."""

from __future__ import annotations

from typing import Any, Protocol


class Enum(Protocol):
    """A protobuf enum."""

    def Name(self, number: Any) -> str:
        """The symbol of a number; raises ValueError when there is none."""
        ...


def symbol(enum: Enum, number: int, prefix: str = "") -> str:
    """The symbol of a number, without a prefix; of an unknown number the number itself, as Go prints it."""
    try:
        return enum.Name(number).removeprefix(prefix)
    except ValueError:
        return str(number)
