"""`everfold shard skip`: what nobody can read in a shard's log is passed over, by an operator's decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

import click
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from everfold.cli import topics
from everfold.history.interventions import Skip
from everfold.runtime.config import Settings
from everfold.runtime.kafka import KafkaSettings, KafkaTrouble, KafkaUnavailable
from everfold.runtime.kafka.stored import Stored, stored_at
from everfold.runtime.lifecycle import Fatal
from everfold.schemas.topics import INTERVENTIONS, SHARD_LOG

_ANSWER_S: Final = 30.0

Look = Callable[[int], Stored]


class Damage(NamedTuple):
    """What cannot be read.

    Attributes:
        first, last: its offsets.
        epoch: leader epoch of what is there, or of what comes before.
        words: what is known of it.
    """

    first: int
    last: int
    epoch: int
    words: str


def skip(settings: Settings, shard: int, offset: int, reason: str, confirm: Callable[[str], bool]) -> None:
    """Show what would be skipped, ask, and write it to `interventions`.

    Raises:
        Fatal: there is nothing wrong at that place, no broker answers, or the answer was no.
    """
    kafka = topics.kafka_settings(settings)
    topic = kafka.topic(SHARD_LOG)
    try:
        end = _end(kafka, topic, shard)
        damage = survey(lambda at: asyncio.run(stored_at(kafka, topic, shard, at)), offset, end)
    except KafkaTrouble as error:
        raise Fatal(str(error)) from None
    if damage is None:
        raise Fatal(
            f"{topic}[{shard}] can be read at offset {offset} (it ends at {end}): there is nothing to skip. The log "
            "line about the shard names the offset."
        )
    click.echo(
        f"{topic}[{shard}], offsets {damage.first} to {damage.last} (leader epoch {damage.epoch}): {damage.words}.\n"
        "What they said is lost to every fold of this shard, now and later: workflows may stand still or repeat steps."
    )
    if not confirm("Skip them?"):
        raise Fatal("Nothing was changed.")
    _send(kafka, shard, Skip(damage.first, damage.last, damage.epoch, reason))
    click.echo(f"Shard {shard} goes on behind offset {damage.last} when it is taken again, within half a minute.")


def survey(look: Look, offset: int, end: int) -> Damage | None:
    """What cannot be read from an offset on; None when it can, or is beyond the end."""
    if offset >= end:
        return None
    first = next(iter(look(offset).batches), None)
    if first is None:
        last = _first_readable(look, offset + 1, end) - 1
        return Damage(offset, last, _epoch_before(look, offset), "the broker cannot read what it has there")
    if first.first > offset:
        last = min(first.first if first.intact else _first_readable(look, offset + 1, end), end) - 1
        return Damage(offset, last, _epoch_before(look, offset), f"{last - offset + 1} offsets are missing")
    if first.intact:
        return None
    behind = first.last + 1
    if not (offset < behind <= end and (behind == end or _readable(look, behind))):
        behind = _first_readable(look, offset + 1, end)  # what a broken batch says of its end may be wrong, too
    words = f"a batch with a broken checksum, by its own account {first.records} records of {_time(first.timestamp_ms)}"
    return Damage(offset, behind - 1, first.epoch, words)


def _time(timestamp_ms: int) -> str:
    known = 0 < timestamp_ms < 1 << 42  # the year 2109
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(" ", "seconds") if known else "an unknown time"


def _readable(look: Look, offset: int) -> bool:
    first = next(iter(look(offset).batches), None)
    return first is not None and first.intact


def _first_readable(look: Look, offset: int, end: int) -> int:
    """The first offset from which the broker gives an intact batch, the partition's end if there is none."""
    low, step = offset, 1
    while low < end and not _readable(look, low):
        low, step = low + step, step * 2
    if low >= end and not _readable(look, end - 1):
        return end
    high, low = min(low, end - 1), max(offset, low - step // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _readable(look, middle) else (middle + 1, high)
    return low


def _epoch_before(look: Look, offset: int) -> int:
    first = next(iter(look(offset - 1).batches), None) if offset else None
    return -1 if first is None else first.epoch


def _end(kafka: KafkaSettings, topic: str, shard: int) -> int:
    """The partition's end. Raises KafkaUnavailable."""
    admin = AdminClient(kafka.client("shard-skip"))
    place = TopicPartition(topic, shard)
    try:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        return int(admin.list_offsets({place: latest}, request_timeout=_ANSWER_S)[place].result().offset)
    except KafkaException as error:
        raise KafkaUnavailable(f"{topic}[{shard}]: {error.args[0].str()}") from error


def _send(kafka: KafkaSettings, shard: int, decided: Skip) -> None:
    key, value = decided.record(shard)
    failed: list[str] = []
    producer = Producer(kafka.client("shard-skip", acks="all", enable_idempotence=True))
    producer.produce(
        kafka.topic(INTERVENTIONS),
        value,
        key,
        0,
        on_delivery=lambda error, _: failed.append(error.str()) if error is not None else None,
    )
    if producer.flush(_ANSWER_S) or failed:
        raise Fatal(f"{kafka.topic(INTERVENTIONS)}: {failed or 'no broker answered'}. Nothing was changed.")
