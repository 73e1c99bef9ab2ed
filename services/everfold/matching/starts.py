"""Task starts: asked for with one request id until the answer is known, whatever becomes of the poll.

What happens, by what the poll does meanwhile and by what history answers:

    the poll waits      hand_out_task, in the process that holds the shard → the poll's response; the task is kept here
                        until its start is in the log
                        start_task → answer → the poll's response
    its time is up      the answer is waited for in the background; a start that took effect is returned
    its client is gone  the same
    NOT_FOUND           the task is dropped, the poll waits on
    refused for now     the task is queued again, a little later; the poll waits on
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

import structlog

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.matching.held import HeldPartition, ParkedPoll
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Entry, Task
from everfold.matching.ports import HistoryTasks
from everfold.runtime.metrics import SCHEDULE_TO_START_SECONDS, TASKS_DISPATCHED, TASKS_DROPPED

OUTCOME_UNKNOWN: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED})
"""After these the call may have taken effect: it is repeated with the same request id."""

RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 1.0
"""Pause before an unanswered call is repeated: doubled from the first to the second, with jitter. A shard takes some
seconds to move, so a second more at the end is little, and a thousand polls repeating once a second are no load."""

CALL_TIMEOUT_S: Final = 10.0
"""Of calls that nobody waits for."""

REQUEUE_MIN_NS: Final = 100 * MILLISECOND_NS
REQUEUE_MAX_NS: Final = 10_000 * MILLISECOND_NS
"""Delay of a task whose start was refused for now (its shard is overloaded): doubled with each refusal."""

SETTLE_TRIES_MAX: Final = 120
"""Tries for a call that nobody waits for: two minutes at least. Beyond, the task's own timeouts bring it back."""

GONE_TOGETHER: Final = 32
"""Calls under way that report sticky workers gone: when a worker with thousands of cached runs ends, its shards are not
asked everything at once."""

GONE_TRIES_MAX: Final = 5
"""Beyond, the sticky schedule-to-start timeout of 5 to 10 s does the same."""

log = structlog.get_logger("matching")


_STARTED: Final = {
    (type, sticky): (
        TASKS_DISPATCHED.labels(type, "sticky" if sticky else "normal"),
        SCHEDULE_TO_START_SECONDS.labels(type),
    )
    for type in (WORKFLOW, ACTIVITY)
    for sticky in (False, True)
}


def _count_started(task: Task, now_ns: int) -> None:
    started, waited = _STARTED[task.type, task.sticky]
    started.inc()
    waited.observe(max(now_ns - task.created_at_ns, 0) / SECOND_NS)


def retry_pause_s(attempt: int) -> float:
    """The pause after the given failed attempt, from 0."""
    return min(RETRY_MIN_S * 2.0 ** min(attempt, 10), RETRY_MAX_S) * (0.5 + random.random() / 2)


