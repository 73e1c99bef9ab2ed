"""Faust's Kafka transport, handing agents whole batches. Registered under the URL scheme `everfold`.

Faust delivers a record at a time, each raced against a rebalance by two asyncio tasks: 240 µs of CPU per record,
measured. Here an agent on a *batched* topic gets one message for all the consecutive records of a partition that one
fetch brought, so that cost is per fetch; agents on other topics get records one by one, as always. What else differs:

- after an assignment reading starts where `app.open_partitions` says, not at the group's commit. The commit still
  moves, for those who watch the lag, but nothing rests on it (docs/decisions/0007);
- between fetches the consumer rests, for `app.linger_s` at most, so that a busy cluster is read in large batches;
- no fixed sleeps: Faust waits a second in three places before the first record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import faust
import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from everfold.runtime.kafka import KafkaUnavailable
from everfold.topology.projection import Batch

if TYPE_CHECKING:
    from everfold.topology.application import TopologyApp

FETCH_WAIT_MS: Final = 250
"""How long a fetch may wait for data. Faust's 1500 would be the latency of a record whose partition misses a fetch."""

REST_WHOLE_RECORDS: Final = 64
REST_LEAST: Final = 0.35
"""The rest after a fetch is all of `linger_s` when the fetch brought so many records, less when it brought fewer, but
at least this part: 70 ms of 200. At 50 workflows a second a whole rest saves half of the CPU; at one it would only be
latency."""

REST_S: Final = 0.02
"""Pause while there is nothing that may be fetched, as in a rebalance."""


RETRY_S: Final = 1.0
"""Pause before Kafka is asked again for what it did not answer."""

log = structlog.get_logger("topology")


class BatchSchema(faust.Schema):  # type: ignore[type-arg]
    """For topics whose messages are `Batch`es: nothing to decode."""

    def loads_key(self, app: Any, message: Any, **_options: Any) -> Any:
        """Batches have no key."""
        return None

    def loads_value(self, app: Any, message: Any, **_options: Any) -> Any:
        """The Batch itself."""
        return message.value


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread in which aiokafka's consumer runs."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Faust ends the application where a commit fails. Nothing rests on ours, and the next one says more."""
        held = self.assignment()
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items() if tp in held}
        try:
            await self._ensure_consumer().commit(wanted)
        except KafkaError as error:
            log.warning("position not committed; nothing is lost by that", reason=str(error))
            return False
        return True


class Consumer(driver.Consumer):
    """Faust's consumer with batches."""

    @property
    def _application(self) -> TopologyApp:
        return cast("TopologyApp", self.app)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Goes to where reading has to start: the processors' own positions, else the group's commit.

        Tries again for as long as Kafka does not answer: heartbeats go on meanwhile, in a task of their own. But nobody
        looks for the group's coordinator before this has returned, so nothing that is tried again may ask for that.
        """
        if any(tp.topic not in self._application.batched for tp in self.assignment()):
            await super().perform_seek()
        while True:
            try:
                await self._seek_to_starts()
                return
            except (KafkaError, KafkaUnavailable, TimeoutError) as error:
                log.warning("partitions not taken yet: waits for Kafka", reason=str(error) or "no answer in time")
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                await self.crash(error)
                raise

    async def _seek_to_starts(self) -> None:
        assigned = {TP(*tp) for tp in self.assignment()}
        starts = await self._application.open_partitions(assigned)
        if starts:
            await self.seek_wait(starts)
            for tp, offset in starts.items():
                # The last offset read: Faust drops what is below it, and takes it itself.
                self._read_offset[tp] = offset
                self._committed_offset[tp] = None
                if offset > 0:  # so that the group's commit, and the lag seen in it, follows even if nothing comes
                    self._acked[tp].append(offset - 1)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's stall detector takes an idle topic for a stalled one; our lag metrics say it better."""

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic not in self._application.batched:
            return super()._new_offset(tp)
        # An agent takes the batches of a partition in order, so the last one acknowledged speaks for all before it.
        acked = self._acked[tp]
        if not acked:
            return None
        reached = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()
        return int(reached)

    async def _drain_messages(self, fetcher: Any) -> None:
        stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        application = self._application
        try:
            while not (stopped() or fetcher_stopped()):
                if not self.flow_active or not self._get_active_partitions():
                    await asyncio.sleep(REST_S)
                    continue
                generation = self.app.consumer_generation_id
                records, active = await self._wait_next_records(1.0)
                if not records or self.should_stop:
                    await asyncio.sleep(0)
                    continue
                for tp, found in records.items():
                    # Fetched just before a rebalance: what follows it seeks to where reading starts again.
                    if generation != self.app.consumer_generation_id or not self.flow_active:
                        break
                    if active is None or tp in active or tp in self._buffered_partitions:
                        await self._deliver(tp, found)
                brought = sum(map(len, records.values()))
                await asyncio.sleep(application.linger_s * max(REST_LEAST, min(1.0, brought / REST_WHOLE_RECORDS)))
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _deliver(self, tp: TP, found: list[Any]) -> None:
        if tp.topic in self._application.batched:
            await self._take(tp, self._batch(tp, found))
            return
        for record in found:
            read = self._read_offset[tp]
            if read is not None and record.offset < read:
                continue
            if read is not None and read and record.offset > read + 1 and self.app.topics.acks_enabled_for(tp.topic):
                await self._add_gap(tp, read + 1, record.offset)
            await self._take(tp, self._to_message(tp, record))

    def _batch(self, tp: TP, found: list[Any]) -> ConsumerMessage:
        last = found[-1]
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            [],
            None,
            cast("bytes", Batch(last.topic, last.partition, found)),
            None,
            0,
            0,
            TP(*tp),
            generation_id=self.app.consumer_generation_id,
        )

    async def _take(self, tp: TP, message: ConsumerMessage) -> None:
        # Raced, so that a full agent does not hold up a rebalance; what is dropped here is read again after it.
        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        self._read_offset[tp] = message.offset


class Transport(driver.Transport):
    """Faust's Kafka transport with our consumer."""

    Consumer = Consumer


class NoTables(TableManager):
    """Faust's table manager for applications without tables: nothing to wait for, so the app is ready at once."""

    async def on_start(self) -> None:
        """Starts without the second that Faust gives to late declarations."""
        await self._update_channels()
        await self.recovery.start()
