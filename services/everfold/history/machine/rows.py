"""Rows with writes pending: what a step writes is seen by the next step at once, and by RocksDB once a batch.

Three layers, newest first: the step under way, the batch since the last write, the store. A step that fails is dropped
whole (law 9); a batch goes to the store in one WriteBatch together with the applied offset (law 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol


class RowStore(Protocol):
    """The durable rows: RocksDB, or a dictionary in the simulator."""

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, in key order, or against it."""
        ...


class Rows:
    """The rows of a shard as the fold sees them."""

    __slots__ = ("_batch", "_hash", "_step", "_store")

    def __init__(self, store: RowStore, state_hash: bytes) -> None:
        self._store = store
        #: key -> value, None when deleted; everything since the last write
        self._batch: dict[bytes, bytes | None] = {}
        self._step: dict[bytes, bytes | None] = {}
        self._hash = state_hash

    def get(self, key: bytes) -> bytes | None:
        """The row's value, pending writes included."""
        if key in self._step:
            return self._step[key]
        if key in self._batch:
            return self._batch[key]
        return self._store.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Write a row in the step under way."""
        self._step[key] = value

    def delete(self, key: bytes) -> None:
        """Delete a row in the step under way."""
        self._step[key] = None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order (or against it), pending writes included."""
        pending = {k: v for layer in (self._batch, self._step) for k, v in layer.items() if start <= k < end}
        if not pending:
            yield from self._store.scan(start, end, reverse=reverse)
            return
        mine = sorted(pending, reverse=reverse)
        at = 0
        for key, value in self._store.scan(start, end, reverse=reverse):
            while at < len(mine) and (mine[at] > key if reverse else mine[at] < key):
                own = pending[mine[at]]
                if own is not None:
                    yield mine[at], own
                at += 1
            if key not in pending:
                yield key, value
        for key in mine[at:]:
            own = pending[key]
            if own is not None:
                yield key, own

    @property
    def state_hash(self) -> bytes:
        """Running hash over every row put or deleted by committed steps, in fold order."""
        return self._hash

    def commit_step(self) -> None:
        """Keep what the step wrote, and run its rows into the hash."""
        if not self._step:
            return
        digest = hashlib.blake2b(self._hash, digest_size=16)
        for key, value in self._step.items():
            digest.update(len(key).to_bytes(4, "big"))
            digest.update(key)
            if value is None:
                digest.update(b"\xff\xff\xff\xff")
            else:
                digest.update(len(value).to_bytes(4, "big"))
                digest.update(value)
        self._hash = digest.digest()
        self._batch.update(self._step)
        self._step = {}

    def drop_step(self) -> None:
        """Forget what the step wrote."""
        self._step = {}

    def pending(self) -> dict[bytes, bytes | None]:
        """The batch: what is to be written to the store, committed steps only."""
        return self._batch

    def written(self) -> None:
        """The batch is in the store."""
        self._batch = {}
