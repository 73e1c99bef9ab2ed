"""A log that lost its tail: nobody serves it and nothing is changed until an operator has decided."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from damage.workflows import WORKFLOWS, histories, start_workflows, tables
from everfold.history.owner import HistoryServer
from everfold.history.store import shard_directory
from everfold.runtime.cluster_topic import ClusterTopic
from everfold.runtime.kafka import EndOffsets, KafkaSettings, Producer
from everfold.runtime.membership import Member
from everfold.runtime.topics_admin import ClusterShape, apply_topics
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import start
from history_shell.test_server import SHARDS, describe, execute, make, until
from support.servers import everfold_command, everfold_server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

SHAPE = ClusterShape(SHARDS, 2, 1, single_broker=True)


def test_start_dev_ends_with_the_words_and_goes_on_when_told_to_keep_the_log(tmp_path: Path) -> None:
    """The machine lost power: the end of the log was not on the disk yet, the store was."""
    server = everfold_server(tmp_path)
    with server:
        start_workflows(server, "w", WORKFLOWS)
        before = histories(server, "w", WORKFLOWS)
        server.stop()
    kafka, store = tmp_path / "data" / "broker" / "kafka", tmp_path / "data" / "history" / "shard-0000"
    lose_the_end(kafka / "everfold.shard-log-0", bytes_lost=20_000)
    (kafka / ".kafka_cleanshutdown").unlink()
    rows = tables(store)
    server.start_only()
    deadline = time.monotonic() + 120
    while server.running:
        assert time.monotonic() < deadline, server.tail()
        time.sleep(0.1)
    said = server.log.read_text()
    assert "acknowledged records lost by Kafka" in said
    assert "Nothing was changed" in said
    assert "--on-lost-tail keep-log" in said
    assert tables(store) == rows
    assert not list(store.parent.glob("*.set-aside-*"))

    keeping = everfold_server(tmp_path, "--on-lost-tail", "keep-log", name="keeping")
    with keeping:
        (kept,) = store.parent.glob("shard-0000.set-aside-*-store-of-lost-tail")
        assert rows.items() <= tables(kept).items()
        left = WORKFLOWS // 2
        assert histories(keeping, "w", left) == before[:left]
        start_workflows(keeping, "later", 1)


def lose_the_end(partition: Path, bytes_lost: int) -> None:
    segment = max(partition.glob("*.log"))
    content = segment.read_bytes().rstrip(b"\0")
    assert len(content) > 2 * bytes_lost
    segment.write_bytes(content[:-bytes_lost])


class Host:
    """A history process and what it knows of the topic `cluster`."""

    def __init__(self, kafka: KafkaSettings, directory: Path) -> None:
        self._ends, self._producer = EndOffsets(kafka), Producer(kafka, name="membership")
        self.topic = ClusterTopic(kafka, self._producer, self._ends, Member("one", roles=("history",)))
        self.server: HistoryServer = make(kafka, directory, positions=self.topic)

    async def __aenter__(self) -> Host:
        await self.topic.start()
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()
        await self.topic.stop()
        await self._producer.close()
        self._ends.close()


async def repair(kafka: KafkaSettings, shard: int, *options: str) -> tuple[int, str]:
    """`everfold shard repair`: its exit status, and what it said."""
    command = [*everfold_command(), "shard", "repair", str(shard), *options]
    where = ["--kafka", kafka.bootstrap, "--kafka-prefix", kafka.prefix]
    done = await asyncio.to_thread(
        subprocess.run, [*command, *where], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_host_with_an_older_store_stops_and_a_repair_lets_it_go_on(kafka: KafkaSettings, tmp_path: Path) -> None:
    apply_topics(kafka, SHAPE)

    async def main() -> None:
        async with Host(kafka, tmp_path) as host:
            await until(lambda: host.server.serving == [0, 1])
            await execute([host.server], "START_WORKFLOW", "w", start("w", "r"))
            await until(lambda: all(host.topic.latest(shard) is not None for shard in range(SHARDS)))
            status, said = await repair(kafka, 0, "--keep-log")
            assert status == 1
            assert "There is nothing to repair" in said
            # Another host had folded more, and told so, before Kafka lost it.
            known = host.topic.latest(0)
            assert known is not None
            await host.topic.settle(replace(known, offset=known.offset + 50))
        async with Host(kafka, tmp_path) as host:
            await until(lambda: host.server.stopped == {0})
            assert host.server.serving in ([], [1])
            status, said = await repair(kafka, 0, "--keep-store")
            assert status == 1
            assert "It needs snapshots" in said
            status, said = await repair(kafka, 0)
            assert status == 1
            assert "50 acknowledged records lost by Kafka" in said
            assert "Nothing was changed" in said
            status, said = await repair(kafka, 0, "--keep-log")
            assert status == 0, said
            await until(lambda: host.server.serving == [0, 1])
            assert (await describe(host.server, "w")).workflow_execution_info.history_length == 2
        assert not list(host.server.config.data_dir.glob("*.set-aside-*")), "its store was from before the tail"

    asyncio.run(main())


def test_a_topic_that_was_deleted_and_made_again_is_told_apart(kafka: KafkaSettings, tmp_path: Path) -> None:
    apply_topics(kafka, SHAPE)

    async def main() -> None:
        async with Host(kafka, tmp_path) as host:
            await until(lambda: host.server.serving == [0, 1])
            await execute([host.server], "START_WORKFLOW", "w", start("w", "r"))
            await until(lambda: all(host.topic.latest(shard) is not None for shard in range(SHARDS)))
        name = kafka.topic(SHARD_LOG)
        admin = AdminClient(kafka.client("test"))
        admin.delete_topics([name])[name].result(30)
        apply_topics(kafka, SHAPE)
        async with Host(kafka, tmp_path) as host:
            await until(lambda: host.server.stopped == {0, 1})
            data = host.server.config.data_dir
            rows = [tables(shard_directory(data, shard)) for shard in range(SHARDS)]
            for shard in range(SHARDS):
                status, said = await repair(kafka, shard, "--keep-log")
                assert status == 0, said
                assert "the topic was deleted and made again" in said
            await until(lambda: host.server.serving == [0, 1])
            for shard in range(SHARDS):
                (kept,) = data.glob(f"shard-000{shard}.set-aside-*-store-of-lost-tail")
                assert rows[shard].items() <= tables(kept).items()

    asyncio.run(main())
