"""The idempotent producer, driven from the event loop.

librdkafka sends from a thread of its own; delivery reports are collected here on the loop thread, by `poll`, which a
timer calls while anything is outstanding. So callbacks run on the loop thread, between its other work, and no thread is
woken for them.

After a failed delivery the records after it may be in the log although it is not: who needs chains without gaps stops
the partition and sends again (architecture law 6). A *fatal* error, after which librdkafka refuses everything, replaces
the producer inside; all that the old one held is reported as failed first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as _Producer

from everfold.runtime.kafka.errors import KafkaTrouble, ProducerQueueFull
from everfold.runtime.kafka.settings import ACKNOWLEDGE_SECONDS_MAX, KafkaSettings
from everfold.runtime.scheduling import starting_threads_that_give_way

QUEUE_RECORDS_MAX: Final = 100_000
QUEUE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Both bound what is lost from memory's point of view when Kafka takes nothing: beyond them `produce` refuses."""

DELIVERY_SECONDS_MAX: Final = 30.0
"""How long a record may stay undelivered. Longer than a broker's restart, so that one is not noticed; above any RPC's
deadline, whose caller by then has its UNAVAILABLE; and an outbox starts over after it."""

_POLL_MIN_S: Final = 0.002
_POLL_MAX_S: Final = 0.05
"""The timer's pause: short while reports come in, doubling up to the longer one while Kafka is silent. Never shorter
than the linger, before which there is nothing to report."""

_RETIRE_SECONDS_MAX: Final = 0.5
"""Bound on the block of the loop when a fatal error replaces the producer."""

Delivery = Callable[[KafkaError | None, Message], None]
Headers = list[tuple[str, bytes]]

log = structlog.get_logger("kafka.producer")


class Producer:
    """Sends records; loop thread only.

    A new one serves after half a second (librdkafka's pause before it asks for a producer id), so make it early.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        name: str,
        queue_records_max: int = QUEUE_RECORDS_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        delivery_seconds_max: float = DELIVERY_SECONDS_MAX,
        linger_ms: float = 0,
        failures_only: bool = False,
        on_replaced: Callable[[], None] | None = None,
        **config: Any,
    ) -> None:
        """A producer, connecting by itself in the background. Must be made with the event loop running.

        Args:
            settings: the cluster.
            name: for `client.id` and the log.
            queue_records_max: records that may be outstanding.
            queue_bytes_max: bytes that may be outstanding.
            delivery_seconds_max: after which a record is reported as failed; it may be in the log nevertheless.
            linger_ms: how long a record waits for company. 0: it leaves at once, and each costs a request of its own
                while few are under way. Where nobody waits, give it some milliseconds.
            failures_only: `on_delivery` is called for failures only, which saves building a report per record.
            on_replaced: called when a fatal error replaced the producer, after all reports of the old one.
            config: further librdkafka properties, underscores for dots.
        """
        self._config = settings.client(
            name,
            **{
                "enable_idempotence": True,
                "acks": "all",
                "linger_ms": linger_ms,
                "delivery_report_only_error": failures_only,
                "compression_type": "none",
                "queue_buffering_max_messages": queue_records_max,
                "queue_buffering_max_kbytes": queue_bytes_max // 1024,
                "delivery_timeout_ms": int(delivery_seconds_max * 1000),
                "request_timeout_ms": int(min(ACKNOWLEDGE_SECONDS_MAX, delivery_seconds_max) * 1000),
                "partitioner": "murmur2_random",
                **config,
            },
        )
        self._config["error_cb"] = self._on_error
        self._name = name
        self._on_replaced = on_replaced
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._shortest_pause = min(max(_POLL_MIN_S, linger_ms / 1000), _POLL_MAX_S)
        self._pause = self._shortest_pause
        self._fatal: KafkaError | None = None
        self._closed = False
        self._producer = self._made()

    @property
    def outstanding(self) -> int:
        """Records not yet reported on, and reports (and librdkafka's own notices) not yet polled."""
        return len(self._producer)

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        on_delivery: Delivery | None = None,
    ) -> None:
        """Hands a record over. Records of one partition arrive in the order of these calls.

        Args:
            topic: full name.
            partition: -1 lets murmur2 of the key choose.
            key: the record's key.
            value: None is a tombstone.
            headers: Kafka record headers.
            on_delivery: called on the loop thread, once, with the error or None and the record's place.

        Raises:
            ProducerQueueFull: nothing was taken.
            KafkaTrouble: the record can never be sent (too large, unknown partition), or the producer is closed.
        """
        if self._closed:
            raise KafkaTrouble(f"producer {self._name} is closed")
        arguments: dict[str, Any] = {"partition": partition}
        if headers is not None:
            arguments["headers"] = headers
        if on_delivery is not None:
            arguments["on_delivery"] = on_delivery
        try:
            self._producer.produce(topic, value, key, **arguments)
        except BufferError:
            self._arm()
            raise ProducerQueueFull(f"{self.outstanding} records are waiting for Kafka") from None
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.fatal():
                self._fatal = cause
                self._arm()
            raise KafkaTrouble(f"{topic}[{partition}]: {cause.str()}") from error
        self._arm()

    async def deliver(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> Message:
        """Sends one record and waits for its place in the log. For what is rare; costs a future and a timer's wait.

        Not for a producer that reports `failures_only`: it would wait for ever.

        Raises:
            ProducerQueueFull: nothing was taken.
            KafkaTrouble: it was not acknowledged; it may be in the log nevertheless.
        """
        done: asyncio.Future[Message] = self._loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(message)
            else:
                done.set_exception(KafkaTrouble(f"{topic}[{partition}]: {error.str()}"))

        self.produce(topic, partition, key, value, headers, report)
        return await done

    def poll(self) -> int:
        """Collects the delivery reports that are there, without waiting; returns how many."""
        reports = self._producer.poll(0)
        if self._fatal is not None and not self._closed:
            self._replace(self._fatal)
        return reports

    async def close(self, timeout: float = 2.0) -> int:
        """Waits for outstanding deliveries, at most `timeout` seconds; returns how many records stay unreported."""
        self._closed = True
        deadline = self._loop.time() + timeout
        while self._producer.poll(0) or (len(self._producer) and self._loop.time() < deadline):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_MIN_S)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = len(self._producer)
        if left:
            with contextlib.suppress(KafkaException):
                self._producer.purge()
            self._producer.flush(0.2)
        return left

    def _arm(self) -> None:
        if self._timer is None:
            self._pause = self._shortest_pause
            self._timer = self._loop.call_later(self._pause, self._tick)

    def _tick(self) -> None:
        self._timer = None
        reports = self.poll()
        if len(self._producer) and not self._closed:
            self._pause = self._shortest_pause if reports else min(2 * self._pause, _POLL_MAX_S)
            self._timer = self._loop.call_later(self._pause, self._tick)

    def _on_error(self, error: KafkaError) -> None:
        # Called within poll, so on the loop thread.
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._fatal = error
        else:
            log.debug("kafka", producer=self._name, error=error.str())

    def _made(self) -> _Producer:
        with starting_threads_that_give_way():
            return _Producer(self._config)

    def _replace(self, cause: KafkaError) -> None:
        log.error("producer failed for good and is replaced", producer=self._name, error=cause.str())
        old = self._producer
        with contextlib.suppress(KafkaException):
            old.purge()
        old.flush(_RETIRE_SECONDS_MAX)
        self._fatal = None
        self._producer = self._made()
        if self._on_replaced is not None:
            self._on_replaced()
