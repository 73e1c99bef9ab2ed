"""Workers' answers to activity tasks, by token and by id.

A result, failure or heartbeat over the blob limit fails the activity, as in Temporal: refusing the call would leave the
worker to send it again until the activity times out.
"""

from __future__ import annotations

from typing import Any

from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import tokens, validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.frontend.failures import KEPT_BYTES, server_failure
from everfold.kernel.failures import exceeding
from everfold.kernel.names import is_run_id, too_long
from everfold.runtime import requests
from everfold.runtime.requests import invalid

_RESULT_TOO_LARGE = "Complete result exceeds size limit."
_CANCEL_TOO_LARGE = "Cancel details exceed size limit."
_HEARTBEAT_TOO_LARGE = "Heartbeat details exceed size limit."


class ActivityHandlers:
    """Activity tasks completed, failed, canceled; heartbeats."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # By token ---------------------------------------------------------------------------------------------------------

    async def completed(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskCompleted."""
        message = parse(ws.RespondActivityTaskCompletedRequest, request)
        return await self._by_token(context, "COMPLETE_ACTIVITY", message, request, "result", _RESULT_TOO_LARGE)

    async def failed(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskFailed."""
        message = parse(ws.RespondActivityTaskFailedRequest, request)
        if message.HasField("failure") and not message.failure.HasField("application_failure_info"):
            raise invalid("Failure must have ApplicationFailureInfo.")
        if self._shorten(message, request):
            request = message.SerializeToString(deterministic=True)
        return await self._by_token(context, "FAIL_ACTIVITY", message, request, "", "")

    async def canceled(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskCanceled."""
        message = parse(ws.RespondActivityTaskCanceledRequest, request)
        return await self._by_token(context, "CANCEL_ACTIVITY", message, request, "details", _CANCEL_TOO_LARGE)

    async def heartbeat(self, context: CallContext, request: bytes) -> bytes:
        """RecordActivityTaskHeartbeat."""
        message = parse(ws.RecordActivityTaskHeartbeatRequest, request)
        return await self._by_token(context, "HEARTBEAT_ACTIVITY", message, request, "details", _HEARTBEAT_TOO_LARGE)

    async def _by_token(
        self, context: CallContext, kind: str, message: Any, request: bytes, field: str, too_large: str
    ) -> bytes:
        core = self._core
        token, namespace = await tokens.activity_task(core, message)
        requests.identity(message.identity, core.limits.id_bytes_max)
        if not token.workflow_id:
            raise invalid("WorkflowId is not set on request.")
        if field and self._over(message, request, field):
            failed = ws.RespondActivityTaskFailedRequest(
                task_token=message.task_token,
                identity=message.identity,
                namespace=message.namespace,
                failure=server_failure(too_large),
            )
            await self._core.execute(
                context, "FAIL_ACTIVITY", namespace, token.workflow_id, token.run_id, failed.SerializeToString()
            )
            return _gave_up(kind)
        return await self._core.execute(context, kind, namespace, token.workflow_id, token.run_id, request)

    # By id ------------------------------------------------------------------------------------------------------------

    async def completed_by_id(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskCompletedById."""
        message = parse(ws.RespondActivityTaskCompletedByIdRequest, request)
        return await self._by_id(context, "COMPLETE_ACTIVITY_BY_ID", message, request, "result", _RESULT_TOO_LARGE)

    async def failed_by_id(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskFailedById."""
        message = parse(ws.RespondActivityTaskFailedByIdRequest, request)
        if self._shorten(message, request):
            request = message.SerializeToString(deterministic=True)
        return await self._by_id(context, "FAIL_ACTIVITY_BY_ID", message, request, "", "")

    async def canceled_by_id(self, context: CallContext, request: bytes) -> bytes:
        """RespondActivityTaskCanceledById."""
        message = parse(ws.RespondActivityTaskCanceledByIdRequest, request)
        return await self._by_id(context, "CANCEL_ACTIVITY_BY_ID", message, request, "details", _CANCEL_TOO_LARGE)

    async def heartbeat_by_id(self, context: CallContext, request: bytes) -> bytes:
        """RecordActivityTaskHeartbeatById."""
        message = parse(ws.RecordActivityTaskHeartbeatByIdRequest, request)
        return await self._by_id(context, "HEARTBEAT_ACTIVITY_BY_ID", message, request, "details", _HEARTBEAT_TOO_LARGE)

    async def _by_id(
        self, context: CallContext, kind: str, message: Any, request: bytes, field: str, too_large: str
    ) -> bytes:
        core = self._core
        namespace = await core.namespace(message.namespace)
        if not message.activity_id:
            raise invalid("ActivityId is not set on request.")
        if not message.workflow_id:
            # An activity without a workflow, which is not built.
            raise invalid("WorkflowId is not set on request.")
        if message.run_id and not is_run_id(message.run_id):
            raise invalid("RunId is not valid UUID.")
        requests.identity(message.identity, core.limits.id_bytes_max)
        if field and self._over(message, request, field):
            failed = ws.RespondActivityTaskFailedByIdRequest(
                namespace=message.namespace,
                workflow_id=message.workflow_id,
                run_id=message.run_id,
                activity_id=message.activity_id,
                identity=message.identity,
                failure=server_failure(too_large),
            )
            await self._core.execute(
                context,
                "FAIL_ACTIVITY_BY_ID",
                namespace,
                message.workflow_id,
                message.run_id,
                failed.SerializeToString(),
            )
            return _gave_up(kind)
        return await self._core.execute(context, kind, namespace, message.workflow_id, message.run_id, request)

    # From outside -----------------------------------------------------------------------------------------------------

    async def reset(self, context: CallContext, request: bytes) -> bytes:
        """ResetActivity."""
        core = self._core
        message = parse(ws.ResetActivityRequest, request)
        namespace = await core.namespace(message.namespace)
        if not message.HasField("execution"):
            raise invalid("WorkflowId is not set on request.")
        execution = requests.execution(message, "execution")
        if message.WhichOneof("activity") is None:
            raise invalid("Either Activity.Id or Activity.Type should be set on request.")
        requests.identity(message.identity, core.limits.id_bytes_max)
        if message.jitter.ToNanoseconds() < 0:
            raise invalid("Jitter cannot be negative.")
        return await core.execute(
            context, "RESET_ACTIVITY", namespace, execution.workflow_id, execution.run_id, request
        )

    async def reset_execution(self, context: CallContext, request: bytes) -> bytes:
        """ResetActivityExecution: ResetActivity, as clients say it since activities can be without a workflow."""
        core = self._core
        message = parse(ws.ResetActivityExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        if not message.activity_id:
            raise invalid("activity ID is required")
        for what, value in (
            ("activity ID", message.activity_id),
            ("request ID", message.request_id),
            ("identity", message.identity),
        ):
            if too_long(value, limit := core.limits.id_bytes_max):
                raise invalid(f"{what} exceeds length limit. Length={len(value.encode())} Limit={limit}")
        if message.run_id and not is_run_id(message.run_id):
            raise invalid("invalid run id: must be a valid UUID")
        if message.jitter.ToNanoseconds() < 0:
            raise invalid("invalid jitter: negative duration")
        validate.refuse_unbuilt(message)
        reset = ws.ResetActivityRequest(
            namespace=message.namespace,
            execution=common.WorkflowExecution(workflow_id=message.workflow_id, run_id=message.run_id),
            identity=message.identity,
            id=message.activity_id,
            reset_heartbeat=message.reset_heartbeat,
            keep_paused=message.keep_paused,
            jitter=message.jitter if message.HasField("jitter") else None,
            restore_original_options=message.restore_original_options,
        )
        await core.execute(
            context, "RESET_ACTIVITY", namespace, message.workflow_id, message.run_id, reset.SerializeToString()
        )
        return b""

    # Both -------------------------------------------------------------------------------------------------------------

    def _over(self, message: Any, request: bytes, field: str) -> bool:
        limit = self._core.limits.blob_bytes_max
        return len(request) > limit and getattr(message, field).ByteSize() > limit

    def _shorten(self, message: Any, request: bytes) -> bool:
        """Replaces a failure that is too large, and drops heartbeat details that are. Returns whether it did."""
        limit = self._core.limits.blob_bytes_max
        if len(request) <= limit:
            return False
        changed = False
        if message.failure.ByteSize() > limit:
            message.failure.CopyFrom(exceeding(message.failure, KEPT_BYTES, non_retryable=True))
            changed = True
        if message.last_heartbeat_details.ByteSize() > limit:
            message.ClearField("last_heartbeat_details")
            message.failure.CopyFrom(server_failure(_HEARTBEAT_TOO_LARGE))
            changed = True
        return changed


def _gave_up(kind: str) -> bytes:
    """What the worker hears when its answer was too large: a heartbeat says to stop."""
    if kind.startswith("HEARTBEAT"):
        return ws.RecordActivityTaskHeartbeatResponse(cancel_requested=True).SerializeToString()
    return b""
