"""A record whose fold breaks off between two of its writes, as a process that runs out of memory breaks off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any
from unittest.mock import patch

from everfold.history.machine import keys
from everfold.history.machine.context import namespace_from_record
from everfold.history.machine.rows import Rows
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.state import encode_run
from everfold.history.machine.step import Step
from everfold.schemas import codec

_SIMULATORS = b"\xff\xff~"
"""Rows that the simulator's newer build writes behind a step."""


class BrokenOff(MemoryError):
    """What the process is in trouble with."""


def break_off(fold: ShardFold, record: LogRecord, at: int) -> Step | None:
    """Folds the record up to its write number `at` (0 is the first). Returns the step of one that has fewer.

    Raises:
        AssertionError: something of the step is left.
    """
    before = _whole(fold)
    with _writes_fail(at), suppress(BrokenOff):
        return fold.fold(record)
    after = _whole(fold)
    assert after == before, [name for name in before if before[name] != after[name]]
    _assert_caches_agree(fold)
    return None


@contextmanager
def _writes_fail(at: int) -> Iterator[None]:
    left = at
    put, delete = Rows.put, Rows.delete

    def count(key: bytes) -> None:
        nonlocal left
        left -= not key.startswith(_SIMULATORS)
        if left < 0:
            raise BrokenOff

    def failing_put(self: Rows, key: bytes, value: bytes) -> None:
        count(key)
        put(self, key, value)

    def failing_delete(self: Rows, key: bytes) -> None:
        count(key)
        delete(self, key)

    with patch.object(Rows, "put", failing_put), patch.object(Rows, "delete", failing_delete):
        yield


def _whole(fold: ShardFold) -> dict[str, Any]:
    """All that a fold knows, but for what it keeps in memory only to be quick."""
    meta, rows = fold.meta, fold.rows
    return {
        "meta": meta.encode(),
        "limits": dict(meta.settings),
        "batch": dict(rows.pending()),
        "step": rows.step_writes(),
        "hash": rows.state_hash,
        "tails": deepcopy(rows.tails._tails),
        "first timer": rows.first_timer(),
    }


def _assert_caches_agree(fold: ShardFold) -> None:
    """What is kept to be quick says what the rows say."""
    for key, run in fold.cache._runs.items():
        assert encode_run(run) == fold.rows.get(key), f"the cached run {key!r} is not its row"
    for namespace_id, known in fold._namespaces.items():
        row = fold.rows.get(keys.namespace(namespace_id))
        assert row is not None, f"namespace {namespace_id} is cached and has no row"
        assert namespace_from_record(codec.decode(row)[1]) == known
