"""What the simulator's broker promises, a real broker keeps: one suite over both.

A test says what it does to one partition, as a coroutine-free script; the real side does it with confluent-kafka, the
fake side in virtual time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple, Protocol

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from everfold.runtime.kafka import KafkaSettings
from simulation.broker import Broker, Producer, ProducerFaults, Reader, Stored
from simulation.clock import WALL_START_NS, VirtualLoop

SECONDS_MAX = 30.0


class Seen(NamedTuple):
    """A record as a consumer sees it."""

    offset: int
    epoch: int
    timestamp_ms: int
    value: bytes | None


class Partition(Protocol):
    """One partition, and what the contract asks of it."""

    def now_ms(self) -> int: ...

    def produce(self, values: list[bytes]) -> list[int]:
        """Produce in order by one idempotent producer; the acknowledged offsets."""
        ...

    def end(self) -> int:
        """The end offset."""
        ...

    def read(self, offset: int, count: int, *, committed: bool = False) -> list[Seen]:
        """The first `count` records from an offset on; fewer when no more come for a while."""
        ...

    def transaction(self, values: list[bytes], end: str) -> None:
        """A foreign producer's transaction: "commit", "abort" or left "open"."""
        ...

    def finish_transaction(self, *, commit: bool) -> None:
        """End the one that was left open."""
        ...


class FakePartition:
    """On the simulator's broker."""

    place = ("log", 0)
    frozen = False

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.broker = Broker(self.loop, Random(1))
        self.producer = Producer(self.broker, self, ProducerFaults())
        self._seen: list[Seen] = []

    def run(self, callback: Any) -> None:
        callback()

    def _pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def now_ms(self) -> int:
        return (WALL_START_NS + self.loop.now_ns) // 1_000_000

    def produce(self, values: list[bytes]) -> list[int]:
        offsets: list[int] = []
        for value in values:
            self.producer.produce(*self.place, b"key", value, (), lambda error, offset: offsets.append(offset))
        self._pass(1)
        return sorted(offsets)

    def end(self) -> int:
        return self.broker.logs[self.place].end

    def read(self, offset: int, count: int, *, committed: bool = False) -> list[Seen]:
        seen: list[Seen] = []

        def deliver(records: Any) -> None:
            seen.extend(Seen(r.offset, r.epoch, r.timestamp_ms, r.value) for r in records)

        reader = Reader(self.broker, self, self.place, (offset, -1), deliver, pytest.fail, committed=committed, batch=3)
        self._pass(2)
        reader.close()
        return seen[:count]

    def transaction(self, values: list[bytes], end: str) -> None:
        records: list[Stored] = [self.broker.begin_transaction(self.place, b"key", value) for value in values]
        assert records
        self._pass(0.1)
        if end != "open":
            self.finish_transaction(commit=end == "commit")

    def finish_transaction(self, *, commit: bool) -> None:
        self.broker.end_transaction(self.place, commit=commit)
        self._pass(0.1)

    def close(self) -> None:
        self.loop.close()


