"""Workflow updates: asked for, waited for, and update-with-start.

An update is a call that waits: the owner of the shard answers when the stage that the client wants is reached, or
after 20 s with the stage reached so far, and the client asks again.

Temporal: service/frontend/workflow_handler.go (prepareUpdateWorkflowRequest, ExecuteMultiOperation).
"""

from __future__ import annotations

import uuid
from typing import Final

from temporalio.api.enums.v1 import update_pb2 as update_enums
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import validate
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.frontend.workflow import prepare_start
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.names import is_run_id, too_long
from everfold.runtime import requests
from everfold.runtime.multi_operation import ABORTED, multi_operation_failed
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import REGISTERED_ONLY, invalid

_ADMITTED: Final = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
_COMPLETED: Final = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED


class UpdateHandlers:
    """UpdateWorkflowExecution, PollWorkflowExecutionUpdate, ExecuteMultiOperation."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def update(self, context: CallContext, request: bytes) -> bytes:
        """UpdateWorkflowExecution."""
        message = parse(ws.UpdateWorkflowExecutionRequest, request)
        namespace = await self._core.namespace(message.namespace)
        self._prepare_update(message)
        accepted = message.SerializeToString(deterministic=True)
        return await self._wait(context, "update", namespace, message.workflow_execution.workflow_id, accepted)

    async def poll(self, context: CallContext, request: bytes) -> bytes:
        """PollWorkflowExecutionUpdate."""
        message = parse(ws.PollWorkflowExecutionUpdateRequest, request)
        namespace = await self._core.namespace(message.namespace, "poll")
        if not message.HasField("update_ref"):
            raise invalid("UpdateRef is not set on request.")
        execution = message.update_ref.workflow_execution
        if not execution.workflow_id:
            raise invalid("Can't load workflow execution.  WorkflowId not set.")
        if execution.run_id and not is_run_id(execution.run_id):
            raise invalid("RunId is not valid UUID.")
        return await self._wait(context, "poll_update", namespace, execution.workflow_id, request)

    async def multi_operation(self, context: CallContext, request: bytes) -> bytes:
        """ExecuteMultiOperation: exactly a start and an update of the same workflow."""
        message = parse(ws.ExecuteMultiOperationRequest, request)
        namespace = await self._core.namespace(message.namespace, allowed=REGISTERED_ONLY)
        kinds = [operation.WhichOneof("operation") for operation in message.operations]
        if kinds != ["start_workflow", "update_workflow"]:
            raise invalid("Operations have to be exactly [Start, Update].")
        start, update = message.operations[0].start_workflow, message.operations[1].update_workflow
        errors: list[StatusError | None] = [None, None]
        for index, check in enumerate((self._check_start, self._check_update)):
            try:
                check(message, namespace, len(request))
            except StatusError as error:
                errors[index] = error
        if errors == [None, None] and start.workflow_id != update.workflow_execution.workflow_id:
            errors[1] = invalid("WorkflowId is not consistent with previous operation(s).")
        if errors != [None, None]:
            raise multi_operation_failed([error or ABORTED for error in errors])
        accepted = message.SerializeToString(deterministic=True)
        return await self._wait(context, "multi_operation", namespace, start.workflow_id, accepted)

    def _check_start(self, message: ws.ExecuteMultiOperationRequest, namespace: Namespace, size: int) -> None:
        start = message.operations[0].start_workflow
        _same_namespace(start, message)
        prepare_start(self._core, start, namespace, size)
        if start.cron_schedule:
            raise invalid("CronSchedule is not allowed.")
        if start.request_eager_execution:
            raise invalid("RequestEagerExecution is not supported.")
        if start.workflow_start_delay.ToNanoseconds():
            raise invalid("WorkflowStartDelay is not supported.")
        validate.refuse_unbuilt(start)

    def _check_update(self, message: ws.ExecuteMultiOperationRequest, _namespace: Namespace, _size: int) -> None:
        update = message.operations[1].update_workflow
        _same_namespace(update, message)
        self._prepare_update(update)
        if update.first_execution_run_id:
            raise invalid("FirstExecutionRunId is not allowed.")
        if update.workflow_execution.run_id:
            raise invalid("RunId is not allowed.")

    def _prepare_update(self, message: ws.UpdateWorkflowExecutionRequest) -> None:
        """Checks an update, and makes explicit what the caller left open."""
        longest = self._core.limits.id_bytes_max
        requests.execution(message, "workflow_execution")
        if not message.request.HasField("meta"):
            raise invalid("Update meta is not set on request.")
        meta = message.request.meta
        if too_long(meta.update_id, longest):
            raise invalid("UpdateId length exceeds limit.")
        meta.update_id = meta.update_id or str(uuid.uuid4())
        if not message.request.HasField("input"):
            raise invalid("Update input is not set on request.")
        if not message.request.input.name:
            raise invalid("Update name is not set on request.")
        policy = message.wait_policy
        if policy.lifecycle_stage == _ADMITTED:
            detail = errordetails.PermissionDeniedFailure()
            raise StatusError(
                Code.PERMISSION_DENIED,
                "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported.",
                ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),),
            )
        policy.lifecycle_stage = policy.lifecycle_stage or _COMPLETED
        requests.identity(meta.identity, longest)
        requests.links(message.request)
        validate.refuse_unbuilt(message)

    async def _wait(
        self, context: CallContext, method: str, namespace: Namespace, workflow_id: str, request: bytes
    ) -> bytes:
        core = self._core
        left = core.seconds_left(context)
        core.admission.enter(namespace.namespace_id, context.method)
        try:
            return await core.backend.read(method, namespace, workflow_id, request, left)
        finally:
            core.admission.leave(namespace.namespace_id, context.method)


def _same_namespace(
    operation: ws.StartWorkflowExecutionRequest | ws.UpdateWorkflowExecutionRequest,
    message: ws.ExecuteMultiOperationRequest,
) -> None:
    if operation.namespace not in ("", message.namespace):
        raise invalid("Operation namespace did not match request's namespace.")
    operation.namespace = message.namespace
