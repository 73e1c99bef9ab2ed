"""What operators have decided about places of shard logs that cannot be read: the topic `interventions`.

A fold takes them into account from its first record on, so they are read whole before it begins, and again when it
meets damage. They are part of what a log means: whoever folds it, now or later, skips the same offsets (decision 0030).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import structlog

from everfold.runtime.kafka import EndOffsets, KafkaSettings
from everfold.runtime.kafka.whole import read_whole
from everfold.schemas import codec
from everfold.schemas.topics import INTERVENTIONS

log = structlog.get_logger("history")

RECORD: Final = "Intervention"


class Skip(NamedTuple):
    """Offsets of one shard's log to be passed over.

    Attributes:
        first, last: offsets.
        epoch: leader epoch of what is there.
        reason: the operator's.
    """

    first: int
    last: int
    epoch: int
    reason: str

    def covers(self, offset: int, epoch: int) -> bool:
        """Whether what is at an offset, of that leader epoch, is to be skipped."""
        return self.first <= offset <= self.last and epoch == self.epoch

    def record(self, shard: int) -> tuple[bytes, bytes]:
        """Key and value on the topic."""
        value = {
            "shard": shard,
            "first_offset": self.first,
            "last_offset": self.last,
            "epoch": self.epoch,
            "reason": self.reason,
            "decided_at_ns": time.time_ns(),
        }
        return f"{shard}/{self.first}/{self.epoch}".encode(), codec.encode(RECORD, value)


async def read_skips(kafka: KafkaSettings, end_offsets: EndOffsets, shard: int) -> list[Skip]:
    """What is to be skipped of a shard's log.

    Raises:
        KafkaUnavailable: the topic could not be read to its end: then nothing may be folded.
        UnknownSchema: a newer Everfold has written to it: then this one does not know what the log means.
    """
    topic = kafka.topic(INTERVENTIONS)
    if not await end_offsets.end_offset(topic, 0):
        return []  # as nearly everywhere: no consumer is needed to know it
    messages = await asyncio.to_thread(read_whole, kafka, topic)
    return skips_in({message.key(): message.value() for message in messages}, shard)


def skips_in(rows: Mapping[bytes | None, bytes | None], shard: int) -> list[Skip]:
    """Those of one shard among the topic's rows, the last one of each key."""
    found: list[Skip] = []
    for value in rows.values():
        if value is None:
            continue
        try:
            name, fields = codec.decode(value)
        except codec.Undecodable as error:
            if isinstance(error, codec.UnknownSchema) and error.is_newer:
                raise
            log.error("on interventions is what no Everfold wrote; it is ignored", reason=error.reason)
            continue
        if name == RECORD and fields["shard"] == shard:
            found.append(_skip(fields))
    return found


def _skip(fields: dict[str, Any]) -> Skip:
    return Skip(fields["first_offset"], fields["last_offset"], fields["epoch"], fields["reason"])
