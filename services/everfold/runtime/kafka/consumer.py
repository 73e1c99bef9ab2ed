"""Reading assigned partitions from given positions, in a thread, a batch at a time.

A thread waits in `poll` for a first record, drains what else is there with `consume(n, 0)`, and hands the batch to the
loop, which takes the next ones itself as long as they come quickly (`runtime/handover.py`). While the loop is busy
further records collect in librdkafka's queue and come as one larger batch, so batches grow with load by themselves; at
its bound fetching pauses.

Positions are the caller's: nothing is committed, there is no group. Orders (assign, unassign, pause, resume) can block,
so they travel to the thread. They carry a number; a batch goes with the number of the last order that was carried out
before it was read, so that no record of an earlier assignment is delivered after a later one of the same partition.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from everfold.runtime.handover import Handover
from everfold.runtime.kafka.settings import MESSAGE_BYTES_MAX, KafkaSettings
from everfold.runtime.scheduling import starting_threads_that_give_way

BATCH_RECORDS_MAX: Final = 1000
"""One batch is one WriteBatch and one turn of the loop: some tens of milliseconds of folding at this size."""

QUEUE_KBYTES_MAX: Final = 16 * 1024
"""What librdkafka may hold fetched but not taken: twice the largest record."""

_WAIT_S: Final = 0.05
"""How long the thread waits for a record before it looks for orders: the delay of an order on an idle consumer."""

log = structlog.get_logger("kafka.consumer")


class PartitionTrouble(NamedTuple):
    """What the consumer says about a partition instead of a record.

    Attributes:
        topic: full name.
        partition: number.
        position_lost: the position is not in the log (trimmed, or the tail was lost): reading has stopped.
        text: librdkafka's words.
        unreadable: what is at the position cannot be read: a broken checksum, or a broker that stumbles over it.
            librdkafka tries it again for ever, or goes on behind it.
    """

    topic: str
    partition: int
    position_lost: bool
    text: str
    unreadable: bool = False


class _Order(NamedTuple):
    number: int
    action: str
    partition: TopicPartition


class LogConsumer:
    """Reads partitions of topics for the loop thread; all methods are for the loop thread, all callbacks run on it."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        name: str,
        on_batch: Callable[[list[Message]], None],
        on_trouble: Callable[[PartitionTrouble], None] | None = None,
        on_end: Callable[[str, int, int], None] | None = None,
        read_committed: bool = False,
        batch_records_max: int = BATCH_RECORDS_MAX,
        **config: Any,
    ) -> None:
        """A consumer without partitions, not yet started.

        Args:
            settings: the cluster.
            name: for `client.id`, the thread and the log.
            on_batch: gets records, of all assigned partitions, each partition's in order. Not called with none.
            on_trouble: gets what went wrong with one partition; without it, that is logged.
            on_end: gets (topic, partition, next offset) whenever the end of a partition was reached.
            read_committed: skip records of aborted transactions, wait for open ones.
            batch_records_max: bound on one batch.
            config: further librdkafka properties, underscores for dots.
        """
        self._config = settings.client(
            name,
            **{
                "group_id": f"{settings.prefix}{name}",  # librdkafka wants one; nothing is ever committed under it
                "enable_auto_commit": False,
                "enable_auto_offset_store": False,
                "auto_offset_reset": "error",
                "isolation_level": "read_committed" if read_committed else "read_uncommitted",
                "check_crcs": True,
                "enable_partition_eof": on_end is not None,
                "fetch_queue_backoff_ms": 1,
                "fetch_error_backoff_ms": 50,
                # Not how long a record waits (the broker answers at once) but how long a partition that was just
                # assigned waits for the fetch request that is under way without it.
                "fetch_wait_max_ms": 100,
                "fetch_message_max_bytes": 1024 * 1024,
                "fetch_max_bytes": MESSAGE_BYTES_MAX,
                "queued_max_messages_kbytes": QUEUE_KBYTES_MAX,
                "max_poll_interval_ms": 86_400_000,  # a busy loop is no reason to stop reading
                **config,
            },
        )
        self._config["error_cb"] = self._on_error
        self._name = name
        self._on_batch = on_batch
        self._on_trouble = on_trouble
        self._on_end = on_end
        self._batch_max = batch_records_max
        self._orders: deque[_Order] = deque()
        self._number = 0
        #: (topic, partition) -> number of the order that assigned it
        self._assigned: dict[tuple[str, int], int] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handover: Handover | None = None
        self._consumer: Consumer | None = None
        #: batches in the order in which they were read, each with the number of the last order before it
        self._taken: deque[tuple[list[Message], int]] = deque()
        #: number of the last order that was carried out; set by the thread, read by whoever takes a batch
        self._done = 0

    @property
    def assigned(self) -> set[tuple[str, int]]:
        """The (topic, partition) pairs that are read."""
        return set(self._assigned)

    async def start(self) -> None:
        """Starts the thread."""
        self._loop = asyncio.get_running_loop()
        self._handover = handover = Handover(self._loop, self._look)
        with starting_threads_that_give_way():
            self._consumer = consumer = Consumer(self._config)
        self._thread = threading.Thread(
            target=self._run, args=(consumer, handover), name=f"kafka-{self._name}", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread and closes the connection. No callback comes after it."""
        self._assigned.clear()
        self._closing.set()
        if self._handover is not None:
            self._handover.take_back()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def assign(self, topic: str, partition: int, offset: int, leader_epoch: int = -1) -> None:
        """Reads a partition from an offset on.

        Args:
            topic: full name.
            partition: number.
            offset: the first record wanted.
            leader_epoch: of the record before it, if known: librdkafka then notices (KIP-320) when the log was
                rewritten behind that position, and reports `position_lost`.
        """
        key = (topic, partition)
        assert key not in self._assigned, f"{topic}[{partition}] is assigned already"
        where = TopicPartition(topic, partition, offset)
        if leader_epoch >= 0:
            where = TopicPartition(topic, partition, offset, leader_epoch=leader_epoch)
        self._assigned[key] = self._order("assign", where)

    def unassign(self, topic: str, partition: int) -> None:
        """Stops reading a partition; no record of it is delivered any more. Ignored when it is not assigned."""
        if self._assigned.pop((topic, partition), None) is not None:
            self._order("unassign", TopicPartition(topic, partition))

    def pause(self, topic: str, partition: int) -> None:
        """Stops reading for a while. A batch that was read before may still come."""
        if (topic, partition) in self._assigned:
            self._order("pause", TopicPartition(topic, partition))

    def resume(self, topic: str, partition: int) -> None:
        """Goes on after the last record delivered."""
        if (topic, partition) in self._assigned:
            self._order("resume", TopicPartition(topic, partition))

    def _order(self, action: str, partition: TopicPartition) -> int:
        self._number += 1
        self._orders.append(_Order(self._number, action, partition))
        if self._handover is not None:
            self._handover.take_back()
        return self._number

    def _run(self, consumer: Consumer, handover: Handover) -> None:
        """The thread: orders, one batch, then again when the loop has taken the last one."""
        assert self._loop is not None
        try:
            while not self._closing.is_set():
                if self._orders:
                    self._carry_out(consumer)
                batch = self._take(consumer, _WAIT_S)
                if batch:
                    handover.give(partial(self._deliver, batch, self._done))
        except RuntimeError as error:
            if not self._loop.is_closed():  # the process ends without having stopped us
                log.error("consumer thread failed", consumer=self._name, error=str(error))
                raise
        finally:
            consumer.close()

    def _look(self) -> bool:
        assert self._consumer is not None
        assert self._handover is not None
        if self._orders or self._closing.is_set():
            self._handover.take_back()
            return True
        batch = self._take(self._consumer, 0)
        if not batch:
            return False
        # Two turns later: folding takes milliseconds, and what requests of this turn have begun comes first.
        self._taken.append((batch, self._done))
        assert self._loop is not None
        self._loop.call_soon(self._loop.call_soon, self._deliver_taken)
        return True

    def _take(self, consumer: Consumer, wait_s: float) -> list[Message]:
        first = consumer.poll(wait_s)
        if first is None:
            return []
        return [first] if self._batch_max == 1 else [first, *consumer.consume(self._batch_max - 1, 0)]

    def _carry_out(self, consumer: Consumer) -> None:
        """Carries out the orders that are there, neighbours of one kind together."""
        while self._orders:
            action = self._orders[0].action
            partitions: list[TopicPartition] = []
            while self._orders and self._orders[0].action == action:
                order = self._orders.popleft()
                partitions.append(order.partition)
                self._done = order.number
            try:
                if action == "assign":
                    consumer.incremental_assign(partitions)
                elif action == "unassign":
                    consumer.incremental_unassign(partitions)
                elif action == "pause":
                    consumer.pause(partitions)
                else:
                    consumer.resume(partitions)
            except KafkaException as error:
                assert self._loop is not None
                text = f"{action}: {error.args[0].str()}"
                for place in partitions:
                    trouble = PartitionTrouble(place.topic, place.partition, False, text)
                    self._loop.call_soon_threadsafe(self._report, trouble)

    def _deliver(self, batch: list[Message], done: int) -> None:
        """On the loop: passes on what the thread has taken. It may have had its turn back, and been quicker than what
        the loop took before: that goes first.
        """
        self._taken.append((batch, done))
        self._deliver_taken()

    def _deliver_taken(self) -> None:
        while self._taken:
            self._pass_on(*self._taken.popleft())

    def _pass_on(self, batch: list[Message], done: int) -> None:
        """On the loop: passes a batch on, without errors and without records of earlier assignments."""
        if self._closing.is_set():
            return
        if any(message.error() is not None for message in batch):
            self._report_errors([message for message in batch if message.error() is not None])
            batch = [message for message in batch if message.error() is None]
        if done != self._number:
            batch = self._current(batch, done)
        if batch:
            self._on_batch(batch)

    def _current(self, batch: Sequence[Message], done: int) -> list[Message]:
        assigned = self._assigned
        unknown = self._number + 1
        return [
            message
            for message in batch
            if assigned.get((message.topic() or "", -1 if (p := message.partition()) is None else p), unknown) <= done
        ]

    def _report_errors(self, messages: list[Message]) -> None:
        for message in messages:
            error = message.error()
            topic, partition = message.topic(), message.partition()
            assert error is not None
            if topic is None or partition is None:
                log.warning("kafka", consumer=self._name, error=error.str())
            elif error.code() == KafkaError._PARTITION_EOF:
                if self._on_end is not None and (topic, partition) in self._assigned:
                    self._on_end(topic, partition, message.offset() or 0)
            else:
                lost = error.code() in (
                    KafkaError._AUTO_OFFSET_RESET,
                    KafkaError.OFFSET_OUT_OF_RANGE,
                    KafkaError._LOG_TRUNCATION,
                )
                self._report(PartitionTrouble(topic, partition, lost, error.str(), error.code() in _UNREADABLE))

    def _report(self, trouble: PartitionTrouble) -> None:
        if (trouble.topic, trouble.partition) not in self._assigned:
            return
        if self._on_trouble is not None:
            self._on_trouble(trouble)
        else:
            log.error("partition", consumer=self._name, **trouble._asdict())

    def _on_error(self, error: KafkaError) -> None:
        # In the thread or on the loop, from within poll; connections come and go, and librdkafka sees to them.
        log.debug("kafka", consumer=self._name, error=error.str())


_UNREADABLE: Final = (
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
    KafkaError._NOT_IMPLEMENTED,  # a magic byte that is none
    KafkaError.INVALID_MSG,
)
"""What librdkafka says of a batch with a broken checksum or header, and what a broker says that cannot read its own."""
