"""ResetActivity: back to the first attempt, in every state that an activity can be in."""

from __future__ import annotations

from typing import Any

import pytest
from shard_driver import ShardDriver, complete_workflow, duration, schedule_activity
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError


def begin(shard: ShardDriver, *activity_ids: str) -> None:
    shard.start()
    shard.complete(shard.poll(), *(schedule_activity(name, start_to_close=600) for name in activity_ids or ("a",)))


def reset(shard: ShardDriver, **fields: Any) -> None:
    request = ws.ResetActivityRequest(**(fields or {"id": "a"}))
    request.execution.workflow_id = "w"
    shard.request("RESET_ACTIVITY", request, workflow_id="w")


def heartbeat(shard: ShardDriver, task: ws.PollActivityTaskQueueResponse) -> ws.RecordActivityTaskHeartbeatResponse:
    request = ws.RecordActivityTaskHeartbeatRequest(task_token=task.task_token)
    request.details.payloads.add(data=b"so far")
    run = task.workflow_execution
    reply = shard.request("HEARTBEAT_ACTIVITY", request, workflow_id=run.workflow_id, run_id=run.run_id)
    return ws.RecordActivityTaskHeartbeatResponse.FromString(reply.response)


def pending(shard: ShardDriver) -> Any:
    (activity,) = shard.describe().pending_activities
    return activity


def test_a_running_first_attempt_hears_of_it_until_it_ends(shard: ShardDriver) -> None:
    begin(shard)
    task = shard.poll_activity()
    assert not heartbeat(shard, task).activity_reset
    reset(shard)
    assert heartbeat(shard, task).activity_reset
    shard.fail_activity(task)
    shard.sleep(1)
    again = shard.poll_activity()
    assert again.attempt == 2
    assert again.heartbeat_details.payloads[0].data == b"so far"
    assert not heartbeat(shard, again).activity_reset


def test_its_heartbeat_is_forgotten_by_the_next_attempt_only(shard: ShardDriver) -> None:
    begin(shard)
    task = shard.poll_activity()
    heartbeat(shard, task)
    reset(shard, id="a", reset_heartbeat=True)
    assert pending(shard).heartbeat_details.payloads
    heartbeat(shard, task)
    shard.fail_activity(task)
    shard.sleep(1)
    assert not shard.poll_activity().HasField("heartbeat_details")
    assert not pending(shard).HasField("last_heartbeat_time")


def test_the_worker_of_a_later_attempt_is_refused_from_then_on(shard: ShardDriver) -> None:
    begin(shard)
    shard.fail_activity(shard.poll_activity())
    shard.sleep(1)
    task = shard.poll_activity()
    assert task.attempt == 2
    reset(shard)
    with pytest.raises(StatusError) as refused:
        heartbeat(shard, task)
    assert refused.value.code == Code.NOT_FOUND


def test_one_that_waits_for_its_retry_comes_at_once_and_its_old_timer_does_nothing(shard: ShardDriver) -> None:
    begin(shard)
    for _ in range(4):
        task = shard.poll_activity()
        shard.fail_activity(task)
        shard.sleep(0 if task.attempt == 4 else 8)
    assert pending(shard).attempt == 5
    reset(shard)
    assert (pending(shard).attempt, pending(shard).HasField("last_failure")) == (1, False)
    offers = len(shard.offers)
    shard.sleep(60)
    assert len(shard.offers) == offers
    task = shard.poll_activity()
    assert task.attempt == 1
    shard.complete_activity(task)
    shard.complete(shard.poll(), complete_workflow())


def test_one_that_waits_for_a_worker_is_offered_anew(shard: ShardDriver) -> None:
    begin(shard)
    before = shard.take_offer("activity")
    reset(shard)
    with pytest.raises(StatusError, match="stamp"):
        shard.poll_activity(offer=before)
    shard.poll_activity()


def test_jitter_delays_it_by_less_than_that(shard: ShardDriver) -> None:
    begin(shard)
    shard.take_offer("activity")
    reset(shard, id="a", jitter=duration(30))
    assert not [offer for offer in shard.offers if offer.type == "activity"]
    shard.sleep(30)
    assert shard.poll_activity().attempt == 1


def test_all_of_a_type_or_all_and_nothing_else(shard: ShardDriver) -> None:
    begin(shard, "a", "b")
    tasks = [shard.poll_activity(), shard.poll_activity()]
    reset(shard, type="greet")
    assert all(heartbeat(shard, task).activity_reset for task in tasks)
    for fields in ({"id": "c"}, {"type": "other"}, {"match_all": False}):
        with pytest.raises(StatusError, match="Can't find pending activity"):
            reset(shard, **fields)
    reset(shard, match_all=True)


def test_a_closed_workflow_has_none(shard: ShardDriver) -> None:
    begin(shard)
    shard.terminate()
    with pytest.raises(StatusError, match="already completed"):
        reset(shard)
