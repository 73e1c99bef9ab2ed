"""Scenarios of ResetActivity: an activity begins again at its first attempt."""

from __future__ import annotations

from typing import Any

from differential.scenarios import scenario
from differential.script import CLIENT, NAMESPACE, Script, failure, payloads, seconds


def _reset(s: Script, activity_id: str = "a1", **fields: Any) -> None:
    fields = {"id": activity_id, **fields} if activity_id else fields
    s.note("reset", s.client.call("ResetActivity", **_fields(s, **fields)))


def _fields(s: Script, **fields: Any) -> dict[str, Any]:
    return {"namespace": NAMESPACE, "execution": s.execution(), "identity": CLIENT, **fields}


def _note_pending(s: Script, label: str) -> None:
    """What DescribeWorkflowExecution says of the activities, but for what differs from run to run."""
    for pending in s.describe().pending_activities:
        pending.ClearField("current_retry_interval")
        s.note(label, pending)


def _quick() -> dict[str, Any]:
    return {"retry_policy": {"initial_interval": seconds(0.1), "backoff_coefficient": 1}}


def _slow_interval() -> dict[str, Any]:
    return {"initial_interval": seconds(60)}


def _slow() -> dict[str, Any]:
    return {"retry_policy": _slow_interval()}


def _answer(method: str) -> dict[str, Any]:
    return {"failure": failure("late")} if method == "RespondActivityTaskFailed" else {}


@scenario("reset-activity-running", "a later attempt is reset while it runs: its worker is refused from then on")
def reset_running(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(2), **_quick()))
    s.fail_activity(s.poll_activity(), failure("first"))
    task = s.poll_activity("second attempt")
    s.note("heartbeat", s.heartbeat(task))
    _reset(s)
    _note_pending(s, "pending")
    for method in ("RecordActivityTaskHeartbeat", "RespondActivityTaskCompleted", "RespondActivityTaskFailed"):
        s.refused(method, method, namespace=NAMESPACE, task_token=task.task_token, identity=CLIENT, **_answer(method))
    again = s.poll_activity("after its heartbeats stayed away")
    s.note("heartbeat of the new attempt", s.heartbeat(again, "again"))
    _note_pending(s, "pending again")
    s.complete_activity(again)
    s.complete(s.poll(), s.done())


@scenario("reset-activity-told", "the first attempt is told of its reset by a heartbeat, and fails")
def reset_told(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5), **_quick()))
    task = s.poll_activity()
    s.note("heartbeat", s.heartbeat(task))
    _reset(s)
    _note_pending(s, "pending")
    s.note("heartbeat after", s.heartbeat(task, "more"))
    s.fail_activity(task, failure("first"))
    again = s.poll_activity("second attempt")
    s.note("heartbeat of the second attempt", s.heartbeat(again, "again"))
    s.complete_activity(again)
    s.complete(s.poll(), s.done())


