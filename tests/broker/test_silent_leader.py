"""A leader that hangs, or is gone, says nothing: no offset of a partition is made of that."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.broker import EmbeddedBroker
from everfold.runtime.kafka import EndOffsets, KafkaSettings, KafkaUnavailable, Producer

pytestmark = pytest.mark.broker

TOPIC = "test.log"


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[tuple[EmbeddedBroker, KafkaSettings]]:
    broker = EmbeddedBroker(directory, heap_mb=192, archive_in_background=False)
    await broker.start()
    try:
        settings = KafkaSettings(broker.bootstrap, "test.")
        admin = AdminClient(settings.client("test"))
        await asyncio.wrap_future(admin.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC])
        yield broker, settings
    finally:
        await broker.stop()


def test_the_end_of_a_hung_or_dead_leaders_partition_is_unknown_and_found_again_when_it_answers(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with asyncio.timeout(100), started(tmp_path) as (broker, settings):
            producer = Producer(settings, name="writer")
            for number in range(3):
                await producer.deliver(TOPIC, 0, None, b"%d" % number)
            await producer.close()
            ends = EndOffsets(settings)
            assert await ends.end_offset(TOPIC, 0) == 3

            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                with pytest.raises(KafkaUnavailable):
                    await ends.end_offset(TOPIC, 0)
                asked = asyncio.ensure_future(ends.end_offset(TOPIC, 0))
                await asyncio.sleep(2)  # in which one attempt fails
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            assert await asked == 3

            os.kill(broker.pid, signal.SIGKILL)
            # Its server starts it again: the question waits, or fails, and never finds an empty log.
            while True:
                try:
                    assert await ends.end_offset(TOPIC, 0) == 3
                    break
                except KafkaUnavailable:
                    continue
            ends.close()

    asyncio.run(body())
