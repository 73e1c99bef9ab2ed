"""What a run tells other workflows: messages into their shards' logs, and what follows from its own closing.

A message is an output like any other (law 6): it has an origin, it is sent again until it is acknowledged, and the
receiving shard takes it once. `initiated_event_id` of the sender is the key by which the answer finds its way back.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack
from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2

from everfold.history.machine.apply import drop_update
from everfold.history.machine.context import StepContext
from everfold.history.machine.events import attributes_of, serialize
from everfold.history.machine.rejections import not_found
from everfold.history.machine.state import Run, UpdateStage
from everfold.history.machine.step import RunKey, UpdateNews
from everfold.kernel.ids import Origin, record_key, shard_of
from everfold.schemas.topics import SHARD_LOG

Message = dict[str, Any]

RESETTER: Final = "history-resetter"
"""Identity in WorkflowExecutionTerminated of a run that a reset has replaced."""


class Outgoing(NamedTuple):
    """A message that is to be sent later: what `send` takes besides the step."""

    namespace: str
    namespace_id: str
    workflow_id: str
    run_id: str
    kind: str
    message: Message
    facts: dict[str, str] | None = None


def send(
    ctx: StepContext,
    namespace: str,
    namespace_id: str,
    workflow_id: str,
    run_id: str,
    kind: str,
    message: Message,
    facts: dict[str, str] | None = None,
) -> None:
    """Puts a message for another workflow (or this one) into the outbox, for its shard's log."""
    sent = ctx.facts.outputs_sent
    acknowledged = None if sent is None else Origin("SHARD_LOG", ctx.facts.shard, *sent)._asdict()
    record = {
        "kind": "CROSS_RUN",
        "namespace_id": namespace_id,
        "workflow_id": workflow_id,
        "run_id": run_id,
        "acknowledged": acknowledged,
        "proposer": {"instance": 0, "sequence": 0, "clock_ns": ctx.now_ns},
        "trace": {},
        "facts": facts or {},
        "body": ("CrossRun", {"message_kind": kind, "message": msgpack.packb(message)}),
    }
    shard = shard_of(namespace, workflow_id, ctx.facts.shard_count)
    ctx.emit(SHARD_LOG, shard, record_key(namespace, workflow_id), "ShardRecord", record)


def sender(run: Run, initiated_event_id: int) -> list[Any]:
    """How a message names its sender."""
    return [run.namespace_id, run.namespace, run.workflow_id, run.run_id, initiated_event_id]


def announce_close(ctx: StepContext, run: Run, event: history_pb2.HistoryEvent) -> None:
    """The run has closed: tells its parent, its children as their policy says, and who waits for its updates.

    A parent hears nothing of a run that ended because a reset put another in its place: that one reports to it
    (transfer_queue_active_task_executor.go, processCloseExecution).
    """
    if run.parent and not run.successor_run_id and not _ended_by_reset(event):
        namespace_id, namespace, workflow_id, run_id, initiated_event_id = run.parent
        message = {
            "initiated": initiated_event_id,
            "status": int(run.status),
            "run_id": run.run_id,
            "first_run_id": run.first_run_id,
            "workflow_id": run.workflow_id,
            "close": serialize(attributes_of(event)),
        }
        send(ctx, namespace, namespace_id, workflow_id, run_id, "ChildClosed", message)
    for child in run.children.values():
        if run.reset_run_id:
            break  # the run that the reset made has them now
        if child.parent_close_policy == workflow_pb2.PARENT_CLOSE_POLICY_ABANDON:
            continue
        cancel = child.parent_close_policy == workflow_pb2.PARENT_CLOSE_POLICY_REQUEST_CANCEL
        message = {"cancel": cancel, "parent": [run.workflow_id, run.run_id]}
        send(ctx, child.namespace, child.namespace_id, child.workflow_id, "", "ParentClosed", message)
    abort_updates(ctx, run)


def _ended_by_reset(event: history_pb2.HistoryEvent) -> bool:
    """As Temporal's IsTerminatedByResetter (workflow_resetter.go)."""
    return event.workflow_execution_terminated_event_attributes.identity == RESETTER


def abort_updates(ctx: StepContext, run: Run) -> None:
    """Updates that the run leaves open: their callers hear so; completed ones stay readable."""
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    for update in list(run.updates.values()):
        if update.stage == UpdateStage.COMPLETED:
            continue
        if update.stage == UpdateStage.ADMITTED:
            error = not_found("workflow update was aborted by closing workflow")
            ctx.step.updates.append(UpdateNews(key, update.update_id, "aborted", error=error))
            drop_update(run, update.update_id)
        else:
            ctx.step.updates.append(UpdateNews(key, update.update_id, "completed", outcome=closed_outcome()))


def closed_outcome() -> bytes:
    """Outcome of an accepted update whose workflow closed before it completed."""
    outcome = update_pb2.Outcome()
    outcome.failure.message = "Workflow Update failed because the Workflow completed before the Update completed."
    outcome.failure.source = "Server"
    outcome.failure.application_failure_info.type = "AcceptedUpdateCompletedWorkflow"
    outcome.failure.application_failure_info.non_retryable = True
    return serialize(outcome)
