"""The state hashes that this fold had at recent offsets, to check those that `OutputsSent` records carry (law 5)."""

from __future__ import annotations

from collections import deque


class HashRing:
    """Remembers (leader epoch, state hash) by offset, for the last `size` offsets."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._first = 0
        self._ring: deque[tuple[int, bytes]] = deque()

    def remember(self, offset: int, epoch: int, state_hash: bytes) -> None:
        """The hash after folding the record at `offset`; offsets come without gaps."""
        ring = self._ring
        if not ring:
            self._first = offset
        ring.append((epoch, state_hash))
        if len(ring) > self._size:
            ring.popleft()
            self._first += 1

    def agrees(self, offset: int, epoch: int, state_hash: bytes) -> bool:
        """Whether the hash is the one remembered; True when that offset is not remembered."""
        at = offset - self._first
        if not 0 <= at < len(self._ring):
            return True
        return self._ring[at] == (epoch, state_hash)

    def describe(self, offset: int) -> str:
        """What is remembered at an offset, for people."""
        at = offset - self._first
        if not 0 <= at < len(self._ring):
            return "nothing"
        epoch, state_hash = self._ring[at]
        return f"{state_hash.hex()} (epoch {epoch})"
