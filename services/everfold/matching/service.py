"""Matching's calls: polls, queries, the direct hand-off, DescribeTaskQueue. All on the event loop's thread.

A call for a task partition that this process does not hold raises `NotOwner`; the router then asks somebody else. On
the way from an offered task to the poll's response there is one wake-up of the poll's coroutine, and history's own.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from temporalio.api.enums.v1 import failed_cause_pb2, task_queue_pb2
from temporalio.api.errordetails.v1 import message_pb2 as details
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.ids import task_partition
from everfold.kernel.tokens import BadTaskToken, QueryToken, decode_query_token, encode_query_token
from everfold.matching.describe import describe
from everfold.matching.held import HeldPartition, ParkedPoll, PartitionGone
from everfold.matching.machine.partition import MEMORY_TASKS_MAX, TooManyQueues
from everfold.matching.machine.pollers import Poller
from everfold.matching.machine.queue import QUERY_WINDOW_NS, Poll, Query, QueueStats
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Entry, QueueKey, Task
from everfold.matching.ports import Clock, HistoryTasks
from everfold.matching.spill import SqliteSpill
from everfold.matching.starts import Starter
from everfold.runtime.clock import SystemClock
from everfold.runtime.rpc import NotOwner

LONG_POLL_S: Final = 60.0
"""Longest wait of a poll. Temporal: matching.longPollExpirationInterval; the SDKs' deadline is 70 s."""

ANSWER_MARGIN_S: Final = 1.0
"""A poll answers empty this long before its deadline: SDKs take DEADLINE_EXCEEDED for trouble and back off."""

POLLS_MAX: Final = 20_000
"""Parked polls in this process, at about 3 KiB each. A worker has some 10, so this is 2000 workers on one process."""

FINISHED_MAX: Final = 4096
"""Answered polls that are remembered in case their client turns out to be gone, or asks again because the connection
broke. Both happen within a second or so of the answer; at 4000 answers per second this is one second."""

NO_POLLER: Final = "no poller seen for task queue recently, worker may be down"
"""Temporal's text."""

_EXHAUSTED: Final = "temporal.api.errordetails.v1.ResourceExhaustedFailure"
_NOT_FOUND: Final = "temporal.api.errordetails.v1.NotFoundFailure"


