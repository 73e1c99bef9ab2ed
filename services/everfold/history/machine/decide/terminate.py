"""TerminateWorkflowExecution. Temporal: service/history/api/terminateworkflow."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.closing import terminate
from everfold.history.machine.decide.signal import find_in_chain
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import workflow_completed
from everfold.history.machine.step import Reply
from everfold.history.machine.turn import Turn


def decide_terminate(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """TerminateWorkflowExecution: closes at once, no worker asked."""
    request = ws.TerminateWorkflowExecutionRequest.FromString(message)
    run = find_in_chain(ctx, namespace, request.workflow_execution, request.first_execution_run_id)
    if not run.running:
        raise workflow_completed()
    turn = Turn(ctx, run)
    details = request.details if request.HasField("details") else None
    terminate(turn, request.reason, details, request.identity, list(request.links))
    turn.finish()
    return Reply(serialize(ws.TerminateWorkflowExecutionResponse()))
