"""What may happen when: the small state machines that a run is made of, as tables.

Two rules. Every event that a run records is looked up here before it is applied, and what the applier leaves behind is
compared with what the table says; so are the changes that leave no event (`Change`). And nothing here refuses input: a
decider has done that before, in Temporal's words. What is not in a table is a corrupt log or a defect of a decider, and
the run is quarantined (architecture, law 9).

There are eight machines. A run has one RUN and one WORKFLOW_TASK, and any number of the others, each under its key: an
ACTIVITY with its ATTEMPT, a TIMER, a CHILD, an EXTERNAL (a signal or cancel request to another workflow), an UPDATE.
Their states are read from the run's fields, not kept beside them. Each event is about one machine, and one rule joins
them: once the RUN is closed nothing happens to the others. Closing takes the workflow task, the externals and what
waits in the buffer along; activities, timers and children are left as they were, for readers.

What the tables do not say: which events wait for a started workflow task to end (`events.BUFFERED`), in what order they
leave then (`turn.Turn.flush_buffered`), and what follows of itself (a closed activity schedules a workflow task).

Drawn in docs/state-machines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events
from everfold.history.machine.state import Activity, Run, Status, UpdateStage
from everfold.kernel.errors import InvariantViolation

Event = history_pb2.HistoryEvent


class RunState(StrEnum):
    """Of a run."""

    NEW = "new"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    CONTINUED_AS_NEW = "continued as new"
    TIMED_OUT = "timed out"


class TaskState(StrEnum):
    """Of the one workflow task that a run can have."""

    NONE = "none"
    SCHEDULED = "scheduled"
    STARTED = "started"


class ActivityState(StrEnum):
    """Of an activity, whatever its attempts do."""

    NONE = "none"
    PENDING = "pending"


class AttemptState(StrEnum):
    """Of the current attempt of a pending activity."""

    WAITING = "waiting"
    STARTED = "started"
    BACKING_OFF = "backing off"


class TimerState(StrEnum):
    """Of a timer that the workflow has started."""

    NONE = "none"
    RUNNING = "running"


class ChildState(StrEnum):
    """Of a child workflow, seen by its parent."""

    NONE = "none"
    INITIATED = "initiated"
    STARTED = "started"


class ExternalState(StrEnum):
    """Of a signal or cancel request to another workflow."""

    NONE = "none"
    INITIATED = "initiated"


class UpdateState(StrEnum):
    """Of an update."""

    NONE = "none"
    ADMITTED = "admitted"
    ACCEPTED = "accepted"
    COMPLETED = "completed"


class Change(StrEnum):
    """What changes a machine without an event.

    SCHEDULE, START: of a workflow task whose events are not written, as it is a retry or made for an update alone.
    DROP: that task has ended, or its events are written after all; also a task that failed or timed out unwritten.
    TAKE: a worker has the attempt. GIVE_BACK: that worker was gone before it got it.
    BACK_OFF: the attempt failed, and another follows. COME_DUE: its time has come. RESET: begin anew, now or soon.
    ADMIT: an update has come. FORGET: it was rejected, aborted, or went on to the next run.
    """

    SCHEDULE = "schedule"
    START = "start"
    DROP = "drop"
    TAKE = "take"
    GIVE_BACK = "give back"
    BACK_OFF = "back off"
    COME_DUE = "come due"
    RESET = "reset"
    ADMIT = "admit"
    FORGET = "forget"


Table = Mapping[StrEnum, Mapping[int | Change, StrEnum]]


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """A state machine: state → what happens (an event type, or a Change) → state after.

    Attributes:
        about: what a reader of the diagram should know.
    """

    name: str
    about: str
    initial: StrEnum
    table: Table

    def after(self, before: StrEnum, what: int | Change) -> StrEnum:
        """The state behind it.

        Raises:
            InvariantViolation: it cannot happen in that state.
        """
        after = self.table[before].get(what)
        if after is None:
            legal = ", ".join(map(name_of, self.table[before])) or "nothing"
            raise InvariantViolation(f"{self.name} is {before}: expected {legal}; found {name_of(what)}")
        return after


def name_of(what: int | Change) -> str:
    """An event's name, or a change's."""
    return what if isinstance(what, Change) else events.TYPE_NAMES[what]


_R = RunState
RUN: Final = Machine(
    "run",
    "A run begins, runs, and closes in one of six ways.",
    _R.NEW,
    {
        _R.NEW: {events.STARTED: _R.RUNNING},
        _R.RUNNING: {
            events.SIGNALED: _R.RUNNING,
            events.CANCEL_REQUESTED: _R.RUNNING,
            events.MARKER_RECORDED: _R.RUNNING,
            events.SEARCH_ATTRIBUTES_UPSERTED: _R.RUNNING,
            events.PROPERTIES_MODIFIED: _R.RUNNING,
            events.COMPLETED: _R.COMPLETED,
            events.FAILED: _R.FAILED,
            events.CANCELED: _R.CANCELED,
            events.TERMINATED: _R.TERMINATED,
            events.CONTINUED_AS_NEW: _R.CONTINUED_AS_NEW,
            events.TIMED_OUT: _R.TIMED_OUT,
        },
        _R.COMPLETED: {},
        _R.FAILED: {},
        _R.CANCELED: {},
        _R.TERMINATED: {},
        _R.CONTINUED_AS_NEW: {},
        _R.TIMED_OUT: {},
    },
)

_W = TaskState
WORKFLOW_TASK: Final = Machine(
    "workflow task",
    "It asks a worker what is to be done next. A retry, and a task made for an update alone, is scheduled and started "
    "without events; they are written when it completes. A sticky task that nobody takes times out unstarted.",
    _W.NONE,
    {
        _W.NONE: {events.TASK_SCHEDULED: _W.SCHEDULED, Change.SCHEDULE: _W.SCHEDULED},
        _W.SCHEDULED: {
            events.TASK_STARTED: _W.STARTED,
            events.TASK_TIMED_OUT: _W.NONE,
            Change.START: _W.STARTED,
            Change.DROP: _W.NONE,
        },
        _W.STARTED: {
            events.TASK_COMPLETED: _W.NONE,
            events.TASK_FAILED: _W.NONE,
            events.TASK_TIMED_OUT: _W.NONE,
            Change.DROP: _W.NONE,
        },
    },
)

_A = ActivityState
ACTIVITY: Final = Machine(
    "activity",
    "From its command to its end. ActivityTaskStarted is written together with the end, so that attempts leave no "
    "trace. The worker's cancel command may come when the end waits in the buffer, unknown to it.",
    _A.NONE,
    {
        _A.NONE: {events.ACTIVITY_SCHEDULED: _A.PENDING, events.ACTIVITY_CANCEL_REQUESTED: _A.NONE},
        _A.PENDING: {
            events.ACTIVITY_CANCEL_REQUESTED: _A.PENDING,
            events.ACTIVITY_STARTED: _A.PENDING,
            events.ACTIVITY_COMPLETED: _A.NONE,
            events.ACTIVITY_FAILED: _A.NONE,
            events.ACTIVITY_TIMED_OUT: _A.NONE,
            events.ACTIVITY_CANCELED: _A.NONE,
        },
    },
)

_T = AttemptState
ATTEMPT: Final = Machine(
    "attempt",
    "Of a pending activity, without events. By its id an activity may be completed that nobody has taken: it is taken, "
    "and ends, in one step.",
    _T.WAITING,
    {
        _T.WAITING: {Change.TAKE: _T.STARTED, Change.RESET: _T.BACKING_OFF},
        _T.STARTED: {Change.GIVE_BACK: _T.WAITING, Change.BACK_OFF: _T.BACKING_OFF},
        _T.BACKING_OFF: {Change.COME_DUE: _T.WAITING, Change.TAKE: _T.STARTED, Change.RESET: _T.BACKING_OFF},
    },
)

_I = TimerState
TIMER: Final = Machine(
    "timer",
    "Started by the workflow. One that fired while a workflow task was running may still be cancelled by it: then its "
    "TimerFired leaves the buffer, and was never written.",
    _I.NONE,
    {
        _I.NONE: {events.TIMER_STARTED: _I.RUNNING, events.TIMER_CANCELED: _I.NONE},
        _I.RUNNING: {events.TIMER_FIRED: _I.NONE, events.TIMER_CANCELED: _I.NONE},
    },
)

_C = ChildState
CHILD: Final = Machine(
    "child",
    "A workflow that this one starts. Its own shard says whether it did, and how it ended.",
    _C.NONE,
    {
        _C.NONE: {events.CHILD_INITIATED: _C.INITIATED},
        _C.INITIATED: {events.CHILD_STARTED: _C.STARTED, events.CHILD_START_FAILED: _C.NONE},
        _C.STARTED: dict.fromkeys(sorted(events.CHILD_CLOSED), _C.NONE),
    },
)

_X = ExternalState
EXTERNAL: Final = Machine(
    "external",
    "A signal or a cancel request to another workflow, until that one's shard has answered.",
    _X.NONE,
    {
        _X.NONE: {
            events.SIGNAL_EXTERNAL_INITIATED: _X.INITIATED,
            events.CANCEL_EXTERNAL_INITIATED: _X.INITIATED,
        },
        _X.INITIATED: {
            events.EXTERNAL_SIGNALED: _X.NONE,
            events.SIGNAL_EXTERNAL_FAILED: _X.NONE,
            events.EXTERNAL_CANCEL_REQUESTED: _X.NONE,
            events.CANCEL_EXTERNAL_FAILED: _X.NONE,
        },
    },
)

_U = UpdateState
UPDATE: Final = Machine(
    "update",
    "It comes without an event, and leaves none unless it is accepted. WorkflowExecutionUpdateAdmitted is written by a "
    "reset alone. A run that a reset makes of events accepts updates whose coming it has not seen.",
    _U.NONE,
    {
        _U.NONE: {
            Change.ADMIT: _U.ADMITTED,
            events.UPDATE_ADMITTED: _U.ADMITTED,
            events.UPDATE_ACCEPTED: _U.ACCEPTED,
        },
        _U.ADMITTED: {events.UPDATE_ACCEPTED: _U.ACCEPTED, Change.FORGET: _U.NONE},
        _U.ACCEPTED: {events.UPDATE_COMPLETED: _U.COMPLETED},
        _U.COMPLETED: {},
    },
)

MACHINES: Final = (RUN, WORKFLOW_TASK, ACTIVITY, ATTEMPT, TIMER, CHILD, EXTERNAL, UPDATE)


# ---- the states of a run's machines ---------------------------------------------------------------------------------

_OF_STATUS: Final[dict[int, RunState]] = {
    Status.RUNNING: _R.RUNNING,
    Status.COMPLETED: _R.COMPLETED,
    Status.FAILED: _R.FAILED,
    Status.CANCELED: _R.CANCELED,
    Status.TERMINATED: _R.TERMINATED,
    Status.CONTINUED_AS_NEW: _R.CONTINUED_AS_NEW,
    Status.TIMED_OUT: _R.TIMED_OUT,
}
_OF_STAGE: Final[dict[int, UpdateState]] = {
    UpdateStage.ADMITTED: _U.ADMITTED,
    UpdateStage.ACCEPTED: _U.ACCEPTED,
    UpdateStage.COMPLETED: _U.COMPLETED,
}


def run_state(run: Run, _key: object = None) -> RunState:
    """Of the run itself. WorkflowExecutionStarted gives it its type."""
    return _OF_STATUS[run.status] if run.workflow_type else _R.NEW


def task_state(run: Run, _key: object = None) -> TaskState:
    """Of the run's workflow task."""
    task = run.workflow_task
    if task is None:
        return _W.NONE
    return _W.STARTED if task.started_event_id else _W.SCHEDULED


