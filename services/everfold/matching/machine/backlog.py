"""The order in which a queue's tasks leave: by priority, then fairly between fairness keys, then by age.

A backlog has a *level* per priority, and a level has a *lane* per fairness key. Of the lanes of a level the one with
the least *pass* goes next; a task that leaves adds 1/weight to its lane's pass, so a lane of weight 2 gets twice the
turns of a lane of weight 1, and a lane that was empty starts at the level's present pass and saves nothing up (stride
scheduling). Within a lane the oldest task leaves first. With neither priorities nor fairness keys in use there is one
lane, in order of age.

Memory is bounded per partition: when its `Budget` is used up, the lane that grows keeps its older half and moves the
younger to the `Spill`. Every task in a lane's memory is older than each of its tasks on disk, so the order stays exact.

A dropped entry stays in its heap until it surfaces; when the dead outnumber the living, the heap is made anew.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from everfold.matching.machine.task import Entry, QueueKey, State, Task, TaskKey

if TYPE_CHECKING:
    from everfold.matching.machine.queue import TaskQueue

STRIDE: Final = 1_000_000
"""What a task of weight 1 adds to its lane's pass."""

WEIGHT_MIN: Final = 0.001
WEIGHT_MAX: Final = 1000.0
"""Temporal: fairness weights are clamped to [0.001, 1000]."""

PASSES_MAX: Final = 1000
"""Emptied lanes whose pass is remembered per level, so that a key cannot jump the line by letting its lane run empty.
Beyond it the oldest is forgotten and that key starts level with the others."""

LANES_MAX: Final = 10_000
"""Fairness keys of a level with a lane each; beyond it keys share SHARED_LANES lanes. A lane holds some 350 bytes, also
when its tasks are on disk."""

SHARED_LANES: Final = 256

REFILL_TASKS: Final = 256
"""Tasks read from the spill at once: few enough to stay under a millisecond, enough to make the read cheap per task."""

DEAD_MIN: Final = 64
"""Dropped entries that a heap may carry whatever its size: below it, making it anew costs more than it frees."""


class SpillRow(NamedTuple):
    """A task on disk, in its lane, at its place in the order."""

    queue: QueueKey
    priority: int
    fairness_key: str
    created_at_ns: int
    seq: int
    task: Task


class Spill(Protocol):
    """The tail of a partition's lanes, on disk. Lost with the process: the task topics are what lasts."""

    def put(self, rows: list[SpillRow]) -> None:
        """Store tasks, none of which is stored yet."""
        ...

    def take(self, queue: QueueKey, priority: int, fairness_key: str, limit: int) -> list[SpillRow]:
        """Remove and return the lane's oldest tasks, in order."""
        ...

    def remove(self, task_id: str) -> SpillRow | None:
        """Remove one task; None when it is not stored."""
        ...

    def holds(self, task_id: str) -> bool:
        """Whether the task is stored."""
        ...


class Budget:
    """The tasks that a partition may hold in memory, all its queues together."""

    __slots__ = ("used", "used_max")

    def __init__(self, used_max: int) -> None:
        self.used = 0
        self.used_max = used_max


class Lane:
    """The tasks of one fairness key in one level."""

    __slots__ = ("dead", "fairness_key", "floor", "heap", "level", "listed", "live", "pass_", "spilled", "stride")

    def __init__(self, level: Level, fairness_key: str, pass_: int) -> None:
        self.level = level
        self.fairness_key = fairness_key
        #: (created_at_ns, seq, entry): the oldest first
        self.heap: list[tuple[int, int, Entry]] = []
        self.live = 0
        self.dead = 0
        self.spilled = 0
        #: (created_at_ns, seq) of the oldest task on disk, or older; None when there is none
        self.floor: tuple[int, int] | None = None
        self.pass_ = pass_
        self.stride = STRIDE
        #: whether the level's `order` holds this lane
        self.listed = False

    def __len__(self) -> int:
        return self.live + self.spilled


