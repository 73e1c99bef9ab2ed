"""Processors: exactly once over delivery that is only at least once.

Faust (like any Kafka consumer) may deliver a record again, and may deliver records that were applied before a crash. A
`Projection` is right all the same, because the effect of a batch and the position after it move together, in one
transaction of the processor's own store, and everything else follows from that position:

- after an assignment, reading starts at the stored position, whatever the consumer group has committed;
- an offset below it is skipped. Offsets without records are nothing by themselves (a foreign transaction's markers):
- a record of a chained topic is judged by `chain`: repeats are dropped and counted; at a gap the position stays where
  it is until the missing records have come (the sender sends them again), and the log says so as long as they do not;
- a record that is not Everfold's at all, or that the processor cannot take, is put aside: sent to `dead-letters`, and
  kept with the position, in the same transaction. It is the record's fault when it fails twice, the second time alone;
- at a record that only a newer build can read the partition is held up, and says so, until a newer worker has it;
- trouble of the surroundings (disk, index, broker) stops the process, which is started again.

So one record holds up one partition of one processor at most, and nothing is ever skipped silently.

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
from everfold.topology.dead_letters import DeadLetterBox
from everfold.topology.publisher import PublishFailed
from everfold.topology.state import DeadLetter, Position

GAP_WAIT_S: Final = 120.0
"""How long a gap may stay open unsaid: a shard's new owner sends its outbox again within the 15 s of a takeover; eight
times that allows for a broker that is away meanwhile."""

log = structlog.get_logger("topology")


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

    @property
    def key(self) -> bytes | None:
        """Its key."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Its headers."""
        ...

    @property
    def timestamp(self) -> int:
        """When the broker appended it, in milliseconds."""
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
        held_up: why nothing more is applied here; "" when all is well.
        gap_since: monotonic seconds at which the open gap was seen, or None.
        told_at: monotonic seconds at which the log last said that it is held up or still has a gap.
        end: the end of the partition as last heard of.
        first: its first offset when it was opened: what came before is trimmed.
        dead: dead letters met since the last transaction.
    """

    stored: Position | None
    next_offset: int
    held_up: str = ""
    gap_since: float | None = None
    told_at: float = 0.0
    end: int = 0
    first: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Projection(abc.ABC):
    """A processor of one chained topic."""

    name: ClassVar[str]
    source: ClassVar[Topic]
    #: where dead letters go besides the processor's own store; the application sets it
    dead_letter_box: DeadLetterBox | None = None

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
        be recognisable as a repeat by whoever reads it. After an exception nothing of the batch may be written.

        Raises:
            PositionMoved: the stored position was not `expected`; nothing was written.
        """

    def is_trouble(self, error: Exception) -> bool:
        """Whether the surroundings are to blame for an error of `apply`, and no record: then the process stops."""
        return isinstance(error, (OSError, PublishFailed))

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
        """
        starts: dict[int, int] = {}
        for number, mark in marks.items():
            held = self._partitions.get(number)
            if held is not None:
                async with held.lock:  # a batch of the time before the assignment may still be on its way
                    pass
            stored = await self.load(number)
            starts[number] = self._start(number, stored, mark)
            held = self._partitions[number] = _Partition(stored, starts[number], end=mark.end, first=mark.first)
            if stored is not None and stored.next_offset < mark.first:
                self._hold_up(
                    number,
                    held,
                    f"it is applied up to offset {stored.next_offset}, but the topic begins at {mark.first}: "
                    f"{mark.first - stored.next_offset} records were trimmed before this processor read them. Remove "
                    "its state to go on from what is left, or rebuild it from the shards",
                )
        for number in [*self._partitions]:
            if number not in marks:
                del self._partitions[number]
        return starts

    def _start(self, number: int, stored: Position | None, mark: Watermarks) -> int:
        if stored is None:
            if mark.first > 0:
                log.warning(
                    "starts in the middle", processor=self.name, partition=number, offset=mark.first, lost=mark.first
                )
            return mark.first
        if stored.next_offset < mark.first:
            return mark.end  # nothing of it is applied
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
                    held.next_offset = held.first if held.stored is None else held.stored.next_offset
                    held.gap_since, held.dead = None, []

    async def _process(self, batch: Batch, held: _Partition) -> None:
        if held.held_up:
            self._say_again(batch.partition, held, held.held_up)
            return
        last = held.stored.origin if held.stored is not None else None
        # At offset 0 the chain begins; further on, with nothing taken yet, the first record is where it begins for us.
        whole = last is not None or held.next_offset == 0
        taken: list[Taken] = []
        safe_offset: int | None = None
        for record in batch.records:
            if record.offset < held.next_offset:
                continue
            try:
                fields = self._read(record, held.dead)
            except UnknownSchema as newer:
                self._hold_up(
                    batch.partition,
                    held,
                    f"a newer Everfold wrote offset {record.offset} ({newer.reason}): upgrade this worker",
                )
                break
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
        self._check_gap(batch.partition, held)
        if safe_offset is None:  # nothing new, or nothing before an open gap is closed
            return
        reached = Position(safe_offset, last)
        dead = [letter for letter in held.dead if letter.offset < safe_offset]
        await self._send(batch, dead)
        try:
            await self.apply(batch.partition, held.stored, reached, taken, dead)
        except PositionMoved:
            raise
        except Exception as error:
            if not taken or self.is_trouble(error):
                raise
            await self._apply_one_by_one(batch, held, taken)
            await self.apply(batch.partition, held.stored, reached, [], dead)
        else:
            self._projected.inc(len(taken))
        held.stored = reached
        held.dead = [letter for letter in held.dead if letter.offset >= safe_offset]

    async def _apply_one_by_one(self, batch: Batch, held: _Partition, taken: Sequence[Taken]) -> None:
        """Applies what failed as a batch, and puts aside the records that fail alone as well."""
        by_offset = {record.offset: record for record in batch.records}
        for one in taken:
            reached = Position(one.offset + 1, one.origin)
            try:
                await self.apply(batch.partition, held.stored, reached, [one], [])
            except PositionMoved:
                raise
            except Exception as error:
                if self.is_trouble(error):
                    raise
                log.error("a record that the processor cannot take", processor=self.name, exc_info=error)
                letter = _letter(by_offset[one.offset], f"it cannot be taken: {type(error).__name__}: {error}")
                await self._send(batch, [letter])
                await self.apply(batch.partition, held.stored, reached, [], [letter])
            else:
                self._projected.inc()
            held.stored = reached

    async def _send(self, batch: Batch, letters: Sequence[DeadLetter]) -> None:
        if not letters:
            return
        log.error(
            "dead letters",
            processor=self.name,
            partition=batch.partition,
            records=len(letters),
            first_offset=letters[0].offset,
            last_offset=letters[-1].offset,
            reason=letters[0].reason,
        )
        if self.dead_letter_box is not None:
            await self.dead_letter_box.send(self.name, batch.topic, batch.partition, letters)
        self._dead_letters.inc(len(letters))

    def _read(self, record: SourceRecord, dead: list[DeadLetter]) -> Mapping[str, Any] | None:
        """The record's fields; None when it has become a dead letter. Raises UnknownSchema for a newer one."""
        try:
            fields = self.decode(record.value or b"")
            if fields["origin"] is None:
                raise Undecodable("it has no origin")
        except Undecodable as error:
            if isinstance(error, UnknownSchema) and error.is_newer:
                raise
            dead.append(_letter(record, error.reason))
            return None
        return fields

    def _hold_up(self, partition: int, held: _Partition, reason: str) -> None:
        held.held_up = reason
        self._say_again(partition, held, reason)

    def _say_again(self, partition: int, held: _Partition, reason: str) -> None:
        """Tells what is in a partition's way, and again every GAP_WAIT_S."""
        now = time.monotonic()
        if not held.told_at or now - held.told_at > GAP_WAIT_S:
            held.told_at = now
            log.error("held up", processor=self.name, topic=self.source.name, partition=partition, reason=reason)

    def _open_gap(self, batch: Batch, held: _Partition, offset: int) -> None:
        self._gaps.inc()
        if held.gap_since is None:
            held.gap_since = held.told_at = time.monotonic()
            log.warning(
                "gap: waiting for what is missing", processor=self.name, partition=batch.partition, offset=offset
            )

    def _close_gap(self, batch: Batch, held: _Partition, offset: int) -> None:
        if held.gap_since is not None:
            held.gap_since, held.told_at = None, 0.0
            log.info("gap closed", processor=self.name, partition=batch.partition, offset=offset)

    def _check_gap(self, partition: int, held: _Partition) -> None:
        if held.gap_since is not None:
            after = held.stored.next_offset if held.stored is not None else 0
            self._say_again(
                partition,
                held,
                f"records after offset {after} are missing and have not come again. Is the shard's owner running? If "
                "Kafka lost acknowledged records, this processor's output must be rebuilt from the shards",
            )

    def lag(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Records not yet applied, by partition, given the partitions' ends."""
        lags = {}
        for number, held in self._partitions.items():
            applied = held.stored.next_offset if held.stored is not None else held.next_offset
            lags[number] = max(0, ends.get(number, held.end) - applied)
        return lags


def _letter(record: SourceRecord, reason: str) -> DeadLetter:
    return DeadLetter(record.offset, reason, record.value or b"", record.key, tuple(record.headers), record.timestamp)
