"""The embedded broker's life: its own data directories, its own processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Message

from everfold.runtime.broker import DataDirectoryInUse, DataDirectoryNewer, EmbeddedBroker, StartFailed
from everfold.runtime.broker.embedded import STOP_SECONDS_MAX
from everfold.runtime.kafka import KafkaSettings, LogConsumer, Producer
from everfold.runtime.topics_admin import ClusterShape, apply_topics, check_topics
from everfold.schemas.topics import SHARD_LOG

pytestmark = pytest.mark.broker

SHAPE = ClusterShape(shards=1, task_partitions=1, replication=1, single_broker=True)


def broker(data_dir: Path, **options: object) -> EmbeddedBroker:
    return EmbeddedBroker(data_dir, archive_in_background=False, **options)  # type: ignore[arg-type]


async def write(settings: KafkaSettings, value: bytes) -> int:
    producer = Producer(settings, name="writer")
    message = await producer.deliver(settings.topic(SHARD_LOG), 0, b"key", value)
    await producer.close()
    offset = message.offset()
    assert offset is not None
    return offset


async def read(settings: KafkaSettings, count: int) -> list[bytes]:
    values: list[bytes] = []
    enough = asyncio.Event()

    def take(batch: list[Message]) -> None:
        values.extend(message.value() or b"" for message in batch)
        if len(values) >= count:
            enough.set()

    consumer = LogConsumer(settings, name="reader", on_batch=take)
    await consumer.start()
    consumer.assign(settings.topic(SHARD_LOG), 0, 0)
    async with asyncio.timeout(20):
        await enough.wait()
    await consumer.stop()
    return values


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes set no events
            await asyncio.sleep(0.02)


def test_data_ports_and_cluster_id_survive_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        first = broker(tmp_path)
        await first.start()
        settings = KafkaSettings(first.bootstrap)
        await asyncio.to_thread(apply_topics, settings, SHAPE)
        assert await write(settings, b"before") == 0
        pid = first.pid
        assert pid is not None
        rss = psutil.Process(pid).memory_info().rss
        began = time.monotonic()
        await first.stop()
        assert time.monotonic() - began < STOP_SECONDS_MAX + 0.5
        assert not psutil.pid_exists(pid)
        assert rss < 200 * 1024 * 1024

        second = broker(tmp_path)
        await second.start()
        assert (second.bootstrap, second.cluster_id) == (first.bootstrap, first.cluster_id)
        assert await asyncio.to_thread(check_topics, settings, SHAPE) == []
        assert await write(settings, b"after") == 1
        assert await read(settings, 2) == [b"before", b"after"]
        await second.stop()

    asyncio.run(run())


def test_a_broker_killed_alone_is_started_again_with_its_data(tmp_path: Path) -> None:
    async def run() -> None:
        deaths: list[int] = []
        up = asyncio.Event()
        one = broker(tmp_path, on_down=deaths.append, on_up=up.set)
        await one.start()
        settings = KafkaSettings(one.bootstrap)
        await asyncio.to_thread(apply_topics, settings, SHAPE)
        producer = Producer(settings, name="before and after")
        topic = settings.topic(SHARD_LOG)
        await producer.deliver(topic, 0, b"key", b"before")
        killed = one.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        # Sent while the broker is away, by a producer that knew it before: arrives once, after the restart.
        meanwhile = asyncio.create_task(producer.deliver(topic, 0, b"key", b"meanwhile"))
        async with asyncio.timeout(40):
            await up.wait()
            assert (await meanwhile).offset() == 1
        assert deaths == [-signal.SIGKILL]
        assert one.restarts == 1
        assert one.pid not in (None, killed)
        assert await read(settings, 2) == [b"before", b"meanwhile"]
        await producer.close()
        await one.stop()

    asyncio.run(run())


_SERVER = """
import asyncio, sys
from everfold.runtime.broker import EmbeddedBroker

async def main():
    broker = EmbeddedBroker(sys.argv[1], archive_in_background=False)
    await broker.start()
    print("serves", broker.pid, broker.bootstrap, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_broker_dies_with_a_server_that_is_killed_and_the_next_one_takes_over(tmp_path: Path) -> None:
    async def run() -> None:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _SERVER,
            str(tmp_path),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        try:
            await kill_and_take_over(server)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.kill()

    async def kill_and_take_over(server: asyncio.subprocess.Process) -> None:
        assert server.stdout is not None
        line = b""
        async with asyncio.timeout(60):
            while not line.startswith(b"serves"):
                line = await server.stdout.readline()
        pid, bootstrap = int(line.split()[1]), line.split()[2].decode()
        settings = KafkaSettings(bootstrap)
        await asyncio.to_thread(apply_topics, settings, SHAPE)
        await write(settings, b"before")

        rival = broker(tmp_path)
        with pytest.raises(DataDirectoryInUse, match=f"process {server.pid}"):
            await rival.start()

        server.kill()
        await server.wait()
        successor = broker(tmp_path)
        await successor.start()  # waits for the orphan, if it is still there
        await until(lambda: not psutil.pid_exists(pid), 1)
        assert await read(settings, 1) == [b"before"]
        await successor.stop()

    asyncio.run(run())


def test_an_orphan_that_does_not_go_is_ended_by_the_next_start(tmp_path: Path) -> None:
    """Where the kernel cannot tie child to parent: the lock of the server is free, Kafka's is held."""

    async def run() -> None:
        orphan = broker(tmp_path)
        await orphan.start()
        pid = orphan.pid
        assert pid is not None
        assert orphan._supervisor is not None
        orphan._supervisor.cancel()
        orphan._data.release()
        successor = broker(tmp_path)
        starting = asyncio.create_task(successor.start())
        await until(lambda: not _runs(pid), 20)
        assert orphan._process is not None
        orphan._process.wait()
        await starting
        await successor.stop()

    asyncio.run(run())


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    async def run() -> None:
        one = broker(tmp_path)
        await one.start()
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(one.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 2
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        await one.stop()

    asyncio.run(run())


def test_a_data_directory_of_a_later_version_is_refused(tmp_path: Path) -> None:
    identity = {"layout": 1, "kafka_version": "9.0.0", "cluster_id": "x", "client_port": 1, "controller_port": 2}
    (tmp_path / "broker.json").write_text(json.dumps(identity))
    with pytest.raises(DataDirectoryNewer, match=r"9\.0\.0"):
        asyncio.run(broker(tmp_path).start())


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(StartFailed, match="exit code"):
            await broker(tmp_path, heap_mb=2).start()

    asyncio.run(run())


def test_an_ephemeral_broker_leaves_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        one = broker(tmp_path / "data", ephemeral=True)
        await one.start()
        await one.stop()
        await one.stop()

    asyncio.run(run())
    assert not (tmp_path / "data").exists()
