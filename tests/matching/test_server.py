"""Matching on a real broker: partitions by group, backlogs read from the topics, calls that find their owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from temporalio.api.taskqueue.v1 import message_pb2 as tq
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.ids import task_partition
from everfold.matching.server import MatchingServer
from everfold.matching.service import MatchingService
from everfold.runtime.cluster_topic import ClusterTopic
from everfold.runtime.kafka import EndOffsets, KafkaSettings, Producer
from everfold.runtime.membership import Member
from everfold.runtime.router import Router
from everfold.runtime.rpc import RpcPool, RpcServer
from everfold.runtime.topics_admin import ClusterShape, apply_topics
from everfold.schemas import codec
from everfold.schemas.topics import ACTIVITY_TASKS, CLUSTER, WORKFLOW_TASKS
from matching.fake_history import FakeHistory

pytestmark = pytest.mark.broker

T = 4


@dataclass
class Node:
    """A process that runs matching."""

    history: FakeHistory
    service: MatchingService
    server: MatchingServer
    topic: ClusterTopic
    rpc: RpcServer
    pool: RpcPool
    router: Router
    producer: Producer
    ends: EndOffsets
    running: bool = True

    async def stop(self) -> None:
        if self.running:
            self.running = False
            await self.server.stop()
            await self.topic.stop()
            await self.pool.stop()
            await self.rpc.stop()
            await self.producer.close()
            self.ends.close()


@asynccontextmanager
async def node(settings: KafkaSettings, name: str) -> AsyncIterator[Node]:
    history = FakeHistory()
    service = MatchingService(history, T)
    rpc = RpcServer({"matching": service})
    await rpc.start()
    producer = Producer(settings, name=name)
    ends = EndOffsets(settings, name=name)
    topic = ClusterTopic(settings, producer, ends, Member(name, address=rpc.address, roles=("matching",)))
    pool = RpcPool()
    router = Router(topic.membership, pool)
    router.add_local("matching", service)
    server = MatchingServer(settings, service, topic.membership)
    made = Node(history, service, server, topic, rpc, pool, router, producer, ends)
    try:
        await topic.start()
        await server.start()
        yield made
    finally:
        await made.stop()


def queue_of(partition: int) -> str:
    """A queue name in that task partition."""
    return next(name for i in range(1000) if task_partition("ns", name := f"q{i}", T) == partition)


def send(node: Node, settings: KafkaSettings, name: str, partition: int, *, void: bool = False) -> None:
    record = {
        "task_id": name,
        "namespace_id": "ns",
        "task_queue": queue_of(partition),
        "workflow_id": name,
        "run_id": f"run-{name}",
        "scheduled_event_id": 2,
        "attempt": 1,
        "stamp": 0,
        "created_at_ns": 1,
        "schedule_to_start_deadline_ns": 0,
        "priority_key": 0,
        "fairness_key": "",
        "fairness_weight": 0.0,
        "shard": 0,
        "origin": None,
        "predecessor": None,
    }
    value = None if void else codec.encode_workflow_task(record)
    node.producer.produce(settings.topic(WORKFLOW_TASKS), partition, name.encode(), value)


async def poll(node: Node, partition: int, timeout: float = 20) -> str:
    request = ws.PollWorkflowTaskQueueRequest(task_queue=tq.TaskQueue(name=queue_of(partition)))
    args = ["ns", request.SerializeToString(), timeout, ""]
    response = await node.router.call("matching", partition, "poll_workflow_task", args, timeout)
    return ws.PollWorkflowTaskQueueResponse.FromString(response).task_token.decode()


async def holding(nodes: list[Node], count: int) -> None:
    """Returns when each node holds that many partitions, all of them loaded."""
    async with asyncio.timeout(40):
        while not all(  # noqa: ASYNC110
            (gauges := node.service.gauges())["task_partitions_owned", ""] == count
            and gauges["task_partitions_loading", ""] == 0
            for node in nodes
        ):
            await asyncio.sleep(0.05)  # a gauge has no event


def test_backlogs_are_whole_again_when_partitions_move(kafka: KafkaSettings) -> None:
    """Two processes share the partitions, tasks reach polls by either; what one leaves the other takes."""

    async def main() -> None:
        shape = ClusterShape(shards=1, task_partitions=T, replication=1, single_broker=True)
        await asyncio.to_thread(apply_topics, kafka, shape, [CLUSTER, WORKFLOW_TASKS, ACTIVITY_TASKS])
        async with node(kafka, "one") as one:
            await holding([one], T)
            for partition in range(T):
                send(one, kafka, f"first-{partition}", partition)
                send(one, kafka, f"void-{partition}", partition)
                send(one, kafka, f"void-{partition}", partition, void=True)
            assert [await poll(one, partition) for partition in range(T)] == [f"first-{p}" for p in range(T)]
            for partition in range(T):
                send(one, kafka, f"first-{partition}", partition, void=True)
                send(one, kafka, f"second-{partition}", partition)

            async with node(kafka, "two") as two:
                await holding([one, two], T // 2)
                # Each asks for the first half by itself, and for the other half over the other process.
                assert sorted(await asyncio.gather(*(poll(two, p) for p in range(T)))) == [
                    f"second-{p}" for p in range(T)
                ]
                waiting = [asyncio.ensure_future(poll(one, p, 40)) for p in range(T)]
                for partition in range(T):
                    send(one, kafka, f"second-{partition}", partition, void=True)
                await two.stop()
                await holding([one], T)
                for partition in range(T):
                    send(one, kafka, f"third-{partition}", partition)
                assert await asyncio.gather(*waiting) == [f"third-{p}" for p in range(T)]

    asyncio.run(main())
