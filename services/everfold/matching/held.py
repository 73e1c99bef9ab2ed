"""A task partition in the hands of this process: the pure machine, and the doing of its effects on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from everfold.kernel.time import SECOND_NS
from everfold.matching.machine.partition import TaskPartition
from everfold.matching.machine.queue import Deliver, Dispatch, EndPoll, Poll, Query
from everfold.matching.machine.rate import NEVER_NS
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Entry, QueueKey, Task
from everfold.matching.spill import SqliteSpill

TICK_MIN_S: Final = 0.001
"""Time-driven work is done at most once per millisecond and partition, however fine the rate limits."""

Outcome = Entry | Query | None
"""What a parked poll gets: a task to start, a query to answer, or None: end empty."""


class PartitionGone(Exception):
    """The partition was taken from this process while somebody waited in it."""


class ParkedPoll:
    """A poll on its way through: waiting, or having its task started.

    Attributes:
        message: the serialized poll request, for history.
        ends_at: loop time at which it answers empty.
        given_up: whether the client is gone.
        task, request_id: the start asked for on its behalf, kept for a client that goes away or asks again.
        query: the query that it was given.
    """

    __slots__ = (
        "_future",
        "ends_at",
        "given_up",
        "held",
        "key",
        "message",
        "poll",
        "poll_id",
        "query",
        "request_id",
        "sticky",
        "task",
    )

    def __init__(
        self, poll_id: str, held: HeldPartition, key: QueueKey, sticky: bool, poll: Poll, message: bytes, ends_at: float
    ) -> None:
        self.poll_id = poll_id
        self.held = held
        self.key = key
        self.sticky = sticky
        self.poll = poll
        self.message = message
        self.ends_at = ends_at
        self.given_up = False
        self.task: Task | None = None
        self.request_id = ""
        self.query: Query | None = None
        self._future: asyncio.Future[Outcome] | None = None
        poll.handle = self

    async def wait(self, loop: asyncio.AbstractEventLoop) -> Outcome:
        """Queue up and wait for an outcome. None at `ends_at`, and when the poll is given up or ended.

        Raises:
            PartitionGone: the partition went to another owner.
            CancelledError: nothing is lost: what the poll had been given is back in its queue.
        """
        self._future = future = loop.create_future()
        held = self.held
        held.machine.poll(self.key, self.sticky, self.poll, held.now_ns())
        held.perform()
        outcome: Outcome
        if future.done():
            outcome = future.result()
            return outcome
        timer = loop.call_at(self.ends_at, self.end)
        try:
            outcome = await future
            return outcome
        except asyncio.CancelledError:
            outcome = future.result() if future.done() and not future.cancelled() and not future.exception() else None
            if isinstance(outcome, Entry):
                held.machine.requeue(outcome, held.now_ns(), 0)
            elif isinstance(outcome, Query):
                held.machine.query_undelivered(outcome, held.now_ns())
            held.end_poll(self)
            held.perform()
            raise
        finally:
            timer.cancel()

    def end(self) -> None:
        """Answer empty, if it still waits."""
        self.held.end_poll(self)
        self.settle(None)

    def settle(self, outcome: Outcome) -> bool:
        """Hand over the outcome; False when nobody takes it any more."""
        if self._future is None or self._future.done():
            return False
        self._future.set_result(outcome)
        return True

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)


class HeldPartition:
    """See the module.

    Args:
        number: of the partition.
        spill: where its backlogs' tails go.
        now_ns: the service's clock.
        worker_gone: tell history that a sticky task's worker is gone; must not block.
        memory_tasks_max: see the machine.
    """

    def __init__(
        self,
        number: int,
        spill: SqliteSpill | None,
        now_ns: Callable[[], int],
        worker_gone: Callable[[Task], None],
        memory_tasks_max: int,
    ) -> None:
        self.now_ns = now_ns
        self.machine = TaskPartition(number, spill, memory_tasks_max)
        self.lost = False
        self._spill = spill
        self._worker_gone = worker_gone
        self._tick_at_ns = NEVER_NS
        self._tick: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()
        self._unread = {WORKFLOW, ACTIVITY}

    def record(self, task_id: str, task: Task | None) -> None:
        """A record of a task topic: a task, or None for its tombstone."""
        if task is None:
            self.machine.tombstone(task_id)
        else:
            self.machine.record(task, self.now_ns())
            self.perform()

    def read_to_end(self, type: str) -> None:
        """The topic of that type has been read to its end. After both, tasks go out."""
        self._unread.discard(type)
        if not self._unread and not self.machine.loaded and not self.lost:
            self.machine.loading_ended(self.now_ns())
            self.perform()

    def offer(self, task: Task) -> None:
        """A task by direct hand-off."""
        self.machine.offer(task, self.now_ns())
        self.perform()

    def end_poll(self, parked: ParkedPoll) -> None:
        """The poll ends without a task."""
        queue = self.machine.queues.get(parked.key)
        if queue is not None and parked.poll.waiting:
            queue.end_poll(parked.poll, self.now_ns())

    def perform(self) -> None:
        """Do what the machine asks for. Never blocks: polls wake in the loop's next round."""
        machine = self.machine
        while machine.effects:
            for effect in machine.take_effects():
                # A poll whose coroutine was cancelled a moment ago still stands in its queue: what it got goes back.
                if type(effect) is Dispatch:
                    if not effect.poll.handle.settle(effect.entry):
                        machine.requeue(effect.entry, self.now_ns(), 0)
                elif type(effect) is Deliver:
                    if not effect.poll.handle.settle(effect.query):
                        machine.query_undelivered(effect.query, self.now_ns())
                elif type(effect) is EndPoll:
                    effect.poll.handle.settle(None)
                else:
                    self._worker_gone(effect.task)  # type: ignore[union-attr]
        next_ns = machine.next_tick_ns()
        if next_ns < self._tick_at_ns and not self.lost:
            if self._tick is not None:
                self._tick.cancel()
            self._tick_at_ns = next_ns
            delay_s = max((next_ns - self.now_ns()) / SECOND_NS, TICK_MIN_S)
            self._tick = self.loop.call_later(delay_s, self._ticked)

    def close(self) -> None:
        """The partition goes to another owner."""
        self.lost = True
        if self._tick is not None:
            self._tick.cancel()
        for queue in self.machine.queues.values():
            for poll in list(queue.waiting.values()):
                poll.waiting = False
                poll.handle.fail(PartitionGone())
            queue.waiting.clear()
        for query in self.machine.queries.values():
            future: asyncio.Future[bytes] = query.handle
            if not future.done():
                future.set_exception(PartitionGone())
        if self._spill is not None:
            self._spill.close()
        self.machine.spill = None

    def _ticked(self) -> None:
        self._tick = None
        self._tick_at_ns = NEVER_NS
        self.machine.tick(self.now_ns())
        self.perform()
