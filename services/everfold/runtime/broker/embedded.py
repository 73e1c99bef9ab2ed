"""The broker as a child process: start, readiness, supervision, stop.

    stopped --start--> starting --answers--> serving --exits--> down --backoff--> starting ...
    any state --stop--> stopped

Only `start` reports a failure to its caller. Once the broker has served, a death is repaired: it is started again on
the same ports and data, so that clients simply reconnect. The process is tied to this one (`configuration.tied_to`);
since the kernel ties it to the *thread* that started it, start and restarts happen on the event loop's thread, which
must outlive the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from everfold.runtime.broker.classdata import archive_path, build_archive
from everfold.runtime.broker.configuration import HOST, Ports, Runtime, java_command, tied_to
from everfold.runtime.broker.errors import BrokerError, StartFailed
from everfold.runtime.broker.jars import Progress, installation_dir
from everfold.runtime.broker.prepare import Prepared, prepare, template_path
from everfold.runtime.broker.process import exited, wait_exit
from everfold.runtime.broker.storage import DataDirectory
from everfold.runtime.broker.wire import serves
from everfold.runtime.scheduling import starting_threads_that_give_way

HEAP_MB: Final = 256
"""Kafka alone runs in 64; the rest is for 8 MiB records in flight. Committed on demand, so RSS stays near 170 MB."""

START_SECONDS_MAX: Final = 90.0
"""3 s usually; recovery after a kill -9 takes 13 ms per partition, more on a busy machine."""

STOP_SECONDS_MAX: Final = 2.5
"""Clean ends take 0.6 s. Then SIGKILL, within the 5 s that the whole server has: what was written stays written."""

_BACKOFF_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between restarts; the first is at once, as a single death is usually an accident."""

_HEALTHY_S: Final = 30.0
"""A broker that served this long starts the backoff over."""

_ARCHIVE_DELAY_S: Final = 60.0
"""A start without class archive makes one in the background, but not while the user's first workflows run."""

log = structlog.get_logger("broker")


