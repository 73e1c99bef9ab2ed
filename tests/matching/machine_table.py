"""A task partition without a shell: a clock to turn, tasks and polls in a word each, effects as readable lines."""

from __future__ import annotations

from everfold.kernel.time import SECOND_NS
from everfold.matching.machine.backlog import Spill, SpillRow
from everfold.matching.machine.partition import TaskPartition
from everfold.matching.machine.pollers import Poller
from everfold.matching.machine.queue import Deliver, Dispatch, EndPoll, Poll
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Entry, QueueKey, Task

START_NS = 1_000 * SECOND_NS


def task(
    name: str,
    *,
    type: str = ACTIVITY,
    queue: str = "orders",
    sticky: bool = False,
    priority: int = 0,
    fairness: str = "",
    weight: float = 0.0,
    age_s: float = 0.0,
) -> Task:
    """The task of that name; sticky ones have no record."""
    return Task(
        type=type,
        namespace_id="ns",
        task_queue=queue,
        sticky=sticky,
        normal_queue="orders" if sticky else "",
        workflow_id=name,
        run_id=f"run-{name}",
        scheduled_event_id=5,
        attempt=1,
        stamp=0,
        task_id="" if sticky else name,
        created_at_ns=START_NS - round(age_s * SECOND_NS),
        schedule_to_start_deadline_ns=0,
        priority_key=priority,
        fairness_key=fairness,
        fairness_weight=weight,
        shard=0,
        partition=0,
    )


class MemorySpill(Spill):
    """A spill in a dict, for what must be the same on disk."""

    def __init__(self) -> None:
        self.rows: dict[str, SpillRow] = {}

    def put(self, rows: list[SpillRow]) -> None:
        for row in rows:
            assert row.task.task_id not in self.rows
            self.rows[row.task.task_id] = row

    def take(self, queue: QueueKey, priority: int, fairness_key: str, limit: int) -> list[SpillRow]:
        lane = [
            r for r in self.rows.values() if (r.queue, r.priority, r.fairness_key) == (queue, priority, fairness_key)
        ]
        lane.sort(key=lambda row: (row.created_at_ns, row.seq))
        for row in lane[:limit]:
            del self.rows[row.task.task_id]
        return lane[:limit]

    def remove(self, task_id: str) -> SpillRow | None:
        return self.rows.pop(task_id, None)

    def holds(self, task_id: str) -> bool:
        return task_id in self.rows


class Table:
    """A partition and its clock."""

    def __init__(self, *, loaded: bool = True, spill: Spill | None = None, memory_tasks_max: int = 1000) -> None:
        self.now_ns = START_NS
        self.partition = TaskPartition(0, spill, memory_tasks_max)
        #: task name -> the entry handed out for it
        self.handed: dict[str, Entry] = {}
        self.polls: dict[str, Poll] = {}
        if loaded:
            self.partition.loading_ended(self.now_ns)

    def offer(self, *tasks: Task) -> list[str]:
        for one in tasks:
            self.partition.offer(one, self.now_ns)
        return self.effects()

    def record(self, *tasks: Task) -> list[str]:
        for one in tasks:
            self.partition.record(one, self.now_ns)
        return self.effects()

    def tombstone(self, *names: str) -> list[str]:
        for name in names:
            self.partition.tombstone(name)
        return self.effects()

    def poll(
        self, name: str, *, type: str = ACTIVITY, queue: str = "orders", sticky: bool = False, rate: float = 0.0
    ) -> list[str]:
        poll = self.polls[name] = Poll(name, Poller(f"worker-{name}", 0, rate))
        self.partition.poll((type, "ns", queue), sticky, poll, self.now_ns)
        return self.effects()

    def workflow_poll(self, name: str, *, queue: str = "orders", sticky: bool = False) -> list[str]:
        return self.poll(name, type=WORKFLOW, queue=queue, sticky=sticky)

    def disconnect(self, name: str, *, type: str = ACTIVITY, queue: str = "orders") -> None:
        self.partition.queues[type, "ns", queue].end_poll(self.polls[name], self.now_ns)

    def query(self, name: str, *, queue: str = "orders", sticky: bool = False) -> list[str]:
        self.partition.query((WORKFLOW, "ns", queue), sticky, name, b"", None, self.now_ns)
        return self.effects()

    def pass_time(self, seconds: float) -> list[str]:
        """Turns the clock, doing at each moment what is due then."""
        until = self.now_ns + round(seconds * SECOND_NS)
        seen: list[str] = []
        while self.partition.next_tick_ns() <= until:
            self.now_ns = max(self.now_ns, self.partition.next_tick_ns())
            self.partition.tick(self.now_ns)
            seen += self.effects()
        self.now_ns = until
        return seen

    def drain(self, *, queue: str = "orders") -> list[str]:
        """The order in which waiting tasks leave, one poll after the other."""
        order = []
        while effects := self.poll("drain", queue=queue):
            name = effects[0].split(" -> ")[0]
            self.partition.started(self.handed[name])
            order.append(name)
        self.disconnect("drain", queue=queue)
        return order

    def backlog(self, *, type: str = ACTIVITY, queue: str = "orders") -> int:
        return self.partition.queues[type, "ns", queue].stats(self.now_ns).total.backlog_count

    def effects(self) -> list[str]:
        lines = []
        for effect in self.partition.take_effects():
            if isinstance(effect, Dispatch):
                name = effect.entry.task.workflow_id
                self.handed[name] = effect.entry
                lines.append(f"{name} -> {effect.poll.poll_id}")
            elif isinstance(effect, Deliver):
                lines.append(f"query {effect.query.query_id} -> {effect.poll.poll_id}")
            elif isinstance(effect, EndPoll):
                lines.append(f"{effect.poll.poll_id} ends")
            else:
                lines.append(f"worker of {effect.task.workflow_id} gone")
        return lines
