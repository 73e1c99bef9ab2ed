"""A quarantined run is ended, whatever its rows are like; who waited for it is answered, and its id is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from shard_driver import (
    NAMESPACE_ID,
    ShardDriver,
    complete_workflow,
    schedule_activity,
    signal_external,
    start_child,
    start_timer,
    sticky,
)
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys, reads
from everfold.history.machine.decide import cross_run, signal, start
from everfold.history.machine.quarantine import PARKED_MAX
from everfold.history.machine.record_kinds import BY_NAMESPACE, BY_RUN, STARTS
from everfold.history.machine.state import Run, decode_run, encode_run
from everfold.kernel.errors import Code, StatusError
from everfold.schemas import codec

TERMINATE_EXISTING = enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
TERMINATED = enums.WORKFLOW_EXECUTION_STATUS_TERMINATED
DAY_S = 86_400


@pytest.fixture(autouse=True)
def defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever folds a signal `defect` stumbles, every time, so that logs can be folded again."""
    record_signal = signal.record_signal

    def stumbling(turn: Any, request: Any, input_: Any) -> None:
        if request.signal_name == "defect":
            raise KeyError("defect")
        record_signal(turn, request, input_)

    monkeypatch.setattr(signal, "record_signal", stumbling)


def quarantine(shard: ShardDriver, workflow_id: str = "w") -> None:
    with pytest.raises(StatusError, match=f"workflow {workflow_id} is quarantined: KeyError in SIGNAL_WORKFLOW"):
        shard.signal("defect", workflow_id)


def parked(shard: ShardDriver) -> list[bytes]:
    return [key for key in shard.store.rows if key[2:3] == b"p" and not key.startswith(b"\xff")]


def parked_counts(shard: ShardDriver) -> list[int]:
    rows = shard.store.rows
    return [msgpack.unpackb(rows[key]) for key in rows if key[2:3] == b"P" and not key.startswith(b"\xff")]


def rows_of_runs(shard: ShardDriver) -> list[bytes]:
    return [key for key in shard.store.rows if not key.startswith(b"\xff")]


def status(shard: ShardDriver, workflow_id: str, run_id: str = "") -> int:
    return int(shard.describe(workflow_id, run_id).workflow_execution_info.status)


def start_again(shard: ShardDriver, policy: int) -> str:
    return shard.start(workflow_id_conflict_policy=policy)


def busy_run(shard: ShardDriver) -> None:
    """A run with one of everything under way, and a workflow task started."""
    shard.start()
    shard.complete(
        shard.poll(), schedule_activity(), start_timer("t", 60), start_child("child"), signal_external("nobody")
    )
    shard.deliver()
    shard.poll("w")


# ---- the ways to end it ---------------------------------------------------------------------------------------------


def terminate(shard: ShardDriver) -> None:
    shard.terminate()


def terminate_by_record(shard: ShardDriver) -> None:
    """Through the topic `commands`."""
    request = ws.TerminateWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    place = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": 0, "index": 0}
    body = {"message": request.SerializeToString()}
    shard.append("TERMINATE_WORKFLOW", body, workflow_id="w", origin=place)


def delete(shard: ShardDriver) -> None:
    request = ws.DeleteWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    shard.request("DELETE_WORKFLOW", request, workflow_id="w")


def start_over(shard: ShardDriver) -> None:
    start_again(shard, TERMINATE_EXISTING)


def start_over_with_signal(shard: ShardDriver) -> None:
    request = ws.SignalWithStartWorkflowExecutionRequest(workflow_id="w", signal_name="go", request_id="s")
    request.workflow_type.name, request.task_queue.name = "Greeting", "queue"
    request.workflow_id_conflict_policy = TERMINATE_EXISTING
    shard.request("SIGNAL_WITH_START_WORKFLOW", request, workflow_id="w")


def start_over_with_update(shard: ShardDriver) -> None:
    request = ws.ExecuteMultiOperationRequest()
    begin = request.operations.add().start_workflow
    begin.workflow_id, begin.request_id = "w", "m"
    begin.workflow_type.name, begin.task_queue.name = "Greeting", "queue"
    begin.workflow_id_conflict_policy = TERMINATE_EXISTING
    update = request.operations.add().update_workflow
    update.request.meta.update_id = "u"
    shard.request("MULTI_OPERATION", request, workflow_id="w")


def delete_namespace(shard: ShardDriver) -> None:
    shard.know_namespace({}, version=2, deleted=True)
    shard.sleep(1)


