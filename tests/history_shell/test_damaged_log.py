"""A shard log that others have written to, or that a disk has damaged, on a real broker."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer

from everfold.history import owner
from everfold.history.owner import HistoryServer
from everfold.history.store import set_aside
from everfold.kernel.errors import StatusError
from everfold.runtime.kafka import KafkaSettings
from everfold.runtime.topics_admin import ClusterShape, apply_topics
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import start
from history_shell.test_server import SHARDS, describe, execute, make, until

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]


def junk(kafka: KafkaSettings, shard: int, count: int) -> None:
    """A stock producer that is wrong about where it writes."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(count):
        value = (b"junk", b"\0\0\0\0\x07registry", b"", None)[number % 4]
        producer.produce(kafka.topic(SHARD_LOG), value, b"foreign", shard)
    assert producer.flush(30) == 0


def transactions(kafka: KafkaSettings) -> None:
    """One that commits and one that aborts: each leaves a marker in every shard's log."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": str(uuid.uuid4())})
    producer.init_transactions(30)
    for commit in (True, False):
        producer.begin_transaction()
        for shard in range(SHARDS):
            producer.produce(kafka.topic(SHARD_LOG), b"in a transaction", b"foreign", shard)
        assert producer.flush(30) == 0
        (producer.commit_transaction if commit else producer.abort_transaction)(30)


async def works(server: HistoryServer, name: str) -> None:
    """Workflows start on every shard, and are read behind the end of its log."""
    for number in range(8):
        workflow_id = f"{name}-{number}"
        await execute([server], "START_WORKFLOW", workflow_id, start(workflow_id, f"r-{workflow_id}"))
    for number in range(8):
        await describe(server, f"{name}-{number}")


def test_junk_and_foreign_transactions_stop_no_shard(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "SIGHT_EVERY_S", 0.3)
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        server = make(kafka, tmp_path)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        await works(server, "before")
        tenures = dict(server._tenures)
        shards = {number: held.shard for number, held in server.shards.items()}
        for count in (1, 10, 1000):
            for shard in range(SHARDS):
                await asyncio.to_thread(junk, kafka, shard, count)
            await works(server, f"junk-{count}")
        await asyncio.to_thread(transactions, kafka)
        await works(server, "behind-markers")
        await asyncio.to_thread(transactions, kafka)
        for number in range(8):
            await describe(server, f"before-{number}")  # reads wait for the end of the log, which is a marker
        assert server._tenures == tenures
        assert {number: held.shard for number, held in server.shards.items()} == shards, "no shard was given up"
        await server.stop()
        for lost in (False, True):
            if lost:
                set_aside(server.config.data_dir, 0, "test")
            again = make(kafka, tmp_path)
            await again.start()
            await until(lambda again=again: again.serving == [0, 1])  # type: ignore[misc]
            await describe(again, "before-0")
            await works(again, f"again-{lost}")
            await again.stop()

    asyncio.run(main())


@pytest.mark.skipif("EVERFOLD_TEST_KAFKA" in os.environ, reason="its files are somewhere else")
def test_what_nobody_can_read_holds_up_its_shard_until_an_operator_skips_it(
    kafka: KafkaSettings,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(owner, "SIGHT_EVERY_S", 0.3)
    monkeypatch.setattr(owner, "_PAUSE_MAX_S", 1.0)
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))
    base = tmp_path_factory.getbasetemp()
    broker = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kafka"

    async def begun() -> None:
        server = make(kafka, tmp_path)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        await works(server, "w")
        await server.stop()
        for shard in range(SHARDS):
            set_aside(server.config.data_dir, shard, "test")

    def damage() -> tuple[int, str, str]:
        """Flips a bit of a workflow's start. Returns the shard, that workflow, and one behind it."""
        for shard in range(SHARDS):
            (segment,) = broker.rglob(f"{kafka.topic(SHARD_LOG)}-{shard}/*.log")
            content = segment.read_bytes()
            starts = [found.decode() for found in dict.fromkeys(re.findall(rb"w-[0-7](?=.{0,40}r-w-)", content, re.S))]
            if len(starts) > 1:
                at = content.index(starts[0].encode())
                with segment.open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([content[at] ^ 1]))
                return shard, starts[0], starts[-1]
        raise AssertionError("no shard has two workflows")

    def skip(shard: int, offset: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "everfold.cli", "shard", "skip", str(shard), "--offset", offset]
        more = ["--reason", "bit rot", "--kafka", kafka.bootstrap, "--kafka-prefix", kafka.prefix, *options]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.run(
            command + more, env=environment, input="n\n", capture_output=True, text=True, timeout=60, check=False
        )

    async def stands_still_and_goes_on(shard: int, lost: str, kept: str) -> None:
        server = make(kafka, tmp_path)
        await server.start()
        told = re.compile(rf"everfold shard skip {shard} --offset ([0-9]+) --reason")
        output = ""

        def said() -> bool:
            nonlocal output
            output += capsys.readouterr().out
            return bool(told.search(output))

        await until(said)
        await until(lambda: server.serving == [1 - shard])
        await asyncio.sleep(1.0)
        said()
        assert output.count("checksum of the batch") < 20, "the consumer says it many times a second, the log does not"
        offset = told.findall(output)[0]
        fine = await asyncio.to_thread(skip, shard, "0", "--yes")
        assert fine.returncode
        assert "there is nothing to skip" in fine.stderr
        refused = await asyncio.to_thread(skip, shard, offset)
        assert refused.returncode
        assert f"offsets {offset} to " in refused.stdout
        assert "a batch with a broken checksum" in refused.stdout
        assert "Nothing was changed" in refused.stderr
        done = await asyncio.to_thread(skip, shard, offset, "--yes")
        assert not done.returncode, done.stderr
        await until(lambda: server.serving == [0, 1])
        await describe(server, kept)
        with pytest.raises(StatusError, match="not found"):
            await describe(server, lost)
        await works(server, "after")
        said()
        assert "skipped by an operator: bit rot" in output
        await server.stop()
        set_aside(server.config.data_dir, shard, "test")
        again = make(kafka, tmp_path)
        await again.start()
        await until(lambda: again.serving == [0, 1])
        await describe(again, kept)
        await again.stop()

    asyncio.run(begun())
    asyncio.run(stands_still_and_goes_on(*damage()))
