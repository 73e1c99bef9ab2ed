"""Workers waiting for tasks, and workers going away.

A poll must lose no task: from the moment that matching has started one, the answer either reaches gRPC or the task is
made scheduled again. So when the client leaves, matching is told by the poll's id, whatever the poll's state is: it is
ended if it still waits, and what it was given is taken back if it has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from itertools import count
from typing import Final

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import CallContext
from everfold.frontend.core import REPLY_MARGIN_SECONDS, Core, parse
from everfold.kernel.errors import Code, StatusError
from everfold.runtime import requests
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import invalid

POLL_SECONDS_MIN: Final = 2.0
"""Below this a poll could only answer empty. As Temporal's common.MinLongPollTimeout."""

POLL_BYTES_MAX: Final = 64 * 1024
"""A poll's request: matching keeps it while the poll waits, and what it says of its worker for as long as the worker is
listed. Core's are a few hundred bytes."""

_CANCEL_SECONDS: Final = 10.0
"""How long it is tried to tell matching of a client that left: the task's own timeout, 10 s by default, follows."""

_NO_ANSWER: Final = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


class PollHandlers:
    """Task polls and worker shutdown."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._poll_ids = count()
        self._poll_prefix = secrets.token_hex(8)

    async def workflow_task(self, context: CallContext, request: bytes) -> bytes:
        """PollWorkflowTaskQueue."""
        core, longest = self._core, self._core.limits.id_bytes_max
        message = parse(ws.PollWorkflowTaskQueueRequest, _bounded(request))
        namespace = await core.namespace(message.namespace, "poll")
        timeout = self._timeout(context)
        requests.identity(message.identity, longest)
        queue = requests.task_queue(message, longest)
        return await self._poll(context, namespace, "poll_workflow_task", queue.name, request, timeout)

    async def activity_task(self, context: CallContext, request: bytes) -> bytes:
        """PollActivityTaskQueue."""
        core, longest = self._core, self._core.limits.id_bytes_max
        message = parse(ws.PollActivityTaskQueueRequest, _bounded(request))
        namespace = await core.namespace(message.namespace, "poll")
        timeout = self._timeout(context)
        queue = requests.task_queue(message, longest)
        requests.identity(message.identity, longest)
        return await self._poll(context, namespace, "poll_activity_task", queue.name, request, timeout)

    async def shutdown_worker(self, context: CallContext, request: bytes) -> bytes:
        """ShutdownWorker: its sticky queue fails over at once."""
        core = self._core
        message = parse(ws.ShutdownWorkerRequest, request)
        namespace = await core.namespace(message.namespace)
        if message.sticky_task_queue:
            left = core.seconds_left(context)
            await core.backend.shutdown_worker(namespace, message.sticky_task_queue, request, left)
        return b""

    def _timeout(self, context: CallContext) -> float:
        """How long the poll may take. Matching answers empty a little before."""
        if context.deadline is None:
            raise invalid("Context timeout is not set.")
        left = context.deadline - asyncio.get_running_loop().time()
        if left < POLL_SECONDS_MIN:
            raise StatusError(Code.FAILED_PRECONDITION, "Context timeout is too short.")
        return min(self._core.limits.poll_seconds + REPLY_MARGIN_SECONDS, left)

    async def _poll(
        self, context: CallContext, namespace: Namespace, method: str, queue: str, request: bytes, timeout: float
    ) -> bytes:
        core = self._core
        partition = core.backend.queue_partition(namespace, queue)
        poll_id = f"{self._poll_prefix}-{next(self._poll_ids)}"
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout
        core.admission.enter(namespace.namespace_id, context.method)
        try:
            response = await core.backend.poll(method, partition, namespace, request, timeout, poll_id)
        except asyncio.CancelledError:
            core.spawn(self._client_gone(partition, poll_id))
            raise
        except StatusError as error:
            if error.code not in _NO_ANSWER:
                raise
            # Nobody served the queue to the end, or the answer was lost; a task may have been started for it.
            core.spawn(self._client_gone(partition, poll_id))
            if loop.time() < ends_at - REPLY_MARGIN_SECONDS:
                raise
            # SDKs take an error for trouble and back off; when the broker or an owner is back, they must be here.
            return b""
        finally:
            core.admission.leave(namespace.namespace_id, context.method)
        if response:
            context.undelivered = lambda lost: core.spawn(self._client_gone(partition, poll_id))
        return response

    async def _client_gone(self, partition: int, poll_id: str) -> None:
        """Tells matching. If it cannot be told, the timeouts of the poll and of its task do the same, later."""
        with contextlib.suppress(StatusError):
            await self._core.backend.cancel_poll(partition, poll_id, _CANCEL_SECONDS)


def _bounded(request: bytes) -> bytes:
    if len(request) > POLL_BYTES_MAX:
        raise invalid(f"expected a poll of at most {POLL_BYTES_MAX} bytes, found {len(request)}")
    return request
