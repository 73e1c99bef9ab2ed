"""The events that close a run from outside: terminated and timed out. The worker's own closing are in `commands`.

Temporal: service/history/workflow/util.go, TerminateWorkflow and TimeoutWorkflow.
"""

from __future__ import annotations

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import failed_cause_pb2

from everfold.history.machine import events
from everfold.history.machine.decide.task_end import fail_workflow_task
from everfold.history.machine.turn import Turn


def terminate(
    turn: Turn,
    reason: str,
    details: common_pb2.Payloads | None,
    identity: str,
    links: list[common_pb2.Link] | None = None,
) -> None:
    """Writes WorkflowExecutionTerminated; a started workflow task is failed first, and what was buffered is written."""
    force_end_task(turn)
    turn.void_all_tasks()
    event = turn.new(events.TERMINATED)
    a = event.workflow_execution_terminated_event_attributes
    a.reason = reason
    if details is not None:
        a.details.CopyFrom(details)
    a.identity = identity
    event.links.extend(links or ())
    turn.record(event)


def time_out(turn: Turn, retry_state: int, successor_run_id: str = "") -> None:
    """Writes WorkflowExecutionTimedOut."""
    force_end_task(turn)
    turn.void_all_tasks()
    event = turn.new(events.TIMED_OUT)
    a = event.workflow_execution_timed_out_event_attributes
    a.retry_state = retry_state  # type: ignore[assignment]
    a.new_execution_run_id = successor_run_id
    turn.record(event)


def force_end_task(turn: Turn) -> None:
    """Fails a started workflow task because the run closes, and writes what was buffered meanwhile."""
    if turn.run.task_started:
        fail_workflow_task(
            turn, failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND, None, "history-service"
        )
        turn.flush_buffered()
