"""The worker service keeps its child running, with a child that writes down its lives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from everfold.runtime.lifecycle import PARENT_ENV
from everfold.worker import server
from everfold.worker.server import WorkerServer

CHILD = """
import os, signal, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "a") as lives:
    lives.write(f"{os.getpid()} {os.environ['EVERFOLD_PARENT_PID']} {os.environ['EXTRA']}\\n")
time.sleep(60)
"""


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def worker(lives: Path, *arguments: str, after: asyncio.Event | None = None) -> WorkerServer:
    return WorkerServer([sys.executable, "-c", CHILD, str(lives), *arguments], {"EXTRA": "given"}, after=after)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_child_that_dies_is_started_again_and_ends_with_the_service(tmp_path: Path) -> None:
    lives = tmp_path / "lives"

    async def run() -> None:
        service = worker(lives)
        await service.start()
        for life in (1, 2):
            await until(lambda life=life: lives.exists() and len(lives.read_text().splitlines()) == life)  # type: ignore[misc]
            assert service.pid is not None
            os.kill(service.pid, signal.SIGKILL)
        await until(lambda: len(lives.read_text().splitlines()) == 3)
        assert service.restarts == 2
        last = service.pid
        assert last is not None
        await service.stop()
        assert service.pid is None
        assert not alive(last)

    asyncio.run(run())
    assert {line.split()[1:][1] for line in lives.read_text().splitlines()} == {"given"}
    assert {int(line.split()[1]) for line in lives.read_text().splitlines()} == {os.getpid()}


def test_a_child_may_be_started_later_and_a_service_stopped_before(tmp_path: Path) -> None:
    lives = tmp_path / "lives"

    async def run() -> None:
        after = asyncio.Event()
        service = worker(lives, after=after)
        await service.start()
        await asyncio.sleep(0.3)
        assert service.pid is None
        after.set()
        await until(lambda: lives.exists() and len(lives.read_text().splitlines()) == 1)
        assert service.restarts == 0
        await service.stop()
        never = worker(lives, after=asyncio.Event())
        await never.start()
        await never.stop()

    asyncio.run(run())
    assert len(lives.read_text().splitlines()) == 1


def test_a_start_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE, ENOMEM, EAGAIN: the machine has nothing to start a process with, and a minute later it has."""
    lives = tmp_path / "lives"
    spawn, refused = asyncio.create_subprocess_exec, []

    async def refuse(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        if len(refused) < 3:
            refused.append(OSError(24, "Too many open files"))
            raise refused[-1]
        return await spawn(*arguments, **options)  # type: ignore[arg-type]

    async def run() -> None:
        monkeypatch.setattr(server, "RESTART_AFTER_S", (0.01,))
        service = worker(lives)
        await service.start()
        await until(lambda: lives.exists() and len(lives.read_text().splitlines()) == 1)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
        assert service.pid is not None
        os.kill(service.pid, signal.SIGKILL)
        await until(lambda: len(lives.read_text().splitlines()) == 2)
        assert len(refused) == 3
        assert service.restarts == 1
        await service.stop()

    asyncio.run(run())


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_WITHIN_S", 0.2)

    async def run() -> None:
        service = worker(tmp_path / "lives", "stubborn")
        await service.start()
        await until(lambda: (tmp_path / "lives").exists())
        pid = service.pid
        assert pid is not None
        await service.stop()
        assert not alive(pid)

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_a_process_tied_to_its_parent_ends_with_it(tmp_path: Path) -> None:
    child = f"""
import os, pathlib, time
from everfold.topology.worker import die_with_parent
die_with_parent()
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    parent = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}], env={{**os.environ, {PARENT_ENV!r}: str(os.getpid())}})
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", parent], env=environment) as process:
        asyncio.run(until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text() != "", 20))
        process.kill()
        process.wait()
    pid = int((tmp_path / "child").read_text())
    asyncio.run(until(lambda: not alive(pid)))
