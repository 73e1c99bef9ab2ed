"""Producing a processor's outputs: a batch at a time, acknowledged by all replicas before the source position moves.

librdkafka rather than Faust's own producer: a tenth of the CPU per record, idempotent, and it answers for a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from everfold.runtime.kafka import KafkaUnavailable, known_offset
from everfold.schemas.topics import RECORD_BYTES_MAX

ACKNOWLEDGED_WITHIN_S: Final = 30.0
"""How long a batch may take: a leader election takes seconds; beyond this the process stops, and starts over."""

QUEUE_KIB: Final = 32 * 1024
"""Most kibibytes waiting in the producer: bounds memory, and is four of the largest records."""

Headers = list[tuple[str, str | bytes | None]]


class PublishFailed(Exception):
    """Outputs were not acknowledged. They may or may not be on the topic: they are sent again from the position."""


class Output(NamedTuple):
    """A record to produce."""

    key: bytes
    value: bytes
    headers: Headers


class Publisher:
    """An idempotent producer whose unit is the batch."""

    def __init__(self, bootstrap: str, properties: Mapping[str, str], client_id: str) -> None:
        self._error: KafkaError | None = None
        config: dict[str, Any] = {
            **properties,
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 5,
            "compression.type": "lz4",
            "message.max.bytes": RECORD_BYTES_MAX,
            "delivery.timeout.ms": int(ACKNOWLEDGED_WITHIN_S * 1000),
            "queue.buffering.max.kbytes": QUEUE_KIB,
            "delivery.report.only.error": True,
            "on_delivery": self._delivered,
        }
        self._producer = Producer(config)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._error = error

    async def publish(self, topic: str, partition: int, outputs: Iterable[Output]) -> None:
        """Produces the outputs in order; returns when all are acknowledged.

        Raises:
            PublishFailed: one was not, within ACKNOWLEDGED_WITHIN_S.
        """
        for output in outputs:
            try:
                self._producer.produce(topic, output.value, output.key, partition, headers=output.headers)
            except BufferError:
                await self._acknowledged(topic)
                self._producer.produce(topic, output.value, output.key, partition, headers=output.headers)
            except KafkaException as error:
                raise PublishFailed(f"{topic}[{partition}]: {error}") from error
        await self._acknowledged(topic)

    async def _acknowledged(self, topic: str) -> None:
        loop = asyncio.get_running_loop()
        waiting = await loop.run_in_executor(None, self._producer.flush, ACKNOWLEDGED_WITHIN_S)
        if self._error is not None or waiting:
            raise PublishFailed(
                f"{topic}: {self._error or f'{waiting} records without an acknowledgement'}; are the brokers up, and "
                "at least min.insync.replicas of them in sync?"
            )

    def close(self) -> None:
        """Drops what is not acknowledged; it is sent again from the position."""
        self._producer.purge()
        self._producer.flush(1.0)


def pairs(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The record's headers, in order."""
    headers = message.headers()
    return headers if isinstance(headers, list) else []


def missing_topics(bootstrap: str, properties: Mapping[str, str], topics: Iterable[str]) -> list[str]:
    """Those of the topics that the cluster has not, or all while no broker answers. Blocks, for 5 s at most."""
    admin = AdminClient({**properties, "bootstrap.servers": bootstrap})
    try:
        there = admin.list_topics(timeout=5.0).topics
    except KafkaException:
        there = {}
    return [topic for topic in topics if topic not in there]


TAIL_RECORDS: Final = 100
"""How far back the last record of one's own is looked for: others may have written behind it."""


class Tail(NamedTuple):
    """The last record of one's own in a partition."""

    offset: int
    headers: dict[str, bytes]


def read_tails(
    bootstrap: str,
    properties: Mapping[str, str],
    topic: str,
    partitions: Iterable[int],
    is_ours: Callable[[Mapping[str, bytes]], bool],
    timeout_s: float = 20.0,
) -> dict[int, Tail]:
    """The last record of each partition, by its headers, that is ours, if it is among the last TAIL_RECORDS. Blocks.

    Raises:
        PublishFailed: the brokers did not answer in time.
    """
    consumer = Consumer(
        {
            **properties,
            "bootstrap.servers": bootstrap,
            "group.id": "everfold-unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
        }
    )
    try:
        unread: dict[int, int] = {}
        for partition in partitions:
            marks = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout_s)
            low, high = (known_offset(mark, f"{topic}[{partition}]") for mark in marks)
            if high > low:
                unread[partition] = max(low, high - TAIL_RECORDS)
        consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in unread.items()])
        tails: dict[int, Tail] = {}
        while unread:
            message = consumer.poll(timeout_s)
            if message is None:
                raise PublishFailed(f"{topic}: its last records could not be read within {timeout_s:.0f} s")
            number, offset, error = message.partition(), message.offset(), message.error()
            assert number is not None
            assert offset is not None
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                unread.pop(number, None)  # the last offsets may be without records: a foreign transaction's markers
            elif error is not None:
                raise PublishFailed(f"{topic}: {error}")
            else:
                headers = {name: value for name, value in pairs(message) if isinstance(value, bytes)}
                if is_ours(headers):
                    tails[number] = Tail(offset, headers)
        return tails
    except (KafkaException, KafkaUnavailable) as error:
        raise PublishFailed(f"{topic}: {error}") from error
    finally:
        consumer.close()
