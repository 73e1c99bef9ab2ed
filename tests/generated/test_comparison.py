"""The comparison notices what it is for: a suite that finds nothing must be one that would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from generated.conftest import played
from generated.generator import Program
from generated.outcome import Chain, Outcome, Sent, difference, faults_of, kinds
from support.servers import Server

PROGRAM: Program = {
    "id": "p",
    "start": "plain",
    "steps": [{"do": "activity", "text": "t", "act": "succeed", "elsewhere": False}],
    "end": {"kind": "complete"},
    "lanes": [],
}


@pytest.mark.differential
def test_a_worker_that_does_something_else_makes_a_difference(real_server: Server, tmp_path: Path) -> None:
    as_written, again = (played(real_server.address, [PROGRAM], 1, tmp_path) for _ in range(2))
    spoiled = played(real_server.address, [PROGRAM], 1, tmp_path, spoil=True)
    lines = [play.outcomes["p"].lines(play.nonce) for play in (as_written, again, spoiled)]
    assert [play.outcomes["p"].faults for play in (as_written, again, spoiled)] == [[], [], []]
    assert difference(lines[0], lines[1]) == ""
    assert "something else" in difference(lines[0], lines[2])


def _changed_status(outcome: Outcome) -> None:
    outcome.root.status = "FAILED"


def _another_run(outcome: Outcome) -> None:
    outcome.root.runs.append("COMPLETED")


def _another_message(outcome: Outcome) -> None:
    outcome.children["c"].failure[0]["message"] = "otherwise"


def _child_lost(outcome: Outcome) -> None:
    outcome.children.clear()


def _another_answer(outcome: Outcome) -> None:
    outcome.answers["u"] = "took nothing"


def _timer_fired_twice(outcome: Outcome) -> None:
    outcome.root.events["TIMER_FIRED"] += 1


def _memo_lost(outcome: Outcome) -> None:
    outcome.root.memo = {}


@pytest.mark.parametrize(
    "change",
    [_changed_status, _another_run, _another_message, _child_lost, _another_answer, _timer_fired_twice, _memo_lost],
)
def test_every_part_of_an_outcome_is_compared(change: Callable[[Outcome], None]) -> None:
    outcome = Outcome(
        root=Chain("COMPLETED", {"runs": 1}, [], ["COMPLETED"], {"TIMER_FIRED": 1}, {"note": "t"}),
        children={"c": Chain("FAILED", None, [{"class": "ApplicationError", "message": "as it is"}])},
        answers={"u": "took u"},
    )
    other = copy.deepcopy(outcome)
    assert difference(outcome.lines("n"), other.lines("n")) == ""
    change(other)
    assert difference(outcome.lines("n"), other.lines("n"))


def _event(kind: str) -> HistoryEvent:
    """`STARTED`, or `SIGNALED text`, or `ACCEPTED update`."""
    kind, _, text = kind.partition(" ")
    name = {"SIGNALED": "WORKFLOW_EXECUTION_SIGNALED", "ACCEPTED": "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"}.get(kind, kind)
    event = HistoryEvent(event_type=EventType.Value(f"EVENT_TYPE_{name}"))
    if kind == "SIGNALED":
        attributes = event.workflow_execution_signaled_event_attributes
        attributes.signal_name = "tell"
        attributes.input.payloads.add(data=b'"channel"')
        attributes.input.payloads.add(data=f'"{text}"'.encode())
    elif kind == "ACCEPTED":
        event.workflow_execution_update_accepted_event_attributes.protocol_instance_id = text
    return event


def _run(*between: str, end: str = "WORKFLOW_EXECUTION_COMPLETED") -> list[HistoryEvent]:
    events = [_event(kind) for kind in ("WORKFLOW_EXECUTION_STARTED", *between, end)]
    for place, event in enumerate(events, 1):
        event.event_id = place
    return events


CONTINUED = "WORKFLOW_EXECUTION_CONTINUED_AS_NEW"
SENT = Sent({"once": False, "again": True}, frozenset(("u",)))


def test_a_history_without_faults_has_none() -> None:
    run = _run("SIGNALED once", "SIGNALED again", "ACCEPTED u")
    assert faults_of([run], SENT) == []


def test_a_repeated_signal_may_reach_the_next_run_too() -> None:
    first = _run("SIGNALED once", "SIGNALED again", "ACCEPTED u", end=CONTINUED)
    assert faults_of([first, _run("SIGNALED again")], SENT) == []


@pytest.mark.parametrize(
    ("runs", "fault"),
    [
        ([_run("SIGNALED again", "ACCEPTED u")], "signal once was acknowledged and is there 0 times"),
        ([_run("SIGNALED once", "SIGNALED again")], "update u has an answer and is not there"),
        ([_run("SIGNALED once", "SIGNALED again", "SIGNALED again", "ACCEPTED u")], "signal again is there 2 times"),
        ([_run("SIGNALED once", "SIGNALED again", "ACCEPTED u", "ACCEPTED u")], "update u was accepted 2 times"),
        (
            [_run("SIGNALED once", "SIGNALED again", "ACCEPTED u", end=CONTINUED), _run("SIGNALED once")],
            "signal once was acknowledged and is there 2 times",
        ),
        ([_run("SIGNALED once", "SIGNALED again", "ACCEPTED u", end="TIMER_FIRED")], "closing events at []"),
        ([_run("SIGNALED once", CONTINUED, "SIGNALED again", "ACCEPTED u")], "closing events at [2, 5]"),
        (
            [_run("SIGNALED once", "SIGNALED again", "ACCEPTED u", "WORKFLOW_TASK_COMPLETED")],
            "0 workflow tasks were scheduled, 1 ended",
        ),
    ],
)
def test_what_no_history_may_show_is_a_fault(runs: list[list[HistoryEvent]], fault: str) -> None:
    assert any(fault in found for found in faults_of(runs, SENT))


def test_a_gap_in_the_event_ids_is_a_fault() -> None:
    run = _run("SIGNALED once", "SIGNALED again", "ACCEPTED u")
    run[2].event_id = 7
    assert any("event ids are not 1 to 5" in fault for fault in faults_of([run], SENT))


def test_repeated_signals_and_workflow_tasks_do_not_count_as_a_difference() -> None:
    first = _run("SIGNALED again", end=CONTINUED)
    assert kinds([first, _run("SIGNALED again", "WORKFLOW_TASK_SCHEDULED")], frozenset()) == kinds(
        [first, _run()], frozenset()
    )
