"""The tables of transitions, row by row and gap by gap: what they allow happens, everything else is refused whole.

Runs are brought into each state by the tables themselves, along the shortest way, so a new row needs no new test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest
from shard_driver import ShardDriver, complete_workflow
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import apply, events
from everfold.history.machine.apply import APPLIERS, apply_event
from everfold.history.machine.decide import signal
from everfold.history.machine.state import Run, TaskKind, Update, encode_run
from everfold.history.machine.transitions import (
    ACTIVITY,
    ATTEMPT,
    CHILD,
    EXTERNAL,
    MACHINES,
    RUN,
    SUBJECTS,
    TIMER,
    UPDATE,
    WORKFLOW_TASK,
    Change,
    Machine,
    attempt_state,
    name_of,
)
from everfold.history.machine.turn import Turn
from everfold.kernel.errors import InvariantViolation, StatusError

ID = 7
"""Event id of what a test is about."""

AT_NS = 1_700_000_000_000_000_000


def event(event_type: int) -> history_pb2.HistoryEvent:
    """The least that an event of that type says, about the one entity that there is."""
    made = history_pb2.HistoryEvent(event_type=event_type, event_id=ID)  # type: ignore[arg-type]
    events.set_time(made.event_time, AT_NS)
    name = f"{events.TYPE_NAMES[event_type].lower()}_event_attributes"
    attributes = getattr(made, name)
    attributes.SetInParent()
    fields = attributes.DESCRIPTOR.fields_by_name
    for field, value in {
        "scheduled_event_id": ID,
        "initiated_event_id": ID,
        "timer_id": "t",
        "activity_id": "a",
        "protocol_instance_id": "u",
    }.items():
        if field in fields:
            setattr(attributes, field, value)
    if event_type == events.STARTED:
        attributes.workflow_type.name = "Greeting"
    elif event_type == events.UPDATE_ADMITTED:
        attributes.request.meta.update_id = "u"
    elif event_type == events.UPDATE_COMPLETED:
        attributes.meta.update_id = "u"
    return made


def an_update() -> Update:
    update = Update()
    update.update_id = "u"
    return update


CHANGES: dict[tuple[Machine, Change], Callable[[Run], object]] = {
    (WORKFLOW_TASK, Change.SCHEDULE): lambda run: apply.schedule_unwritten(run, TaskKind.TRANSIENT, AT_NS, 1),
    (WORKFLOW_TASK, Change.START): lambda run: apply.start_unwritten(run, AT_NS, "request", "worker", 0),
    (WORKFLOW_TASK, Change.DROP): apply.drop_task,
    (ATTEMPT, Change.TAKE): lambda run: apply.start_activity(run.activities[ID], AT_NS, "request", "worker"),
    (ATTEMPT, Change.GIVE_BACK): lambda run: apply.return_activity(run.activities[ID]),
    (ATTEMPT, Change.BACK_OFF): lambda run: apply.retry_activity(run.activities[ID], AT_NS, AT_NS + 1, b""),
    (ATTEMPT, Change.COME_DUE): lambda run: apply.retry_due(run.activities[ID], AT_NS),
    (ATTEMPT, Change.RESET): lambda run: apply.reset_attempt(run.activities[ID], AT_NS + 1),
    (UPDATE, Change.ADMIT): lambda run: apply.add_update(run, an_update()),
    (UPDATE, Change.FORGET): lambda run: apply.drop_update(run, "u"),
}
"""What makes each change. The functions of `apply` that deciders call."""

KEYS: dict[Machine, Any] = {
    RUN: None,
    WORKFLOW_TASK: None,
    ACTIVITY: ID,
    TIMER: "t",
    CHILD: ID,
    EXTERNAL: ID,
    UPDATE: "u",
}


def happens(machine: Machine, run: Run, what: int | Change) -> None:
    if isinstance(what, Change):
        CHANGES[machine, what](run)
    else:
        apply_event(run, event(what))


def state_of(machine: Machine, run: Run) -> StrEnum:
    if machine is ATTEMPT:
        return attempt_state(run.activities[ID])
    state = next(subject.state for subject in SUBJECTS.values() if subject.machine is machine)
    return state(run, KEYS[machine])


def way_to(machine: Machine, state: StrEnum) -> list[int | Change]:
    """The shortest way there from the machine's first state."""
    ways: dict[StrEnum, list[int | Change]] = {machine.initial: []}
    waiting = deque([machine.initial])
    while waiting:
        at = waiting.popleft()
        for what, after in machine.table[at].items():
            if after not in ways:
                ways[after] = [*ways[at], what]
                waiting.append(after)
    assert state in ways, f"nothing leads to {machine.name} {state}"
    return ways[state]


