"""Which process owns which partitions of a topic, by Kafka's classic group protocol.

Only ownership comes from here: the member fetches nothing and commits nothing, and what is owned is read by a
`LogConsumer` from the owner's stored position. Assignment is cooperative-sticky: what stays is not disturbed.

    on_assigned   these partitions are ours from now on
    on_revoked    they must go to another member, which waits until this has returned (or `REVOKE_SECONDS_MAX` is over)
    on_lost       they were given away already: we were silent for longer than the session. Others may be at work

The three are coroutines, run on the loop while the member's thread waits for them; heartbeats go on meanwhile. They
must not wait for anything long: a shard that has to catch up does so in a task of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from everfold.runtime.kafka.settings import KafkaSettings

SESSION_MS: Final = 6000
"""How long a member may be silent: brokers allow no less by default (`group.min.session.timeout.ms`)."""

HEARTBEAT_MS: Final = 1500
"""A quarter of the session, and the delay with which a member hears of a rebalance."""

REVOKE_SECONDS_MAX: Final = 8.0
"""What a callback may take. Must stay below the rebalance timeout, or Kafka removes the member meanwhile."""

_REBALANCE_MS: Final = 15_000
"""`max.poll.interval.ms`, which in the classic protocol is also how long a rebalance waits for a member."""
assert REVOKE_SECONDS_MAX * 1000 < _REBALANCE_MS
assert SESSION_MS <= _REBALANCE_MS

_WAIT_S: Final = 0.1
_RETRY_S: Final = 1.0

Partitions = frozenset[int]
OnPartitions = Callable[[Partitions], Awaitable[None]]

log = structlog.get_logger("kafka.group")


class GroupMembership:
    """One member of one group over one topic; methods for the loop thread."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        group: str,
        topic: str,
        on_assigned: OnPartitions,
        on_revoked: OnPartitions,
        on_lost: OnPartitions | None = None,
        session_ms: int = SESSION_MS,
        instance: str = "",
        **config: Any,
    ) -> None:
        """A member, not yet joined.

        Args:
            settings: the cluster.
            group: the group's name without the cluster's prefix, e.g. `history`.
            topic: full name of the topic whose partitions are spread.
            on_assigned: see the module.
            on_revoked: see the module.
            on_lost: see the module; without it `on_revoked` is called.
            session_ms: see `SESSION_MS`.
            instance: a name that this member has in every life, and no other at the same time; empty for none. After a
                kill it has its partitions back at once, and not when the session of its former life is over; but nobody
                else gets them sooner when it leaves.
            config: further librdkafka properties, underscores for dots.
        """
        self.group = settings.prefix + group
        self.topic = topic
        self._config = settings.client(
            f"{group}-member",
            **{
                "group_id": self.group,
                "group_protocol": "classic",
                "partition_assignment_strategy": "cooperative-sticky",
                "session_timeout_ms": session_ms,
                "heartbeat_interval_ms": min(HEARTBEAT_MS, session_ms // 4),
                "max_poll_interval_ms": max(_REBALANCE_MS, session_ms),
                "enable_auto_commit": False,
                "enable_auto_offset_store": False,
                "auto_offset_reset": "error",
                # Assigned partitions are paused at once; should a fetch slip out before, let it be small.
                "queued_min_messages": 1,
                "queued_max_messages_kbytes": 64,
                "fetch_message_max_bytes": 1024,
                **({"group_instance_id": f"{settings.prefix}{group}-{instance}"} if instance else {}),
                **config,
            },
        )
        self._callbacks = {"assigned": on_assigned, "revoked": on_revoked, "lost": on_lost or on_revoked}
        self._owned: set[int] = set()
        self._first = asyncio.Event()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def partitions(self) -> Partitions:
        """What this member owns, as its callbacks were told."""
        return frozenset(self._owned)

    async def start(self) -> None:
        """Begins to join; returns at once. The first assignment may be empty, and `joined` waits for it."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"kafka-{self.group}", daemon=True)
        self._thread.start()

    async def joined(self) -> None:
        """Waits until the group has answered for the first time."""
        await self._first.wait()

    async def stop(self) -> None:
        """Leaves the group: `on_revoked` is called for what is owned, then others take it without a wait."""
        self._leaving.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self) -> None:
        """The thread: one consumer after the other, each until it fails for good or the member leaves."""
        while not self._leaving.is_set():
            consumer = Consumer(self._config)
            try:
                consumer.subscribe(
                    [self.topic],
                    on_assign=lambda consumer, places: self._assigned(consumer, places),
                    on_revoke=lambda consumer, places: self._gone(consumer, places, "revoked"),
                    on_lost=lambda consumer, places: self._gone(consumer, places, "lost"),
                )
                while not self._leaving.is_set():
                    message = consumer.poll(_WAIT_S)
                    error = message.error() if message is not None else None
                    if error is None:
                        continue
                    if error.fatal():
                        log.error("group member failed for good and joins anew", group=self.group, error=error.str())
                        break
                    if error.code() != KafkaError._MAX_POLL_EXCEEDED:
                        log.warning("kafka", group=self.group, error=error.str())
            except KafkaException as error:
                log.error("group member", group=self.group, error=str(error))
            finally:
                consumer.close()  # calls `_gone` for what is owned, and tells the coordinator
            if self._owned:
                self._tell("lost", frozenset(self._owned))
            self._leaving.wait(_RETRY_S)

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # An offset spares the question for a committed one; nothing is read from it, as the partitions are paused.
        ours = [TopicPartition(place.topic, place.partition, 0) for place in places]
        consumer.incremental_assign(ours)
        if ours:
            consumer.pause(ours)
        self._tell("assigned", frozenset(place.partition for place in places))

    def _gone(self, consumer: Consumer, places: list[TopicPartition], how: str) -> None:
        gone = frozenset(place.partition for place in places)
        if gone:
            self._tell(how, gone)
        consumer.incremental_unassign(places)

    def _tell(self, what: str, partitions: Partitions) -> None:
        """In the thread: runs the callback on the loop and waits for it."""
        assert self._loop is not None
        if self._loop.is_closed():
            return
        waiting = asyncio.run_coroutine_threadsafe(self._call(what, partitions), self._loop)
        try:
            waiting.result(REVOKE_SECONDS_MAX)
        except concurrent.futures.TimeoutError:
            log.error("group callback takes too long; the group goes on without it", group=self.group, callback=what)
        except Exception as error:
            log.error("group callback failed", group=self.group, callback=what, error=repr(error))

    def _call(self, what: str, partitions: Partitions) -> Coroutine[Any, Any, None]:
        async def call() -> None:
            if what == "assigned":
                self._owned |= partitions
            else:
                self._owned -= partitions
            log.info(f"partitions {what}", group=self.group, partitions=sorted(partitions), owned=sorted(self._owned))
            try:
                if partitions:
                    await self._callbacks[what](partitions)
            finally:
                self._first.set()

        return call()
