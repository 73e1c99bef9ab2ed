"""One real Kafka broker for a whole test run, shared by all its workers, and a topic prefix of its own for each test.

The broker is started by a host process of its own (this module run as a program) and not by a worker, so that no
worker's end takes it from the others. Each worker holds a shared lock on a file for as long as it lives; when the host
gets that lock exclusively nobody is left, and it stops the broker. That also holds when workers are killed.

`EVERFOLD_TEST_KAFKA=host:port` uses a broker that runs already.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from everfold.runtime.broker import EmbeddedBroker
from everfold.runtime.kafka import KafkaSettings

START_SECONDS_MAX = 300  # the first time ever, 45 MB of jars are fetched


def _host(directory: Path) -> None:
    """The host process: starts the broker, tells where it is, waits until nobody uses it."""

    async def run() -> None:
        broker = EmbeddedBroker(
            directory / f"data-{os.getpid()}", heap_mb=192, ephemeral=True, archive_in_background=False
        )
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await broker.start()
        staged = directory / "broker.new"
        staged.write_text(json.dumps({"bootstrap": broker.bootstrap, "pid": broker.pid}))
        staged.rename(directory / "broker.json")
        with (directory / "users.lock").open("a") as users:
            while not stopped.is_set():
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    await asyncio.sleep(0.25)
        (directory / "broker.json").unlink()
        await broker.stop()

    asyncio.run(run())


def _join(directory: Path) -> tuple[str, IO[str]]:
    """Starts the host, or finds it started; returns the address, and the file whose lock keeps the broker alive."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / "broker.json"
    with (directory / "start.lock").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        users = (directory / "users.lock").open("a")
        fcntl.flock(users, fcntl.LOCK_SH)
        if not place.is_file():
            with (directory / "host.out").open("ab") as out:
                host = subprocess.Popen(
                    [sys.executable, "-m", "support.broker", str(directory)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                )
            deadline = time.monotonic() + START_SECONDS_MAX
            while not place.is_file():
                if host.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no broker: {(directory / 'host.out').read_text()[-2000:]}")
                time.sleep(0.05)
            # The host outlives this process on purpose; its exit status is nobody's business.
            host.returncode = 0
        return json.loads(place.read_text())["bootstrap"], users


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of the run's broker."""
    given = os.environ.get("EVERFOLD_TEST_KAFKA")
    if given:
        yield given
        return
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    bootstrap, users = _join(run / "kafka")
    yield bootstrap
    users.close()


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A prefix that no other test uses."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60].strip("-")
    return f"{name}-{uuid.uuid4().hex[:8]}."


@pytest.fixture
def kafka(kafka_bootstrap: str, topic_prefix: str) -> KafkaSettings:
    """The run's broker with this test's prefix."""
    return KafkaSettings(kafka_bootstrap, topic_prefix)


if __name__ == "__main__":
    _host(Path(sys.argv[1]))