class RealPartition:
    """On a real broker."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topic = settings.prefix + "contract"
        self._client = {"bootstrap.servers": settings.bootstrap, "log_level": 0}
        self._admin = AdminClient(self._client)
        topic = NewTopic(self._topic, 1, 1, config={"message.timestamp.type": "LogAppendTime"})
        for future in self._admin.create_topics([topic]).values():
            future.result(timeout=SECONDS_MAX)
        self._producer = KafkaProducer({**self._client, "enable.idempotence": True})
        self._foreign: KafkaProducer | None = None

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def produce(self, values: list[bytes]) -> list[int]:
        offsets: list[int] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None
            offset = message.offset()
            assert offset is not None
            offsets.append(offset)

        for value in values:
            self._producer.produce(self._topic, value, b"key", 0, on_delivery=delivered)
        assert self._producer.flush(SECONDS_MAX) == 0
        return sorted(offsets)

    def end(self) -> int:
        place = TopicPartition(self._topic, 0)
        return int(self._admin.list_offsets({place: OffsetSpec.latest()})[place].result(timeout=SECONDS_MAX).offset)

    def read(self, offset: int, count: int, *, committed: bool = False) -> list[Seen]:
        consumer = Consumer(
            {
                **self._client,
                "group.id": "contract",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed" if committed else "read_uncommitted",
            }
        )
        consumer.assign([TopicPartition(self._topic, 0, offset)])
        seen: list[Seen] = []
        ends_at = time.monotonic() + SECONDS_MAX
        quiet_from = time.monotonic() + 3
        while len(seen) < count and time.monotonic() < min(ends_at, quiet_from):
            message = consumer.poll(0.2)
            if message is None:
                continue
            assert message.error() is None
            quiet_from = time.monotonic() + 2
            seen.append(
                Seen(message.offset(), message.leader_epoch(), message.timestamp()[1], message.value())  # type: ignore[arg-type]
            )
        consumer.close()
        return seen

    def transaction(self, values: list[bytes], end: str) -> None:
        self._foreign = KafkaProducer({**self._client, "transactional.id": self._topic})
        self._foreign.init_transactions(SECONDS_MAX)
        self._foreign.begin_transaction()
        for value in values:
            self._foreign.produce(self._topic, value, b"key", 0)
        assert self._foreign.flush(SECONDS_MAX) == 0
        if end != "open":
            self.finish_transaction(commit=end == "commit")

    def finish_transaction(self, *, commit: bool) -> None:
        assert self._foreign is not None
        if commit:
            self._foreign.commit_transaction(SECONDS_MAX)
        else:
            self._foreign.abort_transaction(SECONDS_MAX)

    def close(self) -> None:
        self._producer.flush(SECONDS_MAX)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.broker)])
def partition(request: pytest.FixtureRequest) -> Iterator[Partition]:
    if request.param == "fake":
        made: Any = FakePartition()
    else:
        made = RealPartition(request.getfixturevalue("kafka"))
    yield made
    made.close()


def values(count: int, prefix: str = "v") -> list[bytes]:
    return [f"{prefix}{number}".encode() for number in range(count)]


def test_records_lie_at_consecutive_offsets_in_the_order_produced(partition: Partition) -> None:
    assert partition.produce(values(20)) == list(range(20))
    seen = partition.read(0, 20)
    assert [one.offset for one in seen] == list(range(20))
    assert [one.value for one in seen] == values(20)


def test_every_record_has_a_leader_epoch_that_never_falls(partition: Partition) -> None:
    partition.produce(values(5))
    epochs = [one.epoch for one in partition.read(0, 5)]
    assert all(epoch >= 0 for epoch in epochs)
    assert epochs == sorted(epochs)


def test_timestamps_are_the_brokers_and_in_order(partition: Partition) -> None:
    before = partition.now_ms()
    partition.produce(values(5))
    after = partition.now_ms()
    stamps = [one.timestamp_ms for one in partition.read(0, 5)]
    assert stamps == sorted(stamps)
    assert before - 1 <= stamps[0]
    assert stamps[-1] <= after + 1


def test_an_end_asked_for_after_an_acknowledgement_lies_behind_the_record(partition: Partition) -> None:
    for expected in range(5):
        (offset,) = partition.produce([b"one"])
        assert offset == expected
        assert partition.end() == offset + 1


def test_an_idempotent_producer_leaves_each_record_once(partition: Partition) -> None:
    sent = values(300)
    partition.produce(sent)
    seen = partition.read(0, 301)
    assert [one.value for one in seen] == sent
    assert partition.end() == 300


def test_a_reader_starts_at_any_offset(partition: Partition) -> None:
    partition.produce(values(10))
    assert [one.offset for one in partition.read(7, 10)] == [7, 8, 9]


def test_nothing_behind_an_open_transaction_is_read_by_a_committed_reader(partition: Partition) -> None:
    partition.produce([b"before"])
    partition.transaction([b"inside"], "open")
    partition.produce([b"behind"])
    assert [one.value for one in partition.read(0, 3, committed=True)] == [b"before"]
    partition.finish_transaction(commit=True)
    assert [one.value for one in partition.read(0, 3, committed=True)] == [b"before", b"inside", b"behind"]


def test_an_aborted_record_is_skipped_and_keeps_its_offset(partition: Partition) -> None:
    partition.produce([b"before"])
    partition.transaction([b"inside"], "abort")
    partition.produce([b"behind"])
    seen = partition.read(0, 2, committed=True)
    assert [one.value for one in seen] == [b"before", b"behind"]
    # The record keeps offset 1. The marker that ends the transaction takes one, too, before or behind what follows.
    assert seen[0].offset == 0
    assert seen[1].offset in (2, 3)
