"""Which decider answers which kind of record: about one run, which the envelope names, or found by the decider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from everfold.history.machine import keys
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide import (
    activity,
    activity_reset,
    multi_operation,
    purge,
    reset,
    signal,
    start,
    terminate,
    timers,
    updates,
    workflow_task,
)
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply
from everfold.kernel.errors import GarbageRecord

Record = dict[str, Any]
ByRun = Callable[[StepContext, Run | None, Record], Reply]
ByNamespace = Callable[[StepContext, NamespaceInfo, bytes], Reply]


def _fire_timer(ctx: StepContext, run: Run | None, body: Record) -> Reply:
    if body["due_at_ns"] < 0:
        raise GarbageRecord(f"a timer due at {body['due_at_ns']}")
    if run is None:
        return Reply()
    part = keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
    return timers.decide_fire_timer(ctx, run, keys.timer(body["due_at_ns"], run.slot, part))


def _start_workflow_task(ctx: StepContext, run: Run | None, body: Record) -> Reply:
    if body["handed_out"] is not None:
        return workflow_task.decide_start_handed_out(ctx, run, body)
    return workflow_task.decide_start_task(
        ctx, run, body["scheduled_event_id"], body["attempt"], body["stamp"], body["request_id"], body["poll"]
    )


def _start_activity_task(ctx: StepContext, run: Run | None, body: Record) -> Reply:
    return activity.decide_start_activity(
        ctx, run, body["scheduled_event_id"], body["attempt"], body["stamp"], body["request_id"], body["poll"]
    )


def _return_task(ctx: StepContext, run: Run | None, body: Record) -> Reply:
    if body["task_type"] == "WORKFLOW":
        decide = workflow_task.decide_return_workflow_task
    else:
        decide = activity.decide_return_activity
    return decide(ctx, run, body["scheduled_event_id"], body["attempt"], body["request_id"])


def _message(decide: Callable[[StepContext, Run | None, bytes], Reply]) -> ByRun:
    return lambda ctx, run, body: decide(ctx, run, body["message"])


BY_RUN: Final[dict[str, ByRun]] = {
    "FIRE_TIMER": _fire_timer,
    "START_WORKFLOW_TASK": _start_workflow_task,
    "START_ACTIVITY_TASK": _start_activity_task,
    "RETURN_TASK": _return_task,
    "STICKY_WORKER_GONE": lambda ctx, run, body: workflow_task.decide_sticky_worker_gone(
        ctx, run, body["scheduled_event_id"], body["stamp"]
    ),
    "RESET_STICKY": _message(workflow_task.decide_reset_sticky),
    "FAIL_WORKFLOW_TASK": _message(workflow_task.decide_fail_task),
    "COMPLETE_ACTIVITY": _message(activity.decide_complete_activity),
    "FAIL_ACTIVITY": _message(activity.decide_fail_activity),
    "CANCEL_ACTIVITY": _message(activity.decide_cancel_activity),
    "HEARTBEAT_ACTIVITY": _message(activity.decide_heartbeat),
}
"""Records about one run, found by the envelope: kind -> decider."""

BY_NAMESPACE: Final[dict[str, ByNamespace]] = {
    "START_WORKFLOW": start.decide_start,
    "SIGNAL_WITH_START_WORKFLOW": start.decide_signal_with_start,
    "SIGNAL_WORKFLOW": signal.decide_signal,
    "REQUEST_CANCEL_WORKFLOW": signal.decide_request_cancel,
    "TERMINATE_WORKFLOW": terminate.decide_terminate,
    "UPDATE_WORKFLOW": updates.decide_update,
    "MULTI_OPERATION": multi_operation.decide_multi_operation,
    "DELETE_WORKFLOW": purge.decide_delete,
    "RESET_WORKFLOW": reset.decide_reset,
    "RESET_ACTIVITY": activity_reset.decide_reset_activity,
    "COMPLETE_ACTIVITY_BY_ID": activity.decide_complete_activity_by_id,
    "FAIL_ACTIVITY_BY_ID": activity.decide_fail_activity_by_id,
    "CANCEL_ACTIVITY_BY_ID": activity.decide_cancel_activity_by_id,
    "HEARTBEAT_ACTIVITY_BY_ID": activity.decide_heartbeat_by_id,
}
"""Records that find their run themselves: kind -> decider."""

STARTS: Final = frozenset(("START_WORKFLOW", "SIGNAL_WITH_START_WORKFLOW", "MULTI_OPERATION"))
"""Records that may make a run."""


def is_start(body: Record) -> bool:
    """Whether a record may make a run, so that the present run of its workflow id need not be what it is about."""
    return body["kind"] in STARTS or body["body"].get("message_kind") == "StartChild"
