"""Producer, consumer and end offsets over the run's broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from confluent_kafka import KafkaError, Message
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.kafka import (
    EndOffsets,
    KafkaSettings,
    KafkaTrouble,
    KafkaUnavailable,
    LogConsumer,
    PartitionTrouble,
    Producer,
    ProducerQueueFull,
    PromptProducer,
)

pytestmark = pytest.mark.broker


def create(settings: KafkaSettings, partitions: int = 1) -> str:
    name = settings.prefix + "log"
    config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(8 * 1024 * 1024)}
    admin = AdminClient(settings.client("test"))
    for future in admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values():
        future.result(timeout=20)
    return name


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await body()

    uvloop.run(bounded())


class Sink:
    """Collects records, and can be waited for."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.changed = asyncio.Event()

    def __call__(self, batch: list[Message]) -> None:
        self.messages += batch
        self.changed.set()

    async def reach(self, count: int) -> list[Message]:
        while len(self.messages) < count:
            self.changed.clear()
            await self.changed.wait()
        return self.messages

    def offsets(self, partition: int = 0) -> list[int | None]:
        return [message.offset() for message in self.messages if message.partition() == partition]


def test_records_come_back_in_order_with_epoch_timestamp_and_headers(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        sink, reported = Sink(), []
        consumer = LogConsumer(kafka, name="reader", on_batch=sink)
        await consumer.start()
        consumer.assign(topic, 0, 0)
        producer = Producer(kafka, name="writer")
        before = time.time_ns() // 1_000_000
        for number in range(500):
            producer.produce(
                topic,
                0,
                b"key",
                b"%d" % number,
                [("origin", b"\x00\x01")],
                lambda error, message: reported.append((error, message.offset())),
            )
        producer.produce(topic, 0, b"key", None)
        messages = await sink.reach(501)
        assert [message.value() for message in messages] == [b"%d" % number for number in range(500)] + [None]
        assert sink.offsets() == list(range(501))
        first = messages[0]
        assert first.leader_epoch() == 0
        assert first.headers() == [("origin", b"\x00\x01")]
        assert first.timestamp()[0] == 2  # LogAppendTime
        assert abs(first.timestamp()[1] - before) < 10_000
        assert await producer.close() == 0
        assert reported == [(None, number) for number in range(500)]
        await consumer.stop()

    run(body)


def test_the_prompt_producer_loses_and_repeats_nothing(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        sink = Sink()
        consumer = LogConsumer(kafka, name="reader", on_batch=sink)
        await consumer.start()
        consumer.assign(topic, 0, 0)
        producer = PromptProducer(kafka, name="writer")
        for number in range(200):
            producer.produce(topic, 0, None, b"%d" % number)
            if number % 20 == 0:
                await asyncio.sleep(0.005)
        messages = await sink.reach(200)
        assert sorted(int(message.value() or b"") for message in messages) == list(range(200))
        assert await producer.close() == 0
        await consumer.stop()

    run(body)


def test_a_partition_assigned_again_starts_from_the_new_position_only(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        sink = Sink()
        consumer = LogConsumer(kafka, name="reader", on_batch=sink, batch_records_max=10)
        await consumer.start()
        consumer.assign(topic, 0, 0)
        producer = Producer(kafka, name="writer")
        for number in range(300):
            producer.produce(topic, 0, None, b"%d" % number)
        await sink.reach(50)
        consumer.unassign(topic, 0)
        sink.messages.clear()
        await asyncio.sleep(0.2)
        assert sink.messages == []
        consumer.assign(topic, 0, 290, leader_epoch=0)
        await sink.reach(10)
        assert sink.offsets() == list(range(290, 300))
        await producer.close()
        await consumer.stop()

    run(body)


def test_a_paused_partition_goes_on_where_it_was(kafka: KafkaSettings) -> None:
    topic = create(kafka, partitions=2)

    async def body() -> None:
        sink = Sink()
        consumer = LogConsumer(kafka, name="reader", on_batch=sink, batch_records_max=5)
        await consumer.start()
        for partition in range(2):
            consumer.assign(topic, partition, 0)
        producer = Producer(kafka, name="writer")
        for number in range(200):
            producer.produce(topic, number % 2, None, b"%d" % number)
            if number == 60:
                await sink.reach(20)
                consumer.pause(topic, 0)
        while len(sink.offsets(1)) < 100:
            sink.changed.clear()
            await sink.changed.wait()
        consumer.resume(topic, 0)
        await sink.reach(200)
        assert sink.offsets(0) == sink.offsets(1) == list(range(100))
        await producer.close()
        await consumer.stop()

    run(body)


def test_a_loop_that_is_behind_is_given_no_more_than_a_batch_at_a_time(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        waiting: list[int] = []
        done = asyncio.Event()

        def slow(batch: list[Message]) -> None:
            waiting.append(len(batch))
            time.sleep(0.02)
            if sum(waiting) == 400:
                done.set()

        consumer = LogConsumer(kafka, name="reader", on_batch=slow, batch_records_max=100)
        producer = Producer(kafka, name="writer")
        for _ in range(400):
            producer.produce(topic, 0, None, b"x")
        assert await producer.close(10) == 0
        await consumer.start()
        consumer.assign(topic, 0, 0)
        await done.wait()
        assert max(waiting) <= 100
        await consumer.stop()

    run(body)


def test_an_order_is_carried_out_while_records_keep_coming(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everfold.runtime.handover.QUIET_LOOKS", 1 << 30)  # as if they never stopped
    topic = create(kafka, partitions=2)

    async def body() -> None:
        sink = Sink()
        consumer = LogConsumer(kafka, name="reader", on_batch=sink)
        await consumer.start()
        consumer.assign(topic, 0, 0)
        producer = Producer(kafka, name="writer")
        await producer.deliver(topic, 1, None, b"x")
        for _ in range(10):
            consumer.assign(topic, 1, 0)
            while not sink.offsets(1):
                sink.changed.clear()
                await sink.changed.wait()
            consumer.unassign(topic, 1)
            sink.messages.clear()
            # The thread gets a record for the loop, which does not know of it when the next order is given.
            producer.produce(topic, 0, None, b"x")
            time.sleep(0.05)  # noqa: ASYNC251
        await producer.close()
        await consumer.stop()

    run(body)


def test_a_position_beyond_the_log_is_reported_as_lost(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        troubles: list[PartitionTrouble] = []
        seen = asyncio.Event()

        def note(trouble: PartitionTrouble) -> None:
            troubles.append(trouble)
            seen.set()

        producer = Producer(kafka, name="writer")
        await producer.deliver(topic, 0, None, b"x")
        sink = Sink()
        consumer = LogConsumer(kafka, name="reader", on_batch=sink, on_trouble=note)
        await consumer.start()
        consumer.assign(topic, 0, 100)
        await seen.wait()
        assert troubles[0][:3] == (topic, 0, True)
        assert sink.messages == []
        await producer.close()
        await consumer.stop()

    run(body)


def test_the_end_is_told_when_asked_for(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        ends: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
        producer = Producer(kafka, name="writer")
        for _ in range(3):
            await producer.deliver(topic, 0, None, b"x")
        consumer = LogConsumer(
            kafka, name="reader", on_batch=lambda batch: None, on_end=lambda *place: ends.put_nowait(place)
        )
        await consumer.start()
        consumer.assign(topic, 0, 0)
        assert await ends.get() == (topic, 0, 3)
        await producer.close()
        await consumer.stop()

    run(body)


def test_end_offsets_count_every_record_acknowledged_before_the_question(kafka: KafkaSettings) -> None:
    topic = create(kafka, partitions=3)

    async def body() -> None:
        ends = EndOffsets(kafka)
        producer = Producer(kafka, name="writer")

        async def write_and_ask(partition: int) -> None:
            for _ in range(15):
                message = await producer.deliver(topic, partition, None, b"x")
                assert await ends.end_offset(topic, partition) > (message.offset() or 0)

        await asyncio.gather(*(write_and_ask(partition) for partition in (0, 0, 0, 1, 1, 2)))
        assert await ends.end_offsets([(topic, 0), (topic, 1), (topic, 2)]) == {
            (topic, 0): 45,
            (topic, 1): 30,
            (topic, 2): 15,
        }
        ends.close()
        await producer.close()

    run(body)


def test_end_offsets_without_a_broker_fail_in_bounded_time() -> None:
    async def body() -> None:
        ends = EndOffsets(KafkaSettings("127.0.0.1:1"))
        began = time.monotonic()
        with pytest.raises(KafkaUnavailable):
            await ends.end_offset("nowhere", 0)
        assert time.monotonic() - began < 12
        ends.close()

    run(body)


def test_a_full_queue_refuses_and_failed_deliveries_are_reported() -> None:
    async def body() -> None:
        reported: list[KafkaError | None] = []
        producer = Producer(KafkaSettings("127.0.0.1:1"), name="nobody", queue_records_max=3, delivery_seconds_max=1.0)
        full = asyncio.Event()

        def report(error: KafkaError | None, message: Message) -> None:
            reported.append(error)
            if len(reported) == 3:
                full.set()

        for _ in range(3):
            producer.produce("nowhere", 0, None, b"x", None, report)
        with pytest.raises(ProducerQueueFull):
            producer.produce("nowhere", 0, None, b"x", None, report)
        await full.wait()
        assert [error is not None for error in reported] == [True] * 3
        await producer.close()
        with pytest.raises(KafkaTrouble, match="closed"):
            producer.produce("nowhere", 0, None, b"x")

    run(body)


def test_a_record_over_the_limit_is_refused_and_the_producer_goes_on(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        producer = Producer(kafka, name="writer")
        with pytest.raises(KafkaTrouble, match="size"):
            await producer.deliver(topic, 0, None, b"x" * (9 * 1024 * 1024))
        assert (await producer.deliver(topic, 0, None, b"x" * (7 * 1024 * 1024))).offset() == 0
        await producer.close()

    run(body)


def test_a_fatal_error_replaces_the_producer_after_its_reports(kafka: KafkaSettings) -> None:
    topic = create(kafka)

    async def body() -> None:
        replaced = asyncio.Event()
        producer = Producer(kafka, name="writer", on_replaced=replaced.set)
        await producer.deliver(topic, 0, None, b"before")
        old = producer._producer
        reported: list[KafkaError | None] = []
        producer._on_error(KafkaError(KafkaError._FATAL, "as if", True))
        producer.produce(topic, 0, None, b"lost or not", None, lambda error, message: reported.append(error))
        await replaced.wait()
        assert len(reported) == 1
        assert producer._producer is not old
        assert ((await producer.deliver(topic, 0, None, b"after")).offset() or 0) >= 1
        await producer.close()

    run(body)
