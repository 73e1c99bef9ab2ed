"""Workers' answers to workflow tasks."""

from __future__ import annotations

from temporalio.api.enums.v1 import deployment_pb2 as enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import tokens, validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.frontend.failures import server_failure, truncated
from everfold.runtime import requests


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
        versioned = message.deployment_options.worker_versioning_mode == enums.WORKER_VERSIONING_MODE_VERSIONED
        if message.versioning_behavior and not versioned:
            raise requests.invalid(
                "versioning behavior cannot be specified without deployment options being set with versioned mode"
            )
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
            failure = server_failure("Failure exceeds size limit.")
            failure.cause.CopyFrom(truncated(message.failure))
            message.failure.CopyFrom(failure)
            request = message.SerializeToString(deterministic=True)
        return await core.execute(context, "FAIL_WORKFLOW_TASK", namespace, token.workflow_id, token.run_id, request)
