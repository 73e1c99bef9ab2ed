"""What events and answers hold of fields that a caller writes without a value: an empty message is not absent."""

from __future__ import annotations

from typing import Any

from shard_driver import NAMESPACE_ID, ShardDriver, continue_as_new, schedule_activity, start_child
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1 import message_pb2 as common

from everfold.history.machine import events, reads

EMPTY: dict[str, Any] = {"memo": {}, "search_attributes": {}, "header": {}, "input": {}}
KEPT = {"header", "input"}
"""Of these, the fields that are written though they are empty."""


def attributes(shard: ShardDriver, event_type: int, workflow_id: str = "w", run_id: str = "") -> Any:
    run = shard.fold.run(NAMESPACE_ID, "default", workflow_id, run_id)
    assert run is not None
    return next(
        events.attributes_of(event) for event in reads.events_of(shard.fold, run) if event.event_type == event_type
    )


def written(a: Any) -> set[str]:
    return {name for name in EMPTY if a.HasField(name)}


def filled(command: Command, **fields: Any) -> Command:
    target = getattr(command, str(command.WhichOneof("attributes")))
    target.MergeFrom(type(target)(**fields))
    return command


def test_a_start_and_its_child_leave_out_an_empty_memo_and_empty_search_attributes(shard: ShardDriver) -> None:
    shard.start(**EMPTY)
    assert written(attributes(shard, events.STARTED)) == KEPT
    shard.complete(shard.poll(), filled(start_child("child"), **EMPTY))
    assert written(attributes(shard, events.CHILD_INITIATED)) == KEPT
    shard.deliver()
    assert written(attributes(shard, events.STARTED, "child")) == KEPT


def test_a_continued_run_leaves_them_out_too_and_says_that_it_inherits_the_build(shard: ShardDriver) -> None:
    first = shard.start()
    shard.sleep(2)
    waits_not = {"backoff_start_interval": {"seconds": 0}}
    shard.complete(shard.poll(), filled(continue_as_new(), **EMPTY, **waits_not, inherit_build_id=True))
    closed = attributes(shard, events.CONTINUED_AS_NEW, run_id=first)
    assert (written(closed), closed.inherit_build_id) == (KEPT, True)
    started = attributes(shard, events.STARTED)
    assert written(started) == KEPT
    assert started.HasField("first_workflow_task_backoff")
    shard.sleep(2)
    shard.complete(shard.poll(), continue_as_new())
    assert not attributes(shard, events.STARTED).HasField("first_workflow_task_backoff")


def test_a_child_says_that_it_inherits_the_build_and_of_what_type_its_attributes_are(shard: ShardDriver) -> None:
    shard.start()
    given = {"CustomKeyword": common.Payload(metadata={"encoding": b"json/plain"}, data=b'"k"')}
    child = filled(start_child("child"), inherit_build_id=True, search_attributes={"indexed_fields": given})
    shard.complete(shard.poll(), child)
    shard.deliver()
    initiated = attributes(shard, events.CHILD_INITIATED)
    assert initiated.inherit_build_id
    for a in (initiated, attributes(shard, events.STARTED, "child")):
        assert a.search_attributes.indexed_fields["CustomKeyword"].metadata["type"] == b"Keyword"


def test_an_empty_priority_and_user_metadata_are_there(shard: ShardDriver) -> None:
    shard.start(priority={}, user_metadata={})
    described = shard.describe()
    assert described.workflow_execution_info.HasField("priority")
    assert described.execution_config.HasField("user_metadata")
    shard.complete(shard.poll(), schedule_activity())
    assert shard.poll_activity().HasField("priority")


def test_a_priority_that_nobody_gave_is_not_there(shard: ShardDriver) -> None:
    shard.start()
    assert not shard.describe().workflow_execution_info.HasField("priority")
    shard.complete(shard.poll(), schedule_activity())
    assert not shard.poll_activity().HasField("priority")
