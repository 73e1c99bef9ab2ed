"""A task partition: all the queues whose names hash to it, and what makes many appearances of a task one task.

A task appears by the direct hand-off from the fold that scheduled it, by its record on the task topic, and again when
either is repeated; a tombstone, an output of the fold that started or voided it, ends it. The partition knows a task
by its id

    entries   from its first appearance until its start is answered or its tombstone comes
    settled   from then until the tombstone comes, so that the record that follows a direct hand-off queues nothing
    spill     instead of `entries`, when memory is full

and when it forgets one too early, history refuses the second start: repeats cost time, never correctness.

All methods append what shall be done to `effects`; the shell takes them after each call.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Final

from everfold.matching.machine.backlog import Budget, Spill
from everfold.matching.machine.queue import QUERIES_MAX, Effect, Poll, Query, TaskQueue
from everfold.matching.machine.rate import NEVER_NS
from everfold.matching.machine.task import WORKFLOW, Entry, QueueKey, State, Task, TaskKey

MEMORY_TASKS_MAX: Final = 20_000
"""Tasks that a partition holds in memory, at about a kilobyte each; the rest is on disk."""

SETTLED_MAX: Final = 100_000
"""Started tasks whose tombstone has not come: some seconds of them at the highest rate, at 150 bytes each."""

QUEUES_MAX: Final = 20_000
"""Task queues of a partition beyond which polls and queries make no new ones, at 2.5 KB each: every worker has a sticky
one. Idle ones are forgotten after five minutes, and those that have tasks are never refused."""

QUERIES_TOTAL_MAX: Final = 10_000
"""Queries of a partition that wait for a poller or for their answer; each holds up to a page of history."""


class TooManyQueues(Exception):
    """A poll or query would make one task queue more than a partition may have."""


class TaskPartition:
    """One task partition, in the hands of its owner.

    Args:
        number: of the partition.
        spill: where the tails of long backlogs go; None to keep all in memory (tests, simulator).
        memory_tasks_max: see MEMORY_TASKS_MAX.

    Attributes:
        loaded: whether the task topics have been read to the end they had when the partition was taken.
        effects: what shall be done, in order.
        polls_waiting: over all queues.
    """

    def __init__(self, number: int, spill: Spill | None, memory_tasks_max: int = MEMORY_TASKS_MAX) -> None:
        self.number = number
        self.spill = spill
        self.loaded = False
        self.budget = Budget(memory_tasks_max)
        #: task key -> Entry
        self.entries: dict[TaskKey, Entry] = {}
        #: ids of tasks that are done with here, but not yet on the topic
        self.settled: OrderedDict[TaskKey, None] = OrderedDict()
        self.queues: dict[QueueKey, TaskQueue] = {}
        #: query id -> Query, until it is answered or given up
        self.queries: dict[str, Query] = {}
        self.effects: list[Effect] = []
        self.polls_waiting = 0
        self._seq = 0
        #: (wake_at_ns, order, queue); an item whose time is not its queue's `wake_at_ns` is void
        self._wakes: list[tuple[int, int, TaskQueue]] = []
        self._wake_order = 0

    # the task topics

    def record(self, task: Task, now_ns: int) -> None:
        """A task record: queued, unless the task is known."""
        if not self._known(task.key):
            self._add(task, now_ns)

    def tombstone(self, task_id: str) -> None:
        """The task was started or is void. A start that is under way is left to its answer."""
        entry = self.entries.pop(task_id, None)
        if entry is not None:
            if entry.state is State.QUEUED:
                entry.queue.backlog.drop(entry)
            elif entry.state is State.DELAYED:
                entry.state = State.DROPPED
        elif task_id in self.settled:
            del self.settled[task_id]
        elif self.spill is not None and (row := self.spill.remove(task_id)) is not None:
            self.queues[row.queue].backlog.drop_spilled(row)

    def loading_ended(self, now_ns: int) -> None:
        """The topics have been read to the end: tasks go out from now on."""
        self.loaded = True
        for queue in list(self.queues.values()):
            queue.match(now_ns)

    # the direct hand-off

    def offer(self, task: Task, now_ns: int) -> None:
        """A task fresh from the fold. As `record`, and the only way for sticky tasks."""
        if not self._known(task.key):
            self._add(task, now_ns)

    # starts

    def started(self, entry: Entry) -> None:
        """History answered the start: with the task, or that there is nothing to start."""
        entry.queue.starting -= 1
        entry.state = State.DROPPED
        key = entry.task.key
        if self.entries.get(key) is entry:
            del self.entries[key]
            if entry.task.task_id:
                self.settled[key] = None
                if len(self.settled) > SETTLED_MAX:
                    self.settled.popitem(last=False)

    def requeue(self, entry: Entry, now_ns: int, delay_ns: int) -> None:
        """History refused the start for now. A task whose tombstone came meanwhile is dropped."""
        entry.queue.starting -= 1
        if self.entries.get(entry.task.key) is entry:
            entry.queue.requeue(entry, now_ns, delay_ns)
        else:
            entry.state = State.DROPPED

    # polls

    def poll(self, key: QueueKey, sticky: bool, poll: Poll, now_ns: int) -> TaskQueue:
        """A worker polls the queue, which is made when there is none.

        Raises:
            TooManyQueues: and there is no room for it.
        """
        self._check_room(key)
        queue = self.queue(key, sticky, now_ns)
        queue.poll(poll, now_ns)
        return queue

    def shut_down_sticky(self, namespace_id: str, name: str, now_ns: int) -> None:
        """The worker of this sticky queue ends."""
        queue = self.queues.get((WORKFLOW, namespace_id, name))
        if queue is not None and queue.sticky:
            queue.worker_shut_down(now_ns)

    # queries

    def worker_there(self, key: QueueKey, now_ns: int) -> bool:
        """Whether the worker of a sticky queue is there. Nobody's is where there is no room for its queue."""
        return self._has_room(key) and self.queue(key, True, now_ns).worker_there(now_ns)

    def query(
        self, key: QueueKey, sticky: bool, query_id: str, task: bytes, handle: object, now_ns: int
    ) -> Query | None:
        """A query for a worker of the queue; None when too many wait already.

        Raises:
            TooManyQueues: there is no such queue, and no room for it.
        """
        if len(self.queries) >= QUERIES_TOTAL_MAX:
            return None
        self._check_room(key)
        queue = self.queue(key, sticky, now_ns)
        if len(queue.queries) >= QUERIES_MAX:
            return None
        query = self.queries[query_id] = Query(query_id, task, queue, handle)
        queue.query(query, now_ns)
        return query

    def query_ended(self, query: Query) -> None:
        """The query was answered or given up. May be said twice."""
        if self.queries.pop(query.query_id, None) is not None:
            query.queue.query_ended(query)

    def query_undelivered(self, query: Query, now_ns: int) -> None:
        """The poll that had the query is gone: another one gets it."""
        if query.query_id in self.queries and query.sent:
            query.queue.query_again(query, now_ns)

    # time

    def wake(self, queue: TaskQueue, at_ns: int) -> None:
        """Call the queue's `tick` at that time, or earlier."""
        if at_ns < queue.wake_at_ns:
            queue.wake_at_ns = at_ns
            self._wake_order += 1
            heappush(self._wakes, (at_ns, self._wake_order, queue))

    def next_tick_ns(self) -> int:
        """When `tick` has something to do; NEVER_NS for never."""
        return self._wakes[0][0] if self._wakes else NEVER_NS

    def tick(self, now_ns: int) -> None:
        """Do what is due: delayed tasks, rate limits, workers gone, idle queues."""
        while self._wakes and self._wakes[0][0] <= now_ns:
            at_ns, _, queue = heappop(self._wakes)
            if queue.wake_at_ns != at_ns:
                continue
            queue.wake_at_ns = NEVER_NS
            if not queue.tick(now_ns):
                del self.queues[queue.key]
                queue.wake_at_ns = -1  # nothing wakes a forgotten queue

    def take_effects(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self.effects = self.effects, []
        return effects

    def queue(self, key: QueueKey, sticky: bool, now_ns: int) -> TaskQueue:
        """The queue of that key, made when there is none."""
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = TaskQueue(key, sticky, self, now_ns)
            queue.tick(now_ns)  # asks for its first wake
        return queue

    def _has_room(self, key: QueueKey) -> bool:
        return len(self.queues) < QUEUES_MAX or key in self.queues

    def _check_room(self, key: QueueKey) -> None:
        if not self._has_room(key):
            raise TooManyQueues(f"task partition {self.number} has {QUEUES_MAX} task queues in use; it takes no more")

    def _known(self, key: TaskKey) -> bool:
        if key in self.entries or key in self.settled:
            return True
        return self.spill is not None and isinstance(key, str) and self.spill.holds(key)

    def _add(self, task: Task, now_ns: int) -> None:
        self._seq += 1
        queue = self.queue(task.queue_key, task.sticky, now_ns)
        entry = Entry(task, self._seq, queue)
        self.entries[task.key] = entry
        queue.offer(entry, now_ns)
