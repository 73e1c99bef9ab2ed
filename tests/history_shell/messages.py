"""Requests that the tests send."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from history_shell.world import NAMESPACE


def start(workflow_id: str = "w", request_id: str = "r1", run_timeout_s: int = 0) -> bytes:
    request = ws.StartWorkflowExecutionRequest(namespace=NAMESPACE, workflow_id=workflow_id, request_id=request_id)
    request.workflow_type.name = "greet"
    request.task_queue.name = "queue"
    if run_timeout_s:
        request.workflow_run_timeout.seconds = run_timeout_s
    return request.SerializeToString(deterministic=True)


def signal(workflow_id: str = "w", request_id: str = "s1", name: str = "go") -> bytes:
    request = ws.SignalWorkflowExecutionRequest(namespace=NAMESPACE, signal_name=name, request_id=request_id)
    request.workflow_execution.workflow_id = workflow_id
    return request.SerializeToString(deterministic=True)


def run_id_of(response: bytes) -> str:
    return ws.StartWorkflowExecutionResponse.FromString(response).run_id
