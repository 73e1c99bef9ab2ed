"""What waits in a queue: the task itself, and the entry that stands for it while this partition knows it."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from everfold.matching.machine.backlog import Lane
    from everfold.matching.machine.queue import TaskQueue

WORKFLOW: Final = "workflow"
ACTIVITY: Final = "activity"

PRIORITY_HIGHEST: Final = 1
PRIORITY_DEFAULT: Final = 3
PRIORITY_LOWEST: Final = 5
"""Temporal: priority keys are 1 (first) to 5, and a task without one has 3 (`matching.priorityLevels`)."""

#: (WORKFLOW | ACTIVITY, namespace id, name of the task queue)
QueueKey = tuple[str, str, str]

#: the task id; a task without record (sticky) goes by (run id, scheduled event id, attempt, stamp)
TaskKey = str | tuple[str, int, int, int]


class Task(NamedTuple):
    """A task that waits for a worker. The fields, and their order, are those of history's `TaskOffer`.

    Attributes:
        type: WORKFLOW or ACTIVITY.
        sticky: True for a worker's own queue: such a task has no record, and falls back to `normal_queue`.
        stamp: counts the offers of this task's attempt.
        task_id: key of the task's record; empty when it has none.
        schedule_to_start_deadline_ns: 0 for none. History's timer ends the task, not matching.
        shard: the history shard that starts it.
        partition: the task partition of the queue by history's reckoning; matching goes by the name itself.
    """

    type: str
    namespace_id: str
    task_queue: str
    sticky: bool
    normal_queue: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    attempt: int
    stamp: int
    task_id: str
    created_at_ns: int
    schedule_to_start_deadline_ns: int
    priority_key: int
    fairness_key: str
    fairness_weight: float
    shard: int
    partition: int

    @property
    def key(self) -> TaskKey:
        """What makes two appearances one task."""
        return self.task_id or (self.run_id, self.scheduled_event_id, self.attempt, self.stamp)

    @property
    def queue_key(self) -> QueueKey:
        """The queue that it waits in."""
        return (self.type, self.namespace_id, self.task_queue)

    @property
    def priority(self) -> int:
        """The level 1..5 that its priority key means."""
        if self.priority_key == 0:
            return PRIORITY_DEFAULT
        return min(max(self.priority_key, PRIORITY_HIGHEST), PRIORITY_LOWEST)


class State(IntEnum):
    """QUEUED → STARTING → gone; STARTING → DELAYED → QUEUED when the start was refused for now; any → DROPPED."""

    QUEUED = 1
    DELAYED = 2
    STARTING = 3
    DROPPED = 4


class Entry:
    """A task that this partition holds in memory. `tries` counts the starts that were refused for now."""

    __slots__ = ("lane", "queue", "seq", "state", "task", "tries")

    def __init__(self, task: Task, seq: int, queue: TaskQueue) -> None:
        self.task = task
        self.seq = seq
        self.queue = queue
        self.state = State.QUEUED
        self.lane: Lane | None = None
        self.tries = 0
