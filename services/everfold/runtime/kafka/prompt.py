"""A producer for records that somebody waits for: at once while few are under way, gathered when there are more.

Sending each record at once has the lowest latency when little is going on (0.8 ms to the consumer and back to the loop,
against 2.2 ms), and the worst when much is: at 16 in flight a request per record costs four times the processor time of
gathered ones, and so is slower too. No one setting of librdkafka does both, so this holds a producer per degree of
haste and chooses by how many records are under way. Measured in docs/decisions/0001-embedded-broker.md.

Success is not reported: whoever proposes a record meets it again in the log.

The price is order: two records of one partition may arrive in another order than they were sent. That suits proposals
to a shard log, where the log's order is the only one that counts, and not chains of outputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from everfold.runtime.kafka.producer import QUEUE_BYTES_MAX, QUEUE_RECORDS_MAX, Delivery, Headers, Producer
from everfold.runtime.kafka.settings import KafkaSettings

DEGREES: Final = ((5, 0.0), (1 << 30, 6.0))
"""(records under way, linger in ms): the first degree whose number is not reached sends the next record.

Five: some clients that do one thing after the other are never held back. Beyond, a hop takes longer than six
milliseconds anyhow, and requests are what the broker's time goes into. A degree between them, of half a millisecond,
gathers nothing: at some hundred records a second the next one is milliseconds away. Numbers are in
docs/decisions/0015-latency-and-requests.md.
"""


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
        """As `Producer`; the bounds hold for each degree."""
        bounds = {"queue_records_max": queue_records_max, "queue_bytes_max": queue_bytes_max, **config}
        self._degrees = [
            (
                under_way_max,
                Producer(
                    settings,
                    name=f"{name}-{linger_ms:.0f}",
                    on_replaced=on_replaced,
                    linger_ms=linger_ms,
                    failures_only=True,
                    **bounds,
                ),
            )
            for under_way_max, linger_ms in DEGREES
        ]

    @property
    def outstanding(self) -> int:
        """Records not yet reported on, and reports (and librdkafka's own notices) not yet polled."""
        return sum(producer.outstanding for _, producer in self._degrees)

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
        under_way = self.outstanding
        producer = next(producer for under_way_max, producer in self._degrees if under_way < under_way_max)
        producer.produce(topic, partition, key, value, headers, on_delivery)

    async def close(self, timeout: float = 2.0) -> int:
        """Waits for outstanding deliveries, at most `timeout` seconds; returns how many stay unreported."""
        return sum(await asyncio.gather(*(producer.close(timeout) for _, producer in self._degrees)))
