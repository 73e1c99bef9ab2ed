"""The topic `cluster` on Kafka: carries the members' records and the shards' positions there and back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Message

from everfold.kernel.positions import LostTail, Positions, ShardPosition
from everfold.runtime.kafka import (
    EndOffsets,
    KafkaSettings,
    KafkaTrouble,
    KafkaUnavailable,
    LogConsumer,
    Producer,
    ProducerQueueFull,
)
from everfold.runtime.membership import ClusterMembership, Member
from everfold.schemas import codec
from everfold.schemas.topics import CLUSTER

READ_SECONDS_MAX: Final = 10.0
"""How long the start waits for the topic to be read; without it calls would merely wait for owners a little longer."""

_POSITION_KEY: Final = "shard/"

log = structlog.get_logger("membership")


class ClusterTopic:
    """A service: this process's membership, and what it knows of the shards' positions, kept by the topic.

    Args:
        settings: the cluster.
        producer: sends the records; it is not closed here.
        ends: says where the topic ends; not closed here either.
        me: this process.
    """

    def __init__(self, settings: KafkaSettings, producer: Producer, ends: EndOffsets, me: Member) -> None:
        self._topic = settings.topic(CLUSTER)
        self._producer = producer
        self._ends = ends
        self._positions = Positions()
        #: the offset after the last record read, or known to be the last
        self._read_to = 0
        self._progress: set[asyncio.Future[None]] = set()
        self.membership = ClusterMembership(me, self._publish)
        self._read = asyncio.Event()
        self._consumer = LogConsumer(
            settings,
            name=f"cluster-{me.member_id}",
            on_batch=self._batch,
            on_end=self._at_end,
        )

    async def start(self) -> None:
        """Read who is there, then announce this process."""
        await self.read()
        await self.membership.start()

    async def read(self) -> None:
        """Read on from now on, what is there first, and announce nobody."""
        await self._consumer.start()
        self._consumer.assign(self._topic, 0, OFFSET_BEGINNING)
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_SECONDS_MAX):
                await self._read.wait()

    async def stop(self) -> None:
        """Say goodbye."""
        await self.membership.stop()
        await self.stop_reading()

    async def stop_reading(self) -> None:
        """The end of what `read` began."""
        await self._consumer.stop()

    async def position(self, shard: int) -> ShardPosition | None:
        """What holds for a shard, everything considered that is on the topic when this is called.

        Raises:
            KafkaUnavailable: that cannot be told now.
        """
        end = await self._ends.end_offset(self._topic, 0)
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                while self._read_to < end:
                    progress: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._progress.add(progress)
                    await progress
        except TimeoutError:
            raise KafkaUnavailable(
                f"{self._topic}: read to offset {self._read_to} of {end} within {READ_SECONDS_MAX:.0f} s"
            ) from None
        return self._positions.get(shard)

    def latest(self, shard: int) -> ShardPosition | None:
        """What holds for a shard as far as the topic has been read."""
        return self._positions.get(shard)

    def news(self, positions: Iterable[ShardPosition]) -> list[ShardPosition]:
        """Which of an owner's positions the topic does not have yet, as they are to be written."""
        return self._positions.news(positions)

    async def settle(self, position: ShardPosition) -> None:
        """Write a position that must not be lost. Raises KafkaTrouble."""
        await self._producer.deliver(self._topic, 0, *position_record(position))

    def say(self, position: ShardPosition) -> None:
        """Write a shard's position. One that is lost on the way is followed by the next."""
        with suppress(ProducerQueueFull, KafkaTrouble):
            self._producer.produce(self._topic, 0, *position_record(position))

    def _at_end(self, _topic: str, _partition: int, offset: int) -> None:
        self._read.set()
        self._reached(offset)

    def _reached(self, offset: int) -> None:
        self._read_to = max(self._read_to, offset)
        waiting, self._progress = self._progress, set()
        for progress in waiting:
            if not progress.done():
                progress.set_result(None)

    def _publish(self, member_id: str, member: Member | None) -> None:
        value = None if member is None else codec.encode_member(_record(member))
        # A heartbeat that is lost is followed by the next one.
        with suppress(ProducerQueueFull, KafkaTrouble):
            self._producer.produce(self._topic, 0, member_id.encode(), value)

    def _batch(self, messages: list[Message]) -> None:
        for message in messages:
            self._take(message)
        self._reached((messages[-1].offset() or 0) + 1)

    def _take(self, message: Message) -> None:
        key, value = message.key(), message.value()
        if key is None:
            return
        name = key.decode(errors="replace") if isinstance(key, bytes) else key
        try:
            record = None if value is None else _read(value)
        except (codec.Undecodable, KeyError, TypeError) as error:
            log.warning("a record of the cluster topic cannot be read", offset=message.offset(), reason=str(error))
            return
        if isinstance(record, ShardPosition):
            self._positions.received(record)
        elif not name.startswith(_POSITION_KEY):
            self.membership.received(name, record, message.timestamp()[1])


def position_record(position: ShardPosition) -> tuple[bytes, bytes]:
    """Key and value of a shard's position on the topic."""
    value = {**asdict(position), "lost": [tail._asdict() for tail in position.lost]}
    return f"{_POSITION_KEY}{position.shard}".encode(), codec.encode_shard_position(value)


def read_position(value: bytes) -> ShardPosition | None:
    """A shard's position, of a record's value on the topic; None for other records, and for what cannot be read."""
    with suppress(codec.Undecodable, KeyError, TypeError):
        record = _read(value)
        return record if isinstance(record, ShardPosition) else None
    return None


def _read(value: bytes) -> Member | ShardPosition:
    name, record = codec.decode(value)
    if name == "ShardPosition":
        return ShardPosition(**{**record, "lost": tuple(LostTail(**tail) for tail in record["lost"])})
    return _member(record)


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
