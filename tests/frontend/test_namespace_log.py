"""The registry fed from a real topic: from its start, behind its end on demand, through deletions and bad records."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from everfold.kernel.errors import Code, StatusError
from everfold.runtime.kafka import EndOffsets, KafkaSettings, Producer
from everfold.runtime.namespace_log import NamespaceLog
from everfold.runtime.namespaces import Namespace, NamespaceRegistry, encode_namespace
from everfold.schemas.topics import NAMESPACES
from frontend.fakes import DEFAULT

pytestmark = pytest.mark.broker


@pytest.fixture
def topic(kafka: KafkaSettings) -> str:
    name = kafka.topic(NAMESPACES)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.create_topics([NewTopic(name, 1, 1)]).values():
        future.result(30)
    return name


def test_the_registry_follows_the_topic(kafka: KafkaSettings, topic: str) -> None:
    async def body() -> None:
        producer = Producer(kafka, name="writer")
        ends = EndOffsets(kafka)
        log = NamespaceLog(kafka, ends)

        async def put(namespace: Namespace) -> None:
            await producer.deliver(topic, 0, namespace.namespace_id.encode(), encode_namespace(namespace))

        await put(DEFAULT)
        await producer.deliver(topic, 0, b"bad", b"\x00not a namespace")
        await log.start()
        assert log.registry.id_of("default") == DEFAULT.namespace_id

        other = dataclasses.replace(DEFAULT, namespace_id="id-2", name="other")
        await put(other)
        await log.registry.refresh()
        assert log.registry.id_of("other") == "id-2"

        await producer.deliver(topic, 0, b"id-2", None)
        await log.registry.refresh()
        assert log.registry.id_of("other") is None
        assert log.registry.id_of("default") == DEFAULT.namespace_id
        await log.stop()
        ends.close()
        await producer.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_those_who_wait_for_a_read_that_fails_fail_with_it_and_the_next_reads_anew() -> None:
    async def body() -> None:
        reads = 0
        ends = asyncio.Event()

        async def catch_up() -> None:
            nonlocal reads
            reads += 1
            if reads == 2:
                raise StatusError(Code.UNAVAILABLE, "Kafka does not answer")
            await ends.wait()

        registry = NamespaceRegistry(catch_up)
        first = asyncio.create_task(registry.refresh())
        await asyncio.sleep(0)
        others = [asyncio.create_task(registry.refresh()) for _ in range(5)]
        await asyncio.sleep(0)
        ends.set()
        await first
        assert [str(error) for error in await asyncio.gather(*others, return_exceptions=True)] == [
            str(StatusError(Code.UNAVAILABLE, "Kafka does not answer"))
        ] * 5
        assert reads == 2
        await registry.refresh()
        assert reads == 3

    asyncio.run(asyncio.wait_for(body(), 10))
