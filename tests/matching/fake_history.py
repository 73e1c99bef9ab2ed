"""A history that starts tasks as told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.matching.machine.task import Task

UNAVAILABLE = StatusError(Code.UNAVAILABLE, "shard is moving")
NOT_FOUND = StatusError(Code.NOT_FOUND, "Workflow task not found.")
EXHAUSTED = StatusError(Code.RESOURCE_EXHAUSTED, "busy")


class FakeHistory:
    """Answers a start with a response whose token is the workflow id, unless told otherwise."""

    def __init__(self) -> None:
        #: workflow id -> errors (or gates to wait at) for its next starts
        self.script: defaultdict[str, deque[StatusError | asyncio.Event]] = defaultdict(deque)
        #: (workflow id, request id)
        self.starts: list[tuple[str, str]] = []
        self.returned: list[tuple[str, str]] = []
        self.gone: list[str] = []
        #: workflow ids whose tasks are handed out at once
        self.hands_out: set[str] = set()
        self.breaks_at: set[str] = set()
        self.handed_out: list[tuple[str, Callable[[bool], None]]] = []
        self._changed = asyncio.Event()

    def hand_out_task(self, task: Task, request_id: str, poll: bytes, settled: Callable[[bool], None]) -> bytes | None:
        if task.workflow_id in self.breaks_at:
            raise OSError("the shard's store cannot be read")
        if task.workflow_id not in self.hands_out:
            return None
        self.handed_out.append((task.workflow_id, settled))
        return ws.PollWorkflowTaskQueueResponse(task_token=task.workflow_id.encode(), attempt=1).SerializeToString()

    async def start_task(self, task: Task, request_id: str, poll: bytes, timeout: float) -> bytes:
        self.starts.append((task.workflow_id, request_id))
        self._change()
        if script := self.script[task.workflow_id]:
            step = script.popleft()
            if isinstance(step, asyncio.Event):
                try:
                    async with asyncio.timeout(timeout):
                        await step.wait()
                except TimeoutError:
                    raise StatusError(Code.DEADLINE_EXCEEDED, "no answer") from None
            else:
                raise step
        return ws.PollWorkflowTaskQueueResponse(task_token=task.workflow_id.encode(), attempt=1).SerializeToString()

    async def return_task(self, task: Task, request_id: str, timeout: float) -> None:
        self.returned.append((task.workflow_id, request_id))
        self._change()

    async def sticky_worker_gone(self, task: Task, timeout: float) -> None:
        self.gone.append(task.workflow_id)
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, count: int, calls: list[tuple[str, str]] | list[str]) -> None:
        """Returns when that list is that long."""
        async with asyncio.timeout(5):
            while len(calls) < count:
                await self._changed.wait()
