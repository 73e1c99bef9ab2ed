"""What a decider answers when it says no: Temporal's codes, texts and details (service/history/consts/const.go)."""

from __future__ import annotations

import json

from google.protobuf.message import Message
from temporalio.api.enums.v1 import failed_cause_pb2
from temporalio.api.errordetails.v1 import message_pb2 as errordetails_pb2

from everfold.kernel.errors import Code, StatusError


def status(code: Code, message: str, detail: Message | None = None) -> StatusError:
    """A StatusError with one detail message."""
    if detail is None:
        return StatusError(code, message)
    return StatusError(code, message, ((detail.DESCRIPTOR.full_name, detail.SerializeToString(deterministic=True)),))


def invalid(message: str) -> StatusError:
    """INVALID_ARGUMENT."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> StatusError:
    """NOT_FOUND with NotFoundFailure."""
    return status(Code.NOT_FOUND, message, errordetails_pb2.NotFoundFailure())


def busy(message: str) -> StatusError:
    """RESOURCE_EXHAUSTED, cause BUSY_WORKFLOW, which SDKs retry."""
    return status(
        Code.RESOURCE_EXHAUSTED,
        message,
        errordetails_pb2.ResourceExhaustedFailure(
            cause=failed_cause_pb2.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW,
            scope=failed_cause_pb2.RESOURCE_EXHAUSTED_SCOPE_NAMESPACE,
        ),
    )


def too_many(message: str) -> StatusError:
    """RESOURCE_EXHAUSTED, cause CONCURRENT_LIMIT: something has to end before more may begin."""
    return status(
        Code.RESOURCE_EXHAUSTED,
        message,
        errordetails_pb2.ResourceExhaustedFailure(
            cause=failed_cause_pb2.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT,
            scope=failed_cause_pb2.RESOURCE_EXHAUSTED_SCOPE_NAMESPACE,
        ),
    )


def workflow_not_ready(message: str) -> StatusError:
    """FAILED_PRECONDITION with WorkflowNotReadyFailure: the workflow task keeps failing."""
    return status(Code.FAILED_PRECONDITION, message, errordetails_pb2.WorkflowNotReadyFailure())


def already_started(message: str, request_id: str, run_id: str, first_run_id: str) -> StatusError:
    """ALREADY_EXISTS, from which SDKs build their own exception."""
    detail = errordetails_pb2.WorkflowExecutionAlreadyStartedFailure(start_request_id=request_id, run_id=run_id)
    if "first_execution_run_id" in detail.DESCRIPTOR.fields_by_name:
        detail.first_execution_run_id = first_run_id
    return status(Code.ALREADY_EXISTS, message, detail)


def namespace_not_found(namespace: str) -> StatusError:
    """NOT_FOUND for a namespace."""
    return status(
        Code.NOT_FOUND,
        f"Namespace {namespace} is not found.",
        errordetails_pb2.NamespaceNotFoundFailure(namespace=namespace),
    )


def workflow_not_found(workflow_id: str, run_id: str = "") -> StatusError:
    """NOT_FOUND for a workflow, or for the run of it that was asked for."""
    if run_id:
        run = f"workflow ID {json.dumps(workflow_id, ensure_ascii=False)} and run ID {json.dumps(run_id)}"
        return not_found(f"workflow execution not found for {run}")
    return not_found(f"workflow not found for ID: {workflow_id}")


def workflow_completed() -> StatusError:
    """NOT_FOUND for a mutation of a closed run."""
    return not_found("workflow execution already completed")


def workflow_task_not_found() -> StatusError:
    """NOT_FOUND for a completion that came too late: SDKs drop it silently."""
    return not_found("Workflow task not found.")


def activity_task_not_found() -> StatusError:
    """NOT_FOUND for a stale activity token."""
    return not_found("invalid activityID or activity already timed out or invoking workflow is completed")
