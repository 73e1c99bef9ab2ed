"""Offsets of the shard log at which no record comes: what is there instead, by what the broker stores.

    a transaction's marker  somebody produced to the log in a transaction: the position moves over it
    damage                  a checksum is broken, or offsets are missing: the shard is given up, and says what an
                            operator can do. What one has decided to skip (`interventions`), it moves over
    a record                it is only late: it is read again

The fold takes the next offset only (law 8), so a marker is handed to it as what it is. Kafka proves it: the batch at
that offset has the control bit and an intact checksum, in the answer of the partition's leader. That a consumer went on
behind an offset proves nothing: librdkafka does so behind a broken batch, too (decision 0029).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from everfold.history.machine.shard_fold import LogRecord
from everfold.kernel.errors import LogDamaged
from everfold.runtime.kafka import KafkaSettings, KafkaUnavailable

if TYPE_CHECKING:
    from everfold.history.interventions import Skip
    from everfold.history.shard import Shard
    from everfold.runtime.kafka.stored import Stored

log = structlog.get_logger("history")

LOOK_AGAIN_S: Final = 1.0
"""Pause before the leader is asked again, when it did not answer."""


class Finding(NamedTuple):
    """What is at a position.

    Attributes:
        passed: an entry for each offset that holds a marker.
        damage: what is wrong at the offset after them; "" for nothing.
        epoch: leader epoch of what is wrong; -1 where there is nothing.
    """

    passed: list[LogRecord]
    damage: str = ""
    epoch: int = -1


def find(stored: Stored, position: int) -> Finding:
    """Judge what the leader answered to a look at `position`, the offset that the fold has to take next."""
    passed: list[LogRecord] = []
    at = position
    for batch in stored.batches:
        if batch.first > at:
            return Finding(passed, f"offsets {at} to {batch.first - 1} are missing from the log")
        if not batch.intact:
            return Finding(passed, f"the checksum of the batch at offset {at} is broken", batch.epoch)
        if not batch.marker:
            return Finding(passed)
        passed += [
            LogRecord(b"", offset, batch.epoch, batch.timestamp_ms, marker=True) for offset in range(at, batch.last + 1)
        ]
        at = batch.last + 1
    if not passed and (stored.unreadable or stored.end > position):
        return Finding(passed, f"the broker cannot read what it has at offset {at}")
    return Finding(passed)


async def look_at(kafka: KafkaSettings, topic: str, shard: int, offset: int) -> Stored:
    """What the leader has there. Raises KafkaUnavailable."""
    # Imported by the few who need it: aiokafka takes a server's start some tenths of a second.
    from everfold.runtime.kafka.stored import stored_at

    return await stored_at(kafka, topic, shard, offset)


class LogHoles:
    """Watches that the records of one shard come without a hole, and looks into one.

    Args:
        look: asks the leader what it stores at an offset.
        skips: what operators have decided to skip, as of before the fold began.
        read_skips: reads that again.
        read_on: makes the consumer read from the shard's position again.
        on_lost: told when the consumer takes its position for lost, and nothing is damaged there.
        in_background: runs a look.
    """

    def __init__(
        self,
        shard: Shard,
        look: Callable[[int], Awaitable[Stored]],
        skips: Sequence[Skip],
        read_skips: Callable[[], Awaitable[Sequence[Skip]]],
        read_on: Callable[[], None],
        on_lost: Callable[[str], None],
        in_background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._shard = shard
        self._ask = look
        self._skips = skips
        self._read_skips = read_skips
        self._read_on = read_on
        self._on_lost = on_lost
        self._in_background = in_background
        self._looking = False
        #: the consumer has brought what lies behind a hole, and has to read it again
        self._dropped = False
        self._lost = ""
        self._stood_at = -1

    def unbroken(self, records: list[LogRecord]) -> list[LogRecord]:
        """The records that follow the shard's position without a hole; behind a hole, none until it is explained."""
        position = self._position
        if self._skips:
            records = [self._as_decided(record) for record in records]
        if not records or records[-1].offset == position + len(records) - 1:
            return records
        self._dropped = True
        self.look()
        return [record for number, record in enumerate(records) if record.offset == position + number]

    def look_if_still(self, end: int) -> None:
        """Look what is in the way if the shard has not moved since the last call and its log goes on."""
        position = self._position
        if end > position == self._stood_at:
            self.look()
        self._stood_at = position

    def _as_decided(self, record: LogRecord) -> LogRecord:
        """A skip holds also where the record can be read, e.g. from another replica: all folds must be alike."""
        reason = next((skip.reason for skip in self._skips if skip.covers(record.offset, record.epoch)), "")
        return record._replace(skipped=reason) if reason else record

    def look(self, lost: str = "") -> None:
        """Look what is at the position, as the consumer does not get on; told many times a second.

        Args:
            lost: what the consumer says when it takes its position for lost; so it does behind a broken batch, too.
        """
        self._lost = lost or self._lost
        if not self._looking:
            self._looking = True
            self._in_background(self._explain())

    @property
    def _position(self) -> int:
        return self._shard.resume_position()[0]

    async def _explain(self) -> None:
        try:
            await self._look_into_it()
        except Exception as trouble:  # nobody waits for this task: without it the shard would stand still unseen
            self._shard.fail(trouble)

    async def _look_into_it(self) -> None:
        shard = self._shard
        while not shard.closed:
            position = self._position
            try:
                finding = find(await self._ask(position), position)
                if finding.damage:
                    self._skips = await self._read_skips()
            except KafkaUnavailable as error:
                log.warning("shard log", shard=shard.shard, error=str(error))
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            if position != self._position:  # a batch of the time before the hole was on its way, or it was only late
                if self._dropped:
                    continue
                break
            if finding.passed:
                log.warning("a foreign transaction's marker on the shard log", shard=shard.shard, offset=position)
                shard.on_records(finding.passed)
            if finding.damage:
                skipped = self._decided(finding)
                if not skipped:
                    shard.fail(LogDamaged(self._what_to_do(finding.damage)))
                    return
                shard.on_records(skipped)
                self._lost = ""
                continue
            if self._lost and not finding.passed:
                self._on_lost(self._lost)
                return
            self._dropped, self._lost = False, ""
            self._read_on()
            break
        self._looking = False

    def _decided(self, finding: Finding) -> list[LogRecord]:
        """An entry for each offset from the shard's position on that an operator has decided to skip."""
        position, applied_epoch = self._position, self._shard.fold.meta.applied_epoch
        epoch = finding.epoch if finding.epoch >= 0 else applied_epoch
        for skip in self._skips:
            if skip.covers(position, epoch):
                return [
                    LogRecord(b"", offset, max(epoch, applied_epoch), 0, skipped=skip.reason)
                    for offset in range(position, skip.last + 1)
                ]
        return []

    def _what_to_do(self, damage: str) -> str:
        shard = self._shard.shard
        return (
            f"shard {shard}: {damage}; the log cannot be folded beyond it. Mend the topic (another replica, a backup), "
            f"or give up what is there: everfold shard skip {shard} --offset {self._position} --reason …"
        )
