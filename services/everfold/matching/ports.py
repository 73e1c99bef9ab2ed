"""What matching needs of others, as interfaces: history, to start the tasks, and a clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from everfold.matching.machine.task import Task


class HistoryTasks(Protocol):
    """History, as matching sees it: three calls about a task, each to the shard that the task names.

    All raise StatusError. UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED leave open whether the call took effect.
    """

    async def start_task(self, task: Task, request_id: str, poll: bytes, timeout: float) -> bytes:
        """Start the task for the poller of the serialized poll request, and return the serialized poll response.

        The same `request_id` again gets the same answer. NOT_FOUND: there is nothing to start.
        """
        ...

    def hand_out_task(self, task: Task, request_id: str, poll: bytes, settled: Callable[[bool], None]) -> bytes | None:
        """Start a workflow task at once, where its shard is in this process: the serialized poll response.

        None: use `start_task`. Otherwise `settled` is called, later: with True when the task is over for matching, with
        False when it may have to be started again.
        """
        ...

    async def return_task(self, task: Task, request_id: str, timeout: float) -> None:
        """The poller of that start is gone: the task is to be scheduled again. Repeating it is harmless."""
        ...

    async def sticky_worker_gone(self, task: Task, timeout: float) -> None:
        """The worker of this sticky task is gone: the task is to go to the normal queue. Repeating it is harmless."""
        ...


class Clock(Protocol):
    """See `everfold.runtime.clock`."""

    def wall_ns(self) -> int:
        """UTC nanoseconds since the epoch."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start; never goes back."""
        ...
