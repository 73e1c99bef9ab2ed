"""Messages between shards when logs begin, and when Kafka loses what was in them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from shard_driver import NAMESPACE, NAMESPACE_ID, START_NS, DictRows, ShardDriver, complete_workflow, start_child

from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.history.machine.step import Step
from everfold.kernel.time import MILLISECOND_NS
from everfold.schemas import codec


def place(offset: int) -> dict[str, Any]:
    return {"source": "SHARD_LOG", "partition": 1, "epoch": 0, "offset": offset, "index": 0}


def signal(
    shard: ShardDriver, offset: int, before: int | None, acknowledged: int | None, namespace_id: str = NAMESPACE_ID
) -> Step:
    """A message of shard 1: a signal to the workflow w, made at that offset, behind the one made at `before`."""
    message = {
        "from": [namespace_id, NAMESPACE, "sender", "run", offset],
        "signal_name": f"s{offset}",
        "input": None,
        "header": None,
        "child_only": False,
    }
    value = codec.encode_shard_record(
        {
            "kind": "CROSS_RUN",
            "namespace_id": namespace_id,
            "workflow_id": "w",
            "run_id": "",
            "origin": place(offset),
            "predecessor": None if before is None else place(before),
            "acknowledged": None if acknowledged is None else place(acknowledged),
            "proposer": {"instance": 0, "sequence": 0, "clock_ns": shard.now_ns},
            "body": ("CrossRun", {"message_kind": "Signal", "message": msgpack.packb(message)}),
        }
    )
    return shard._fold(value)


def signals(shard: ShardDriver) -> list[str]:
    return [line.split("=")[-1] for line in shard.history().splitlines() if "Signaled" in line]


def test_a_message_behind_a_gap_waits_for_what_is_missing(shard: ShardDriver) -> None:
    shard.start()
    signal(shard, 1, None, None)
    assert signal(shard, 3, 2, 1).ignored
    signal(shard, 2, 1, 1)
    signal(shard, 3, 2, 1)
    assert signals(shard) == ["s1", "s2", "s3"]


def test_what_the_sender_knew_to_be_there_and_is_not_was_lost_and_nobody_waits_for_it(shard: ShardDriver) -> None:
    """A tail of this log that Kafka lost had message 2; its sender will never send it again."""
    shard.start()
    signal(shard, 1, None, None)
    assert signal(shard, 3, 2, 1).ignored, "2 may be on its way"
    step = signal(shard, 4, 3, 3)
    assert step.messages_lost == "SHARD_LOG/1"
    assert not step.ignored
    assert not signal(shard, 5, 4, 3).messages_lost
    assert signal(shard, 4, 3, 3).ignored, "a repeat is one still"
    assert signals(shard) == ["s1", "s4", "s5"]


def test_a_signal_to_a_shard_that_has_not_heard_of_the_namespace_finds_nobody(shard: ShardDriver) -> None:
    """Its sender waits for an answer, and for nothing else."""
    signal(shard, 1, None, None, "5d9c1a06-0000-4000-8000-00000000000f")
    (answer,) = map(codec.decode_shard_record, shard.messages)
    told = answer["body"]
    assert told["message_kind"] == "ExternalAnswered"
    assert answer["workflow_id"] == "sender"
    assert msgpack.unpackb(told["message"]) == {"initiated": 1, "cause": 1}  # EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND


def test_a_message_tells_what_its_sender_knows(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    (last,) = [row.origin for row in shard.steps[-1].outputs if row.topic == "workflow-tasks"]
    position = last._asdict()
    shard.append("OUTPUTS_SENT", {"position": position, "offset": 0, "epoch": 0, "state_hash": b""})
    shard.complete(task, start_child("child"))
    (message,) = shard.messages
    assert codec.decode_shard_record(message)["acknowledged"] == position


@pytest.mark.parametrize("genesis", ["at once", "later"])
def test_a_message_that_comes_before_genesis_is_folded_with_it(shard: ShardDriver, genesis: str) -> None:
    """Shard 1 may serve, and start a child here, before this shard's first owner has written a word."""
    shard.start()
    shard.complete(shard.poll(), start_child("child"))
    (message,) = shard.messages
    log = [message, *(record.value for record in shard.log[:1])]
    if genesis == "later":
        log.insert(1, shard.log[1].value)
    fold, rows = ShardFold(0, DictRows(), 1), DictRows()
    steps = []
    for offset, value in enumerate(log):
        steps.append(fold.fold(LogRecord(value, offset, 0, START_NS // MILLISECOND_NS)))
        rows.write(fold.take_writes())
    assert not any(step.quarantined for step in steps)
    assert fold.meta.cluster_id == "test"
    assert [step.ignored for step in steps[1:-1]] == [True] * (len(log) - 2)
    child = fold.run(NAMESPACE_ID, NAMESPACE, "child", "")
    assert child is not None
    assert child.parent[2] == "w"
    answers = [row for row in steps[-1].outputs if row.topic == "shard-log"]
    assert len(answers) == 1
    shard.deliver()
    shard.complete(shard.poll("child"), complete_workflow())
