"""A task record left behind its tombstone gets another one, from the refusal of its start."""

from __future__ import annotations

import pytest
from shard_driver import ShardDriver, complete_workflow, schedule_activity, sticky

from everfold.history.machine.step import Guards, Step, TaskOffer
from everfold.kernel.errors import Code, StatusError


def tombstones(step: Step) -> list[str]:
    """The ids of the tasks that the step's outputs end."""
    return [row.key.decode() for row in step.outputs if row.value is None]


def refuse(shard: ShardDriver, offer: TaskOffer) -> Step:
    """Somebody asks for the start of the task, and is told that there is none; returns that step."""
    with pytest.raises(StatusError) as refused:
        (shard.poll if offer.type == "workflow" else shard.poll_activity)(offer=offer)  # type: ignore[operator]
    assert refused.value.code == Code.NOT_FOUND
    return shard.steps[-1]


def test_the_refused_start_of_a_task_that_was_started_ends_its_record_again(shard: ShardDriver) -> None:
    shard.start()
    offer = shard.take_offer()
    task = shard.poll(offer=offer)
    first = shard.steps[-1]
    assert tombstones(first) == [offer.task_id]
    again = refuse(shard, offer)
    assert tombstones(again) == [offer.task_id]
    (sent,) = (row for row in first.outputs if row.value is None)
    (row,) = again.outputs
    assert (row.topic, row.partition, row.key) == (sent.topic, sent.partition, sent.key)
    shard.complete(task, schedule_activity("a"))
    assert tombstones(refuse(shard, offer)) == [offer.task_id]


def test_an_activity_task_likewise_also_when_its_run_has_closed(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a"))
    offer = shard.take_offer("activity")
    shard.complete_activity(shard.poll_activity(offer=offer))
    assert tombstones(refuse(shard, offer)) == [offer.task_id]
    shard.complete(shard.poll(), complete_workflow())
    assert tombstones(refuse(shard, offer)) == [offer.task_id]


def test_a_task_of_a_run_that_nobody_knows_any_more_likewise(shard: ShardDriver) -> None:
    shard.start()
    offer = shard.take_offer()
    shard.terminate()
    shard.sleep(2 * 24 * 3600)  # its retention is over
    unknown = offer._replace(workflow_id="never-there")
    assert tombstones(refuse(shard, offer)) == [offer.task_id]
    assert tombstones(refuse(shard, unknown)) == [offer.task_id]


def test_a_refusal_ends_no_record_of_a_task_that_can_still_be_started(shard: ShardDriver) -> None:
    shard.start()
    offer = shard.take_offer()
    assert tombstones(refuse(shard, offer._replace(attempt=7))) == []
    assert tombstones(refuse(shard, offer._replace(stamp=7))) == []
    shard.poll(offer=offer)


def test_the_record_of_a_task_that_is_offered_anew_is_not_that_of_the_offer_before(shard: ShardDriver) -> None:
    shard.start()
    first = shard.take_offer()
    task = shard.poll(offer=first)
    shard.fail_task(task)
    second = shard.take_offer()
    assert second.task_id != first.task_id
    assert tombstones(refuse(shard, first)) == [first.task_id]
    shard.poll(offer=second)


def test_a_task_without_record_leaves_none_behind(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), **sticky())
    shard.signal()
    offer = shard.take_offer()
    assert offer.sticky
    shard.poll(offer=offer)
    assert tombstones(refuse(shard, offer)) == []


def test_without_the_guard_the_record_stays() -> None:
    shard = ShardDriver(guards=Guards(task_leftover=False))
    shard.start()
    offer = shard.take_offer()
    shard.poll(offer=offer)
    assert tombstones(refuse(shard, offer)) == []