class Starter:
    """See the module. `instance` makes the request ids of this process its own."""

    def __init__(self, history: HistoryTasks, instance: str) -> None:
        self._history = history
        self._instance = instance
        self._count = 0
        self._background: set[asyncio.Task[None]] = set()
        self._gone: deque[Task] = deque()
        self._gone_running = 0

    @property
    def unsettled(self) -> int:
        """What is still to be said to history, or asked of it, about tasks whose polls have left."""
        return len(self._background)

    async def start(self, parked: ParkedPoll, entry: Entry) -> bytes | None:
        """Start a task for a poll: the response; b"" when the poll is over; None when it shall go on waiting."""
        self._count += 1
        parked.request_id = request_id = f"{self._instance}-{self._count}"
        parked.task = task = entry.task
        held = parked.held
        response = self._at_once(held, entry, request_id, parked.message)
        if response is not None:
            _count_started(task, held.now_ns())
            return response
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            timeout = max(parked.ends_at - loop.time(), 0.05)
            try:
                response = await self._history.start_task(task, request_id, parked.message, timeout)
            except StatusError as error:
                if error.code not in OUTCOME_UNKNOWN:
                    self._refused(held, entry, error)
                    parked.task = None
                    return None
            except BaseException:  # above all CancelledError: the client is gone
                self._in_background(self._settle(held, entry, request_id, parked.message))
                parked.task = None
                raise
            else:
                held.machine.started(entry)
                _count_started(task, held.now_ns())
                if parked.given_up:
                    self.give_back(task, request_id)
                    parked.task = None
                    return b""
                return response
            pause_s = retry_pause_s(attempt)
            attempt += 1
            if parked.given_up or loop.time() + pause_s >= parked.ends_at:
                self._in_background(self._settle(held, entry, request_id, parked.message))
                parked.task = None
                return b""
            try:
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                self._in_background(self._settle(held, entry, request_id, parked.message))
                parked.task = None
                raise

    def _at_once(self, held: HeldPartition, entry: Entry, request_id: str, message: bytes) -> bytes | None:
        try:
            return self._history.hand_out_task(entry.task, request_id, message, partial(self._settled, held, entry))
        except Exception as trouble:  # of the shard's store, above all: the task must not be lost with it
            log.warning("task not handed out", task_queue=entry.task.task_queue, error=repr(trouble))
            return None

    def _settled(self, held: HeldPartition, entry: Entry, over: bool) -> None:
        """What became of the start of a task that was handed out."""
        if over:
            held.machine.started(entry)
        else:
            held.machine.requeue(entry, held.now_ns(), 0)
            held.perform()

    async def again(self, parked: ParkedPoll, timeout: float) -> bytes:
        """The answer of an earlier start once more."""
        assert parked.task is not None
        return await self._history.start_task(parked.task, parked.request_id, parked.message, timeout)

    def give_back(self, task: Task, request_id: str) -> None:
        """The poller of a started task is gone: schedule the task again, in the background."""
        self._in_background(self._return(task, request_id))

    def worker_gone(self, task: Task) -> None:
        """Tell history that a sticky task's worker is gone, in the background."""
        self._gone.append(task)
        if self._gone_running < GONE_TOGETHER:
            self._gone_running += 1
            self._in_background(self._report_gone())

    async def stop(self) -> None:
        """Give up what is under way; the tasks' timeouts do what it would have done."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _refused(self, held: HeldPartition, entry: Entry, error: StatusError) -> None:
        if error.code == Code.NOT_FOUND:
            held.machine.started(entry)
            TASKS_DROPPED.labels(entry.task.type).inc()
        else:
            if error.code != Code.RESOURCE_EXHAUSTED:
                queue = entry.task.task_queue
                log.warning("task start refused", task_queue=queue, code=error.code.name, reason=error.message)
            delay_ns = min(REQUEUE_MIN_NS << min(entry.tries, 10), REQUEUE_MAX_NS)
            held.machine.requeue(entry, held.now_ns(), delay_ns)
        held.perform()

    async def _settle(self, held: HeldPartition, entry: Entry, request_id: str, message: bytes) -> None:
        """Learn the answer of a start whose poll is over."""
        for attempt in range(SETTLE_TRIES_MAX):
            try:
                await self._history.start_task(entry.task, request_id, message, CALL_TIMEOUT_S)
            except StatusError as error:
                if error.code not in OUTCOME_UNKNOWN:
                    self._refused(held, entry, error)
                    return
            else:
                held.machine.started(entry)
                await self._return(entry.task, request_id)
                return
            await asyncio.sleep(retry_pause_s(attempt))
        held.machine.started(entry)
        task = entry.task
        log.warning("task start without answer", task_queue=task.task_queue, workflow_id=task.workflow_id)

    async def _return(self, task: Task, request_id: str) -> None:
        for attempt in range(SETTLE_TRIES_MAX):
            try:
                await self._history.return_task(task, request_id, CALL_TIMEOUT_S)
                return
            except StatusError as error:
                if error.code == Code.NOT_FOUND:
                    return
                await asyncio.sleep(retry_pause_s(attempt))
        log.warning("task could not be returned", task_queue=task.task_queue, workflow_id=task.workflow_id)

    async def _report_gone(self) -> None:
        try:
            while self._gone:
                task = self._gone.popleft()
                for attempt in range(GONE_TRIES_MAX):
                    try:
                        await self._history.sticky_worker_gone(task, CALL_TIMEOUT_S)
                        break
                    except StatusError as error:
                        if error.code == Code.NOT_FOUND:
                            break
                        await asyncio.sleep(retry_pause_s(attempt))
        finally:
            self._gone_running -= 1

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("matching background work failed", error=repr(error))
