"""`everfold topology worker` and `everfold worker`: the stream processors here, or in a child of start-dev."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Final

import structlog

from everfold.cli import topics
from everfold.cli.serve import open_data_dir
from everfold.runtime import config
from everfold.runtime.config import OPTIONS, Settings
from everfold.runtime.lifecycle import PARENT_ENV, Fatal

STOP_S: Final = 3.0
"""How long the child may finish its batch; then SIGKILL: its state and position move together, so nothing is lost."""

_BACKOFF_S: Final = (0.2, 1.0, 2.0, 5.0)
"""Pauses between restarts. A processor that cannot go on says why each time, and does not take the server with it."""

_HEALTHY_S: Final = 30.0

log = structlog.get_logger("topology")


def run(settings: Settings) -> None:
    """Run the processors until SIGINT or SIGTERM. Raises Fatal when one cannot go on."""
    from everfold.topology.app import create_app, options_of
    from everfold.topology.worker import run as run_worker

    topics.kafka_settings(settings)
    # A child works in its parent's directory, which the parent holds.
    data = None if PARENT_ENV in os.environ else open_data_dir(settings, default="worker")
    if data is not None:
        data.acquire()
    try:
        status = run_worker(create_app(options_of(settings)))
    finally:
        if data is not None:
            data.release()
    if status:
        raise Fatal("the stream processors stopped; the log says why")


class ProcessorChild:
    """The processors as a child process: on another core, restarted when they die, dying with the server."""

    def __init__(self, settings: Settings) -> None:
        """A child with these settings, not yet started."""
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The child's process id; None while none runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it; it joins its group by itself within seconds, and nothing waits for it."""
        await self._spawn()
        self._supervisor = asyncio.create_task(self._supervise(), name="topology supervisor")

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            log.warning("the processors did not end in time and are killed", pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def end_soon(self) -> None:
        """Ask it to end without waiting; it is not started again."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _spawn(self) -> None:
        ours = {option.env for option in OPTIONS.values()}
        inherited = {name: value for name, value in os.environ.items() if name not in ours}
        environment = {**inherited, **environment_of(self._settings), PARENT_ENV: str(os.getpid())}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "everfold.cli", "topology", "worker"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,  # its logs are on standard error; Faust draws on the other
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then ends the child in order
        )

    async def _supervise(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            began = loop.time()
            status = await self._process.wait()
            failures = 0 if loop.time() - began > _HEALTHY_S else failures + 1
            log.error("the processors died and are started again", exit_code=_named(status))
            await asyncio.sleep(_BACKOFF_S[min(max(failures, 1), len(_BACKOFF_S)) - 1])
            self.restarts += 1
            await self._spawn()


def _named(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else str(status)


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as environment variables: how a child gets exactly its parent's. Defaults are left out."""
    found: dict[str, str] = {config.CONFIG_ENV: ""}
    for option in OPTIONS.values():
        value = getattr(getattr(settings, option.section), option.name)
        if value == option.default or option.section == "broker":
            continue
        if isinstance(value, (dict, tuple)):
            text = json.dumps(value)
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        found[option.env] = text
    return found
