"""Processors: exactly once over delivery that is only at least once.

Faust (like any Kafka consumer) may deliver a record again, and may deliver records that were applied before a crash. A
`Projection` is right all the same, because the effect of a batch and the position after it move together, in one
transaction of the processor's own store, and everything else follows from that position:

- after an assignment, reading starts at the stored position, whatever the consumer group has committed;
- an offset below it is skipped, an offset beyond the next one stops the process (something was lost on the way);
- a record of a chained topic is judged by `chain`: repeats are dropped and counted; at a gap the position stays where
  it is until the missing records have come (the sender sends them again), and if they do not, the process stops;
- a record that is not Everfold's at all is put aside as a dead letter, in the same transaction; one that only a newer
  build can read, or an error in the processor, stops the process. Nothing is ever skipped silently.

To write a processor, subclass `Projection` and give its source, how to decode a record, and how to apply a run of them.
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import structlog

from everfold.runtime import metrics
from everfold.schemas.codec import Undecodable, UnknownSchema
from everfold.schemas.topics import Topic
from everfold.topology.chain import Place, Verdict, judge, place
from everfold.topology.state import DeadLetter, Position

GAP_WAIT_S: Final = 120.0
"""How long a gap may stay open: a shard's new owner sends its outbox again within the 15 s of a takeover; eight times
that allows for a broker that is away meanwhile."""

log = structlog.get_logger("topology")


class ProjectionBroken(Exception):
    """The processor cannot go on without losing something. The text says what was found and what to do."""


class PositionMoved(Exception):
    """Another process has applied some of these records: the stored position is not the one expected."""


class SourceRecord(Protocol):
    """What is read of a consumed record (aiokafka's ConsumerRecord has it)."""

    @property
    def offset(self) -> int:
        """Its offset in the partition."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its bytes."""
        ...


class Batch(NamedTuple):
    """Consecutive records of a source partition."""

    topic: str
    partition: int
    records: Sequence[SourceRecord]


class Watermarks(NamedTuple):
    """What the broker holds of a partition: the first offset there is, and the next one to be written."""

    first: int
    end: int


class Taken(NamedTuple):
    """A record to apply: its offset in the source, its origin, its decoded fields."""

    offset: int
    origin: Place
    fields: Mapping[str, Any]


@dataclass
class _Partition:
    """What is known of an open partition.

    Attributes:
        stored: what the store says, and expects to find at the next transaction.
        next_offset: the next offset to read; beyond `stored.next_offset` while a gap is open.
        gap_since: monotonic seconds at which the open gap was seen, or None.
        end: the end of the partition as last heard of.
        dead: dead letters met since the last transaction.
    """

    stored: Position | None
    next_offset: int
    gap_since: float | None = None
    end: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Projection(abc.ABC):
    """A processor of one chained topic."""

    name: ClassVar[str]
    source: ClassVar[Topic]

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._projected = metrics.PROJECTED.labels(self.name)
        self._repeats = metrics.CHAIN_REPEATS.labels(self.source.name)
        self._gaps = metrics.CHAIN_GAPS.labels(self.source.name)
        self._dead_letters = metrics.DEAD_LETTERS.labels(self.name)

    @abc.abstractmethod
    def decode(self, value: bytes) -> Mapping[str, Any]:
        """The record's fields, `origin` and `predecessor` among them.

        Raises:
            Undecodable: it is not a record of the source topic.
        """

    @abc.abstractmethod
    async def load(self, partition: int) -> Position | None:
        """The stored position; None when nothing of the partition is applied."""

    @abc.abstractmethod
    async def apply(
        self,
        partition: int,
        expected: Position | None,
        reached: Position,
        taken: Sequence[Taken],
        dead_letters: Sequence[DeadLetter],
    ) -> None:
        """Applies records and moves the position from `expected` to `reached`, all in one transaction.

        May be called again with the same records after a crash in the middle: what it does outside its own store must
        be recognisable as a repeat by whoever reads it. Any other exception stops the process.

        Raises:
            PositionMoved: the stored position was not `expected`; nothing was written.
        """

    async def start(self) -> None:  # noqa: B027 - most processors need nothing here
        """Called once, before the first partition."""

    async def stop(self) -> None:  # noqa: B027
        """Called once, after the last batch."""

    async def open(self, marks: Mapping[int, Watermarks]) -> dict[int, int]:
        """Takes partitions; called at every assignment, with all partitions then held.

        Args:
            marks: what the broker holds of each partition.

        Returns:
            partition -> the offset to read next.

        Raises:
            ProjectionBroken: records between the stored position and the first one there is are gone.
        """
        starts: dict[int, int] = {}
        for number, mark in marks.items():
            held = self._partitions.get(number)
            if held is not None:
                async with held.lock:  # a batch of the time before the assignment may still be on its way
                    pass
            stored = await self.load(number)
            starts[number] = self._start(number, stored, mark)
            self._partitions[number] = _Partition(stored, starts[number], end=mark.end)
        for number in [*self._partitions]:
            if number not in marks:
                del self._partitions[number]
        return starts

    def _start(self, number: int, stored: Position | None, mark: Watermarks) -> int:
        where = f"{self.name}: {self.source.name}[{number}]"
        if stored is None:
            if mark.first > 0:
                log.warning(
                    "starts in the middle", processor=self.name, partition=number, offset=mark.first, lost=mark.first
                )
            return mark.first
        if stored.next_offset < mark.first:
            raise ProjectionBroken(
                f"{where} is applied up to offset {stored.next_offset}, but the topic begins at {mark.first}: "
                f"{mark.first - stored.next_offset} records were trimmed before this processor read them. Remove its "
                "state to go on from what is left, or rebuild it from the shards."
            )
        if stored.next_offset > mark.end:
            log.error(
                "the source lost its tail: reading on from its end; the chain shows what is missing",
                processor=self.name,
                partition=number,
                applied=stored.next_offset,
                end=mark.end,
            )
            return mark.end
        return stored.next_offset

    async def process(self, batch: Batch) -> None:
        """Applies a batch. Returns when it is applied, or is a repeat of what was."""
        held = self._partitions.get(batch.partition)
        if held is None:  # delivered from before the partition was taken away: whoever has it now reads it
            return None
        async with held.lock:
            while True:
                try:
                    return await self._process(batch, held)
                except PositionMoved:
                    # Two readers of one partition, for as long as a rebalance takes: each skips what the other applied.
                    log.warning("position moved by another worker", processor=self.name, partition=batch.partition)
                    held.stored = await self.load(batch.partition)
                    held.next_offset = 0 if held.stored is None else held.stored.next_offset
                    held.gap_since, held.dead = None, []

    async def _process(self, batch: Batch, held: _Partition) -> None:
        records = batch.records
        if records[0].offset > held.next_offset:
            raise ProjectionBroken(
                f"{self.name}: {batch.topic}[{batch.partition}]: expected offset {held.next_offset}, found "
                f"{records[0].offset}: records are missing between them (trimmed while reading?)"
            )
        last = held.stored.origin if held.stored is not None else None
        # At offset 0 the chain begins; further on, with nothing taken yet, the first record is where it begins for us.
        whole = last is not None or held.next_offset == 0
        taken: list[Taken] = []
        safe_offset: int | None = None
        for record in records:
            if record.offset < held.next_offset:
                continue
            fields = self._read(batch, record, held.dead)
            held.next_offset = record.offset + 1
            if fields is not None:
                origin, predecessor = place(fields["origin"]), place(fields["predecessor"])
                assert origin is not None
                verdict = judge(last, origin, predecessor if whole else None)
                if verdict is Verdict.TAKE:
                    taken.append(Taken(record.offset, origin, fields))
                    last, whole = origin, True
                    self._close_gap(batch, held, record.offset)
                elif verdict is Verdict.REPEAT:
                    self._repeats.inc()
                else:
                    self._open_gap(batch, held, record.offset)
            if held.gap_since is None:
                safe_offset = held.next_offset
        self._check_gap(batch, held)
        if safe_offset is None:  # nothing new, or nothing before an open gap is closed
            return
        reached = Position(safe_offset, last)
        dead = [letter for letter in held.dead if letter.offset < safe_offset]
        await self.apply(batch.partition, held.stored, reached, taken, dead)
        held.stored = reached
        self._projected.inc(len(taken))
        if dead:
            self._dead_letters.inc(len(dead))
            held.dead = [letter for letter in held.dead if letter.offset >= safe_offset]

    def _stored_offset(self, held: _Partition) -> int:
        return held.stored.next_offset if held.stored is not None else 0

    def _read(self, batch: Batch, record: SourceRecord, dead: list[DeadLetter]) -> Mapping[str, Any] | None:
        value = record.value or b""
        try:
            fields = self.decode(value)
            if fields["origin"] is None:
                raise Undecodable("it has no origin")
        except UnknownSchema as error:
            raise ProjectionBroken(
                f"{self.name}: {batch.topic}[{batch.partition}] offset {record.offset}: {error.reason}: a newer "
                "version wrote it; upgrade this worker"
            ) from error
        except Undecodable as error:
            log.error("dead letter", processor=self.name, offset=record.offset, reason=error.reason)
            dead.append(DeadLetter(record.offset, error.reason, value))
            return None
        return fields

    def _open_gap(self, batch: Batch, held: _Partition, offset: int) -> None:
        self._gaps.inc()
        if held.gap_since is None:
            held.gap_since = time.monotonic()
            log.warning(
                "gap: waiting for what is missing", processor=self.name, partition=batch.partition, offset=offset
            )

    def _close_gap(self, batch: Batch, held: _Partition, offset: int) -> None:
        if held.gap_since is not None:
            held.gap_since = None
            log.info("gap closed", processor=self.name, partition=batch.partition, offset=offset)

    def _check_gap(self, batch: Batch, held: _Partition) -> None:
        if held.gap_since is not None and time.monotonic() - held.gap_since > GAP_WAIT_S:
            raise ProjectionBroken(
                f"{self.name}: {batch.topic}[{batch.partition}]: records after offset {self._stored_offset(held)} are "
                f"missing and did not come again within {GAP_WAIT_S:.0f} s. Is the shard's owner running? If Kafka "
                "lost acknowledged records, this processor's output must be rebuilt from the shards."
            )

    def lag(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Records not yet applied, by partition, given the partitions' ends."""
        lags = {}
        for number, held in self._partitions.items():
            applied = held.stored.next_offset if held.stored is not None else held.next_offset
            lags[number] = max(0, ends.get(number, held.end) - applied)
        return lags
