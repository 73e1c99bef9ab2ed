"""Workers' answers to workflow tasks."""

from __future__ import annotations

from typing import Final

from temporalio.api.enums.v1 import deployment_pb2 as enums
from temporalio.api.enums.v1 import query_pb2 as query_enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import tokens, validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.frontend.failures import KEPT_BYTES
from everfold.kernel.failures import exceeding
from everfold.kernel.names import too_long
from everfold.runtime import requests

BUILD_ID_BYTES_MAX: Final = 255
"""As Temporal's limit.workerBuildIdSize: several have to fit in one search attribute."""


class WorkflowTaskHandlers:
    """Workflow tasks completed and failed."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def completed(self, context: CallContext, request: bytes) -> bytes:
        """RespondWorkflowTaskCompleted. The fold judges the commands: a bad one fails the task, not the call alone."""
        core = self._core
        message = parse(ws.RespondWorkflowTaskCompletedRequest, request)
        token, namespace = await tokens.workflow_task(core, message)
        requests.identity(message.identity, core.limits.id_bytes_max)
        validate.refuse_unbuilt(message)
        if too_long(message.sticky_attributes.worker_task_queue.name, core.limits.id_bytes_max):
            raise requests.invalid("taskQueue length exceeds limit")
        versioned = message.deployment_options.worker_versioning_mode == enums.WORKER_VERSIONING_MODE_VERSIONED
        if message.versioning_behavior and not versioned:
            raise requests.invalid(
                "versioning behavior cannot be specified without deployment options being set with versioned mode"
            )
        if too_long(message.worker_version_stamp.build_id, BUILD_ID_BYTES_MAX):
            raise requests.invalid("Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID.")
        if len(request) > core.limits.blob_bytes_max and _fail_large_answers(message, core.limits.blob_bytes_max):
            request = message.SerializeToString(deterministic=True)
        return await core.execute(
            context, "COMPLETE_WORKFLOW_TASK", namespace, token.workflow_id, token.run_id, request
        )

    async def failed(self, context: CallContext, request: bytes) -> bytes:
        """RespondWorkflowTaskFailed."""
        core = self._core
        message = parse(ws.RespondWorkflowTaskFailedRequest, request)
        token, namespace = await tokens.workflow_task(core, message)
        requests.identity(message.identity, core.limits.id_bytes_max)
        if len(request) > core.limits.blob_bytes_max and message.failure.ByteSize() > core.limits.blob_bytes_max:
            message.failure.CopyFrom(exceeding(message.failure, KEPT_BYTES, non_retryable=True))
            request = message.SerializeToString(deterministic=True)
        return await core.execute(context, "FAIL_WORKFLOW_TASK", namespace, token.workflow_id, token.run_id, request)


def _fail_large_answers(message: ws.RespondWorkflowTaskCompletedRequest, bytes_max: int) -> bool:
    """Answers to queries that are too large become failures (respondworkflowtaskcompleted, handleBufferedQueries)."""
    large = [query_id for query_id, result in message.query_results.items() if result.answer.ByteSize() > bytes_max]
    for query_id in large:
        result = message.query_results[query_id]
        result.Clear()
        result.result_type = query_enums.QUERY_RESULT_TYPE_FAILED
        result.error_message = "Blob data size exceeds limit."
    return bool(large)
