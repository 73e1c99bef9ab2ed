"""A Kafka broker as far as clients can tell: partitioned logs with leader epochs, producers, readers, and its faults.

What is modelled, and checked against a real broker by `tests/contract/test_log_contract.py`:

- a log is appended to at its end, read in order, and stamped by the broker's clock (LogAppendTime);
- a leader change raises the epoch of what follows; an unclean one loses the tail, so that offsets are used again;
- a reader that resumes with the epoch of the record before is told when that record is gone; one that resumes without
  is told only when its offset lies behind the end;
- a read-committed reader sees nothing behind the start of an open transaction, and skips aborted records and markers;
- an idempotent producer's records of one partition arrive in the order produced, each once; but a record may be lost
  and the next ones arrive (its delivery failed after a timeout), its outcome may be unknown, and it may land after the
  failure was reported, though never behind a later one of the same producer.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from everfold.history.ports import Delivered, Headers, ProducerFull
from everfold.kernel.time import MILLISECOND_NS
from simulation.clock import WALL_START_NS, VirtualLoop

Place = tuple[str, int]
"""Topic and partition."""


class DeliveryFailed(Exception):
    """A produce whose outcome is not known to its sender."""


class Stored:
    """One record in a log. `hidden`: a control marker or a record of an aborted transaction."""

    __slots__ = ("epoch", "headers", "hidden", "key", "offset", "timestamp_ms", "value")

    def __init__(
        self, offset: int, epoch: int, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        self.offset = offset
        self.epoch = epoch
        self.timestamp_ms = timestamp_ms
        self.key = key
        self.value = value
        self.headers = headers
        self.hidden = False


class Log:
    """One partition."""

    def __init__(self) -> None:
        self.records: list[Stored] = []
        self.epoch = 0
        #: (epoch, offset of its first record) for each epoch that has records
        self.epochs: list[tuple[int, int]] = []
        self.readers: list[Reader] = []
        #: offset of the first record of the open transaction
        self.open_from: int | None = None
        self.lost = 0

    @property
    def end(self) -> int:
        return len(self.records)

    @property
    def stable_end(self) -> int:
        """The end for read-committed readers."""
        return self.end if self.open_from is None else self.open_from

    def end_of_epoch(self, epoch: int) -> int:
        """Where the records of epochs up to this one end (OffsetForLeaderEpoch)."""
        at = bisect_right(self.epochs, epoch, key=lambda pair: pair[0])
        return self.epochs[at][1] if at < len(self.epochs) else self.end

    def compacted(self) -> list[Stored]:
        """What compaction leaves: the last record of each key, tombstones included."""
        last = {record.key: record.offset for record in self.records}
        return [record for record in self.records if last[record.key] == record.offset]


class Broker:
    """All partitions, one clock."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.ahead_ns = 0
        self.logs: dict[Place, Log] = defaultdict(Log)
        #: topics that take nothing until a time
        self.closed_until: dict[str, int] = {}
        self.appended = 0
        self._trace = hashlib.blake2b(digest_size=16)
        #: called with (place, records) when a tail was lost
        self.on_lost_tail: list[Callable[[Place, list[Stored]], None]] = []

    @property
    def trace(self) -> str:
        """A hash over everything appended so far, and when."""
        return self._trace.hexdigest()

    def append(self, place: Place, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Stored:
        log = self.logs[place]
        stamp = (WALL_START_NS + self.loop.now_ns + self.ahead_ns) // MILLISECOND_NS
        record = Stored(log.end, log.epoch, stamp, key, value, headers)
        if not log.epochs or log.epochs[-1][0] != log.epoch:
            log.epochs.append((log.epoch, log.end))
        log.records.append(record)
        self.appended += 1
        self._trace.update(f"{place}{record.offset}/{record.epoch}@{self.loop.now_ns}".encode())
        self._trace.update(value or b"-")
        for reader in log.readers:
            reader.wake()
        return record

    def change_leader(self, place: Place) -> None:
        """A clean change: nothing is lost."""
        self.logs[place].epoch += 1

    def lose_tail(self, place: Place, count: int) -> None:
        """An unclean change: the last `count` records are gone, and their offsets will be used again."""
        log = self.logs[place]
        count = min(count, log.end)
        lost = log.records[log.end - count :]
        del log.records[log.end - count :]
        log.epoch += 1
        log.lost += count
        log.epochs = [(epoch, start) for epoch, start in log.epochs if start < log.end]
        for hook in self.on_lost_tail:
            hook(place, lost)
        for reader in list(log.readers):
            reader.wake()

    # ---- somebody else's transaction --------------------------------------------------------------------------------

    def begin_transaction(self, place: Place, key: bytes, value: bytes) -> Stored:
        """A foreign producer appends a record in a transaction that stays open."""
        record = self.append(place, key, value)
        log = self.logs[place]
        if log.open_from is None:
            log.open_from = record.offset
        record.hidden = True
        return record

    def end_transaction(self, place: Place, *, commit: bool) -> None:
        """It commits or aborts; either leaves a control record."""
        log = self.logs[place]
        if log.open_from is None:
            return
        if commit:
            log.records[log.open_from].hidden = False
        log.open_from = None
        self.append(place, None, None).hidden = True

    # ---- topics that do not answer ----------------------------------------------------------------------------------

    def close_topic(self, topic: str, for_ns: int) -> None:
        """Nothing is appended to the topic for a while: deliveries time out or wait."""
        self.closed_until[topic] = self.loop.now_ns + for_ns

    def closed(self, topic: str) -> bool:
        return self.closed_until.get(topic, 0) > self.loop.now_ns


class Client(Protocol):
    """The process that a producer or reader lives in."""

    @property
    def frozen(self) -> bool:
        """Stopped for now, as by SIGSTOP: what it was about to send leaves when it goes on."""
        ...

    def run(self, callback: Callable[[], None]) -> None:
        """Call back in the process: not when it is dead, later when it is stopped."""
        ...


@dataclass
class ProducerFaults:
    """How often a produce goes wrong, in parts of 1; the rest arrives."""

    lost: float = 0.0
    unknown: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    slow: float = 0.0


class Producer:
    """One process's idempotent producer."""

    def __init__(self, broker: Broker, client: Client, faults: ProducerFaults, *, queue_max: int = 10_000) -> None:
        self._broker = broker
        self._client = client
        self._faults = faults
        self._queue_max = queue_max
        self._waiting = 0
        #: per partition: when the last record arrives, so that none overtakes it
        self._arrives: dict[Place, int] = {}
        #: per partition: when the last record of any kind arrives
        self._last: dict[Place, int] = {}
        self._dead = False
        self._arriving_until: dict[Place, int] = {}

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes,
        value: bytes | None,
        headers: Headers,
        on_delivery: Delivered,
        *,
        ordered: bool = True,
        at_once: bool = False,
    ) -> None:
        """Send a record. `at_once`: it arrives, and that is reported, inside of this call, if none is before it."""
        if self._waiting >= self._queue_max:
            raise ProducerFull("the queue is full")
        self._waiting += 1
        place = (topic, partition)
        random, loop = self._broker.random, self._broker.loop
        fate = self._fate()
        if (
            at_once
            and fate in ("ok", "lost")
            and not self._client.frozen
            and self._arrives.get(place, 0) <= loop.now_ns
        ):
            self._waiting -= 1
            if fate == "lost" or self._broker.closed(topic):
                on_delivery(DeliveryFailed("refused"), -1)
            else:
                on_delivery(None, self._broker.append(place, key, value, tuple(headers)).offset)
            return
        delay = random.randrange(200, 3000) * 1000
        if random.random() < self._faults.slow:
            delay += random.randrange(50, 2000) * MILLISECOND_NS
        arrives = loop.now_ns + delay
        if ordered:
            arrives = max(arrives, self._arrives.get(place, 0) + 1)
        if fate == "late":
            # Reported first; it lands afterwards, in an ordered producer before anything that is sent later.
            loop.after(arrives - loop.now_ns, self._report, on_delivery, DeliveryFailed("timed out in flight"), -1)
            arrives += random.randrange(1, 800) * MILLISECOND_NS
        if ordered:
            self._arrives[place] = arrives
        self._last[place] = max(arrives, self._last.get(place, 0))
        loop.after(arrives - loop.now_ns, self._arrive, place, key, value, tuple(headers), fate, on_delivery)

    def die(self) -> None:
        """The process is gone; what is on the wire may still arrive, in order, up to some point."""
        self._dead = True
        random, now = self._broker.random, self._broker.loop.now_ns
        for place, last in sorted(self._last.items()):
            if last > now:
                self._arriving_until[place] = random.choice((now, last, random.randint(now, last)))

    def _fate(self) -> str:
        faults = self._faults
        at = self._broker.random.random()
        for fate in ("lost", "unknown", "late", "twice"):
            chance = getattr(faults, fate)
            if at < chance:
                return fate
            at -= chance
        return "ok"

    def _arrive(
        self,
        place: Place,
        key: bytes,
        value: bytes | None,
        headers: Headers,
        fate: str,
        on_delivery: Delivered,
    ) -> None:
        broker = self._broker
        if self._dead:
            if broker.loop.now_ns <= self._arriving_until.get(place, 0) and not broker.closed(place[0]):
                broker.append(place, key, value, headers)
            return
        if self._client.frozen:
            self._client.run(lambda: self._arrive(place, key, value, headers, fate, on_delivery))
            return
        if fate == "late":
            if not broker.closed(place[0]):
                broker.append(place, key, value, headers)
            return
        if fate == "lost" or broker.closed(place[0]):
            self._report(on_delivery, DeliveryFailed("timed out in the queue"), -1)
            return
        record = broker.append(place, key, value, headers)
        if fate == "twice":
            broker.append(place, key, value, headers)
        if fate == "unknown":
            self._report(on_delivery, DeliveryFailed("no answer"), -1)
        else:
            self._report(on_delivery, None, record.offset)

    def _report(self, on_delivery: Delivered, error: BaseException | None, offset: int) -> None:
        def deliver() -> None:
            self._waiting -= 1
            on_delivery(error, offset)

        delay = self._broker.random.randrange(100, 2000) * 1000
        self._broker.loop.after(delay, lambda: self._client.run(deliver))


