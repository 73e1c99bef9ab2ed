"""Keeps the stream processors running, in a child process: another core, another heap, restarted when they die.

A processor whose surroundings fail it ends its process, because skipping a record would be worse. It is started again,
less and less often while it keeps dying, or while there is nothing to start it with (no memory, no file descriptors):
from its stored position it either gets further or says once more what is in its way, and the engine itself is not in
need of it. Which command that is, the caller says: no service knows the topology.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from everfold.runtime.lifecycle import PARENT_ENV

STOP_WITHIN_S: Final = 3.0
"""How long the child may take to finish its batch; then it is killed: state and position move together, so nothing is
lost. Below the 4.5 s that all services of a process have to stop."""

RESTART_AFTER_S: Final = (0.2, 1.0, 2.0, 5.0, 15.0)
"""Pause before the first, second, … restart in a row; the last one repeats."""

HEALTHY_AFTER_S: Final = 30.0
"""A child that lived so long has got over what killed the one before."""

log = structlog.get_logger("worker")


class WorkerServer:
    """Runs a command for as long as it is started."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        after: asyncio.Event | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            command: the program and its arguments.
            environment: variables besides this process's own.
            after: the child is started when this is set; at once without it. It loads for seconds, in which whoever
                starts beside it would wait for a processor.
        """
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._after = after
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; None while none runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Starts the child; it joins its consumer group by itself within seconds, and nothing waits for it."""
        if self._after is None:
            await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name="worker supervisor")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL. Returns when the child is gone."""
        self.end_soon()
        if self._supervisor is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        process = self._process
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            log.warning("the processors did not end in time and are killed", pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def end_soon(self) -> None:
        """Asks the child to end, without waiting; it is not started again."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self.pid is not None:
            assert self._process is not None
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **self._environment, PARENT_ENV: str(os.getpid())},
            start_new_session=True,  # Ctrl-C in a terminal is for the parent, which then ends the child in order
        )

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        if self._after is not None:
            await self._after.wait()
            failures = await self._spawned(failures)
        while True:
            if self._process is not None:
                began = loop.time()
                status = await self._process.wait()
                failures = 1 if loop.time() - began > HEALTHY_AFTER_S else failures + 1
                log.error("the processors died and are started again", exit=_named(status), in_a_row=failures)
            await asyncio.sleep(RESTART_AFTER_S[min(failures, len(RESTART_AFTER_S)) - 1])
            self._process = None
            before, failures = failures, await self._spawned(failures)
            if failures == before:
                self.restarts += 1

    async def _spawned(self, failures: int) -> int:
        """Starts the child. Returns the failures in a row, one more if it cannot be started."""
        try:
            await self._spawn()
        except Exception as error:  # of this machine, and it may pass: without a supervisor it would be for ever
            failures += 1
            log.error("the processors cannot be started; trying again", error=str(error), in_a_row=failures)
        return failures


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else str(status)
