"""A task record that is left on its topic behind its own tombstone.

A sender that sends a task and its tombstone again, and dies between the two, leaves the task on top of the tombstone
that another owner has sent: compaction keeps it, and every matching that reads the topic asks for its start. That start
is refused, and this is the moment to tell the topic once more that the task is over.
"""

from __future__ import annotations

from typing import Any, Final

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.context import StepContext
from everfold.history.machine.state import Run
from everfold.schemas.topics import ACTIVITY_TASKS, WORKFLOW_TASKS, Topic

_Poll = type[ws.PollWorkflowTaskQueueRequest] | type[ws.PollActivityTaskQueueRequest]

LEFTOVERS: Final[dict[str, tuple[Topic, _Poll]]] = {
    "START_WORKFLOW_TASK": (WORKFLOW_TASKS, ws.PollWorkflowTaskQueueRequest),
    "START_ACTIVITY_TASK": (ACTIVITY_TASKS, ws.PollActivityTaskQueueRequest),
}
"""Kind of record -> where the task's record is, and what the poll is that has found it."""


def void_leftover(ctx: StepContext, run: Run | None, kind: str, body: dict[str, Any]) -> None:
    """The start of a task was refused because the task is over: its record gets a tombstone, which may be a repeat.

    One refused start makes one tombstone, and matching drops the task after it, so there are at most as many as the
    task's record has appeared.
    """
    start = body["body"]
    task_id = start["task_id"]
    if not task_id or not ctx.guards.task_leftover or _is_live(run, start["scheduled_event_id"], task_id):
        return
    topic, poll = LEFTOVERS[kind]
    queue = poll.FromString(start["poll"]).task_queue.name
    ctx.emit_tombstone(topic, ctx.task_partition(body["namespace_id"], queue), task_id.encode())


def _is_live(run: Run | None, scheduled_event_id: int, task_id: str) -> bool:
    """Whether the record is that of a task that can still be started, whatever was wrong with this start."""
    if run is None or not run.running:
        return False
    if run.workflow_task is not None and run.workflow_task.task_id == task_id:
        return True
    activity = run.activities.get(scheduled_event_id)
    return activity is not None and activity.task_id == task_id
