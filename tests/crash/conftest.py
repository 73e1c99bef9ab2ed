"""What the crash tests start: a broker of their own, a server that uses it, workers, and the load."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.load import Load, worker_command
from support.metrics import sample
from support.servers import LOOPBACK, Process, Server, everfold_server, free_port, logs_kept
from support.services import Services

BROKER_HOST = Path(__file__).parent / "broker_host.py"
TASK_QUEUE = "crash"


class Broker(Process):
    """The embedded broker, run by a process that the tests can kill apart from the server."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.bootstrap = f"{LOOPBACK}:{self.port}"
        command = [sys.executable, str(BROKER_HOST), str(directory / "broker"), str(self.port)]
        super().__init__("broker", command, directory / "broker.log")

    def start(self) -> None:
        served = self._times_served()
        super().start()
        deadline = time.monotonic() + 120
        while self._times_served() == served:
            assert self.running, self.tail()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.05)

    def _times_served(self) -> int:
        return self.log.read_text(errors="replace").count(f"serves {self.bootstrap}") if self.log.exists() else 0

    def kill_java(self) -> None:
        """kill -9 of the broker alone; its host starts it again."""
        for process in self.descendants():
            if "java" in process.name():
                process.kill()
                process.wait(20)


class Stand:
    """A broker, a server on it, two workers, and the load."""

    def __init__(self, directory: Path, in_flight: int) -> None:
        self.directory = directory
        self.broker = Broker(directory)
        self.metrics = free_port()
        self.server: Server = everfold_server(
            directory, "--metrics-port", str(self.metrics), kafka=self.broker.bootstrap
        )
        self.workers = [
            Process(f"worker-{n}", worker_command(self.server.address, TASK_QUEUE), directory / f"worker-{n}.log")
            for n in (1, 2)
        ]
        self.load = Load([self.server.address], TASK_QUEUE, in_flight=in_flight)

    def start(self) -> None:
        self.broker.start()
        self.server.start()
        for worker in self.workers:
            worker.start()
        self.load.start()
        self.load.wait_for_progress()

    def stop(self) -> None:
        for process in (*self.workers, self.server, self.broker):
            if process.running:
                process.kill() if process in self.workers else process.stop()

    def counted(self, name: str) -> float:
        """A counter of the server's since its start."""
        return sample(self.metrics, name)


@pytest.fixture
def stand(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand(tmp_path, int(os.environ.get("EVERFOLD_CRASH_IN_FLIGHT", "200")))
    with logs_kept(tmp_path, request):
        try:
            stand.start()
            yield stand
        finally:
            stand.stop()


class Cluster(Services):
    """Two processes of each service on one broker."""

    def __init__(self, directory: Path) -> None:
        self.broker = Broker(directory)
        super().__init__(directory, ["--kafka", self.broker.bootstrap, "--single-broker"], each=2)

    def start(self) -> None:
        self.broker.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        if self.broker.running:
            self.broker.stop()


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    with logs_kept(tmp_path, request):
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
