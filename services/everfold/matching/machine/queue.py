"""One task queue: its tasks and queries meet the polls that wait for them.

A poll that arrives is given a query first, else the task whose turn it is, else it waits, first come first served. A
task that arrives goes to the poll that waits longest, else into the backlog. A normal queue gives out no task before
its partition has read the task topics to their end, as it might be void; a sticky queue has no records and so nothing
to wait for.

A sticky queue belongs to one worker. When that worker has not polled for STICKY_WINDOW_NS, or never yet, its tasks
leave as `WorkerGone`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from everfold.kernel.time import MINUTE_NS, SECOND_NS
from everfold.matching.machine.backlog import Backlog
from everfold.matching.machine.pollers import Poller, Pollers, RateMeter
from everfold.matching.machine.rate import NEVER_NS, RateLimit
from everfold.matching.machine.task import Entry, QueueKey, State, Task

if TYPE_CHECKING:
    from everfold.matching.machine.partition import TaskPartition

STICKY_WINDOW_NS: Final = 10 * SECOND_NS
"""A worker that has not polled its own queue for this long is taken for gone. Temporal:
stickyPollerUnavailableWindow. Above the gap between two polls of a live worker, below a workflow task's default
timeout of 10 s plus its sticky timeout."""

QUERY_WINDOW_NS: Final = 20 * SECOND_NS
"""A query that finds no poller within this window fails with "no poller seen". Temporal:
QueryPollerUnavailableWindow."""

IDLE_NS: Final = 5 * MINUTE_NS
"""A queue without polls, tasks and queries is forgotten after this. Not below SEEN_NS, or pollers would vanish from
DescribeTaskQueue early. Temporal: maxTaskQueueIdleTime, 5 minutes."""

STICKY_TASKS_MAX: Final = 10_000
"""Tasks waiting in one sticky queue: a task per cached run, and workers cache thousands. One more goes to the normal
queue."""

QUERIES_MAX: Final = 1000
"""Queries waiting for a poller of one queue; each holds a caller and possibly a whole history in memory."""


class Poll:
    """A worker's long poll.

    Attributes:
        poller: what it says about itself.
        handle: the shell's; the machine does not look at it.
        waiting: whether the queue still holds it.
    """

    __slots__ = ("handle", "poll_id", "poller", "since_ns", "waiting")

    def __init__(self, poll_id: str, poller: Poller, handle: Any = None) -> None:
        self.poll_id = poll_id
        self.poller = poller
        self.handle = handle
        self.since_ns = 0
        self.waiting = False


class Query:
    """A direct query, waiting for a poller or for its answer.

    Attributes:
        task: the serialized poll response that carries it, without token.
        sent: whether a poll has it.
        handle: the shell's.
    """

    __slots__ = ("handle", "query_id", "queue", "sent", "task")

    def __init__(self, query_id: str, task: bytes, queue: TaskQueue, handle: Any = None) -> None:
        self.query_id = query_id
        self.task = task
        self.queue = queue
        self.sent = False
        self.handle = handle


class Dispatch(NamedTuple):
    """Effect: start this task for this poll, and say `started`, `dropped` or `requeue`."""

    poll: Poll
    entry: Entry


class Deliver(NamedTuple):
    """Effect: answer this poll with this query."""

    poll: Poll
    query: Query


class EndPoll(NamedTuple):
    """Effect: answer this poll empty, now."""

    poll: Poll


class WorkerGone(NamedTuple):
    """Effect: tell history that the worker of this sticky task is gone."""

    task: Task


Effect = Dispatch | Deliver | EndPoll | WorkerGone


class PriorityStats(NamedTuple):
    """The tasks of a queue, or of one priority of it."""

    backlog_count: int
    backlog_age_ns: int
    add_rate: float
    dispatch_rate: float


class QueueStats(NamedTuple):
    """What DescribeTaskQueue shows of a queue. `rate_limit` is None for unlimited."""

    total: PriorityStats
    by_priority: dict[int, PriorityStats]
    rate_limit: float | None
    rate_limited: bool
    pollers: list[Poller]


@dataclass(slots=True)
class _Meters:
    added: RateMeter
    dispatched: RateMeter


class TaskQueue:
    """See the module. Made by its partition, on first use."""

    __slots__ = (
        "_meters",
        "_partition",
        "backlog",
        "delayed",
        "key",
        "pollers",
        "queries",
        "rate",
        "starting",
        "sticky",
        "used_at_ns",
        "waiting",
        "wake_at_ns",
    )

    def __init__(self, key: QueueKey, sticky: bool, partition: TaskPartition, now_ns: int) -> None:
        self.key = key
        self.sticky = sticky
        self._partition = partition
        self.backlog = Backlog(self, partition.entries, partition.budget, None if sticky else partition.spill)
        #: (ready_at_ns, seq, entry): refused starts that wait for another try
        self.delayed: list[tuple[int, int, Entry]] = []
        #: tasks given to a poll whose start has no answer yet
        self.starting = 0
        #: poll id -> Poll, the one waiting longest first
        self.waiting: OrderedDict[str, Poll] = OrderedDict()
        #: queries that wait for a poller
        self.queries: deque[Query] = deque()
        self.pollers = Pollers()
        self.rate: RateLimit | None = None
        #: priority -> rates
        self._meters: dict[int, _Meters] = {}
        self.used_at_ns = now_ns
        #: when the partition will call `tick`; the partition's to change
        self.wake_at_ns = NEVER_NS

    # tasks

    def offer(self, entry: Entry, now_ns: int) -> None:
        """A task for this queue."""
        self._meter(entry.task.priority, now_ns).added.count(now_ns)
        if self.waiting and not len(self.backlog) and self._may_dispatch(now_ns):
            self._dispatch(entry, now_ns)
            return
        if self.sticky and (len(self.backlog) >= STICKY_TASKS_MAX or not self.worker_there(now_ns)):
            self._gone(entry)
            return
        self.backlog.add(entry)
        self._wait_for_backlog(now_ns)

    def requeue(self, entry: Entry, now_ns: int, delay_ns: int) -> None:
        """The start of this task was refused for now. It keeps its place in the order, `delay_ns` later."""
        entry.state = State.DELAYED
        entry.tries += 1
        heappush(self.delayed, (now_ns + delay_ns, entry.seq, entry))
        self._partition.wake(self, now_ns + delay_ns)

    def worker_there(self, now_ns: int) -> bool:
        """Whether the worker of a sticky queue polled lately. After a restart none has: its tasks are everybody's."""
        return bool(self.waiting) or self._gone_at_ns() > now_ns

    def worker_shut_down(self, now_ns: int) -> None:
        """The worker says that it ends: its polls end, its tasks go elsewhere, and so do those that still come."""
        self.pollers.last_seen_at_ns = now_ns - STICKY_WINDOW_NS
        while self.waiting:
            _, poll = self.waiting.popitem(last=False)
            poll.waiting = False
            self._partition.polls_waiting -= 1
            self._partition.effects.append(EndPoll(poll))
        self._abandon()

    # polls

    def poll(self, poll: Poll, now_ns: int) -> None:
        """A worker polls: it is served at once or waits."""
        self.pollers.seen(poll.poller, now_ns)
        self.used_at_ns = poll.since_ns = now_ns
        wanted = poll.poller.rate_per_second
        if wanted > 0 and (self.rate is None or self.rate.per_second != wanted):
            self.limit(wanted)
        poll.waiting = True
        self._partition.polls_waiting += 1
        self.waiting[poll.poll_id] = poll
        if self.queries or len(self.backlog):
            self.match(now_ns)

    def end_poll(self, poll: Poll, now_ns: int) -> None:
        """The poll ends without a task."""
        if poll.waiting:
            poll.waiting = False
            self._partition.polls_waiting -= 1
            del self.waiting[poll.poll_id]
        self.pollers.seen(poll.poller, now_ns)
        self.used_at_ns = now_ns

    def polled_lately(self, now_ns: int, window_ns: int = QUERY_WINDOW_NS) -> bool:
        """Whether a query can hope for a poller."""
        seen_at_ns = self.pollers.last_seen_at_ns
        return bool(self.waiting) or (seen_at_ns is not None and seen_at_ns + window_ns > now_ns)

    def limit(self, per_second: float | None) -> None:
        """Dispatch at most that many tasks per second; None for as many as there are."""
        if per_second is None:
            self.rate = None
        elif self.rate is None:
            self.rate = RateLimit(per_second)
        else:
            self.rate.change(per_second)

    # queries

    def query(self, query: Query, now_ns: int) -> None:
        """A query for a worker of this queue: to a waiting poll at once, else to the next."""
        self.used_at_ns = now_ns
        self.queries.append(query)
        if self.waiting:
            self.match(now_ns)

    def query_again(self, query: Query, now_ns: int) -> None:
        """The poll that had this query is gone: it is next."""
        query.sent = False
        self.queries.appendleft(query)
        self.match(now_ns)

    def query_ended(self, query: Query) -> None:
        """Nobody waits for this query any more, or it is answered."""
        if not query.sent:
            self.queries.remove(query)

    # time

    def match(self, now_ns: int) -> None:
        """Bring together what waits on both sides."""
        while self.waiting and self.queries:
            poll, query = self._next_poll(now_ns), self.queries.popleft()
            query.sent = True
            self._partition.effects.append(Deliver(poll, query))
        while self.waiting and len(self.backlog) and self._may_dispatch(now_ns):
            entry = self.backlog.pop()
            if entry is None:
                break
            self._dispatch(entry, now_ns)
        self._wait_for_backlog(now_ns)

    def tick(self, now_ns: int) -> bool:
        """Time has passed. False when the queue is idle and shall be forgotten."""
        while self.delayed and self.delayed[0][0] <= now_ns:
            _, _, entry = heappop(self.delayed)
            if entry.state is State.DELAYED:
                self.backlog.add(entry)
        self.match(now_ns)
        if self.sticky and len(self.backlog) and not self.worker_there(now_ns):
            self._abandon()
        if self.delayed:
            self._partition.wake(self, self.delayed[0][0])
        if self.waiting or self.queries or self.starting or self.delayed or len(self.backlog):
            self.used_at_ns = now_ns
        idle_at_ns = self.used_at_ns + IDLE_NS
        if idle_at_ns <= now_ns:
            return False
        self._partition.wake(self, idle_at_ns)
        return True

    def stats(self, now_ns: int) -> QueueStats:
        """For DescribeTaskQueue. Costs a look at every lane."""
        counts = self.backlog.by_priority()
        oldest = {priority: self.backlog.oldest_at_ns(priority) for priority in counts}
        for _, _, entry in self.delayed:
            if entry.state is State.DELAYED:
                task = entry.task
                counts[task.priority] = counts.get(task.priority, 0) + 1
                before = oldest.get(task.priority)
                oldest[task.priority] = task.created_at_ns if before is None else min(before, task.created_at_ns)
        by_priority: dict[int, PriorityStats] = {}
        for priority in sorted({*counts, *self._meters}):
            since = oldest.get(priority)
            age_ns = 0 if since is None else max(0, now_ns - since)
            meters = self._meters.get(priority)
            added, dispatched = (
                (meters.added.per_second(now_ns), meters.dispatched.per_second(now_ns)) if meters else (0.0, 0.0)
            )
            by_priority[priority] = PriorityStats(counts.get(priority, 0), age_ns, added, dispatched)
        every = by_priority.values()
        total = PriorityStats(
            sum(s.backlog_count for s in every),
            max((s.backlog_age_ns for s in every), default=0),
            sum(s.add_rate for s in every),
            sum(s.dispatch_rate for s in every),
        )
        limited = self.rate is not None and total.backlog_count > 0 and self.rate.ready_at_ns(now_ns) > now_ns
        limit = None if self.rate is None else self.rate.per_second
        return QueueStats(total, by_priority, limit, limited, list(self.pollers.recent(now_ns)))

    def _may_dispatch(self, now_ns: int) -> bool:
        if not (self.sticky or self._partition.loaded):
            return False
        return self.rate is None or self.rate.ready_at_ns(now_ns) <= now_ns

    def _next_poll(self, now_ns: int) -> Poll:
        _, poll = self.waiting.popitem(last=False)
        poll.waiting = False
        self._partition.polls_waiting -= 1
        self.pollers.seen(poll.poller, now_ns)
        return poll

    def _dispatch(self, entry: Entry, now_ns: int) -> None:
        poll = self._next_poll(now_ns)
        entry.state = State.STARTING
        self.starting += 1
        if self.rate is not None:
            self.rate.take(now_ns)
        self._meter(entry.task.priority, now_ns).dispatched.count(now_ns)
        self._partition.effects.append(Dispatch(poll, entry))

    def _wait_for_backlog(self, now_ns: int) -> None:
        """Ask to be woken for what will happen to the backlog by time alone."""
        if not len(self.backlog):
            return
        if self.sticky:
            self._partition.wake(self, self._gone_at_ns())
        elif self.waiting and self.rate is not None and self._partition.loaded:
            self._partition.wake(self, max(self.rate.ready_at_ns(now_ns), now_ns + 1))

    def _gone_at_ns(self) -> int:
        """When the worker of this sticky queue counts as gone, unless it polls before; 0 when it never came."""
        seen_at_ns = self.pollers.last_seen_at_ns
        return 0 if seen_at_ns is None else seen_at_ns + STICKY_WINDOW_NS

    def _abandon(self) -> None:
        for entry in self.backlog.drain():
            self._gone(entry)

    def _gone(self, entry: Entry) -> None:
        entry.state = State.DROPPED
        self._partition.entries.pop(entry.task.key, None)
        self._partition.effects.append(WorkerGone(entry.task))

    def _meter(self, priority: int, now_ns: int) -> _Meters:
        meters = self._meters.get(priority)
        if meters is None:
            meters = self._meters[priority] = _Meters(RateMeter(now_ns), RateMeter(now_ns))
        return meters