def _activity_state(run: Run, scheduled_event_id: int) -> ActivityState:
    return _A.PENDING if scheduled_event_id in run.activities else _A.NONE


def attempt_state(activity: Activity) -> AttemptState:
    """Of a pending activity's current attempt."""
    if activity.started:
        return _T.STARTED
    return _T.BACKING_OFF if activity.next_attempt_at_ns else _T.WAITING


def _timer_state(run: Run, timer_id: str) -> TimerState:
    return _I.RUNNING if timer_id in run.timers else _I.NONE


def _child_state(run: Run, initiated_event_id: int) -> ChildState:
    child = run.children.get(initiated_event_id)
    if child is None:
        return _C.NONE
    return _C.STARTED if child.started else _C.INITIATED


def _external_state(run: Run, initiated_event_id: int) -> ExternalState:
    return _X.INITIATED if initiated_event_id in run.externals else _X.NONE


def update_state(run: Run, update_id: str) -> UpdateState:
    """Of an update of the run."""
    update = run.updates.get(update_id)
    return _U.NONE if update is None else _OF_STAGE[update.stage]


# ---- which event is about which machine -----------------------------------------------------------------------------


class Subject(NamedTuple):
    """What an event is about: the machine, how to find its key in the event, how to find its state in the run."""

    machine: Machine
    key: Callable[[Event], Any]
    state: Callable[[Run, Any], StrEnum]


