"""A workflow task is handed out before its start is in the log, and the start recorded with what comes next of the run.

A workflow task is a computation without effects: what its worker decides counts when the completion is folded, and not
before. So the worker may have the task as soon as the owner of the shard knows what its start will look like, and the
start goes into the log with the next record about the workflow, as a rule the completion, or alone after a moment
(`everfold.history.handed_out`). What the worker was told must become true exactly: the id of WorkflowTaskStarted says
which events the worker has seen, its time is the workflow's time. If the run has moved on meanwhile, the start is
refused and the task offered again (docs/decisions/0016).
"""

from __future__ import annotations

from copy import copy
from typing import Any, Final, NamedTuple

from temporalio.api.enums.v1 import task_queue_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import events, responses
from everfold.history.machine.apply import start_task
from everfold.history.machine.decide.task_start import fill_started, polling_build, record_started, suggested_reasons
from everfold.history.machine.decide.updates import has_admitted
from everfold.history.machine.events import serialize, set_time
from everfold.history.machine.state import Run, WorkflowTask
from everfold.history.machine.step import HistoryRange, Reply, RunKey
from everfold.history.machine.turn import Turn
from everfold.kernel.limits import Limits
from everfold.kernel.tokens import WorkflowTaskToken

_STICKY: Final = task_queue_pb2.TASK_QUEUE_KIND_STICKY

Start = dict[str, Any]
"""Body of a START_WORKFLOW_TASK record."""


class HandOut(NamedTuple):
    """A task that can be handed out.

    Attributes:
        start: the body of the record that is to say so.
        reply: the poll's response.
    """

    start: Start
    reply: Reply


def prepare(limits: Limits, run: Run, start: Start, now_ns: int, epoch: int) -> HandOut | None:
    """How the task would start now; None where only the log can tell.

    That is: it is not the task that waits; it is a retry or for an update, whose events are not written; the poll comes
    from another queue than the run's; the start would end a run that is too large; or what this owner does not see
    coming may cross the start, since other workflows are expected to send something, or something has come since the
    task was scheduled, maybe across an earlier start: a start in the log is what gets such a run on.

    Args:
        limits: the settings in force.
        run: as folded.
        start: body of the START_WORKFLOW_TASK record that would start it; not changed.
        now_ns: shard time.
        epoch: leader epoch of the last record folded.
    """
    task = waiting_task(run, start)
    if (
        task is None
        or run.quarantined
        or not task.written
        or run.next_event_id != task.scheduled_event_id + 1
        or run.next_event_id > limits["limit.historyCount.error"]
        or run.history_size_bytes > limits["limit.historySize.error"]
        or run.children
        or run.externals
        or has_admitted(run)
    ):
        return None
    first = responses.first_event_id(run)
    if run.next_event_id - first > responses.HISTORY_PAGE_EVENTS:
        return None
    poll = ws.PollWorkflowTaskQueueRequest.FromString(start["poll"])
    if not _is_for(run, poll):
        return None
    now_ns = max(now_ns, task.scheduled_at_ns)
    suggest = suggested_reasons(limits, run)
    started = history_pb2.HistoryEvent(event_id=run.next_event_id, event_type=events.TASK_STARTED)
    set_time(started.event_time, now_ns)
    fill_started(
        started,
        task.scheduled_event_id,
        start["request_id"],
        poll.identity,
        run.history_size_bytes,
        suggest,
        polling_build(poll),
    )
    ahead = copy(task)
    start_task(ahead, started.event_id, now_ns, start["request_id"], poll.identity, run.history_size_bytes, suggest)
    response = responses.workflow_task_message(run, ahead)
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    reply = Reply(serialize(response), history=HistoryRange(key, first, run.next_event_id, (serialize(started),)))
    handed_out = {
        "run_id": run.run_id,
        "started_event_id": started.event_id,
        "started_at_ns": now_ns,
        "suggest": suggest,
        "epoch": epoch,
    }
    return HandOut({**start, "handed_out": handed_out}, reply)


def take_up(turn: Turn, start: Start) -> bool:
    """Records the start of a task that was handed out; False when the run is no longer as its worker saw it.

    A start that is recorded already is no second one. One of another leader's time is refused: the worker may have seen
    events that were lost with the log's tail, and whose ids others have now.
    """
    run = turn.run
    handed_out = start["handed_out"]
    task = run.workflow_task
    if (
        not run.running
        or task is None
        or not task.written
        or (task.scheduled_event_id, task.attempt) != (start["scheduled_event_id"], start["attempt"])
    ):
        return False
    if task.started_event_id:
        return bool(task.request_id == start["request_id"])
    poll = ws.PollWorkflowTaskQueueRequest.FromString(start["poll"])
    if (
        task.stamp != start["stamp"]
        or run.next_event_id != handed_out["started_event_id"]
        or turn.ctx.epoch != handed_out["epoch"]
        or not _is_for(run, poll)
    ):
        return False
    turn.void_workflow_task(task)
    record_started(
        turn,
        task.scheduled_event_id,
        start["request_id"],
        poll.identity,
        run.history_size_bytes,
        handed_out["suggest"],
        handed_out["started_at_ns"],
        polling_build(poll),
    )
    task.suggest_continue_as_new = handed_out["suggest"]
    return True


def waiting_task(run: Run, start: Start) -> WorkflowTask | None:
    """The workflow task that the start means, if nobody has started it."""
    task = run.workflow_task
    if not run.running or task is None or task.started_event_id:
        return None
    meant = (start["scheduled_event_id"], start["attempt"], start["stamp"])
    return task if (task.scheduled_event_id, task.attempt, task.stamp) == meant else None


def is_of(start: Start, token: WorkflowTaskToken) -> bool:
    """Whether the token is that of the task that was handed out so."""
    handed_out = start["handed_out"]
    told = (handed_out["run_id"], handed_out["started_event_id"], handed_out["started_at_ns"])
    task = (start["scheduled_event_id"], start["attempt"])
    return told == (token.run_id, token.started_event_id, token.started_at_ns) and task == (
        token.scheduled_event_id,
        token.attempt,
    )


def _is_for(run: Run, poll: ws.PollWorkflowTaskQueueRequest) -> bool:
    if poll.task_queue.kind == _STICKY:
        return poll.task_queue.name == run.sticky_queue
    return not run.sticky_queue