@scenario("reset-activity-first", "a first attempt is reset while it runs, and fails")
def reset_first(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(**_quick()))
    task = s.poll_activity()
    _reset(s)
    s.fail_activity(task, failure("first"))
    s.complete_activity(s.poll_activity("after the reset"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-completes", "a running first attempt completes in spite of its reset")
def reset_completes(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(**_quick()))
    task = s.poll_activity()
    _reset(s)
    s.complete_activity(task)
    s.complete(s.poll(), s.done())


@scenario("reset-activity-by-id", "a later attempt is reset while it runs, and completed by its id")
def reset_completed_by_id(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(**_quick()))
    s.fail_activity(s.poll_activity(), failure("first"))
    s.poll_activity()
    _reset(s)
    fields = {"namespace": NAMESPACE, "workflow_id": s.id(), "activity_id": "a1", "identity": CLIENT}
    s.note("heartbeat", s.client.call("RecordActivityTaskHeartbeatById", **fields))
    s.client.call("RespondActivityTaskCompletedById", **fields, result=payloads("done"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-heartbeat", "a running activity is reset with its heartbeat")
def reset_heartbeat(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5), **_quick()))
    task = s.poll_activity()
    s.heartbeat(task)
    _reset(s, reset_heartbeat=True)
    _note_pending(s, "pending")
    s.note("heartbeat after", s.heartbeat(task, "more"))
    s.fail_activity(task, failure("first"))
    s.complete_activity(s.poll_activity("after the reset"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-waiting", "an activity that waits for its next attempt is reset: it comes at once")
def reset_waiting(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5), **_slow()))
    task = s.poll_activity()
    s.heartbeat(task)
    s.fail_activity(task, failure("first"))
    _reset(s)
    _note_pending(s, "pending")
    s.complete_activity(s.poll_activity("after the reset"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-waiting-heartbeat", "the same with its heartbeat")
def reset_waiting_heartbeat(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(heartbeat_timeout=seconds(5), **_slow()))
    task = s.poll_activity()
    s.heartbeat(task)
    s.fail_activity(task, failure("first"))
    _reset(s, reset_heartbeat=True)
    task = s.poll_activity("after the reset")
    s.fail_activity(task, failure("second"))
    _note_pending(s, "pending")
    s.terminate()


@scenario("reset-activity-scheduled", "an activity that no worker has is reset, and starts once")
def reset_scheduled(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity())
    _reset(s)
    _note_pending(s, "pending")
    s.complete_activity(s.poll_activity("after the reset"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-last", "an activity is reset before the last of so many attempts")
def reset_last(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"initial_interval": seconds(60), "maximum_attempts": 2}))
    s.fail_activity(s.poll_activity(), failure("first", next_retry_delay=0.1))
    task = s.poll_activity("last attempt")
    s.fail_activity(task, failure("last", non_retryable=True))
    s.complete(s.poll("with the failure"), s.activity("a2", retry_policy={"maximum_attempts": 2, **_slow_interval()}))
    s.fail_activity(s.poll_activity(), failure("first"))
    _reset(s, "a2")
    s.fail_activity(s.poll_activity("first again"), failure("second", next_retry_delay=0.1))
    s.fail_activity(s.poll_activity("last again"), failure("third"))
    s.complete(s.poll("with that failure"), s.done())


@scenario("reset-activity-only", "the only attempt is reset")
def reset_only(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(retry_policy={"maximum_attempts": 1}))
    task = s.poll_activity()
    _reset(s)
    s.note("heartbeat", s.heartbeat(task))
    s.fail_activity(task, failure("first"))
    s.complete(s.poll("with the failure"), s.done())


@scenario("reset-activity-times-out", "an attempt that was reset times out")
def reset_times_out(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity(start_to_close_timeout=seconds(1), **_quick()))
    s.fail_activity(s.poll_activity(), failure("first"))
    s.poll_activity()
    _reset(s)
    s.complete_activity(s.poll_activity("after the timeout"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-many", "activities are reset by their type, and all")
def reset_many(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1", **_slow()))
    s.fail_activity(s.poll_activity(), failure("first"))
    _reset(s, "", type="step")
    s.fail_activity(s.poll_activity("by type"), failure("second"))
    _reset(s, "", match_all=True)
    s.complete_activity(s.poll_activity("all"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-options", "activities are reset with their original options, and kept paused")
def reset_options(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1", **_slow()))
    s.fail_activity(s.poll_activity(), failure("first"))
    _reset(s, restore_original_options=True, keep_paused=True)
    s.complete_activity(s.poll_activity("after the reset"))
    s.complete(s.poll(), s.done())


@scenario("reset-activity-execution", "an activity is reset as clients say it since there are some without a workflow")
def reset_execution(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity("a1", **_slow()))
    s.fail_activity(s.poll_activity(), failure("first"))
    here = {"namespace": NAMESPACE, "workflow_id": s.id(), "identity": CLIENT}
    s.note("reset", s.client.call("ResetActivityExecution", **here, activity_id="a1", reset_heartbeat=True))
    s.fail_activity(s.poll_activity("after the reset"), failure("second", non_retryable=True))
    s.refused("no such activity", "ResetActivityExecution", **here, activity_id="nobody")
    s.refused("no such workflow", "ResetActivityExecution", **{**here, "workflow_id": s.id("no")}, activity_id="a1")
    s.complete(s.poll(), s.done())
    s.refused("closed", "ResetActivityExecution", **here, activity_id="a1")


@scenario("reset-activity-refused", "resets that are refused")
def reset_refused(s: Script) -> None:
    s.start()
    s.complete(s.poll(), s.activity())
    s.refused("no such activity", "ResetActivity", **_fields(s, id="nobody"))
    s.refused("no such type", "ResetActivity", **_fields(s, type="nobody"))
    s.refused("nothing named", "ResetActivity", **_fields(s))
    s.refused("no workflow named", "ResetActivity", namespace=NAMESPACE, id="a1", identity=CLIENT)
    s.refused("no such workflow", "ResetActivity", **{**_fields(s, id="a1"), "execution": s.execution("nobody")})
    s.refused("no such namespace", "ResetActivity", **{**_fields(s, id="a1"), "namespace": "nowhere"})
    s.terminate()
    s.refused("closed", "ResetActivity", **_fields(s, id="a1"))