ENDS = [
    terminate,
    terminate_by_record,
    delete,
    start_over,
    start_over_with_signal,
    start_over_with_update,
    delete_namespace,
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_it_can_be_ended(shard: ShardDriver, end: Callable[[ShardDriver], None]) -> None:
    busy_run(shard)
    run_id = shard.describe().workflow_execution_info.execution.run_id
    quarantine(shard)
    with pytest.raises(StatusError, match="quarantined") as waits:
        shard.signal("waits")
    assert waits.value.code == Code.UNAVAILABLE
    shard.sleep(2)
    end(shard)
    step = next(step for step in shard.steps if any(key.run_id == run_id for key in step.closed))
    assert not shard.steps[-1].quarantined
    assert parked(shard) == []
    if end in (delete, delete_namespace):
        assert not [key for key in rows_of_runs(shard) if run_id.encode() in key]
    else:
        assert shard.history(run_id=run_id).splitlines()[-1].endswith("WorkflowTerminated")
        assert status(shard, "w", run_id) == TERMINATED
    closings = [event for event in visibility(step) if event["run_id"] == run_id]
    assert closings[0]["status"] == 5
    shard.deliver()
    if end is not delete_namespace:
        assert status(shard, "child") == TERMINATED
        shard.sleep(2)
        assert start_again(shard, TERMINATE_EXISTING) != run_id
        shard.signal("fine")


def visibility(step: Any) -> list[dict[str, Any]]:
    values = [row.value for row in step.outputs if row.topic == "visibility"]
    return [codec.decode(value)[1] for value in values]


def test_a_task_that_was_handed_out_before_does_not_stand_in_the_way(shard: ShardDriver) -> None:
    """The record that ends the run brings the task's start along."""
    shard.start()
    handed_out = shard.hand_out()
    assert handed_out is not None
    quarantine(shard)
    request = ws.TerminateWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    body = {"message": request.SerializeToString()}
    shard.append("TERMINATE_WORKFLOW", body, workflow_id="w", start=handed_out.start)
    assert status(shard, "w") == TERMINATED


def test_its_parent_ends_it(shard: ShardDriver) -> None:
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("child"))
    shard.deliver()
    quarantine(shard, "child")
    shard.terminate("parent")
    shard.deliver()
    assert shard.history("child").splitlines()[-1] == "3 WorkflowTerminated"


def test_its_parent_hears_of_its_end(shard: ShardDriver) -> None:
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("child"))
    shard.deliver()
    quarantine(shard, "child")
    shard.terminate("child")
    shard.deliver()
    assert "ChildWorkflowTerminated" in shard.history("parent")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_closed_one_goes_with_its_retention(shard: ShardDriver, damaged: bool) -> None:
    shard.start()
    shard.complete(shard.poll(), complete_workflow())
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(signal, "is_repeated_signal", None)
        shard.replay = False  # a second fold would not stumble
        with pytest.raises(StatusError, match="is quarantined: TypeError"):
            shard.signal()
    with pytest.raises(StatusError, match="quarantined"):
        shard.signal("waits")
    if damaged:
        damage(shard, bad_memo)
    shard.sleep(DAY_S + 1)
    assert rows_of_runs(shard) == []
    assert shard.fold.next_timer() is None


