"""The registry fed from a real topic: from its start, behind its end on demand, through deletions and bad records."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from everfold.runtime.kafka import EndOffsets, KafkaSettings, Producer
from everfold.runtime.namespace_log import NamespaceLog
from everfold.runtime.namespaces import Namespace, encode_namespace
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
