"""The ports of a shard in a server: confluent-kafka behind, the event loop's timers, the machine's clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import structlog

from everfold.history.ports import Cancellable, Delivered, Headers, ProducerFull
from everfold.kernel.time import SECOND_NS
from everfold.runtime.clock import Clock
from everfold.runtime.kafka import (
    EndOffsets,
    KafkaTrouble,
    KafkaUnavailable,
    Producer,
    ProducerQueueFull,
    PromptProducer,
)
from everfold.schemas.topics import SHARD_LOG

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

log = structlog.get_logger("history.ports")


class KafkaPorts:
    """What all shards of a process share; `for_shard` makes one shard's view.

    Args:
        proposals: takes the records that somebody waits for, in no order.
        prompt_outputs: takes what is produced to `prompt_topics`, for which workflows wait: chains, sent at once.
        outputs: takes all others: chains, too, sent in company.
        prompt_topics: names without prefix. A chain must stay with one producer, and so a topic does.
    """

    def __init__(
        self,
        prefix: str,
        proposals: PromptProducer,
        prompt_outputs: Producer,
        outputs: Producer,
        prompt_topics: Collection[str],
        end_offsets: EndOffsets,
        clock: Clock,
    ) -> None:
        self._prefix = prefix
        self._log_topic = prefix + SHARD_LOG.name
        self._proposals = proposals
        self._prompt_outputs = prompt_outputs
        self._prompt_topics = frozenset(prompt_topics)
        self._outputs = outputs
        self._end_offsets = end_offsets
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        #: questions under way; asyncio keeps only weak references to tasks
        self._questions: set[asyncio.Task[None]] = set()

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        """See `ShardPorts.produce`."""
        producer = self._prompt_outputs if topic in self._prompt_topics else self._outputs
        self._send(producer, self._prefix + topic, partition, key, value, headers, on_delivery)

    def propose(self, partition: int, key: bytes, value: bytes, on_delivery: Delivered) -> None:
        """See `ShardPorts.propose`."""
        self._send(self._proposals, self._log_topic, partition, key, value, (), on_delivery)

    def _send(
        self,
        producer: Producer | PromptProducer,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes | None,
        headers: Headers,
        on_delivery: Delivered,
    ) -> None:
        def report(error: KafkaError | None, message: Message) -> None:
            if error is None:
                offset = message.offset()
                on_delivery(None, -1 if offset is None else offset)
            else:
                on_delivery(KafkaTrouble(error.str()), -1)

        try:
            producer.produce(topic, partition, key, value, list(headers) or None, report)
        except ProducerQueueFull as full:
            raise ProducerFull(str(full)) from None
        except KafkaTrouble as trouble:
            # It can never be sent, or the producer is closed: an outcome like any other, not from inside the call.
            self._loop.call_soon(on_delivery, trouble, -1)

    def now_ns(self) -> int:
        """See `ShardPorts.now_ns`."""
        return self._clock.wall_ns()

    def boottime_ns(self) -> int:
        """See `ShardPorts.boottime_ns`."""
        return self._clock.boot_ns()

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> Cancellable:
        """See `ShardPorts.call_later`."""
        return self._loop.call_later(delay_ns / SECOND_NS, callback)

    def request_end_offset(self, topic: str, partition: int, done: Callable[[int | None], None]) -> None:
        """See `ShardPorts.request_end_offset`."""

        async def ask() -> None:
            try:
                end: int | None = await self._end_offsets.end_offset(self._prefix + topic, partition)
            except KafkaUnavailable:
                end = None
            except Exception:  # whoever asked must hear that there is no answer
                log.exception("the end of a partition not found out", topic=topic, partition=partition)
                end = None
            done(end)

        task: asyncio.Task[None] = self._loop.create_task(ask())
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    def close(self) -> None:
        """Ask nothing more."""
        for task in self._questions:
            task.cancel()

    def for_shard(self, pause: Callable[[], None], resume: Callable[[], None]) -> ServerShardPorts:
        """The ports of one shard, with its own consumer's switch."""
        return ServerShardPorts(self, pause, resume)


class ServerShardPorts:
    """A `ShardPorts`."""

    def __init__(self, shared: KafkaPorts, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.produce = shared.produce
        self.propose = shared.propose
        self.now_ns = shared.now_ns
        self.boottime_ns = shared.boottime_ns
        self.call_later = shared.call_later
        self.request_end_offset = shared.request_end_offset
        self.pause = pause
        self.resume = resume


class Flow:
    """A consumer's switch for one partition: `pause` and `resume` as the ports want them."""

    def __init__(self, consumer: Any, topic: str, partition: int) -> None:
        self._consumer = consumer
        self._topic = topic
        self._partition = partition

    def pause(self) -> None:
        """Deliver nothing more for now."""
        self._consumer.pause(self._topic, self._partition)

    def resume(self) -> None:
        """Deliver again."""
        self._consumer.resume(self._topic, self._partition)