@pytest.mark.parametrize("kind", sorted({*BY_RUN, *BY_NAMESPACE} - {"DELETE_WORKFLOW"} - STARTS))
def test_whatever_raised(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The record's body does not matter: whoever decides it raises at once, and so again in a second fold."""

    def stumble(*_: object) -> None:
        raise KeyError(kind)

    table = BY_RUN if kind in BY_RUN else BY_NAMESPACE
    shard.start()
    with monkeypatch.context() as broken:
        broken.setitem(table, kind, stumble)
        shard.append(kind, BODIES.get(kind, {"message": b""}), workflow_id="w")
        assert [key.workflow_id for key, _ in shard.steps[-1].quarantined] == ["w"]
        if kind == "TERMINATE_WORKFLOW":
            delete(shard)
        else:
            shard.terminate()
            assert status(shard, "w") == TERMINATED
        shard.start()


_START = {"scheduled_event_id": 2, "attempt": 1, "stamp": 1, "request_id": "r", "poll": b"", "task_id": ""}
BODIES: dict[str, dict[str, Any]] = {
    "FIRE_TIMER": {"due_at_ns": 1},
    "START_WORKFLOW_TASK": _START,
    "START_ACTIVITY_TASK": _START,
    "RETURN_TASK": {"task_type": "WORKFLOW", "scheduled_event_id": 2, "attempt": 1, "request_id": "r"},
    "STICKY_WORKER_GONE": {"scheduled_event_id": 2, "stamp": 1},
}


@pytest.mark.parametrize("kind", ["ParentClosed", "Signal", "Cancel", "ChildClosed", "ChildAnswered"])
def test_whatever_message_raised(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def stumble(*_: object) -> None:
        raise KeyError(kind)

    shard.start()
    with monkeypatch.context() as broken:
        broken.setitem(cross_run._DECIDERS, kind, stumble)
        body = {"message_kind": kind, "message": msgpack.packb({})}
        shard.append("CROSS_RUN", body, workflow_id="w")
        assert [key.workflow_id for key, _ in shard.steps[-1].quarantined] == ["w"]
        shard.terminate()
        assert status(shard, "w") == TERMINATED


# ---- who waits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10, PARKED_MAX])
def test_everybody_who_waits_is_answered(shard: ShardDriver, count: int) -> None:
    """Every third is another run's signal, every third a record of `commands`, every third an RPC."""
    shard.replay = count <= 10  # folding the log anew at each step would take an hour
    shard.check_runs = lambda: None
    shard.start()
    quarantine(shard)
    for at in range(count):
        if at % 3 == 0:
            message_to_run(shard, at)
            continue
        request = ws.SignalWorkflowExecutionRequest(signal_name="waits", request_id=f"r{at}")
        request.workflow_execution.workflow_id = "w"
        place = {"source": "COMMANDS", "partition": 0, "epoch": 0, "offset": at, "index": 0}
        body = {"message": request.SerializeToString()}
        shard.append("SIGNAL_WORKFLOW", body, workflow_id="w", origin=place if at % 3 == 1 else None)
    assert len(parked(shard)) == count
    assert parked_counts(shard) == [count]
    shard.terminate()
    assert parked(shard) == []
    assert parked_counts(shard) == []
    step = shard.steps[-1]
    assert step.reply is not None
    assert step.reply.error is None
    answers = [codec.decode_shard_record(row.value) for row in step.outputs if row.topic == "shard-log" and row.value]
    told = [msgpack.unpackb(answer["body"]["message"]) for answer in answers]
    assert told == [{"initiated": at, "cause": 1} for at in range(0, count, 3)], "in the order in which they came"
    refused = [codec.decode(row.value)[1] for row in step.outputs if row.topic == "commands-rejected" and row.value]
    assert [(one["offset"], one["code"]) for one in refused] == [(at, Code.NOT_FOUND) for at in range(1, count, 3)]
    assert [row for row in shard.history().splitlines() if "Signaled" in row] == []
    shard.check_replay()


def message_to_run(shard: ShardDriver, at: int) -> None:
    message = {
        "from": [NAMESPACE_ID, "default", "sender", "run", at],
        "signal_name": "from afar",
        "input": None,
        "header": None,
        "child_only": False,
    }
    body = {"message_kind": "Signal", "message": msgpack.packb(message)}
    shard.append("CROSS_RUN", body, workflow_id="w")


def test_who_waits_for_an_update_hears_of_the_end(shard: ShardDriver) -> None:
    shard.start()
    request = ws.UpdateWorkflowExecutionRequest()
    request.workflow_execution.workflow_id = "w"
    request.request.meta.update_id = "u"
    shard.request("UPDATE_WORKFLOW", request, workflow_id="w")
    quarantine(shard)
    shard.terminate()
    (news,) = shard.steps[-1].updates
    assert news.stage == "aborted"


def test_a_start_is_not_parked_but_meets_a_running_workflow(shard: ShardDriver) -> None:
    run_id = shard.start()
    quarantine(shard)
    with pytest.raises(StatusError) as exists:
        shard.start()
    assert exists.value.code == Code.ALREADY_EXISTS
    assert start_again(shard, enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING) == run_id
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("w"))
    shard.deliver()
    assert "StartChildWorkflowFailed cause=START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS" in (
        shard.history("parent")
    )
    assert parked(shard) == []


def test_it_shows_its_last_good_state(shard: ShardDriver) -> None:
    busy_run(shard)
    before, described = shard.history(), shard.describe()
    quarantine(shard)
    assert shard.history() == before
    (told,) = visibility(shard.steps[-1])
    assert told["status"] == 1
    now = shard.describe()
    problems = now.workflow_execution_info.search_attributes.indexed_fields["TemporalReportedProblems"].data
    assert problems == b'["category=WorkflowQuarantined","cause=KeyError in SIGNAL_WORKFLOW"]'
    assert (now.pending_activities, now.pending_children) == (described.pending_activities, described.pending_children)
    assert now.workflow_execution_info.status == enums.WORKFLOW_EXECUTION_STATUS_RUNNING


# ---- damaged rows ---------------------------------------------------------------------------------------------------


def row_of(shard: ShardDriver, workflow_id: str = "w") -> bytes:
    (key,) = [k for k in rows_of_runs(shard) if k[2:3] == b"r" and f"\0{workflow_id}\0".encode() in k]
    return key


def damage(shard: ShardDriver, change: Callable[[Run], None] | None) -> str:
    """Changes the run's row in the store; without `change`, so that it cannot be read. Returns the run's id."""
    key = row_of(shard)
    shard.replay = False  # a second fold has no such damage
    shard.check_runs = lambda: None
    run = decode_run(shard.store.rows[key])
    if change is None:
        shard.store.rows[key] = b"\xc1"
    else:
        change(run)
        shard.store.rows[key] = encode_run(run)
    shard.fold.cache.drop(key)
    return run.run_id


def bad_buffer(run: Run) -> None:
    run.buffered = [b"\xff"]


def bad_memo(run: Run) -> None:
    run.memo = {"m": b"\xff"}


@pytest.mark.parametrize("change", [bad_buffer, bad_memo, None])
def test_damage_that_nobody_has_met_yet_does_not_either(
    shard: ShardDriver, change: Callable[[Run], None] | None
) -> None:
    shard.start()
    shard.poll()
    damage(shard, change)
    shard.terminate()
    assert status(shard, "w") == TERMINATED


@pytest.mark.parametrize("change", [bad_buffer, bad_memo, None])
def test_damage_to_its_row_does_not_prevent_its_end(shard: ShardDriver, change: Callable[[Run], None] | None) -> None:
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("w"))
    shard.deliver()
    shard.poll("w")
    quarantine(shard)
    run_id = damage(shard, change)
    with pytest.raises(StatusError, match="quarantined") as waits:
        shard.signal("waits")
    assert waits.value.code == Code.UNAVAILABLE
    shard.terminate()
    assert parked(shard) == []
    assert shard.history(run_id=run_id).splitlines()[-1].endswith("WorkflowTerminated")
    info = shard.describe(run_id=run_id).workflow_execution_info
    assert (info.status, info.type.name) == (enums.WORKFLOW_EXECUTION_STATUS_TERMINATED, "Child")
    shard.deliver()
    assert "ChildWorkflowTerminated" in shard.history("parent")
    shard.start()
    shard.sleep(2 * DAY_S)
    assert not [key for key in rows_of_runs(shard) if run_id.encode() in key]


