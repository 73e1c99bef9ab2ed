"""The topic `cluster` on Kafka: carries a `ClusterMembership`'s records there and back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Message

from everfold.runtime.kafka import KafkaSettings, KafkaTrouble, LogConsumer, Producer, ProducerQueueFull
from everfold.runtime.membership import ClusterMembership, Member
from everfold.schemas import codec
from everfold.schemas.topics import CLUSTER

READ_SECONDS_MAX: Final = 10.0
"""How long the start waits for the topic to be read; without it calls would merely wait for owners a little longer."""

log = structlog.get_logger("membership")


class ClusterTopic:
    """A service: this process's membership, kept by the topic.

    Args:
        settings: the cluster.
        producer: sends the records; it is not closed here.
        me: this process.
    """

    def __init__(self, settings: KafkaSettings, producer: Producer, me: Member) -> None:
        self._topic = settings.topic(CLUSTER)
        self._producer = producer
        self.membership = ClusterMembership(me, self._publish)
        self._read = asyncio.Event()
        self._consumer = LogConsumer(
            settings,
            name=f"cluster-{me.member_id}",
            on_batch=self._batch,
            on_end=lambda _topic, _partition, _offset: self._read.set(),
        )

    async def start(self) -> None:
        """Read who is there, then announce this process."""
        await self._consumer.start()
        self._consumer.assign(self._topic, 0, OFFSET_BEGINNING)
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_SECONDS_MAX):
                await self._read.wait()
        await self.membership.start()

    async def stop(self) -> None:
        """Say goodbye."""
        await self.membership.stop()
        await self._consumer.stop()

    def _publish(self, member_id: str, member: Member | None) -> None:
        value = None if member is None else codec.encode_member(_record(member))
        # A heartbeat that is lost is followed by the next one.
        with suppress(ProducerQueueFull, KafkaTrouble):
            self._producer.produce(self._topic, 0, member_id.encode(), value)

    def _batch(self, messages: list[Message]) -> None:
        for message in messages:
            key, value = message.key(), message.value()
            if key is None:
                continue
            member = None
            if value is not None:
                try:
                    member = _member(codec.decode_member(value))
                except (codec.Undecodable, KeyError, TypeError) as error:
                    log.warning(
                        "a record of the cluster topic cannot be read", offset=message.offset(), reason=str(error)
                    )
                    continue
            name = key.decode(errors="replace") if isinstance(key, bytes) else key
            self.membership.received(name, member, message.timestamp()[1])


def _record(member: Member) -> dict[str, Any]:
    return {
        **asdict(member),
        "roles": list(member.roles),
        "partitions": {role: list(partitions) for role, partitions in member.partitions.items()},
    }


def _member(record: dict[str, Any]) -> Member:
    return Member(
        **{
            **record,
            "roles": tuple(record["roles"]),
            "partitions": {role: tuple(partitions) for role, partitions in record["partitions"].items()},
        }
    )