_own_id = attrgetter("event_id")

_KEYS: Final[dict[int, Callable[[Event], Any]]] = {
    events.ACTIVITY_SCHEDULED: _own_id,
    events.ACTIVITY_CANCEL_REQUESTED: attrgetter("activity_task_cancel_requested_event_attributes.scheduled_event_id"),
    events.ACTIVITY_STARTED: attrgetter("activity_task_started_event_attributes.scheduled_event_id"),
    events.ACTIVITY_COMPLETED: attrgetter("activity_task_completed_event_attributes.scheduled_event_id"),
    events.ACTIVITY_FAILED: attrgetter("activity_task_failed_event_attributes.scheduled_event_id"),
    events.ACTIVITY_TIMED_OUT: attrgetter("activity_task_timed_out_event_attributes.scheduled_event_id"),
    events.ACTIVITY_CANCELED: attrgetter("activity_task_canceled_event_attributes.scheduled_event_id"),
    events.TIMER_STARTED: attrgetter("timer_started_event_attributes.timer_id"),
    events.TIMER_FIRED: attrgetter("timer_fired_event_attributes.timer_id"),
    events.TIMER_CANCELED: attrgetter("timer_canceled_event_attributes.timer_id"),
    events.CHILD_INITIATED: _own_id,
    events.SIGNAL_EXTERNAL_INITIATED: _own_id,
    events.CANCEL_EXTERNAL_INITIATED: _own_id,
    events.UPDATE_ADMITTED: attrgetter("workflow_execution_update_admitted_event_attributes.request.meta.update_id"),
    events.UPDATE_ACCEPTED: attrgetter("workflow_execution_update_accepted_event_attributes.protocol_instance_id"),
    events.UPDATE_COMPLETED: attrgetter("workflow_execution_update_completed_event_attributes.meta.update_id"),
}


def _no_key(event: Event) -> None:
    """Of a machine that a run has one of."""


def _initiated_id(event: Event) -> int:
    initiated_event_id: int = events.attributes_of(event).initiated_event_id
    return initiated_event_id


def _subjects() -> dict[int, Subject]:
    found: dict[int, Subject] = {}
    for machine, state, key_of_others in (
        (RUN, run_state, _no_key),
        (WORKFLOW_TASK, task_state, _no_key),
        (ACTIVITY, _activity_state, None),
        (TIMER, _timer_state, None),
        (CHILD, _child_state, _initiated_id),
        (EXTERNAL, _external_state, _initiated_id),
        (UPDATE, update_state, None),
    ):
        for row in machine.table.values():
            for what in row:
                if not isinstance(what, Change):
                    key = _KEYS.get(what, key_of_others)
                    assert key is not None, name_of(what)
                    found[what] = Subject(machine, key, state)
    return found


SUBJECTS: Final = _subjects()
"""Event type -> what it is about. Every event that the machine records is here."""