class EmbeddedBroker:
    """A Kafka broker of our own, for one machine.

    Attributes:
        restarts: how often the broker died alone and was started again.
        on_down: called on the loop when the broker died alone, with its exit code (negative: the signal).
        on_up: called on the loop when it serves again.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int = 0,
        heap_mb: int = HEAP_MB,
        ephemeral: bool = False,
        archive_in_background: bool = True,
        progress: Progress | None = None,
        on_down: Callable[[int], None] | None = None,
        on_up: Callable[[], None] | None = None,
    ) -> None:
        """A broker over a data directory, not yet started.

        Args:
            data_dir: made when missing; a relative path is taken from the present directory.
            port: the client port, or 0 for a free one, which later starts use again if they can.
            heap_mb: bound on the Java heap.
            ephemeral: whether `stop` removes the data directory.
            archive_in_background: whether a start without class archive has one made a minute later, at low priority.
            progress: told what is being fetched; nothing is said when all is cached.
            on_down: see the class.
            on_up: see the class.
        """
        self.restarts = 0
        self.on_down = on_down
        self.on_up = on_up
        self._data = DataDirectory(Path(data_dir).absolute())
        self._port = port
        self._heap_mb = heap_mb
        self._ephemeral = ephemeral
        self._archive_in_background = archive_in_background
        self._progress = progress or (lambda text: log.info(text))
        self._runtime: Runtime | None = None
        self._ports: Ports | None = None
        self._cluster_id = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._archiver: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients. Known once started, and the same over restarts."""
        assert self._ports is not None, "the broker was not started"
        return f"{HOST}:{self._ports.client}"

    @property
    def pid(self) -> int | None:
        """The broker's process id; None while none runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def cluster_id(self) -> str:
        """Kafka's cluster id, kept in the data directory."""
        return self._cluster_id

    async def start(self) -> None:
        """Starts the broker and returns when it serves.

        Raises:
            BrokerError: it cannot be had; see `broker.errors` for the kinds.
        """
        assert self._supervisor is None, "the broker was started before"
        began = time.monotonic()
        prepared: Prepared = await asyncio.to_thread(prepare, self._progress, archive=False)
        self._runtime = prepared.runtime
        await asyncio.to_thread(self._data.acquire)
        try:
            await self._first_start()
        except BaseException:
            await self._end_process()
            self._data.release()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="broker supervisor")
        if prepared.runtime.archive is None and self._archive_in_background:
            self._archiver = asyncio.create_task(self._archive_later(prepared.runtime), name="broker class archive")
        log.info("broker serves", bootstrap=self.bootstrap, pid=self.pid, seconds=round(time.monotonic() - began, 2))

    async def stop(self) -> None:
        """Ends the broker cleanly, after `STOP_SECONDS_MAX` by force. Safe to call twice, and after a failed start."""
        self._stopping = True
        for task in (self._supervisor, self._archiver):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._supervisor = self._archiver = None
        await self._end_process()
        self._data.release()
        if self._ephemeral:
            await asyncio.to_thread(shutil.rmtree, self._data.path, True)

    async def _first_start(self) -> None:
        assert self._runtime is not None
        for attempt in range(3):
            identity, self._ports = await asyncio.to_thread(
                self._data.prepare, self._runtime, template_path(), self._port
            )
            self._cluster_id = identity.cluster_id
            self._spawn()
            try:
                await self._until_serving()
                return
            except StartFailed:
                # Between the look at a port and Kafka's bind another process can take it; with a port of our choice
                # the next attempt chooses again.
                if attempt == 2 or self._port or "Address already in use" not in self._data.last_words():
                    raise

    def _spawn(self) -> None:
        assert self._runtime is not None
        command = java_command(
            self._runtime,
            "kafka.Kafka",
            [str(self._data.properties_file)],
            heap_mb=self._heap_mb,
            options=[f"-Deverfold.broker.log={self._data.log_file}", f"-XX:ErrorFile={self._data.path}/java-crash.log"],
        )
        theirs = ("KAFKA_", "JAVA_TOOL")  # meant for another Java program; would change this one's flags
        environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        # glibc gives each thread a heap of its own, which costs a JVM with 60 threads tens of megabytes.
        environment["MALLOC_ARENA_MAX"] = "2"
        # The broker wakes at every request, and would stop the event loop in the middle of its turn.
        with self._data.out_file.open("wb") as out, starting_threads_that_give_way():
            self._process = subprocess.Popen(
                tied_to(os.getpid(), command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which then ends the broker in order
            )
        self._data.note_pid(self._process.pid)

    async def _until_serving(self) -> None:
        assert self._process is not None
        assert self._ports is not None
        process = self._process
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise StartFailed(
                    f"The Kafka broker ended with exit code {process.returncode} while starting. "
                    f"Its log is {self._data.log_file}; the end of it:\n{self._data.last_words()}"
                )
            if await serves(HOST, self._ports.client):
                return
            await exited(process, 0.05)
        await self._end_process()
        raise StartFailed(
            f"The Kafka broker did not answer within {START_SECONDS_MAX:.0f} s. "
            f"Its log is {self._data.log_file}; the end of it:\n{self._data.last_words()}"
        )

    async def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            if not await exited(process, STOP_SECONDS_MAX):
                log.warning("broker did not end in time and is killed", pid=process.pid)
                process.kill()
                await wait_exit(process)
        self._data.note_pid(None)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            process = self._process
            assert process is not None
            served_since = time.monotonic()
            await wait_exit(process)
            if time.monotonic() - served_since > _HEALTHY_S:
                failures = 0
            log.error("broker died", pid=process.pid, exit_code=process.returncode, log=str(self._data.log_file))
            if self.on_down is not None:
                self.on_down(process.returncode)
            while True:
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                try:
                    self._spawn()
                    await self._until_serving()
                    break
                except (BrokerError, OSError) as error:
                    log.error("broker did not start again", error=str(error))
            self.restarts += 1
            log.warning("broker serves again", pid=self.pid, restarts=self.restarts)
            if self.on_up is not None:
                self.on_up()

    async def _archive_later(self, runtime: Runtime) -> None:
        await asyncio.sleep(_ARCHIVE_DELAY_S)
        try:
            await build_archive(runtime, archive_path(installation_dir(), runtime.java), niceness=19)
        except (BrokerError, OSError) as error:
            log.warning("no class archive; broker starts stay slower", error=str(error))