class Level:
    """The tasks of one priority."""

    __slots__ = ("lanes", "order", "pass_", "passes", "priority", "turn")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        #: fairness key -> Lane, while it has tasks
        self.lanes: dict[str, Lane] = {}
        #: (pass, turn, lane): who goes next
        self.order: list[tuple[int, int, Lane]] = []
        #: the pass of the lane that went last
        self.pass_ = 0
        #: fairness key -> pass of a lane that ran empty while ahead of the level
        self.passes: OrderedDict[str, int] = OrderedDict()
        self.turn = 0

    def lane(self, fairness_key: str) -> Lane:
        """The lane of that key, made when there is none. Of several keys, when there are too many."""
        lane = self.lanes.get(fairness_key)
        if lane is None and len(self.lanes) >= LANES_MAX:
            fairness_key = f"shared {zlib.crc32(fairness_key.encode()) % SHARED_LANES}"
            lane = self.lanes.get(fairness_key)
        if lane is None:
            pass_ = max(self.passes.pop(fairness_key, 0), self.pass_)
            lane = self.lanes[fairness_key] = Lane(self, fairness_key, pass_)
        return lane

    def enlist(self, lane: Lane) -> None:
        """The lane has tasks and wants its turn."""
        if not lane.listed:
            lane.listed = True
            self.turn += 1
            heappush(self.order, (lane.pass_, self.turn, lane))

    def retire(self, lane: Lane) -> None:
        """The lane is empty: forget it, but not what it had in advance."""
        del self.lanes[lane.fairness_key]
        if not self.lanes:
            self.passes.clear()  # nobody waits, so nobody is ahead of anybody
        elif lane.pass_ > self.pass_:
            self.passes[lane.fairness_key] = lane.pass_
            if len(self.passes) > PASSES_MAX:
                self.passes.popitem(last=False)


