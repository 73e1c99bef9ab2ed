"""Batches reach the loop in the order in which they were read, whoever took them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from everfold.runtime.handover import Handover
from everfold.runtime.kafka import KafkaSettings, LogConsumer

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message


class Record:
    """As much of a message as is looked at here."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def error(self) -> None:
        return None


class Prepared(LogConsumer):
    """A consumer that finds what it is told to."""

    found: list[Record]

    def _take(self, consumer: Consumer, wait_s: float) -> list[Message]:
        found, self.found = self.found, []
        return cast("list[Message]", found)


def test_what_the_thread_takes_after_the_loop_comes_after_it() -> None:
    async def body() -> None:
        got: list[int] = []
        consumer = Prepared(
            KafkaSettings("127.0.0.1:1"),
            name="order",
            on_batch=lambda batch: got.extend(record.offset for record in batch),
        )
        consumer._loop = asyncio.get_running_loop()
        consumer._handover = Handover(consumer._loop, consumer._look)
        consumer._consumer = cast("Consumer", object())
        consumer.found = [Record(1), Record(2)]
        assert consumer._look()
        assert got == []  # requests first
        # An order gave the thread its turn back: it has read on before the loop delivered.
        consumer._deliver(cast("list[Message]", [Record(3)]), consumer._done)
        assert got == [1, 2, 3]
        consumer.found = [Record(4)]
        assert consumer._look()
        for _ in range(3):
            await asyncio.sleep(0)
        assert got == [1, 2, 3, 4]

    asyncio.run(body())
