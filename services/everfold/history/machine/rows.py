"""Rows with writes pending: what a step writes is seen by the next step at once, and by RocksDB once a batch.

Layers, newest first: the step since its last savepoint, the step before that, the batch since the last write, the
store. A step that fails is dropped whole (law 9); a batch goes to the store in one WriteBatch together with the applied
offset (law 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

from everfold.history.machine import keys
from everfold.history.machine.history_tails import HistoryTails
from everfold.kernel.errors import ShardLost


class StoreFailed(ShardLost):
    """The store could not be read: the next host may do better (law 9)."""


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

    __slots__ = (
        "_batch",
        "_first_timer",
        "_hash",
        "_saved",
        "_saved_writes",
        "_step",
        "_store",
        "_timer_floor",
        "tails",
    )

    def __init__(self, store: RowStore, state_hash: bytes) -> None:
        self._store = store
        #: key -> value, None when deleted; everything since the last write
        self._batch: dict[bytes, bytes | None] = {}
        #: the step under way, since its last savepoint
        self._step: dict[bytes, bytes | None] = {}
        #: the same before it, a part for each savepoint, and all parts in one
        self._saved: list[dict[bytes, bytes | None]] = []
        self._saved_writes: dict[bytes, bytes | None] = {}
        self._hash = state_hash
        #: the latest history rows of committed steps
        self.tails = HistoryTails()
        #: no timer row lies before this key: a scan from here walks over no tombstones but the latest
        self._timer_floor = keys.TIMERS
        #: the first timer row's key, b"" for none, None when it has to be looked up
        self._first_timer: bytes | None = None

    def get(self, key: bytes) -> bytes | None:
        """The row's value, pending writes included."""
        if key in self._step:
            return self._step[key]
        if key in self._saved_writes:
            return self._saved_writes[key]
        if key in self._batch:
            return self._batch[key]
        try:
            return self._store.get(key)
        except Exception as trouble:
            raise StoreFailed(f"the store cannot be read: {trouble}") from trouble

    def put(self, key: bytes, value: bytes) -> None:
        """Write a row in the step under way."""
        self._step[key] = value

    def delete(self, key: bytes) -> None:
        """Delete a row in the step under way."""
        self._step[key] = None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order (or against it), pending writes included."""
        layers = (self._batch, self._saved_writes, self._step)
        pending = {k: v for layer in layers for k, v in layer.items() if start <= k < end}
        if not pending:
            yield from self._stored(start, end, reverse)
            return
        mine = sorted(pending, reverse=reverse)
        at = 0
        for key, value in self._stored(start, end, reverse):
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

    def _stored(self, start: bytes, end: bytes, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        rows = self._store.scan(start, end, reverse=reverse)
        while True:
            try:
                row = next(rows, None)
            except Exception as trouble:
                raise StoreFailed(f"the store cannot be read: {trouble}") from trouble
            if row is None:
                return
            yield row

    @property
    def state_hash(self) -> bytes:
        """Running hash over every row put or deleted by committed steps, in fold order."""
        return self._hash

    def savepoint(self) -> None:
        """What the step wrote so far is kept when the rest of it is dropped."""
        if self._step:
            self._saved.append(self._step)
            self._saved_writes.update(self._step)
            self._step = {}

    def commit_step(self) -> None:
        """Keep what the step wrote, and run its rows into the hash."""
        if self._saved:
            for part in self._saved:
                self._commit(part)
            self._saved, self._saved_writes = [], {}
        if self._step:
            self._commit(self._step)
            self._step = {}

    def abandon_step(self) -> None:
        """Forget all that the step wrote, savepoints or not."""
        self._step, self._saved, self._saved_writes = {}, [], {}

    def _commit(self, writes: dict[bytes, bytes | None]) -> None:
        digest = hashlib.blake2b(self._hash, digest_size=16)
        for key, value in writes.items():
            digest.update(len(key).to_bytes(4, "big"))
            digest.update(key)
            if value is None:
                digest.update(b"\xff\xff\xff\xff")
            else:
                digest.update(len(value).to_bytes(4, "big"))
                digest.update(value)
            if key.startswith(keys.TIMERS):
                self._note_timer(key, value is not None)
            elif keys.is_history(key):
                self.tails.note(key, value)
        self._hash = digest.digest()
        self._batch.update(writes)

    def _note_timer(self, key: bytes, put: bool) -> None:
        first = self._first_timer
        if not put:
            if key == first:
                self._first_timer = None
        elif first is not None and (not first or key < first):
            self._first_timer = self._timer_floor = key
        elif key < self._timer_floor:
            self._timer_floor = key

    def first_timer(self) -> bytes:
        """Key of the first timer row; b"" for none. Rows are looked up only after the first one has gone."""
        if self._first_timer is None:
            self._first_timer = next((key for key, _ in self.scan(self._timer_floor, keys.TIMERS_END)), b"")
            self._timer_floor = self._first_timer or keys.TIMERS_END
        return self._first_timer

    def step_writes(self) -> dict[bytes, bytes | None]:
        """What the step has written since its last savepoint."""
        return dict(self._step)

    def drop_step(self, writes: dict[bytes, bytes | None]) -> None:
        """Forget what the step wrote since its last savepoint, but for these of its writes."""
        self._step = dict(writes)

    def pending(self) -> dict[bytes, bytes | None]:
        """The batch: what is to be written to the store, committed steps only."""
        return self._batch

    def written(self) -> None:
        """The batch is in the store."""
        self._batch = {}