@pytest.mark.parametrize("end", [terminate, delete, start_over], ids=lambda end: end.__name__)
def test_what_not_even_an_event_can_be_written_for_loses_its_rows(
    shard: ShardDriver, end: Callable[[ShardDriver], None]
) -> None:
    shard.start()
    quarantine(shard)

    def bad_parent(run: Run) -> None:
        run.parent = ["not a parent"]

    run_id = damage(shard, bad_parent)
    shard.sleep(2)
    end(shard)
    assert not [key for key in rows_of_runs(shard) if run_id.encode() in key]
    (told, *_) = visibility(shard.steps[-1])
    assert (told["run_id"], told["deleted"]) == (run_id, True)
    assert run_id in [key.run_id for key in shard.steps[-1].closed], "who polls its history is woken"
    if end is not start_over:
        shard.start()


def test_a_run_whose_history_is_damaged_as_well_is_deleted(shard: ShardDriver) -> None:
    shard.start()
    run_id = damage(shard, None)
    for key in rows_of_runs(shard):
        if key[2:3] == b"h":
            shard.store.rows[key] = b"\xff"
    delete(shard)
    assert rows_of_runs(shard) == []
    assert start_again(shard, 0) != run_id


def test_a_run_that_cannot_be_read_stops_nobody_else(shard: ShardDriver) -> None:
    """It waits for its sticky worker and has a timer: both rows are still there, and lead to it."""
    shard.start("other")
    shard.start()
    shard.complete(shard.poll("w"), start_timer("t", 1), **sticky())
    shard.signal()
    damage(shard, None)
    shard.sleep(2)
    assert shard.fold.next_timer() is None
    assert shard.fold.unrecorded_tasks() == []
    assert shard.describe().workflow_execution_info.type.name == "Greeting"
    assert [event.event_id for event in reads.events_of(shard.fold, shard.fold.run(NAMESPACE_ID, "default", "w", ""))]
    at = len(shard.steps)
    shard.append("REPUBLISH_VISIBILITY", {})
    while shard.fold.next_timer() is not None:
        shard.sleep(0.001)
    assert [one["workflow_id"] for step in shard.steps[at:] for one in visibility(step)] == ["other"]
    shard.epoch += 1
    shard.append("SHARD_TAKEN", {"owner": "another"})
    while shard.fold.tasks_to_offer:
        shard.append("OFFER_TASKS_AGAIN", {})
    shard.complete(shard.poll("other"), complete_workflow())
    with pytest.raises(StatusError, match="its row cannot be read; terminate or delete it"):
        raise_reply(shard.append("RELEASE_WORKFLOW", {}, workflow_id="w"))
    shard.terminate()
    assert "WorkflowTerminated" in shard.history()


