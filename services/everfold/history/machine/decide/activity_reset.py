"""ResetActivity: an activity begins again at its first attempt.

    a worker has it        its attempt counts as the first from now on; a worker that had a later one is refused from
                           now on, one that has the first is told by its next heartbeat, and what comes after it is the
                           second
    it waits for a retry   it is offered at once, as its first attempt
    it waits for a worker  it is offered anew

Activities cannot be paused and their options cannot be changed yet, so there is nothing to keep paused, and no option
but the original to restore.
Temporal: service/history/workflow/activity.go, ResetActivity.
"""

from __future__ import annotations

import hashlib

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.apply import forget_heartbeat, reset_activity, reset_attempt, retry_due
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.durations import to_ns
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import not_found, workflow_completed, workflow_not_found
from everfold.history.machine.state import Activity, Run
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn


def decide_reset_activity(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """ResetActivity, of one activity, of those of a type, or of all."""
    request = ws.ResetActivityRequest.FromString(message)
    target = request.execution
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, target.run_id)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    if not run.running:
        raise workflow_completed()
    chosen = _chosen(run, request)
    if not chosen:
        raise not_found("Can't find pending activity with such ID. Invalid activityID or activity already completed")
    turn = Turn(ctx, run)
    for activity in chosen:
        _reset(turn, activity, request)
    turn.finish()
    return Reply(serialize(ws.ResetActivityResponse()))


def _chosen(run: Run, request: ws.ResetActivityRequest) -> list[Activity]:
    how = request.WhichOneof("activity")
    return [
        activity
        for activity in run.activities.values()
        if (how == "id" and activity.activity_id == request.id)
        or (how == "type" and activity.activity_type == request.type)
        or (how == "match_all" and request.match_all)
    ]


def _reset(turn: Turn, activity: Activity, request: ws.ResetActivityRequest) -> None:
    reset_activity(activity, heartbeat=request.reset_heartbeat)
    if activity.started:
        return
    turn.void_activity_task(activity)
    if request.reset_heartbeat:
        forget_heartbeat(activity)
    now_ns = turn.ctx.now_ns
    reset_attempt(activity, now_ns + _jitter_ns(turn.ctx, to_ns(request.jitter)))
    if activity.next_attempt_at_ns <= now_ns:
        retry_due(activity, now_ns)
        turn.offer_activity_task(activity)


def _jitter_ns(ctx: StepContext, longest_ns: int) -> int:
    """A part of the jitter that looks like chance and is the same in every fold."""
    if longest_ns <= 0:
        return 0
    return int.from_bytes(hashlib.blake2b(ctx.new_id().encode(), digest_size=8).digest(), "big") % longest_ns
