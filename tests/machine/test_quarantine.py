"""A run that the machine stumbles over is set aside; its shard goes on, and a release takes it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from shard_driver import DictRows, ShardDriver, complete_workflow, record_marker, start_timer

from everfold.history.machine.context import StepContext
from everfold.history.machine.decide import signal
from everfold.history.machine.step import Guards
from everfold.kernel.errors import Code, StatusError
from everfold.schemas.topics import WORKFLOW_TASKS

Quarantine = Callable[[str], None]


@pytest.fixture
def quarantine(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> Quarantine:
    """Appends a record that the machine stumbles over: a signal of that name."""
    record_signal = signal.record_signal

    def stumbling(turn: object, request: object, input_: object) -> None:
        if request.signal_name == stumbling.over:  # type: ignore[attr-defined]
            raise KeyError("defect")
        record_signal(turn, request, input_)  # type: ignore[arg-type]

    stumbling.over = ""  # type: ignore[attr-defined]
    monkeypatch.setattr(signal, "record_signal", stumbling)
    shard.replay = False  # a second fold would stumble over other records

    def begin(name: str) -> None:
        stumbling.over = name  # type: ignore[attr-defined]
        with pytest.raises(StatusError, match="quarantined"):
            shard.signal(name)
        stumbling.over = "again"  # type: ignore[attr-defined]

    return begin


def test_one_run_is_set_aside_and_a_release_goes_on(shard: ShardDriver, quarantine: Quarantine) -> None:
    shard.start()
    shard.start("other")
    quarantine("bad")
    ((_, told),) = shard.steps[-1].quarantined
    assert "test_quarantine.py:" in told
    assert "defect" not in told, "an exception's text may hold payloads"
    with pytest.raises(StatusError, match=r"is quarantined: KeyError in SIGNAL_WORKFLOW$") as parked:
        shard.signal("waits")
    assert parked.value.code == Code.UNAVAILABLE
    shard.signal("fine", workflow_id="other")
    assert "signal_name" not in shard.history()
    shard.append("RELEASE_WORKFLOW", {}, workflow_id="w")
    assert shard.history().splitlines()[-1].endswith("signal_name=waits")


def test_a_record_is_parked_without_a_look_at_those_that_wait_already(
    shard: ShardDriver, quarantine: Quarantine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard.start()
    quarantine("bad")
    for _ in range(3):
        with pytest.raises(StatusError, match="quarantined"):
            shard.signal("waits")
    scan = DictRows.scan

    def guarded(self: DictRows, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        assert start[2:3] != b"p", "each of them may have megabytes"
        return scan(self, start, end, reverse=reverse)

    monkeypatch.setattr(DictRows, "scan", guarded)
    with pytest.raises(StatusError, match="quarantined"):
        shard.signal("waits")
    monkeypatch.undo()


def test_a_release_survives_a_completion_that_is_refused(shard: ShardDriver, quarantine: Quarantine) -> None:
    shard.start()
    task = shard.poll()
    quarantine("bad")
    with pytest.raises(StatusError, match="quarantined"):
        shard.complete(task, record_marker(""))
    with pytest.raises(StatusError, match="quarantined"):
        shard.signal("waits")
    shard.append("RELEASE_WORKFLOW", {}, workflow_id="w")
    assert "WorkflowTaskFailed cause=BAD_RECORD_MARKER_ATTRIBUTES" in shard.history()
    assert "signal_name=waits" in shard.history()
    shard.complete(shard.poll(), start_timer("t", 1))
    shard.sleep(2)
    assert "TimerFired" in shard.history()


def test_what_is_still_defective_after_a_release_is_set_aside_again(shard: ShardDriver, quarantine: Quarantine) -> None:
    shard.start()
    quarantine("bad")
    for name in ("first", "again", "last"):
        with pytest.raises(StatusError, match="quarantined"):
            shard.signal(name)
    step = shard.append("RELEASE_WORKFLOW", {}, workflow_id="w")
    assert step.reply is not None
    assert step.reply.error is not None
    assert "quarantined again" in step.reply.error.message
    assert [key.workflow_id for key, _ in step.quarantined] == ["w"]
    assert shard.history().splitlines()[-1].endswith("signal_name=first")
    with pytest.raises(StatusError, match="quarantined"):
        shard.signal("parked")
    shard.append("RELEASE_WORKFLOW", {}, workflow_id="w")
    names = [line.split("=")[1] for line in shard.history().splitlines() if "signal_name" in line]
    assert names == ["first", "last", "parked"]
    shard.complete(shard.poll(), complete_workflow())


def test_a_step_goes_back_to_its_savepoint_and_no_further(shard: ShardDriver) -> None:
    fold = shard.fold
    ctx = StepContext(fold.meta, fold.rows, fold.cache, Guards(), {}, 0, len(shard.log), shard.now_ns)
    ctx.rows.put(b"kept", b"1")
    ctx.emit_tombstone(WORKFLOW_TASKS, 0, b"first")
    kept = ctx.new_id()
    ctx.savepoint()
    ctx.rows.put(b"kept", b"2")
    ctx.emit_tombstone(WORKFLOW_TASKS, 0, b"undone")
    undone = ctx.new_id()
    ctx.go_back()
    ctx.emit_tombstone(WORKFLOW_TASKS, 0, b"second")
    assert ctx.rows.get(b"kept") == b"1"
    assert [(row.key, row.origin.index) for row in ctx.step.outputs] == [(b"first", 0), (b"second", 1)]
    assert kept != undone == ctx.new_id()
    ctx.go_back()
    assert [row.key for row in ctx.step.outputs] == [b"first"]
