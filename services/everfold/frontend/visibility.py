"""Lists and counts of workflows, from the index. The index blocks, so it is asked on threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from temporalio.api.workflow.v1 import message_pb2 as workflow
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import CallContext
from everfold.frontend.core import Core, parse
from everfold.frontend.freshness import Freshness
from everfold.kernel.errors import Code, StatusError

_T = TypeVar("_T")

THREADS: Final = 2
"""Queries of the index at a time: they hold the GIL while rows become messages, so more would only slow the loop."""

QUEUED_MAX: Final = 200
"""Queries waiting for a thread; beyond it callers are told to come back."""


class VisibilityIndex(Protocol):
    """What the frontend asks of the index (`everfold.visibility.store`). Blocking; called from several threads."""

    def list(
        self, namespace_id: str, query: str, page_size: int, token: bytes, search_attributes: Mapping[str, str]
    ) -> tuple[Sequence[workflow.WorkflowExecutionInfo], bytes]:
        """A page of runs and the token of the next one."""
        ...

    def count(
        self, namespace_id: str, query: str, search_attributes: Mapping[str, str]
    ) -> ws.CountWorkflowExecutionsResponse:
        """How many runs, or how many of each group."""
        ...


class VisibilityHandlers:
    """List, Scan and Count."""

    def __init__(self, core: Core, index: VisibilityIndex | None, freshness: Freshness | None) -> None:
        self._core = core
        self._index = index
        self._freshness = freshness
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="visibility")
        self._queued = 0

    async def list(self, context: CallContext, request: bytes) -> bytes:
        """ListWorkflowExecutions."""
        return await self._list(context, parse(ws.ListWorkflowExecutionsRequest, request))

    async def scan(self, context: CallContext, request: bytes) -> bytes:
        """ScanWorkflowExecutions: another name of List, whose messages have the same fields."""
        return await self._list(context, parse(ws.ListWorkflowExecutionsRequest, request))

    async def _list(self, context: CallContext, message: ws.ListWorkflowExecutionsRequest) -> bytes:
        namespace = await self._core.namespace(message.namespace, "visibility")
        index = self._require_index()
        size = message.page_size
        if size <= 0 or size > self._core.limits.visibility_page_max:
            size = self._core.limits.visibility_page_max

        def ask() -> bytes:
            runs, token = index.list(
                namespace.namespace_id, message.query, size, message.next_page_token, namespace.search_attributes
            )
            return ws.ListWorkflowExecutionsResponse(executions=runs, next_page_token=token).SerializeToString()

        return await self._ask(ask, fresh=not message.next_page_token)

    async def count(self, context: CallContext, request: bytes) -> bytes:
        """CountWorkflowExecutions."""
        message = parse(ws.CountWorkflowExecutionsRequest, request)
        namespace = await self._core.namespace(message.namespace, "visibility")
        index = self._require_index()

        def ask() -> bytes:
            return index.count(namespace.namespace_id, message.query, namespace.search_attributes).SerializeToString()

        return await self._ask(ask)

    def _require_index(self) -> VisibilityIndex:
        if self._index is None:
            raise StatusError(Code.UNAVAILABLE, "this server has no visibility index (visibility.url is not set)")
        return self._index

    async def _ask(self, question: Callable[[], _T], *, fresh: bool = True) -> _T:
        if self._queued >= QUEUED_MAX:
            raise StatusError(Code.UNAVAILABLE, "the visibility index is busy, please retry")
        self._queued += 1
        try:
            if fresh and self._freshness is not None:
                await self._freshness.caught_up(self._threads)
            return await asyncio.get_running_loop().run_in_executor(self._threads, question)
        finally:
            self._queued -= 1

    def stop(self) -> None:
        """Takes no more questions; those being answered end on their own."""
        self._threads.shutdown(wait=False, cancel_futures=True)