def raise_reply(step: Any) -> None:
    if step.reply.error is not None:
        raise step.reply.error


# ---- what is no fault of a run's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [RecursionError, MemoryError])
def test_trouble_of_the_process_is_no_verdict(
    shard: ShardDriver, monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]
) -> None:
    """Another interpreter's stack is deeper: a quarantine would be state that other hosts do not have."""
    shard.start()

    def out_of(*_: object) -> None:
        raise trouble

    with monkeypatch.context() as broken:
        broken.setattr(signal, "check_signal", out_of)
        with pytest.raises(trouble):
            shard.signal()
    assert not decode_run(shard.store.rows[row_of(shard)]).quarantined


def test_a_start_that_fails_does_not_set_aside_the_run_in_its_way(
    shard: ShardDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.start()
    shard.replay = False
    with monkeypatch.context() as broken:
        broken.setattr(start, "check_search_attributes", None)
        with pytest.raises(StatusError, match="cannot be changed like this: TypeError in START_WORKFLOW"):
            shard.start(workflow_id_conflict_policy=TERMINATE_EXISTING)
    shard.signal("fine")


def test_a_parent_hears_of_a_child_whose_start_raises(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no run to be set aside, and nobody would ever have answered."""
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("child"))
    monkeypatch.setattr(cross_run, "make_room", None)
    shard.deliver()
    assert "StartChildWorkflowFailed" in shard.history("parent")


@pytest.mark.parametrize("kind", ["Signal", "Cancel", "ParentClosed"])
def test_a_message_that_does_not_even_say_whose_it_is_stops_nobody(shard: ShardDriver, kind: str) -> None:
    shard.append("CROSS_RUN", {"message_kind": kind, "message": msgpack.packb({"from": 1})}, workflow_id="nobody")
    shard.start()


def test_a_namespace_that_a_failed_message_told_is_told_again(
    shard: ShardDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was undone, but not the note that the shard has it: it would have ignored the namespace for ever."""
    shard.start("parent")
    shard.complete(shard.poll("parent"), start_child("child"))
    (value,) = shard.messages
    other = ShardDriver(replay=False)
    del other.fold.meta.namespaces[NAMESPACE_ID]
    other.store.write({keys.namespace(NAMESPACE_ID): None})
    other.fold._namespaces.clear()
    with monkeypatch.context() as broken:
        broken.setattr("everfold.history.machine.decide.cross_run.make_room", None)
        other._fold(value)
    assert other.fold.namespace(NAMESPACE_ID) is None
    other.know_namespace({})
    assert other.fold.namespace(NAMESPACE_ID) is not None
    other.start("child")


def test_a_run_whose_tasks_cannot_be_offered_again_is_set_aside_alone(
    shard: ShardDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.start("other")
    shard.start()

    def bad_priority(run: Run) -> None:
        run.priority = b"\xff"

    damage(shard, bad_priority)
    shard.epoch += 1
    shard.append("SHARD_TAKEN", {"owner": "another"})
    for _ in range(20):
        shard.append("OFFER_TASKS_AGAIN", {})
    assert not shard.fold.tasks_to_offer
    assert [key.workflow_id for step in shard.steps for key, _ in step.quarantined] == ["w"]
    shard.complete(shard.poll("other"), complete_workflow())
    shard.terminate()
    assert "WorkflowTerminated" in shard.history()