class Reader:
    """One process's consumer of one partition.

    Args:
        position: (offset, epoch of the record before it, or -1 to resume without).
        deliver: gets batches of records.
        on_lost: called when the position is not in the log any more, or what was read before it is gone.
        on_end: called once, when the end as of the start has been reached.
    """

    def __init__(
        self,
        broker: Broker,
        client: Client,
        place: Place,
        position: tuple[int, int],
        deliver: Callable[[Sequence[Stored]], None],
        on_lost: Callable[[str], None],
        *,
        batch: int = 100,
        committed: bool = False,
        compacted: bool = False,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._broker = broker
        self._client = client
        self._place = place
        self._log = broker.logs[place]
        self.position, self._epoch = position
        self._checks = self._epoch >= 0 or self.position == 0
        self._deliver = deliver
        self._on_lost = on_lost
        self._batch = batch
        self._committed = committed
        self._on_end = on_end
        self._end_at_start = self._log.end
        self._skip: frozenset[int] = frozenset()
        if compacted:
            kept = {record.offset for record in self._log.compacted()}
            self._skip = frozenset(range(self._log.end)) - kept
        self.paused = False
        self.closed = False
        self._scheduled = False
        self._log.readers.append(self)
        self.wake()

    def wake(self) -> None:
        if not self._scheduled and not self.closed and not self.paused:
            self._scheduled = True
            delay = self._broker.random.randrange(100, 1500) * 1000
            self._broker.loop.after(delay, lambda: self._client.run(self._go))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._log.readers.remove(self)

    def _go(self) -> None:
        self._scheduled = False
        if self.closed or self.paused:
            return
        log = self._log
        if self.position > log.end or (
            self._checks and self._epoch >= 0 and self.position > log.end_of_epoch(self._epoch)
        ):
            self.close()
            self._on_lost(f"offset {self.position} (epoch {self._epoch}) is not in the log, which ends at {log.end}")
            return
        end = log.stable_end if self._committed else log.end
        count = self._broker.random.randint(1, self._batch)
        taken = log.records[self.position : min(end, self.position + count)]
        if taken:
            self.position = taken[-1].offset + 1
            if self._checks:
                self._epoch = taken[-1].epoch
            found = [record for record in taken if not record.hidden and record.offset not in self._skip]
            if found:
                self._deliver(found)
        if self.position < end:
            self.wake()
        if self._on_end is not None and self.position >= self._end_at_start and not self.closed:
            on_end, self._on_end = self._on_end, None
            on_end()
