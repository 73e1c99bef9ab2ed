"""TerminateWorkflowExecution. Temporal: service/history/api/terminateworkflow."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.decide.signal import find_in_chain
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import workflow_completed
from everfold.history.machine.step import Reply


def decide_terminate(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """TerminateWorkflowExecution: closes at once, no worker asked."""
    request = ws.TerminateWorkflowExecutionRequest.FromString(message)
    run = find_in_chain(ctx, namespace, request.workflow_execution, request.first_execution_run_id, quarantined=True)
    if not run.running:
        raise workflow_completed()
    details = request.details if request.HasField("details") else None
    end_run(ctx, run, Termination(request.reason, details, request.identity, tuple(request.links)))
    return Reply(serialize(ws.TerminateWorkflowExecutionResponse()))
