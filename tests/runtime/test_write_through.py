"""Whether the embedded broker writes through: as the user says, and as the disk is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from everfold.runtime.broker.write_through import FAST_S, decide, fsync_seconds
from everfold.runtime.topics_admin import ClusterShape
from everfold.schemas.topics import COMMANDS, SHARD_LOG, TOPICS


def slow_disk(monkeypatch: pytest.MonkeyPatch, seconds: float, every: int = 1) -> list[int]:
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) % every == 0:
            time.sleep(seconds)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


def test_a_quick_disk_is_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_disk(monkeypatch, 0.0)
    assert decide(tmp_path / "not-made-yet", wanted=True).on
    assert not list((tmp_path / "not-made-yet").iterdir()), "nothing is left of the question"


def test_now_and_then_a_slow_answer_does_not_make_a_disk_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_disk(monkeypatch, 0.01, every=3)
    assert decide(tmp_path, wanted=True).on


def test_a_slow_disk_is_not_waited_for_and_the_question_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = slow_disk(monkeypatch, 0.2)
    found = decide(tmp_path, wanted=True)
    assert not found.on
    assert "an fsync takes 20" in found.why
    assert len(calls) <= 3, "half a second"
    assert fsync_seconds(tmp_path) > FAST_S


def test_no_fsync_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = slow_disk(monkeypatch, 0.0)
    assert decide(tmp_path, wanted=False) == (False, "--no-fsync")
    assert calls == []


@pytest.mark.parametrize(("write_through", "expected"), [(True, "1"), (False, str(2**63 - 1)), (None, None)])
def test_only_what_workflows_rest_on_is_written_through(write_through: bool | None, expected: str | None) -> None:
    shape = ClusterShape(1, 1, 1, single_broker=True, write_through=write_through)
    asked = {topic.name: shape.config(topic).get("flush.messages") for topic in TOPICS}
    rests_on = {SHARD_LOG.name, COMMANDS.name}
    assert asked == {name: expected if name in rests_on else None for name in asked}
