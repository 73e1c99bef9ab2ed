"""A producer for records that somebody waits for: at once while few are under way, gathered briefly else.

Sending each record at once has the lowest latency when little is going on (0.8 ms to the consumer and back to the loop,
against 2.2 ms), and the worst when much is: at 16 in flight a request per record costs four times the processor time of
gathered ones, and so is slower too. No one setting of librdkafka does both, so this holds two producers and chooses by
how many records are under way. Measured in docs/decisions/0001-embedded-broker.md.

The price is order: two records of one partition may arrive in another order than they were sent. That suits proposals
to a shard log, where the log's order is the only one that counts, and not chains of outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import Message

from everfold.runtime.kafka.producer import QUEUE_BYTES_MAX, QUEUE_RECORDS_MAX, Delivery, Headers, Producer
from everfold.runtime.kafka.settings import KafkaSettings

PROMPT_MAX: Final = 2
"""Records under way up to which the next one is sent at once."""

GATHER_MS: Final = 0.5


class PromptProducer:
    """Sends records, in no promised order; loop thread only. Otherwise as `Producer`."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        name: str,
        queue_records_max: int = QUEUE_RECORDS_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        on_replaced: Callable[[], None] | None = None,
        **config: Any,
    ) -> None:
        """As `Producer`; the bounds hold for each half."""
        bounds = {"queue_records_max": queue_records_max, "queue_bytes_max": queue_bytes_max, **config}
        self._prompt = Producer(settings, name=name, on_replaced=on_replaced, **bounds)
        self._gathering = Producer(
            settings, name=f"{name}-gathering", on_replaced=on_replaced, **{"linger_ms": GATHER_MS, **bounds}
        )

    @property
    def outstanding(self) -> int:
        """Records not yet reported on, and reports (and librdkafka's own notices) not yet polled."""
        return self._prompt.outstanding + self._gathering.outstanding

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        on_delivery: Delivery | None = None,
    ) -> None:
        """See `Producer.produce`, but for the order."""
        producer = self._prompt if self.outstanding < PROMPT_MAX else self._gathering
        producer.produce(topic, partition, key, value, headers, on_delivery)

    async def deliver(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> Message:
        """See `Producer.deliver`."""
        return await self._prompt.deliver(topic, partition, key, value, headers)

    def poll(self) -> int:
        """Collects the delivery reports that are there, without waiting; returns how many."""
        return self._prompt.poll() + self._gathering.poll()

    async def close(self, timeout: float = 2.0) -> int:
        """Waits for outstanding deliveries, at most `timeout` seconds each half; returns how many stay unreported."""
        return await self._prompt.close(timeout) + await self._gathering.close(timeout)