class MatchingService:
    """See the module.

    Args:
        history: starts the tasks.
        task_partitions: T, the partitions of the task topics.
        spill_dir: where long backlogs go; None keeps them in memory (tests).
        instance: makes this process's ids its own; random by default.
    """

    METHODS: Final = frozenset(
        {
            "poll_workflow_task",
            "poll_activity_task",
            "cancel_poll",
            "query",
            "respond_query",
            "describe_task_queue",
            "offer_remote",
            "shutdown_worker",
        }
    )
    """What other processes may call."""

    def __init__(
        self,
        history: HistoryTasks,
        task_partitions: int,
        *,
        spill_dir: Path | None = None,
        clock: Clock | None = None,
        instance: str = "",
        long_poll_s: float = LONG_POLL_S,
        query_window_ns: int = QUERY_WINDOW_NS,
        polls_max: int = POLLS_MAX,
        memory_tasks_max: int = MEMORY_TASKS_MAX,
    ) -> None:
        self.task_partitions = task_partitions
        self._spill_dir = spill_dir
        self._clock: Clock = clock or SystemClock()
        # Windows and ages are measured on a clock that never goes back, and shown in UTC.
        self._zero_ns = self._clock.wall_ns() - self._clock.monotonic_ns()
        self._instance = instance or os.urandom(8).hex()
        self._long_poll_s = long_poll_s
        self._query_window_ns = query_window_ns
        self._polls_max = polls_max
        self._memory_tasks_max = memory_tasks_max
        self._starter = Starter(history, self._instance)
        #: partition -> what this process holds
        self._held: dict[int, HeldPartition] = {}
        #: poll id -> a poll on its way
        self._polls: dict[str, ParkedPoll] = {}
        #: poll id -> an answered poll, the oldest first
        self._finished: OrderedDict[str, ParkedPoll] = OrderedDict()
        self._count = 0

    async def start(self) -> None:
        """Nothing: partitions come by `take`."""

    async def stop(self) -> None:
        """Let go of everything; polls end as they do when a partition moves."""
        for number in list(self._held):
            self.lose(number)
        await self._starter.stop()

    # partitions

    def take(self, number: int) -> HeldPartition:
        """This process holds the partition from now on. Normal tasks go out once both topics were `read_to_end`."""
        assert number not in self._held, f"task partition {number} is held already"
        spill = None
        if self._spill_dir is not None:
            spill = SqliteSpill(self._spill_dir / f"backlog-{number}-{os.getpid()}.sqlite")
        held = HeldPartition(number, spill, self.now_ns, self._starter.worker_gone, self._memory_tasks_max)
        self._held[number] = held
        return held

    def lose(self, number: int) -> None:
        """The partition belongs to somebody else: whoever waits in it is sent there."""
        held = self._held.pop(number, None)
        if held is not None:
            held.close()

    def holds(self, number: int) -> bool:
        """Whether this process holds the partition."""
        return number in self._held

    @property
    def partitions(self) -> Iterable[int]:
        """The partitions held."""
        return self._held.keys()

    # the direct hand-off

    def offer(self, task: Task) -> bool:
        """A task fresh from a fold of this process: O(1), never blocks. False when its queue is not here.

        `task` is history's `TaskOffer`, which has the fields of `Task`.
        """
        held = self._held.get(task_partition(task.namespace_id, task.task_queue, self.task_partitions))
        if held is None:
            return False
        held.offer(Task._make(task))
        return True

    async def offer_remote(self, fields: list[object]) -> None:
        """A sticky task from another process's fold."""
        task = Task._make(fields)
        if not self.offer(task):
            raise NotOwner(task_partition(task.namespace_id, task.task_queue, self.task_partitions))

    # polls

    async def poll_workflow_task(self, namespace_id: str, message: bytes, timeout: float, poll_id: str = "") -> bytes:
        """The serialized PollWorkflowTaskQueueResponse for a PollWorkflowTaskQueueRequest; b"" when there is none.

        `timeout` is what is left of the client's deadline, in seconds. `poll_id` is unique in the cluster; the same
        again, after a broken connection, gets the same answer again.
        """
        request = ws.PollWorkflowTaskQueueRequest.FromString(message)
        poller = Poller(request.identity, 0)
        sticky = request.task_queue.kind == task_queue_pb2.TASK_QUEUE_KIND_STICKY
        key = (WORKFLOW, namespace_id, request.task_queue.name)
        return await self._poll(key, sticky, _with_worker(poller, request), message, timeout, poll_id)

    async def poll_activity_task(self, namespace_id: str, message: bytes, timeout: float, poll_id: str = "") -> bytes:
        """The serialized PollActivityTaskQueueResponse for a PollActivityTaskQueueRequest; b"" when there is none."""
        request = ws.PollActivityTaskQueueRequest.FromString(message)
        poller = Poller(request.identity, 0)
        if request.HasField("task_queue_metadata") and request.task_queue_metadata.HasField("max_tasks_per_second"):
            poller.rate_per_second = request.task_queue_metadata.max_tasks_per_second.value
        key = (ACTIVITY, namespace_id, request.task_queue.name)
        return await self._poll(key, False, _with_worker(poller, request), message, timeout, poll_id)

    def cancel_poll(self, poll_id: str) -> None:
        """The client of this poll is gone: what it was given goes to somebody else. Also for a poll just answered."""
        parked = self._polls.get(poll_id)
        if parked is not None:
            parked.given_up = True
            parked.end()
            return
        parked = self._finished.pop(poll_id, None)
        if parked is not None:
            self._take_back(parked)

    def undelivered(self, method: str, args: list[object]) -> None:
        """The answer of a call from another process could not be sent (called by `RpcServer`)."""
        if method in ("poll_workflow_task", "poll_activity_task") and len(args) > 3:
            self.cancel_poll(str(args[3]))

    async def _poll(
        self, key: QueueKey, sticky: bool, poller: Poller, message: bytes, timeout: float, poll_id: str
    ) -> bytes:
        held = self._holder(key)
        loop = asyncio.get_running_loop()
        wait_s = min(self._long_poll_s, timeout - ANSWER_MARGIN_S)
        if poll_id and (earlier := self._finished.pop(poll_id, None)) is not None:
            return await self._answer_again(earlier, timeout)
        if wait_s <= 0:
            return b""
        if len(self._polls) + self._starter.unsettled >= self._polls_max:
            raise _exhausted(f"expected at most {self._polls_max} polls on this host; start another matching process")
        if not poll_id:
            self._count += 1
            poll_id = f"{self._instance}-p{self._count}"
        elif poll_id in self._polls:
            self.cancel_poll(poll_id)  # that one has lost its client, or this one would not be here
        parked = ParkedPoll(poll_id, held, key, sticky, Poll(poll_id, poller), message, loop.time() + wait_s)
        self._polls[poll_id] = parked
        try:
            while True:
                outcome = await parked.wait(loop)
                if outcome is None:
                    return b""
                if type(outcome) is Query:
                    response = self._query_task(outcome)
                    parked.query = outcome
                else:
                    assert type(outcome) is Entry
                    started = await self._starter.start(parked, outcome)
                    if started is None:
                        if held.lost:
                            raise PartitionGone
                        if parked.given_up:
                            return b""
                        continue
                    response = started
                if parked.given_up:
                    self._take_back(parked)
                    return b""
                if response:
                    self._remember(parked)
                return response
        except TooManyQueues as full:
            raise _exhausted(str(full)) from None
        except PartitionGone:
            if parked.given_up:
                return b""
            raise NotOwner(held.machine.number) from None
        finally:
            if self._polls.get(poll_id) is parked:
                del self._polls[poll_id]

    def _remember(self, parked: ParkedPoll) -> None:
        finished = self._finished
        finished[parked.poll_id] = parked
        if len(finished) > FINISHED_MAX:
            finished.popitem(last=False)

    async def _answer_again(self, parked: ParkedPoll, timeout: float) -> bytes:
        if parked.query is not None:
            if parked.query.query_id not in parked.held.machine.queries:
                return b""
            response = self._query_task(parked.query)
        else:
            response = await self._starter.again(parked, timeout)
        self._remember(parked)
        return response

    def _take_back(self, parked: ParkedPoll) -> None:
        if parked.query is not None:
            parked.held.machine.query_undelivered(parked.query, self.now_ns())
            parked.held.perform()
        elif parked.task is not None:
            self._starter.give_back(parked.task, parked.request_id)

    # queries

    async def query(self, namespace_id: str, queue: str, sticky_queue: str, query_task: bytes, timeout: float) -> bytes:
        """Have a worker answer a query: the serialized RespondQueryTaskCompletedRequest.

        With a `sticky_queue` only that worker is asked; when it is gone, or does not answer in time, the caller asks
        again without, and with the whole history.

        `query_task` is a serialized PollWorkflowTaskQueueResponse without token.

        Raises:
            StatusError: FAILED_PRECONDITION when no worker polls; DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED.
            NotOwner: the queue is, or went, elsewhere; nothing has happened that may not happen again.
        """
        sticky = bool(sticky_queue)
        key = (WORKFLOW, namespace_id, sticky_queue or queue)
        held = self._holder(key)
        now_ns = self.now_ns()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._count += 1
        try:
            if sticky and not held.machine.worker_there(key, now_ns):
                raise StatusError(Code.FAILED_PRECONDITION, NO_POLLER)
            query = held.machine.query(key, sticky, f"{self._instance}-q{self._count}", query_task, future, now_ns)
        except TooManyQueues as full:
            raise _exhausted(str(full)) from None
        if query is None:
            raise _exhausted("too many queries wait for a poller of this task queue")
        held.perform()

        def out_of_time() -> None:
            if not future.done():
                future.set_exception(self._query_error(query))

        # The last second is kept for telling the caller that nobody polls, rather than that time ran out.
        wait_s = timeout if sticky or timeout <= 2 * ANSWER_MARGIN_S else timeout - ANSWER_MARGIN_S
        timer = loop.call_later(max(wait_s, 0), out_of_time)
        try:
            return await future
        except PartitionGone:
            raise NotOwner(held.machine.number) from None
        finally:
            timer.cancel()
            held.machine.query_ended(query)

    def _query_error(self, query: Query) -> StatusError:
        if query.sent or query.queue.polled_lately(self.now_ns(), self._query_window_ns):
            return StatusError(Code.DEADLINE_EXCEEDED, "no worker answered the query in time")
        return StatusError(Code.FAILED_PRECONDITION, NO_POLLER)

    async def respond_query(self, token: bytes, message: bytes) -> None:
        """A worker's answer: `token` is the task token of the serialized RespondQueryTaskCompletedRequest `message`.

        Raises:
            StatusError: INVALID_ARGUMENT for a token that is none; NOT_FOUND when nobody waits for the answer any more.
            NotOwner: the query waits, if anywhere, in another process.
        """
        try:
            decoded = decode_query_token(token)
        except BadTaskToken:
            raise StatusError(Code.INVALID_ARGUMENT, "Invalid TaskToken.") from None
        held = self._held.get(decoded.partition)
        if held is None:
            raise NotOwner(decoded.partition)
        query = held.machine.queries.get(decoded.query_id)
        if query is None or query.queue.key[1] != decoded.namespace_id:
            text = "query task not found, or already expired"
            raise StatusError(Code.NOT_FOUND, text, ((_NOT_FOUND, details.NotFoundFailure().SerializeToString()),))
        future: asyncio.Future[bytes] = query.handle
        if not future.done():
            future.set_result(message)
        held.machine.query_ended(query)

    def _query_task(self, query: Query) -> bytes:
        key = query.queue.key
        number = task_partition(key[1], key[2], self.task_partitions)
        token = encode_query_token(QueryToken(key[1], key[2], query.query_id, number))
        # Protobuf messages concatenate: the token is added without parsing the response and its history.
        return query.task + ws.PollWorkflowTaskQueueResponse(task_token=token).SerializeToString()

    # the rest

    async def describe_task_queue(self, namespace_id: str, message: bytes) -> bytes:
        """The serialized DescribeTaskQueueResponse for a DescribeTaskQueueRequest."""
        request = ws.DescribeTaskQueueRequest.FromString(message)
        name = request.task_queue.name
        held = self._holder((WORKFLOW, namespace_id, name))
        now_ns = self.now_ns()

        def stats_of(type: str) -> QueueStats | None:
            queue = held.machine.queues.get((type, namespace_id, name))
            return None if queue is None else queue.stats(now_ns)

        return describe(request, stats_of).SerializeToString()

    async def shutdown_worker(self, namespace_id: str, message: bytes) -> None:
        """A worker ends (ShutdownWorkerRequest): its sticky tasks go to the normal queue at once, its sticky polls
        end.
        """
        name = ws.ShutdownWorkerRequest.FromString(message).sticky_task_queue
        if name:
            held = self._holder((WORKFLOW, namespace_id, name))
            held.machine.shut_down_sticky(namespace_id, name, self.now_ns())
            held.perform()

    def gauges(self) -> dict[tuple[str, str], float]:
        """For the metrics: (name, type of tasks or "") -> value."""
        machines = [held.machine for held in self._held.values()]
        found: dict[tuple[str, str], float] = {
            ("task_partitions_owned", ""): len(machines),
            ("task_partitions_loading", ""): sum(not machine.loaded for machine in machines),
            ("queries_waiting", ""): sum(len(machine.queries) for machine in machines),
        }
        for type in (WORKFLOW, ACTIVITY):
            queues = [queue for machine in machines for queue in machine.queues.values() if queue.key[0] == type]
            found["parked_polls", type] = sum(poll.key[0] == type for poll in self._polls.values())
            found["task_queues", type] = len(queues)
            found["backlog_tasks", type] = sum(len(queue.backlog) + len(queue.delayed) for queue in queues)
            found["backlog_tasks_on_disk", type] = sum(queue.backlog.spilled for queue in queues)
        return found

    def now_ns(self) -> int:
        """UTC, by a clock that never goes back."""
        return self._zero_ns + self._clock.monotonic_ns()

    def _holder(self, key: QueueKey) -> HeldPartition:
        number = task_partition(key[1], key[2], self.task_partitions)
        held = self._held.get(number)
        if held is None:
            raise NotOwner(number)
        return held


def _with_worker(poller: Poller, request: ws.PollWorkflowTaskQueueRequest | ws.PollActivityTaskQueueRequest) -> Poller:
    if request.HasField("worker_version_capabilities"):
        poller.capabilities = request.worker_version_capabilities.SerializeToString()
    if request.HasField("deployment_options"):
        poller.deployment_options = request.deployment_options.SerializeToString()
    return poller


def _exhausted(text: str) -> StatusError:
    failure = details.ResourceExhaustedFailure(
        cause=failed_cause_pb2.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT,
        scope=failed_cause_pb2.RESOURCE_EXHAUSTED_SCOPE_SYSTEM,
    )
    return StatusError(Code.RESOURCE_EXHAUSTED, text, ((_EXHAUSTED, failure.SerializeToString()),))
