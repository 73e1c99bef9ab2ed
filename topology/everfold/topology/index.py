"""The visibility index: `visibility` folded into SQL, rows and position in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from everfold.schemas.codec import decode_visibility
from everfold.schemas.topics import VISIBILITY, Topic
from everfold.topology.projection import PositionMoved, Projection, Taken
from everfold.topology.state import DeadLetter, Position
from everfold.visibility import store as index


class VisibilityIndex(Projection):
    """`visibility` to the index that List, Count and Scan read.

    The index may be shared: a former owner of the partition that does not know it yet finds the position moved, and
    its transaction fails (law 7).
    """

    name: ClassVar[str] = "index"
    source: ClassVar[Topic] = VISIBILITY

    def __init__(self, store: index.VisibilityStore) -> None:
        super().__init__()
        self._store = store

    def decode(self, value: bytes) -> Mapping[str, Any]:
        """A VisibilityRecord."""
        return decode_visibility(value)

    async def load(self, partition: int) -> Position | None:
        """The position that the index has."""
        stored = self._store.position(self.source.name, partition)
        return None if stored is None else Position(stored.next_offset, _origin(stored))

    async def apply(
        self,
        partition: int,
        expected: Position | None,
        reached: Position,
        taken: Sequence[Taken],
        dead_letters: Sequence[DeadLetter],
    ) -> None:
        """Writes the rows, on the loop's own thread: a batch takes milliseconds, another thread as much."""
        records = [fields for _, _, fields in taken]
        letters = [(letter.offset, letter.reason, letter.value) for letter in dead_letters]
        try:
            self._store.fold(self.source.name, partition, _stored(expected), _required(reached), records, letters)
        except index.PositionMoved as moved:
            raise PositionMoved from moved

    def is_trouble(self, error: Exception) -> bool:
        """A full disk, a lock that is not let go, a damaged file; not what SQLite says of a value."""
        database = isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
        return database or super().is_trouble(error)

    async def stop(self) -> None:
        """Closes the index."""
        self._store.close()


def _origin(stored: index.Position) -> tuple[int, int, int] | None:
    return None if stored.place == index.BEFORE_ALL else stored.place


def _required(position: Position) -> index.Position:
    return index.Position(position.next_offset, index.BEFORE_ALL if position.origin is None else position.origin)


def _stored(position: Position | None) -> index.Position | None:
    return None if position is None else _required(position)
