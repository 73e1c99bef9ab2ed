"""Removing a run: after its retention, or because somebody asked. Logs keep theirs; stores, index and tasks do not.

Temporal: service/history/deletemanager, api/deleteworkflow.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys
from everfold.history.machine.context import NamespaceInfo, StepContext, run_row
from everfold.history.machine.decide.closing import terminate
from everfold.history.machine.events import serialize
from everfold.history.machine.outputs import emit_visibility
from everfold.history.machine.rejections import workflow_not_found
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply, RunKey
from everfold.history.machine.turn import Turn

_LAST: Final = (1 << 64) - 1


def decide_delete(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """DeleteWorkflowExecution: an open run is terminated first, so that its relations hear of it; then all is gone."""
    target = ws.DeleteWorkflowExecutionRequest.FromString(message).workflow_execution
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, target.run_id)
    if run is None:
        raise workflow_not_found(target.workflow_id)
    if run.running:
        turn = Turn(ctx, run)
        terminate(turn, "Delete workflow execution", None, "history-service")
        turn.finish()
    purge(ctx, run)
    ctx.step.changed.append(RunKey(run.namespace_id, run.workflow_id, run.run_id))
    return Reply(serialize(ws.DeleteWorkflowExecutionResponse()))


def purge(ctx: StepContext, run: Run) -> None:
    """Deletes every row of a closed run, and tells the index."""
    run.transitions += 1
    emit_visibility(ctx, run, deleted=True)
    part = keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
    if run.deadline_ns:
        ctx.rows.delete(keys.timer(run.deadline_ns, run.slot, part))
    for key, _ in list(ctx.rows.scan(*keys.history_range(run.slot, run.run_id, 0, _LAST))):
        ctx.rows.delete(key)
    current = keys.current(run.slot, run.namespace_id, run.workflow_id)
    if ctx.rows.get(current) == run.run_id.encode():
        ctx.rows.delete(current)
    key = run_row(run)
    ctx.rows.delete(key)
    ctx.cache.drop(key)