def run_in(machine: Machine, state: StrEnum) -> Run:
    run = Run()
    if machine is not RUN:
        apply_event(run, event(events.STARTED))
    if machine is ATTEMPT:
        apply_event(run, event(events.ACTIVITY_SCHEDULED))
    for what in way_to(machine, state):
        happens(machine, run, what)
    assert state_of(machine, run) is state
    return run


def everything_that(machine: Machine) -> list[int | Change]:
    """What may happen to the machine in some state."""
    return list(dict.fromkeys(what for row in machine.table.values() for what in row))


CASES = [(machine, state, what) for machine in MACHINES for state in machine.table for what in everything_that(machine)]
NAMES = [f"{machine.name}-{state}-{name_of(what)}".replace(" ", "-") for machine, state, what in CASES]


@pytest.mark.parametrize(("machine", "state", "what"), CASES, ids=NAMES)
def test_what_the_table_allows_happens_and_nothing_else(machine: Machine, state: StrEnum, what: int | Change) -> None:
    run = run_in(machine, state)
    after = machine.table[state].get(what)
    if after is not None:
        happens(machine, run, what)
        assert state_of(machine, run) is after
        return
    before = encode_run(run)
    with pytest.raises(InvariantViolation, match=name_of(what)):
        happens(machine, run, what)
    assert encode_run(run) == before


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_every_state_has_a_row_and_is_reached(machine: Machine) -> None:
    assert set(machine.table) == set(type(machine.initial))
    for state in machine.table:
        way_to(machine, state)


def test_every_event_that_is_recorded_is_in_one_table_and_has_one_applier() -> None:
    in_tables = [what for machine in MACHINES for what in everything_that(machine) if not isinstance(what, Change)]
    assert len(in_tables) == len(set(in_tables))
    known = {value for name, value in vars(events).items() if isinstance(value, int) and value in events.TYPE_NAMES}
    assert set(in_tables) == set(SUBJECTS) == set(APPLIERS) == known


def test_every_change_is_of_a_table_and_has_its_function() -> None:
    in_tables = {(machine, what) for machine in MACHINES for what in everything_that(machine) if what in list(Change)}
    assert in_tables == set(CHANGES)
    assert {change for _, change in CHANGES} == set(Change)


@pytest.mark.parametrize("run_state", [state for state in RUN.table if not RUN.table[state] or state == RUN.initial])
def test_nothing_happens_in_a_run_that_has_not_begun_or_is_closed(run_state: StrEnum) -> None:
    for event_type in set(SUBJECTS) - {events.STARTED}:
        run = run_in(RUN, run_state)
        before = encode_run(run)
        with pytest.raises(InvariantViolation, match=str(run_state)):
            apply_event(run, event(event_type))
        assert encode_run(run) == before


def test_an_applier_that_makes_something_else_of_it_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(TIMER, TIMER.table[TIMER.initial][events.TIMER_STARTED])
    monkeypatch.setitem(APPLIERS, events.TIMER_FIRED, lambda run, event: None)
    with pytest.raises(InvariantViolation, match="TIMER_FIRED made the timer running, not none"):
        apply_event(run, event(events.TIMER_FIRED))


def test_a_decider_that_breaks_a_table_quarantines_its_run_and_the_shard_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = ShardDriver(replay=False)
    shard.start("w")
    shard.start("other")

    def fire_a_timer_that_nobody_started(turn: Turn) -> None:
        turn.record(event(events.TIMER_FIRED))

    monkeypatch.setattr(signal, "schedule_workflow_task", fire_a_timer_that_nobody_started)
    with pytest.raises(StatusError, match="workflow w is quarantined: InvariantViolation in SIGNAL_WORKFLOW"):
        shard.signal(workflow_id="w")
    [(run, reason)] = shard.steps[-1].quarantined
    assert run.workflow_id == "w"
    assert reason.endswith("timer is none: expected TIMER_STARTED, TIMER_CANCELED; found TIMER_FIRED")
    shard.complete(shard.poll("other"), complete_workflow())
