"""The proof that the stores are nothing but the log: folds every shard's log from its first record and compares.

Run while no server has the stores open.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from everfold.history.machine import keys
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.shard_meta import ShardMeta
from everfold.history.store import StoreMemory, open_store

MIB = 2**20


class DictStore:
    """A row store in memory."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        found = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        for key in reversed(found) if reverse else found:
            yield key, self.rows[key]

    def write(self, rows: dict[bytes, bytes | None]) -> None:
        for key, value in rows.items():
            if value is None:
                if self.rows.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]
                continue
            if key not in self.rows:
                insort(self._keys, key)
            self.rows[key] = value


@dataclass
class Refolded:
    """One shard, folded again.

    Attributes:
        records: how many were folded up to the store's position.
        equal: whether the state hash is the store's, and every row as well.
        detail: for the failure message.
    """

    shard: int
    records: int
    equal: bool
    detail: str


def refold(bootstrap: str, prefix: str, history_dir: Path) -> list[Refolded]:
    """Folds the log of every shard that has a store there."""
    return [
        _refold_shard(bootstrap, prefix, history_dir, int(directory.name.removeprefix("shard-")))
        for directory in sorted(history_dir.glob("shard-????"))
    ]


def _refold_shard(bootstrap: str, prefix: str, history_dir: Path, shard: int) -> Refolded:
    marker = json.loads((history_dir / f"shard-{shard:04d}" / "everfold.json").read_text())
    store = open_store(history_dir, shard, marker["cluster_id"], StoreMemory(32 * MIB, 16 * MIB))
    try:
        stored = ShardMeta.decode(shard, store.get(keys.META))
        rows = DictStore()
        fold = ShardFold(shard, rows, 64 * MIB)
        records = 0
        for record in _log(bootstrap, f"{prefix}shard-log", shard, stored.applied_offset):
            fold.fold(record)
            records += 1
            if records % 500 == 0:
                rows.write(fold.take_writes())
                fold.written()
        rows.write(fold.take_writes())
        fold.written()
        kept = dict(store.scan(b"", b"\xff" * 64))
        differing = [key for key in {*kept, *rows.rows} if kept.get(key) != rows.rows.get(key)]
        equal = fold.meta.state_hash == stored.state_hash and not differing
        detail = (
            f"hash {fold.meta.state_hash.hex()} against {stored.state_hash.hex()} at offset {stored.applied_offset};"
            f" {len(differing)} of {len(kept)} rows differ: {differing[:5]}"
        )
        return Refolded(shard, records, equal, detail)
    finally:
        store.close()


def _log(bootstrap: str, topic: str, partition: int, last: int) -> Iterator[LogRecord]:
    """The records of a partition from the first one to offset `last`."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "refold", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    offset = -1
    try:
        while offset < last:
            # Not more than there are: consume waits its whole time for those that are missing.
            messages = consumer.consume(min(500, last - offset), 30.0)
            assert messages, f"{topic}/{partition} ends at {offset}; the store is at {last}"
            for message in messages:
                assert message.error() is None, message.error()
                at, value = message.offset(), message.value()
                assert at is not None
                assert value is not None
                offset = at
                if offset > last:
                    return
                yield LogRecord(value, offset, message.leader_epoch() or 0, message.timestamp()[1])
    finally:
        consumer.close()
