"""Workflows as clients see them: start, signal, cancel, terminate, reset, delete, describe, history.

Each handler validates, finds the namespace, and hands the request to the shard that owns the workflow id; what happens
to the workflow is decided there, by the fold.
"""

from __future__ import annotations

import time

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import search_attributes, validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import REPLY_MARGIN_SECONDS, Core, parse
from everfold.kernel.names import too_long
from everfold.runtime import requests
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import REGISTERED_ONLY, invalid


def prepare_start(core: Core, message: ws.StartWorkflowExecutionRequest, namespace: Namespace, size: int) -> None:
    """Checks a start of so many bytes, and makes explicit what the caller left open.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    requests.start(message, core.limits, size, time.time_ns(), _attributes_check(core, namespace))


def _attributes_check(core: Core, namespace: Namespace) -> requests.AttributesCheck:
    return lambda attributes: search_attributes.validate(attributes, namespace, core.limits)


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
        core = self._core
        message = parse(ws.SignalWithStartWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace, allowed=REGISTERED_ONLY)
        check = _attributes_check(core, namespace)
        requests.signal_with_start(message, core.limits, len(request), time.time_ns(), check)
        validate.refuse_unbuilt(message)
        accepted = message.SerializeToString(deterministic=True)
        return await core.execute(context, "SIGNAL_WITH_START_WORKFLOW", namespace, message.workflow_id, "", accepted)

    async def signal(self, context: CallContext, request: bytes) -> bytes:
        """SignalWorkflowExecution."""
        core = self._core
        message = parse(ws.SignalWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        requests.signal(message, core.limits, len(request))
        execution = message.workflow_execution
        return await core.execute(
            context, "SIGNAL_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def request_cancel(self, context: CallContext, request: bytes) -> bytes:
        """RequestCancelWorkflowExecution."""
        core = self._core
        message = parse(ws.RequestCancelWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        if requests.request_cancel(message, core.limits):
            request = message.SerializeToString(deterministic=True)
        execution = message.workflow_execution
        return await core.execute(
            context, "REQUEST_CANCEL_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def terminate(self, context: CallContext, request: bytes) -> bytes:
        """TerminateWorkflowExecution."""
        core = self._core
        message = parse(ws.TerminateWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        if requests.terminate(message, core.limits, len(request)):
            request = message.SerializeToString(deterministic=True)
        execution = message.workflow_execution
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
        if too_long(message.request_id, limits.id_bytes_max):
            raise invalid("RequestId length exceeds limit.")
        execution = requests.execution(message, "workflow_execution")
        requests.identity(message.identity, limits.id_bytes_max)
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
        execution = requests.execution(message, "workflow_execution")
        return await core.execute(
            context, "DELETE_WORKFLOW", namespace, execution.workflow_id, execution.run_id, request
        )

    async def reset_sticky(self, context: CallContext, request: bytes) -> bytes:
        """ResetStickyTaskQueue."""
        core = self._core
        message = parse(ws.ResetStickyTaskQueueRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = requests.execution(message, "execution")
        return await core.execute(context, "RESET_STICKY", namespace, execution.workflow_id, execution.run_id, request)

    async def release(self, context: CallContext, request: bytes) -> bytes:
        """ReleaseWorkflow of Everfold's own service: a quarantined run goes on. The request is a
        DescribeWorkflowExecutionRequest, the response is empty.
        """
        message = parse(ws.DescribeWorkflowExecutionRequest, request)
        namespace = await self._core.namespace(message.namespace)
        execution = requests.execution(message, "execution")
        return await self._core.execute(
            context, "RELEASE_WORKFLOW", namespace, execution.workflow_id, execution.run_id, b""
        )

    async def describe(self, context: CallContext, request: bytes) -> bytes:
        """DescribeWorkflowExecution."""
        core = self._core
        message = parse(ws.DescribeWorkflowExecutionRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = requests.execution(message, "execution")
        return await core.backend.describe(namespace, execution.workflow_id, request, core.seconds_left(context))

    async def history(self, context: CallContext, request: bytes) -> bytes:
        """GetWorkflowExecutionHistory, with the long poll for new events."""
        core, limits = self._core, self._core.limits
        message = parse(ws.GetWorkflowExecutionHistoryRequest, request)
        waits = message.wait_new_event
        namespace = await core.namespace(message.namespace, "poll" if waits else "call")
        execution = requests.execution(message, "execution")
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
        execution = requests.execution(message, "execution")
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
