"""Workflows as clients see them: start, signal, cancel, terminate, reset, delete, describe, history.

Each handler validates, finds the namespace, and hands the request to the shard that owns the workflow id; what happens
to the workflow is decided there, by the fold.
"""

from __future__ import annotations

import time
from typing import Final

from temporalio.api.enums.v1 import workflow_pb2 as workflow_enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import search_attributes, validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import REGISTERED_ONLY, REPLY_MARGIN_SECONDS, Core, invalid, parse
from everfold.runtime.namespaces import Namespace

_USER_TERMINATE_REASON: Final = "terminated by user via frontend"
_USER_TERMINATE_IDENTITY: Final = "frontend-service"


def prepare_start(core: Core, message: ws.StartWorkflowExecutionRequest, namespace: Namespace, size: int) -> None:
    """Checks a start, and makes explicit what the caller left open.

    Args:
        core: for its limits.
        message: the start; changed in place.
        namespace: where the workflow is to be.
        size: of the request, serialized: a small one cannot hold a big payload.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    limits = core.limits
    validate.workflow_id(message.workflow_id, limits.id_bytes_max)
    validate.retry_policy(message)
    validate.start_delay(message)
    validate.cron_schedule(message, time.time_ns())
    if not message.workflow_type.name:
        raise invalid("WorkflowType is not set on request.")
    if validate.too_long(message.workflow_type.name, limits.id_bytes_max):
        raise invalid("WorkflowType length exceeds limit.")
    validate.task_queue(message, limits.id_bytes_max)
    validate.workflow_timeouts(message)
    validate.fill_request_id(message, limits.id_bytes_max)
    validate.identity(message.identity, limits.id_bytes_max)
    validate.check_id_policies(message)
    validate.fill_id_policies(message, workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL)
    search_attributes.validate(message.search_attributes, namespace, limits)
    validate.priority(message)
    validate.links(message)
    if size > limits.blob_bytes_max:
        validate.blob(message.input.ByteSize(), limits.blob_bytes_max)
    if size > limits.memo_bytes_max:
        validate.memo(message.memo.ByteSize(), limits.memo_bytes_max)


class WorkflowHandlers:
    """The RPCs on one workflow."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def start(self, context: CallContext, request: bytes) -> bytes:
        """StartWorkflowExecution."""
        core = self._core
        message = parse(ws.StartWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace, allowed=REGISTERED_ONLY)
        prepare_start(core, message, namespace, len(request))
        validate.refuse_unbuilt(message)
        accepted = message.SerializeToString(deterministic=True)
        return await core.execute(context, "START_WORKFLOW", namespace, message.workflow_id, "", accepted)

    async def signal_with_start(self, context: CallContext, request: bytes) -> bytes:
        """SignalWithStartWorkflowExecution."""
        core, limits = self._core, self._core.limits
        longest = limits.id_bytes_max
        message = parse(ws.SignalWithStartWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace, allowed=REGISTERED_ONLY)
        validate.workflow_id(message.workflow_id, longest)
        if not message.signal_name:
            raise invalid("signal not set")
        if validate.too_long(message.signal_name, longest):
            size = len(message.signal_name.encode())
            raise invalid(f"signal name exceeds maximum allowed length ({size}/{longest})")
        if not message.workflow_type.name:
            raise invalid("workflow type not set")
        if validate.too_long(message.workflow_type.name, longest):
            size = len(message.workflow_type.name.encode())
            raise invalid(f"workflow type name exceeds maximum allowed length ({size}/{longest})")
        validate.task_queue(message, longest)
        validate.fill_request_id(message, longest)
        validate.identity(message.identity, longest)
        validate.workflow_timeouts(message)
        validate.retry_policy(message)
        validate.start_delay(message)
        validate.cron_schedule(message, time.time_ns())
        validate.check_id_policies(message)
        if message.workflow_id_conflict_policy == workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL:
            raise invalid(
                "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this "
                "operation."
            )
        validate.fill_id_policies(message, workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING)
        search_attributes.validate(message.search_attributes, namespace, limits)
        validate.priority(message)
        validate.links(message)
        validate.refuse_unbuilt(message)
        if len(request) > limits.blob_bytes_max:
            validate.blob(message.input.ByteSize(), limits.blob_bytes_max)
            validate.blob(message.signal_input.ByteSize(), limits.blob_bytes_max)
        if len(request) > limits.memo_bytes_max:
            validate.memo(message.memo.ByteSize(), limits.memo_bytes_max)
        accepted = message.SerializeToString(deterministic=True)
        return await core.execute(context, "SIGNAL_WITH_START_WORKFLOW", namespace, message.workflow_id, "", accepted)

    async def signal(self, context: CallContext, request: bytes) -> bytes:
        """SignalWorkflowExecution."""
        core, limits = self._core, self._core.limits
        message = parse(ws.SignalWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "workflow_execution")
        if not message.signal_name:
            raise invalid("SignalName is not set on request.")
        if validate.too_long(message.signal_name, limits.id_bytes_max):
            raise invalid("SignalName length exceeds limit.")
        validate.identity(message.identity, limits.id_bytes_max)
        validate.links(message)
        if len(request) > limits.blob_bytes_max:
            validate.blob(message.input.ByteSize(), limits.blob_bytes_max)
        # One without a request id stays so: it is a new signal each time, as in Temporal.
        if validate.too_long(message.request_id, limits.id_bytes_max):
            raise invalid("RequestId length exceeds limit.")
        return await core.execute(
            context, "SIGNAL_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def request_cancel(self, context: CallContext, request: bytes) -> bytes:
        """RequestCancelWorkflowExecution."""
        core, limits = self._core, self._core.limits
        message = parse(ws.RequestCancelWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "workflow_execution")
        validate.identity(message.identity, limits.id_bytes_max)
        validate.links(message)
        if not message.request_id:
            validate.fill_request_id(message, limits.id_bytes_max)
            request = message.SerializeToString(deterministic=True)
        return await core.execute(
            context, "REQUEST_CANCEL_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def terminate(self, context: CallContext, request: bytes) -> bytes:
        """TerminateWorkflowExecution."""
        core, limits = self._core, self._core.limits
        message = parse(ws.TerminateWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "workflow_execution")
        validate.identity(message.identity, limits.id_bytes_max)
        validate.links(message)
        if len(request) > limits.blob_bytes_max:
            validate.blob(message.details.ByteSize(), limits.blob_bytes_max)
        if not message.reason or not message.identity:
            # So that a terminated history says that a user did it, and not the server.
            message.reason = message.reason or _USER_TERMINATE_REASON
            message.identity = message.identity or _USER_TERMINATE_IDENTITY
            request = message.SerializeToString(deterministic=True)
        return await core.execute(
            context, "TERMINATE_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def reset(self, context: CallContext, request: bytes) -> bytes:
        """ResetWorkflowExecution."""
        core, limits = self._core, self._core.limits
        message = parse(ws.ResetWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        if not message.request_id:
            raise invalid("RequestId is not set on request.")
        if validate.too_long(message.request_id, limits.id_bytes_max):
            raise invalid("RequestId length exceeds limit.")
        execution = validate.execution(message, "workflow_execution")
        validate.identity(message.identity, limits.id_bytes_max)
        validate.reapply(message)
        validate.refuse_unbuilt(message)
        return await core.execute(
            context, "RESET_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def delete(self, context: CallContext, request: bytes) -> bytes:
        """DeleteWorkflowExecution: the run is gone from stores and index; logs keep theirs."""
        core = self._core
        message = parse(ws.DeleteWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "workflow_execution")
        return await core.execute(
            context, "DELETE_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def reset_sticky(self, context: CallContext, request: bytes) -> bytes:
        """ResetStickyTaskQueue."""
        core = self._core
        message = parse(ws.ResetStickyTaskQueueRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "execution")
        return await core.execute(context, "RESET_STICKY", namespace, execution.workflow_id, execution.run_id, request)

    async def release(self, context: CallContext, request: bytes) -> bytes:
        """ReleaseWorkflow of Everfold's own service: a quarantined run goes on. The request is a
        DescribeWorkflowExecutionRequest, the response is empty.
        """
        message = parse(ws.DescribeWorkflowExecutionRequest, request)
        namespace = await self._core.namespace(message.namespace)
        execution = validate.execution(message, "execution")
        return await self._core.execute(
            context, "RELEASE_WORKFLOW", namespace, execution.workflow_id, execution.run_id, b""
        )

    async def describe(self, context: CallContext, request: bytes) -> bytes:
        """DescribeWorkflowExecution."""
        core = self._core
        message = parse(ws.DescribeWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "execution")
        return await core.backend.describe(namespace, execution.workflow_id, request, core.seconds_left(context))

    async def history(self, context: CallContext, request: bytes) -> bytes:
        """GetWorkflowExecutionHistory, with the long poll for new events."""
        core, limits = self._core, self._core.limits
        message = parse(ws.GetWorkflowExecutionHistoryRequest, request)
        waits = message.wait_new_event
        namespace = await core.namespace(message.namespace, "poll" if waits else "call")
        execution = validate.execution(message, "execution")
        request = self._with_page_size(message, request)
        left = core.seconds_left(context)
        if not waits:
            return await core.backend.read("history", namespace, execution.workflow_id, request, left)
        # The owner answers a little before the time that it is given.
        timeout = min(limits.history_poll_seconds + REPLY_MARGIN_SECONDS, left)
        core.admission.enter(namespace.namespace_id, context.method)
        try:
            return await core.backend.read("history", namespace, execution.workflow_id, request, timeout)
        finally:
            core.admission.leave(namespace.namespace_id, context.method)

    async def history_reverse(self, context: CallContext, request: bytes) -> bytes:
        """GetWorkflowExecutionHistoryReverse."""
        core = self._core
        message = parse(ws.GetWorkflowExecutionHistoryReverseRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = validate.execution(message, "execution")
        request = self._with_page_size(message, request)
        left = core.seconds_left(context)
        return await core.backend.read("history_reverse", namespace, execution.workflow_id, request, left)

    def _with_page_size(
        self,
        message: ws.GetWorkflowExecutionHistoryRequest | ws.GetWorkflowExecutionHistoryReverseRequest,
        request: bytes,
    ) -> bytes:
        """The request with a page of at most the limit, which is also the default."""
        longest = self._core.limits.history_page_events_max
        if 0 < message.maximum_page_size <= longest:
            return request
        message.maximum_page_size = longest
        return message.SerializeToString(deterministic=True)
