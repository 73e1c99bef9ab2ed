"""The reader of the topic `namespaces`: feeds a registry, from the start of the topic on, while the process lives."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Message

from everfold.kernel.errors import Code, StatusError
from everfold.runtime.kafka import EndOffsets, KafkaSettings, KafkaTrouble, LogConsumer, PartitionTrouble
from everfold.runtime.namespaces import NamespaceRegistry
from everfold.schemas import codec
from everfold.schemas.topics import NAMESPACES

CATCH_UP_SECONDS_MAX: Final = 8.0
"""How long a caller waits for the end of the topic. Below an RPC's usual deadline of 10 s."""

log = structlog.get_logger("namespaces")


class NamespaceLog:
    """Owns the registry that the services of this process share.

    Attributes:
        registry: what has been read so far.
    """

    def __init__(self, settings: KafkaSettings, ends: EndOffsets, *, name: str = "namespaces") -> None:
        """Nothing runs before `start`.

        Args:
            settings: the cluster.
            ends: asks for the end of the topic; shared with others.
            name: the client's name, for logs.
        """
        self.registry = NamespaceRegistry(self._catch_up)
        self._topic = settings.topic(NAMESPACES)
        self._ends = ends
        #: offset of the next record to be read; what is before it has been applied
        self._position = 0
        #: (offset, who waits until the position has reached it)
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._consumer = LogConsumer(
            settings, name=name, on_batch=self._on_batch, on_trouble=self._on_trouble, on_end=self._on_end
        )

    async def start(self) -> None:
        """Reads the topic to its end as it is now, and goes on reading.

        Raises:
            StatusError: UNAVAILABLE, the broker did not answer in time.
        """
        await self._consumer.start()
        self._consumer.assign(self._topic, 0, OFFSET_BEGINNING)
        await self.registry.refresh()

    async def stop(self) -> None:
        """Stops reading; those who wait for a refresh get UNAVAILABLE."""
        await self._consumer.stop()
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(StatusError(Code.UNAVAILABLE, "the server is shutting down"))

    async def _catch_up(self) -> None:
        waiter: asyncio.Future[None] | None = None
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                end = await self._ends.end_offset(self._topic, 0)
                if end > self._position:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting.append((end, waiter))
                    await waiter
        except (KafkaTrouble, TimeoutError) as error:
            raise StatusError(
                Code.UNAVAILABLE, f"the namespaces cannot be read: {error or 'no answer from Kafka in time'}"
            ) from None
        finally:
            self._waiting = [entry for entry in self._waiting if entry[1] is not waiter]

    def _on_batch(self, batch: list[Message]) -> None:
        for message in batch:
            try:
                self.registry.apply(message.key() or b"", message.value())
            except codec.Undecodable as error:
                # A newer build's namespace: this process cannot serve it, and must not stop serving the others.
                log.error("namespace record not readable", offset=message.offset(), reason=error.reason)
        last = batch[-1].offset()
        assert last is not None
        self._reached(last + 1)

    def _on_end(self, topic: str, partition: int, next_offset: int) -> None:
        # Compaction and transaction markers leave offsets without records, also at the end.
        self._reached(next_offset)

    def _on_trouble(self, trouble: PartitionTrouble) -> None:
        log.warning("namespaces topic", text=trouble.text, position_lost=trouble.position_lost)
        if trouble.position_lost:
            # The topic is compacted: from its start on it says everything again, and repeats are ignored.
            self._consumer.unassign(self._topic, 0)
            self._position = 0
            self._consumer.assign(self._topic, 0, OFFSET_BEGINNING)

    def _reached(self, position: int) -> None:
        self._position = max(self._position, position)
        for end, waiter in self._waiting:
            if end <= self._position and not waiter.done():
                waiter.set_result(None)
