"""The history process on a real broker: RocksDB, confluent-kafka, the group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history import owner
from everfold.history.config import HistoryConfig
from everfold.history.machine.shard_fold import ShardFold
from everfold.history.machine.step import TaskOffer
from everfold.history.machine_reads import MachineReads
from everfold.history.namespaces import RegistryNamespaces
from everfold.history.owner import HistoryServer
from everfold.history.stopped import PositionTopic
from everfold.history.store import set_aside, shard_directory
from everfold.kernel.errors import StatusError, UnknownFeatureLevel
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.ids import record_key
from everfold.runtime.kafka import KafkaSettings
from everfold.runtime.namespaces import STATE_DELETED, InMemoryNamespaces, Namespace, NamespaceRegistry
from everfold.runtime.rpc import NotOwner
from everfold.runtime.topics_admin import ClusterShape, apply_topics
from everfold.schemas.topics import COMMANDS
from history_shell.messages import run_id_of, signal, start
from history_shell.test_ingress import command
from history_shell.world import NAMESPACE, NAMESPACE_ID

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

SHARDS = 2


class NoMatching:
    def __init__(self) -> None:
        self.offers: list[TaskOffer] = []

    async def query(self, namespace_id: str, queue: str, sticky_queue: str, query_task: bytes, timeout: float) -> bytes:
        raise AssertionError("nobody queries")

    def offer(self, task: TaskOffer) -> None:
        self.offers.append(task)


DEFAULT = Namespace(NAMESPACE_ID, NAMESPACE, retention_ns=86_400_000_000_000)


def make(
    kafka: KafkaSettings,
    data_dir: Path,
    name: str = "one",
    registry: NamespaceRegistry | None = None,
    feature_level: int = 0,
    positions: PositionTopic | None = None,
) -> HistoryServer:
    registry = registry or InMemoryNamespaces(DEFAULT)
    config = HistoryConfig("cluster-1", SHARDS, data_dir / name, name, feature_level)
    namespaces = RegistryNamespaces(registry)
    return HistoryServer(kafka, config, namespaces, MachineReads(), NoMatching(), positions=positions)


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def execute(servers: list[HistoryServer], kind: str, workflow_id: str, message: bytes) -> bytes:
    """As the router does: whoever has the shard, also while it moves."""
    async with asyncio.timeout(30):
        while True:
            for server in servers:
                try:
                    return await server.service.execute(kind, NAMESPACE_ID, workflow_id, "", message, 10)
                except NotOwner:
                    continue
                except StatusError as error:
                    if error.code.name != "UNAVAILABLE":
                        raise
            await asyncio.sleep(0.05)


async def describe(server: HistoryServer, workflow_id: str) -> ws.DescribeWorkflowExecutionResponse:
    request = ws.DescribeWorkflowExecutionRequest(namespace=NAMESPACE)
    request.execution.workflow_id = workflow_id
    return ws.DescribeWorkflowExecutionResponse.FromString(
        await server.service.describe(NAMESPACE_ID, request.SerializeToString(), 10)
    )


def test_shards_are_taken_serve_survive_a_restart_and_a_lost_store(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "OWN_CONSUMER_LAG", 5)  # without its store a shard catches up alone
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        server = make(kafka, tmp_path)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        run_ids = {}
        for number in range(10):
            response = await execute([server], "START_WORKFLOW", f"w{number}", start(f"w{number}", f"r{number}"))
            run_ids[f"w{number}"] = run_id_of(response)
        await asyncio.gather(
            *(execute([server], "SIGNAL_WORKFLOW", "w0", signal("w0", f"s{number}")) for number in range(20))
        )
        await server.stop()
        for attempt in ("again", "set aside"):
            if attempt == "set aside":
                set_aside(server.config.data_dir, 0, "test")
            again = make(kafka, tmp_path)
            await again.start()
            await until(lambda again=again: again.serving == [0, 1])  # type: ignore[misc]
            for workflow_id, run_id in run_ids.items():
                assert (await describe(again, workflow_id)).workflow_execution_info.execution.run_id == run_id
            assert (await describe(again, "w0")).workflow_execution_info.history_length == 22
            await execute([again], "SIGNAL_WORKFLOW", "w1", signal("w1", attempt))
            await again.stop()
        assert shard_directory(server.config.data_dir, 0).exists()

    asyncio.run(main())


def test_a_namespace_deleted_elsewhere_takes_its_workflows_along(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "SIGHT_EVERY_S", 0.2)
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        registry = InMemoryNamespaces(DEFAULT)
        server = make(kafka, tmp_path, registry=registry)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        for number in range(10):
            await execute([server], "START_WORKFLOW", f"w{number}", start(f"w{number}", f"r{number}"))
        folds = [held.shard.fold for held in server.shards.values()]

        def open_runs() -> int:
            found = (fold.run(NAMESPACE_ID, NAMESPACE, f"w{number}", "") for fold in folds for number in range(10))
            return sum(run is not None for run in found)

        assert open_runs() == 10
        registry.put(replace(DEFAULT, version=2, state=STATE_DELETED, deleted=True))
        await until(lambda: open_runs() == 0)
        await until(lambda: all(fold.next_timer() is None for fold in folds))
        await server.stop()

    asyncio.run(main())


def test_a_build_that_is_too_old_for_the_log_ends_and_leaves_the_shards_to_a_newer_one(
    kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))
    level = FEATURE_LEVEL + 1

    async def main() -> None:
        first = make(kafka, tmp_path, "first")
        await first.start()
        await until(lambda: first.serving == [0, 1])
        await first.stop()
        newer = make(kafka, tmp_path, "newer", feature_level=level)
        with monkeypatch.context() as patched:
            patched.setattr(owner, "ShardFold", partial(ShardFold, feature_level_known=level))
            await newer.start()
            await until(lambda: newer.serving == [0, 1])
            ends: list[BaseException] = []
            old = make(kafka, tmp_path, "old")
            old.on_fatal = ends.append
            patched.setattr(owner, "ShardFold", ShardFold)
            await old.start()
            await until(lambda: ends)
            assert isinstance(ends[0], UnknownFeatureLevel)
            assert f"is at feature level {level}, this build knows {FEATURE_LEVEL}" in str(ends[0])
            patched.setattr(owner, "ShardFold", partial(ShardFold, feature_level_known=level))
            await old.stop()
            await until(lambda: newer.serving == [0, 1])
            await execute([newer], "START_WORKFLOW", "w", start("w", "r"))
            await newer.stop()

    asyncio.run(main())


def test_a_quarantined_run_is_released(kafka: KafkaSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        server = make(kafka, tmp_path)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        await execute([server], "START_WORKFLOW", "w", start("w", "r"))
        with pytest.raises(StatusError, match="workflow w is not quarantined"):
            await execute([server], "RELEASE_WORKFLOW", "w", b"")
        with pytest.raises(StatusError, match="not found"):
            await execute([server], "RELEASE_WORKFLOW", "nobody", b"")
        with monkeypatch.context() as broken:
            broken.setattr("everfold.history.machine.decide.signal.check_signal", None)
            with pytest.raises(StatusError, match="workflow w is quarantined"):
                await execute([server], "SIGNAL_WORKFLOW", "w", signal("w", "bad"))
        assert await execute([server], "RELEASE_WORKFLOW", "w", b"") == b""
        await execute([server], "SIGNAL_WORKFLOW", "w", signal("w", "good"))
        await server.stop()

    asyncio.run(main())


def test_a_record_on_commands_from_an_ordinary_producer_starts_a_workflow(kafka: KafkaSettings, tmp_path: Path) -> None:
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        server = make(kafka, tmp_path)
        await server.start()
        await until(lambda: server.serving == [0, 1])
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "partitioner": "murmur2_random"})
        wrong = Producer({"bootstrap.servers": kafka.bootstrap})
        topic = kafka.topic(COMMANDS)
        for number in range(4):
            producer.produce(topic, command("StartWorkflow", f"c{number}"), record_key(NAMESPACE, f"c{number}"))
            for partition in range(SHARDS):  # one of them is the wrong one
                wrong.produce(topic, command("StartWorkflow", f"d{number}", request_id="x"), b"", partition)
        producer.produce(topic, b"nonsense", b"c0")
        await asyncio.to_thread(producer.flush)
        await asyncio.to_thread(wrong.flush)

        async def started(workflow_id: str) -> None:
            while True:
                try:
                    await describe(server, workflow_id)
                except StatusError:
                    await asyncio.sleep(0.02)
                else:
                    return

        async with asyncio.timeout(30):
            for number in range(4):
                await started(f"c{number}")
                await started(f"d{number}")
        await server.stop()

    asyncio.run(main())


def test_a_process_that_leaves_hands_its_shards_to_the_other(kafka: KafkaSettings, tmp_path: Path) -> None:
    apply_topics(kafka, ClusterShape(SHARDS, 2, 1, single_broker=True))

    async def main() -> None:
        one, two = make(kafka, tmp_path, "one"), make(kafka, tmp_path, "two")
        await one.start()
        await until(lambda: one.serving == [0, 1])
        await two.start()
        await until(lambda: len(one.serving) == 1 and len(two.serving) == 1)
        acknowledged = []
        for number in range(10):
            response = await execute([one, two], "START_WORKFLOW", f"w{number}", start(f"w{number}", f"r{number}"))
            acknowledged.append((f"w{number}", run_id_of(response)))
        await one.stop()
        await until(lambda: two.serving == [0, 1])
        for workflow_id, run_id in acknowledged:
            assert (await describe(two, workflow_id)).workflow_execution_info.execution.run_id == run_id
        await two.stop()

    asyncio.run(main())
