"""Queries: asked by clients, answered by workers. They never touch the log."""

from __future__ import annotations

from temporalio.api.enums.v1 import query_pb2 as query_enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import tokens
from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.kernel.errors import Code, StatusError
from everfold.runtime import requests
from everfold.runtime.requests import invalid


class QueryHandlers:
    """QueryWorkflow and the answer to it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def query(self, context: CallContext, request: bytes) -> bytes:
        """QueryWorkflow."""
        core, limits = self._core, self._core.limits
        message = parse(ws.QueryWorkflowRequest, request)
        namespace = await core.namespace(message.namespace)
        execution = requests.execution(message, "execution")
        if not message.HasField("query"):
            raise invalid("WorkflowQuery is not set on request.")
        if not message.query.query_type:
            raise invalid("QueryType is not set on request.")
        if len(request) > limits.blob_bytes_max:
            requests.blob(message.query.query_args.ByteSize(), limits.blob_bytes_max)
        left = core.seconds_left(context)
        core.admission.enter(namespace.namespace_id, context.method)
        try:
            return await core.backend.read("query", namespace, execution.workflow_id, request, left)
        except StatusError as error:
            if error.code == Code.DEADLINE_EXCEEDED:
                raise StatusError(error.code, "query timed out before a worker could process it") from None
            raise
        except TimeoutError:
            message_text = "query timed out before a worker could process it"
            raise StatusError(Code.DEADLINE_EXCEEDED, message_text) from None
        finally:
            core.admission.leave(namespace.namespace_id, context.method)

    async def completed(self, context: CallContext, request: bytes) -> bytes:
        """RespondQueryTaskCompleted: the answer goes to the matching owner that the token names."""
        core, limits = self._core, self._core.limits
        message = parse(ws.RespondQueryTaskCompletedRequest, request)
        token, _ = await tokens.query_task(core, message)
        if not core.backend.has_partition(token.partition):
            raise invalid("Invalid TaskToken.")
        if len(request) > limits.blob_bytes_max and message.query_result.ByteSize() > limits.blob_bytes_max:
            request = ws.RespondQueryTaskCompletedRequest(
                task_token=message.task_token,
                completed_type=query_enums.QUERY_RESULT_TYPE_FAILED,
                error_message="Blob data size exceeds limit.",
                namespace=message.namespace,
            ).SerializeToString()
        left = core.seconds_left(context)
        await core.backend.respond_query(token.partition, message.task_token, request, left)
        return b""