class Backlog:
    """The waiting tasks of one queue.

    Args:
        owner: the queue whose tasks these are.
        entries: the partition's entries by task key; the backlog takes spilled ones out and puts them back.
        budget: the partition's.
        spill: None for sticky queues, whose tasks have no record and stay in memory.
    """

    __slots__ = ("_budget", "_entries", "_levels", "_owner", "_queue", "_spill", "live", "spilled")

    def __init__(self, owner: TaskQueue, entries: dict[TaskKey, Entry], budget: Budget, spill: Spill | None) -> None:
        self._owner = owner
        self._queue = owner.key
        self._entries = entries
        self._budget = budget
        self._spill = spill
        #: priority -> Level, in order of priority
        self._levels: dict[int, Level] = {}
        self.live = 0
        self.spilled = 0

    def __len__(self) -> int:
        return self.live + self.spilled

    def add(self, entry: Entry) -> None:
        """Queue a task. It may land on disk, and its entry is then forgotten."""
        task = entry.task
        level = self._level(task.priority)
        lane = level.lane(task.fairness_key)
        if task.fairness_weight > 0:
            lane.stride = round(STRIDE / min(max(task.fairness_weight, WEIGHT_MIN), WEIGHT_MAX))
        place = (task.created_at_ns, entry.seq)
        if lane.floor is not None and place > lane.floor and self._spill is not None:
            self._spill.put([SpillRow(self._queue, level.priority, lane.fairness_key, *place, task)])
            lane.spilled += 1
            self.spilled += 1
            self._entries.pop(task.key, None)
            level.enlist(lane)
            return
        entry.state = State.QUEUED
        entry.lane = lane
        heappush(lane.heap, (*place, entry))
        lane.live += 1
        self.live += 1
        self._budget.used += 1
        level.enlist(lane)
        if self._budget.used > self._budget.used_max and self._spill is not None:
            self._evict(lane)

    def pop(self) -> Entry | None:
        """Take the task whose turn it is; None when there is none."""
        for level in self._levels.values():
            while level.order:
                _, _, lane = heappop(level.order)
                lane.listed = False
                entry = self._pop_lane(lane)
                if entry is None:
                    level.retire(lane)
                    continue
                level.pass_ = lane.pass_
                lane.pass_ += lane.stride
                if len(lane):
                    level.enlist(lane)
                else:
                    level.retire(lane)
                return entry
        return None

    def drop(self, entry: Entry) -> None:
        """The task of a queued entry is void."""
        lane = entry.lane
        assert lane is not None, "only a queued entry is dropped from its backlog"
        entry.state = State.DROPPED
        entry.lane = None
        self._left_memory(lane)
        lane.dead += 1
        if lane.dead > DEAD_MIN and lane.dead > lane.live:
            lane.heap = [item for item in lane.heap if item[2].lane is lane]
            heapify(lane.heap)
            lane.dead = 0

    def drop_spilled(self, row: SpillRow) -> None:
        """A task of this queue was removed from the spill."""
        lane = self._levels[row.priority].lanes[row.fairness_key]
        lane.spilled -= 1
        self.spilled -= 1
        if lane.spilled == 0:
            lane.floor = None

    def drain(self) -> Iterator[Entry]:
        """Take all tasks, in order."""
        while (entry := self.pop()) is not None:
            yield entry

    def oldest_at_ns(self, priority: int | None = None) -> int | None:
        """When the oldest waiting task was made; over all priorities, or of one."""
        oldest: int | None = None
        for level in self._levels.values():
            if priority is not None and level.priority != priority:
                continue
            for lane in level.lanes.values():
                at_ns = self._lane_oldest(lane)
                if at_ns is not None and (oldest is None or at_ns < oldest):
                    oldest = at_ns
        return oldest

    def by_priority(self) -> dict[int, int]:
        """How many tasks wait at each priority that has any."""
        counts = {level.priority: sum(map(len, level.lanes.values())) for level in self._levels.values()}
        return {priority: count for priority, count in counts.items() if count}

    def _level(self, priority: int) -> Level:
        level = self._levels.get(priority)
        if level is None:
            self._levels[priority] = level = Level(priority)
            self._levels = dict(sorted(self._levels.items()))
        return level

    def _left_memory(self, lane: Lane) -> None:
        lane.live -= 1
        self.live -= 1
        self._budget.used -= 1

    def _pop_lane(self, lane: Lane) -> Entry | None:
        if lane.live == 0 and lane.spilled:
            self._refill(lane)
        while lane.heap:
            _, _, entry = heappop(lane.heap)
            if entry.lane is not lane:
                lane.dead -= 1
                continue
            entry.lane = None
            self._left_memory(lane)
            return entry
        return None

    def _lane_oldest(self, lane: Lane) -> int | None:
        while lane.heap and lane.heap[0][2].lane is not lane:
            heappop(lane.heap)
            lane.dead -= 1
        if lane.heap:
            return lane.heap[0][0]
        return lane.floor[0] if lane.floor is not None else None

    def _evict(self, lane: Lane) -> None:
        assert self._spill is not None
        living = sorted(item for item in lane.heap if item[2].lane is lane)
        keep = len(living) // 2
        rows = []
        for created_at_ns, seq, entry in living[keep:]:
            if not entry.task.task_id:
                continue
            entry.lane = None
            self._left_memory(lane)
            self._entries.pop(entry.task.key, None)
            rows.append(SpillRow(self._queue, lane.level.priority, lane.fairness_key, created_at_ns, seq, entry.task))
        lane.heap = [item for item in living if item[2].lane is lane]  # sorted, and so a heap
        lane.dead = 0
        if rows:
            self._spill.put(rows)
            lane.spilled += len(rows)
            self.spilled += len(rows)
            first = (rows[0].created_at_ns, rows[0].seq)
            lane.floor = first if lane.floor is None else min(lane.floor, first)

    def _refill(self, lane: Lane) -> None:
        assert self._spill is not None
        rows = self._spill.take(self._queue, lane.level.priority, lane.fairness_key, REFILL_TASKS)
        for row in rows:
            entry = Entry(row.task, row.seq, self._owner)
            entry.lane = lane
            self._entries[row.task.key] = entry
            heappush(lane.heap, (row.created_at_ns, row.seq, entry))
        lane.live += len(rows)
        lane.spilled -= len(rows)
        self.live += len(rows)
        self.spilled -= len(rows)
        self._budget.used += len(rows)
        if lane.spilled == 0 or not rows:
            self.spilled -= lane.spilled
            lane.spilled = 0
            lane.floor = None
        else:
            # What is left on disk is younger than the last one read.
            lane.floor = (rows[-1].created_at_ns, rows[-1].seq)
