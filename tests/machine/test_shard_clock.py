"""Shard time, under brokers whose clock is ahead."""

from __future__ import annotations

from typing import Any

import msgpack
from shard_driver import START_NS, ShardDriver

from everfold.history.machine.shard_fold import LogRecord
from everfold.kernel.time import HOUR_NS, MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec


def fold_ahead(shard: ShardDriver, kind: str, body: dict[str, Any], clock_ns: int, index: int | None = None) -> None:
    """Folds a record that the broker has stamped an hour ahead; with an index it is a message of another shard."""
    origin = {"source": "SHARD_LOG", "partition": 1, "epoch": 0, "offset": 1, "index": index}
    value = codec.encode_shard_record(
        {
            "kind": kind,
            "namespace_id": "",
            "workflow_id": "",
            "run_id": "",
            "origin": None if index is None else origin,
            "predecessor": None,
            "proposer": {"instance": 1, "sequence": 1, "clock_ns": clock_ns},
            "trace": {},
            "facts": {},
            "body": (codec.body_of(kind), body),
        }
    )
    record = LogRecord(value, len(shard.log), 0, (START_NS + HOUR_NS) // MILLISECOND_NS)
    shard.log.append(record)
    shard.fold.fold(record)


def test_a_stamp_is_believed_up_to_a_second_ahead_of_its_proposer(shard: ShardDriver) -> None:
    fold_ahead(shard, "SHARD_TAKEN", {"owner": "o"}, START_NS)
    assert shard.fold.meta.clock_ns == START_NS + SECOND_NS


def test_a_message_does_not_push_the_clock_beyond_its_senders(shard: ShardDriver) -> None:
    """Two shards that answer each other would otherwise gain a second with every message."""
    body = {"message_kind": "ChildClosed", "message": msgpack.packb({})}
    for index in range(3):
        sender_ns = shard.fold.meta.clock_ns + 10 * MILLISECOND_NS
        fold_ahead(shard, "CROSS_RUN", body, sender_ns, index)
        assert shard.fold.meta.clock_ns == sender_ns
    fold_ahead(shard, "CROSS_RUN", body, START_NS, 3)
    assert shard.fold.meta.clock_ns == START_NS + 30 * MILLISECOND_NS, "and never back"
