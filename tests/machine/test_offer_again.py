"""After a change of the log's leader, tasks that wait get new records: a lost start may have ended the old ones."""

from __future__ import annotations

from typing import Any

import pytest
from shard_driver import ShardDriver, complete_workflow, schedule_activity, sticky

from everfold.history.machine.decide import walk
from everfold.history.machine.step import Guards, Step
from everfold.kernel.errors import StatusError


def tasks(step: Step) -> tuple[list[str], list[str]]:
    """Keys of the task records that a step sent, and of those that it ended."""
    rows = [row for row in step.outputs if row.topic in ("workflow-tasks", "activity-tasks")]
    return (
        [row.key.decode() for row in rows if row.value is not None],
        [row.key.decode() for row in rows if row.value is None],
    )


def offer_all_again(shard: ShardDriver) -> list[Step]:
    steps = []
    while shard.fold.tasks_to_offer:
        steps.append(shard.append("OFFER_TASKS_AGAIN", {}))
    return steps


def under_a_new_leader(shard: ShardDriver) -> list[Step]:
    shard.epoch += 1
    shard.append("SHARD_TAKEN", {"owner": "another"})
    return offer_all_again(shard)


def test_a_first_leader_has_nothing_to_offer_again(shard: ShardDriver) -> None:
    shard.start()
    assert not shard.fold.tasks_to_offer
    assert shard.append("OFFER_TASKS_AGAIN", {}).ignored


def test_a_scheduled_workflow_task_gets_another_record_and_starts_once(shard: ShardDriver) -> None:
    shard.start()
    before = shard.take_offer()
    (step,) = (step for step in under_a_new_leader(shard) if step.outputs)
    after = shard.take_offer()
    assert after.task_id != before.task_id
    assert tasks(step) == ([after.task_id], [before.task_id])
    with pytest.raises(StatusError, match="stamp"):
        shard.poll(offer=before)
    shard.complete(shard.poll(offer=after), complete_workflow())


def test_a_scheduled_activity_likewise(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a"), schedule_activity("b"))
    started = shard.take_offer("activity")
    running = shard.poll_activity(offer=started)
    waiting = shard.take_offer("activity")
    (step,) = (step for step in under_a_new_leader(shard) if step.outputs)
    again = shard.take_offer("activity")
    assert tasks(step) == ([again.task_id], [waiting.task_id])
    shard.complete_activity(running)
    shard.complete_activity(shard.poll_activity(offer=again))
    shard.complete(shard.poll(), complete_workflow())


def test_it_is_done_once_for_a_leader(shard: ShardDriver) -> None:
    shard.start()
    under_a_new_leader(shard)
    shard.append("SHARD_TAKEN", {"owner": "a third"})
    assert not shard.fold.tasks_to_offer
    assert shard.append("OFFER_TASKS_AGAIN", {}).ignored


def test_tasks_of_the_new_leader_are_left_alone(shard: ShardDriver) -> None:
    shard.start()
    shard.epoch += 1
    shard.start("v")
    steps = offer_all_again(shard)
    assert {offer.workflow_id for step in steps for offer in step.offers} == {"w"}


def test_started_sticky_and_closed_ones_are_left_alone(shard: ShardDriver) -> None:
    shard.start("started")
    shard.poll("started")
    shard.start("closed")
    shard.terminate("closed")
    shard.start("sticky")
    shard.complete(shard.poll("sticky"), **sticky())
    shard.signal(workflow_id="sticky")
    assert not [step for step in under_a_new_leader(shard) if step.outputs or step.offers]


def test_a_task_that_left_its_sticky_queue_stays_on_the_normal_one_and_keeps_the_worker(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), **sticky())
    shard.signal()
    offer = shard.take_offer()
    shard.append(
        "STICKY_WORKER_GONE",
        {"scheduled_event_id": offer.scheduled_event_id, "stamp": offer.stamp},
        workflow_id="w",
        run_id=offer.run_id,
    )
    under_a_new_leader(shard)
    again = shard.take_offer()
    assert not again.sticky
    run = shard.fold.run(offer.namespace_id, "default", "w", "")
    assert run is not None
    assert run.sticky_queue == "sticky-of-worker"


def test_many_runs_take_several_records_each_of_which_looks_at_few(
    shard: ShardDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.replay = False
    for number in range(20):
        shard.start(f"w{number}")
    monkeypatch.setattr(walk, "LOOKS_MAX", 700)  # there are 4096 slots
    shard.epoch += 1
    shard.append("SHARD_TAKEN", {"owner": "another"})
    shard.append("OFFER_TASKS_AGAIN", {})
    assert shard.fold.tasks_to_offer
    half_way = shard.fold.meta.offer_cursor
    assert half_way
    steps = offer_all_again(shard)
    assert len(steps) >= 5
    offered = [offer.workflow_id for step in shard.steps[-len(steps) - 1 :] for offer in step.offers]
    assert sorted(offered) == sorted(f"w{number}" for number in range(20))
    shard.check_replay()


def test_another_change_on_the_way_begins_again(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    shard.start()
    monkeypatch.setattr(walk, "LOOKS_MAX", 2000)
    shard.epoch += 1
    shard.append("OFFER_TASKS_AGAIN", {})
    assert shard.fold.tasks_to_offer
    seen: dict[str, Any] = {}
    shard.epoch += 1
    for step in offer_all_again(shard):
        for offer in step.offers:
            assert offer.task_id not in seen
            seen[offer.task_id] = offer
    assert len(seen) == 1
    assert shard.fold.meta.offered_epoch == shard.epoch


def test_without_the_guard_nothing_is_offered_again() -> None:
    shard = ShardDriver(guards=Guards(offer_again=False))
    shard.start()
    assert not [step for step in under_a_new_leader(shard) if step.outputs]
    assert not shard.fold.tasks_to_offer
