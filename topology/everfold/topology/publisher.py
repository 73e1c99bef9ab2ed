"""Producing a processor's outputs: a batch at a time, acknowledged by all replicas before the source position moves.

While Kafka takes nothing, a batch waits; there is nothing else that the processor could do.

librdkafka rather than Faust's own producer: a tenth of the CPU per record, idempotent, and it answers for a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from everfold.runtime.kafka import KafkaSettings, KafkaUnavailable, ask_metadata, known_offset
from everfold.runtime.kafka.settings import ACKNOWLEDGE_SECONDS_MAX

LOOK_S: Final = 10.0
"""How often a batch that waits for Kafka says so: after an election's time, and then again."""

_FOR_EVER: Final = 0
"""As `delivery.timeout.ms`."""

QUEUE_KIB: Final = 32 * 1024
"""Most kibibytes waiting in the producer: bounds memory, and is four of the largest records."""

log = structlog.get_logger("topology")

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

    def __init__(self, settings: KafkaSettings, name: str) -> None:
        self._error: KafkaError | None = None
        config = settings.client(
            name,
            enable_idempotence=True,
            acks="all",
            linger_ms=5,
            compression_type="lz4",
            request_timeout_ms=round(ACKNOWLEDGE_SECONDS_MAX * 1000),
            delivery_timeout_ms=_FOR_EVER,
            queue_buffering_max_kbytes=QUEUE_KIB,
            delivery_report_only_error=True,
        )
        self._producer = Producer({**config, "on_delivery": self._delivered})

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._error = error

    async def publish(self, topic: str, partition: int, outputs: Iterable[Output]) -> None:
        """Produces the outputs in order; returns when all are acknowledged, however long Kafka is away.

        Raises:
            PublishFailed: Kafka refused one.
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
        while waiting := await loop.run_in_executor(None, self._producer.flush, LOOK_S):
            log.warning(
                "outputs wait for Kafka; are the brokers up, and at least min.insync.replicas of them in sync?",
                topic=topic,
                records=waiting,
            )
        if self._error is not None:
            raise PublishFailed(f"{topic}: {self._error}")

    def close(self) -> None:
        """Drops what is not acknowledged; it is sent again from the position."""
        self._producer.purge()
        self._producer.flush(1.0)


def pairs(message: Message) -> list[tuple[str, str | bytes | None]]:
    """The record's headers, in order."""
    headers = message.headers()
    return headers if isinstance(headers, list) else []


def missing_topics(settings: KafkaSettings, topics: Collection[str]) -> list[str]:
    """Those of the topics that the cluster has not. Blocks.

    Raises:
        KafkaUnavailable: no broker answered.
    """
    admin = AdminClient(settings.client("topology-look"))
    there = ask_metadata(admin, topics, settings.bootstrap, LOOK_S).topics
    return [topic for topic in topics if topic not in there]


TAIL_RECORDS: Final = 100
"""How far back the last record of one's own is looked for: others may have written behind it."""


class Tail(NamedTuple):
    """The last record of one's own in a partition."""

    offset: int
    headers: dict[str, bytes]


def read_tails(
    settings: KafkaSettings,
    topic: str,
    partitions: Iterable[int],
    is_ours: Callable[[Mapping[str, bytes]], bool],
    timeout_s: float = LOOK_S,
) -> dict[int, Tail]:
    """The last record of each partition, by its headers, that is ours, if it is among the last TAIL_RECORDS. Blocks.

    Raises:
        KafkaUnavailable: the brokers did not answer in time.
    """
    consumer = Consumer(
        settings.client(
            "topology-tails",
            group_id=f"{settings.prefix}topology-tails",  # librdkafka wants one; nothing is ever committed under it
            enable_auto_commit=False,
            auto_offset_reset="error",
            enable_partition_eof=True,
            fetch_wait_max_ms=100,
        )
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
                raise KafkaUnavailable(f"{topic}: its last records could not be read within {timeout_s:.0f} s")
            number, offset, error = message.partition(), message.offset(), message.error()
            assert number is not None
            assert offset is not None
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                unread.pop(number, None)  # the last offsets may be without records: a foreign transaction's markers
            elif error is not None:
                raise KafkaUnavailable(f"{topic}: {error}")
            else:
                headers = {name: value for name, value in pairs(message) if isinstance(value, bytes)}
                if is_ours(headers):
                    tails[number] = Tail(offset, headers)
        return tails
    except KafkaException as error:
        raise KafkaUnavailable(f"{topic}: {error}") from error
    finally:
        consumer.close()
