"""Services start in order, stop in reverse, within the budget, whatever fails."""

from __future__ import annotations

import asyncio
import time

import pytest

from everfold.runtime import lifecycle
from everfold.runtime.lifecycle import Supervisor


class Recorded:
    def __init__(self, name: str, events: list[str], fail_start: bool = False, stop_s: float = 0.0) -> None:
        self.name, self.events, self.fail_start, self.stop_s = name, events, fail_start, stop_s

    async def start(self) -> None:
        self.events.append(f"start {self.name}")
        if self.fail_start:
            raise OSError("no")

    async def stop(self) -> None:
        await asyncio.sleep(self.stop_s)
        self.events.append(f"stop {self.name}")


def test_what_started_last_stops_first_and_a_failed_start_is_stopped_too() -> None:
    events: list[str] = []

    async def run() -> None:
        supervisor = Supervisor()
        await supervisor.start("a", Recorded("a", events))
        with pytest.raises(OSError, match="no"):
            await supervisor.start("b", Recorded("b", events, fail_start=True))
        await supervisor.stop()

    asyncio.run(run())
    assert events == ["start a", "start b", "stop b", "stop a"]


def test_a_service_that_hangs_in_its_stop_does_not_hold_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "STOP_BUDGET_S", 0.3)
    events: list[str] = []

    async def run() -> None:
        supervisor = Supervisor()
        await supervisor.start("a", Recorded("a", events))
        await supervisor.start("hangs", Recorded("hangs", events, stop_s=60))
        await supervisor.stop()

    began = time.monotonic()
    asyncio.run(run())
    assert events == ["start a", "start hangs", "stop a"]
    assert time.monotonic() - began < 5


def test_a_watched_task_that_fails_ends_the_process_with_its_error() -> None:
    async def fails() -> None:
        raise RuntimeError("thread died")

    async def run() -> BaseException | None:
        supervisor = Supervisor()
        supervisor.watch("work", fails())
        await supervisor.wait_ended()
        await supervisor.stop()
        return supervisor.failure

    assert "thread died" in str(asyncio.run(run()))
