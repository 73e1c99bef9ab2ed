"""The life of a process: services start in order, stop in reverse order within a budget, signals ask for the stop.

A service is anything with `async start()` and `async stop()`. `start` returns when the service serves; `stop` returns
when it holds nothing any more, and may be called once after a `start` that failed half way. A service that dies by
itself reports to the process's `Supervisor`, which stops everything: half a process is worse than none, since its
shards and partitions would stay with it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, Protocol

import structlog

STOP_BUDGET_S: Final = 4.5
"""All stops of a process together: `start-dev` promises an end within 5 s of SIGTERM, and the interpreter's own exit
(threads, module teardown) takes up to half a second of it."""

PARENT_ENV: Final = "EVERFOLD_PARENT_PID"
"""Set for a child process: it ends when the process of that id does, however that ends."""

log = structlog.get_logger("lifecycle")


class Service(Protocol):
    """Something that a process runs."""

    async def start(self) -> None:
        """Return when the service serves; raise when it cannot."""
        ...

    async def stop(self) -> None:
        """Return when the service holds nothing any more. Called once, also after a failed start."""
        ...


class Fatal(Exception):
    """The process cannot go on. The text says what was found, the likely cause, and what to do."""


@dataclass(frozen=True)
class _Running:
    name: str
    service: Service
    stop_budget_s: float


@dataclass
class Supervisor:
    """Starts services, waits for the end, stops them in reverse order.

    Attributes:
        failure: why the process ends, when it was not asked to.
    """

    failure: BaseException | None = None
    _running: list[_Running] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def start(self, name: str, service: Service, stop_budget_s: float = STOP_BUDGET_S) -> None:
        """Start a service; it will be stopped before those started earlier. Raises what its start raises."""
        self._running.append(_Running(name, service, stop_budget_s))
        began = time.monotonic()
        await service.start()
        log.debug("started", service=name, seconds=round(time.monotonic() - began, 3))

    def end(self, failure: BaseException | None = None) -> None:
        """Ask the process to stop. The first failure given is the one reported. Loop thread only."""
        if failure is not None and self.failure is None:
            self.failure = failure
            log.error("the process must stop", reason=str(failure), error=type(failure).__name__)
        self._ended.set()

    @property
    def ending(self) -> bool:
        """Whether the stop has been asked for."""
        return self._ended.is_set()

    def watch(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a background task whose failure ends the process."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._watched_done)
        return task

    def _watched_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error)

    async def wait_ended(self) -> None:
        """Return when somebody called `end`."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Stop all services, the last started first, within STOP_BUDGET_S over all. Never raises."""
        self._ended.set()
        deadline = time.monotonic() + STOP_BUDGET_S
        for running in reversed(self._running):
            budget = max(0.1, min(running.stop_budget_s, deadline - time.monotonic()))
            began = time.monotonic()
            try:
                await asyncio.wait_for(running.service.stop(), budget)
            except TimeoutError:
                log.warning("did not stop in time", service=running.name, budget_s=round(budget, 2))
            except Exception:
                log.exception("failed to stop", service=running.name)
            else:
                log.debug("stopped", service=running.name, seconds=round(time.monotonic() - began, 3))
        self._running.clear()
        for task in list(self._tasks):
            task.cancel()


def catch_signals(supervisor: Supervisor) -> None:
    """SIGINT and SIGTERM end the process cleanly; a second one ends it at once."""
    loop = asyncio.get_running_loop()

    def once(number: signal.Signals) -> None:
        if supervisor.ending:
            # The clean stop hangs or is too slow for the caller: the log is the truth, so nothing is lost by leaving.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        log.info("stopping", signal=number.name)
        supervisor.end()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, once, number)


def ignore_interrupt(_number: int, _frame: FrameType | None) -> None:
    """For child processes of a terminal's foreground group: Ctrl-C reaches them too, but the parent stops them."""
