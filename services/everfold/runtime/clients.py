"""The calls that history and matching make of each other, over the router, by the names that their callers use.

Neither service imports the other: history asks matching for queries and hands it tasks; matching asks history to
start them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import structlog

from everfold.kernel.errors import StatusError
from everfold.kernel.ids import task_partition
from everfold.runtime.router import Router

OFFERS_MAX: Final = 10_000
"""Sticky tasks on their way to other processes. One more is dropped: its schedule-to-start timeout brings it back."""

OFFER_TIMEOUT_S: Final = 5.0
"""The shortest sticky schedule-to-start timeout in use (Go's and Java's): later the offer has lost its meaning."""

log = structlog.get_logger("router")


class OfferedTask(Protocol):
    """What routes an offered task; history's `TaskOffer` is one."""

    @property
    def namespace_id(self) -> str:
        """Of the task's queue."""
        ...

    @property
    def task_queue(self) -> str:
        """The queue's name."""
        ...

    @property
    def sticky(self) -> bool:
        """Whether it has no record."""
        ...


class StartableTask(Protocol):
    """What identifies a task to history; matching's `Task` is one."""

    @property
    def type(self) -> str:
        """Either "workflow" or "activity"."""
        ...

    @property
    def namespace_id(self) -> str:
        """Of the workflow."""
        ...

    @property
    def workflow_id(self) -> str:
        """The workflow."""
        ...

    @property
    def run_id(self) -> str:
        """The run."""
        ...

    @property
    def scheduled_event_id(self) -> int:
        """The event that scheduled it."""
        ...

    @property
    def attempt(self) -> int:
        """From 1."""
        ...

    @property
    def stamp(self) -> int:
        """Of the offer."""
        ...

    @property
    def task_id(self) -> str:
        """Key of its record; "" when it has none."""
        ...

    @property
    def shard(self) -> int:
        """The shard that starts it."""
        ...


class LocalMatching(Protocol):
    """The matching service of the same process."""

    def offer(self, task: Any) -> bool:
        """Take the task, or say False when its queue is not here."""
        ...


class MatchingClient:
    """Matching, as history uses it.

    Args:
        router: the way to other processes.
        task_partitions: T.
        local: matching in this process, if it runs here.
    """

    def __init__(self, router: Router, task_partitions: int, local: LocalMatching | None = None) -> None:
        self._router = router
        self._task_partitions = task_partitions
        self._local = local
        self._offers: set[asyncio.Task[None]] = set()

    def offer(self, task: OfferedTask) -> None:
        """Hand over a task that was just scheduled: O(1), never blocks, never fails.

        A task of a queue in this process is handed over by a plain call. Of the others only sticky ones travel; the
        rest have their record.
        """
        if self._local is not None and self._local.offer(task):
            return
        if task.sticky and len(self._offers) < OFFERS_MAX:
            number = task_partition(task.namespace_id, task.task_queue, self._task_partitions)
            self._in_background(self._send_offer(number, list(task)))  # type: ignore[call-overload]

    async def query(self, namespace_id: str, queue: str, sticky_queue: str, query_task: bytes, timeout: float) -> bytes:
        """Give a query to a poller of the sticky queue, if one is named, else of `queue`, and return its answer.

        Raises:
            StatusError: FAILED_PRECONDITION when no worker polls; DEADLINE_EXCEEDED; UNAVAILABLE.
        """
        number = task_partition(namespace_id, sticky_queue or queue, self._task_partitions)
        args = [namespace_id, queue, sticky_queue, query_task, timeout]
        answer: bytes = await self._router.call("matching", number, "query", args, timeout)
        return answer

    async def stop(self) -> None:
        """Give up the offers that are on their way."""
        for task in list(self._offers):
            task.cancel()
        await asyncio.gather(*self._offers, return_exceptions=True)

    async def _send_offer(self, number: int, fields: list[Any]) -> None:
        try:
            await self._router.call("matching", number, "offer_remote", [fields], OFFER_TIMEOUT_S)
        except StatusError as error:
            log.debug("a sticky task was not handed over", partition=number, reason=error.message)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._offers.add(task)
        task.add_done_callback(self._offers.discard)


class LocalHistory(Protocol):
    """The history service of this process."""

    def hand_out_task(
        self, task: StartableTask, request_id: str, poll: bytes, settled: Callable[[bool], None]
    ) -> bytes | None:
        """See `everfold.matching.ports`."""
        ...


class HistoryClient:
    """History, as matching uses it: each call goes to the shard that the task names."""

    def __init__(self, router: Router) -> None:
        self._call = router.call
        #: the history service of this process, if it has one
        self.local: LocalHistory | None = None

    def hand_out_task(
        self, task: StartableTask, request_id: str, poll: bytes, settled: Callable[[bool], None]
    ) -> bytes | None:
        """Start a workflow task without waiting for the log. See `everfold.matching.ports`."""
        if self.local is None or task.type != "workflow":
            return None
        return self.local.hand_out_task(task, request_id, poll, settled)

    async def start_task(self, task: StartableTask, request_id: str, poll: bytes, timeout: float) -> bytes:
        """Start the task for a poller. See `everfold.matching.ports`."""
        args = [
            task.type,
            task.namespace_id,
            task.workflow_id,
            task.run_id,
            task.scheduled_event_id,
            task.attempt,
            task.stamp,
            task.task_id,
            request_id,
            poll,
            timeout,
        ]
        response: bytes = await self._call("history", task.shard, "start_task", args, timeout)
        return response

    async def return_task(self, task: StartableTask, request_id: str, timeout: float) -> None:
        """The poller of a started task is gone. See `everfold.matching.ports`."""
        args = [
            task.type,
            task.namespace_id,
            task.workflow_id,
            task.run_id,
            task.scheduled_event_id,
            task.attempt,
            request_id,
            timeout,
        ]
        await self._call("history", task.shard, "return_task", args, timeout)

    async def sticky_worker_gone(self, task: StartableTask, timeout: float) -> None:
        """The worker of a sticky task is gone. See `everfold.matching.ports`."""
        args = [
            task.namespace_id,
            task.workflow_id,
            task.run_id,
            task.scheduled_event_id,
            task.stamp,
            timeout,
        ]
        await self._call("history", task.shard, "sticky_worker_gone", args, timeout)
