"""Where no record comes on the shard log: a transaction's marker is passed over, damage is not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from everfold.history.interventions import Skip, skips_in
from everfold.history.log_holes import LogHoles, find
from everfold.history.machine.shard_fold import LogRecord
from everfold.kernel.errors import LogDamaged, LogTruncated
from everfold.kernel.time import SECOND_NS
from everfold.runtime.kafka import KafkaUnavailable
from everfold.runtime.kafka.stored import Stored, StoredBatch, batches_in
from everfold.schemas import codec, registry
from everfold.schemas.topics import SHARD_LOG
from history_shell.test_shard import started
from history_shell.world import Owner, World

RECORD, MARKER = False, True


@pytest.fixture
def world() -> World:
    return World()


def batch(first: int, last: int, *, marker: bool, intact: bool = True) -> StoredBatch:
    return StoredBatch(first, last, 3, 1000, last - first + 1, marker, intact)


def answer(*batches: StoredBatch, end: int = 20) -> Stored:
    return Stored(list(batches), end)


def offsets(passed: list[LogRecord]) -> list[int]:
    assert all(record.marker for record in passed)
    return [record.offset for record in passed]


@pytest.mark.parametrize(
    ("stored", "passed", "damage"),
    [
        (answer(batch(5, 5, marker=MARKER), batch(6, 6, marker=RECORD)), [5], ""),
        (answer(batch(5, 5, marker=MARKER), batch(6, 6, marker=MARKER), end=7), [5, 6], ""),
        (answer(batch(4, 9, marker=RECORD)), [], ""),
        (answer(batch(5, 9, marker=RECORD)), [], ""),
        (answer(batch(7, 9, marker=RECORD)), [], "offsets 5 to 6 are missing"),
        (answer(batch(5, 5, marker=MARKER), batch(8, 8, marker=MARKER)), [5], "offsets 6 to 7 are missing"),
        (answer(batch(5, 5, marker=RECORD, intact=False)), [], "checksum of the batch at offset 5"),
        (answer(batch(5, 5, marker=MARKER, intact=False)), [], "checksum of the batch at offset 5"),
        (Stored([], -1, unreadable=True), [], "cannot read what it has at offset 5"),
        (Stored([], 5), [], ""),
    ],
)
def test_only_an_intact_batch_with_the_control_bit_is_a_marker(stored: Stored, passed: list[int], damage: str) -> None:
    finding = find(stored, 5)
    assert offsets(finding.passed) == passed
    assert damage in finding.damage
    assert bool(damage) == bool(finding.damage)


def stored_bytes(first: int, *values: bytes, transactional: bool = False) -> bytes:
    builder: Any = DefaultRecordBatchBuilder(2, 0, transactional, 1, 0, 0, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1000 + number, b"key", value, [])
    return first.to_bytes(8, "big") + bytes(builder.build())[8:]


def test_batches_are_read_as_the_broker_stores_them() -> None:
    data = stored_bytes(7, b"one", b"two") + stored_bytes(9, b"three")
    first, second = batches_in(data)
    assert (first.first, first.last, first.records, first.marker, first.intact) == (7, 8, 2, False, True)
    assert (second.first, second.last, second.records, second.intact) == (9, 9, 1, True)
    assert [one.first for one in batches_in(data[:-1])] == [7], "the last one is cut off by the answer's size"


def test_every_flipped_bit_behind_the_checksum_is_noticed_and_no_answer_is_too_odd() -> None:
    data = stored_bytes(7, b"one", b"two")
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            found = list(batches_in(bytes(damaged)))
            if at >= 16:  # offset, length and epoch are outside of it; the epoch is the broker's own
                assert not any(one.intact for one in found), f"byte {at}, bit {bit}"


class Leader:
    """Answers looks, and keeps what the holes ask for."""

    def __init__(self, owner: Owner) -> None:
        assert owner.shard is not None
        self.shard = owner.shard
        self.answers: list[Stored | KafkaUnavailable] = []
        self.read_on = 0
        self.work: list[Coroutine[Any, Any, None]] = []
        self.skips: list[Skip] = []
        self.holes = LogHoles(
            self.shard, self.look, (), self.decided, self.again, self.shard.on_log_lost, self.work.append
        )

    async def look(self, offset: int) -> Stored:
        assert offset == self.shard.resume_position()[0]
        found = self.answers.pop(0)
        if isinstance(found, KafkaUnavailable):
            raise found
        return found

    async def decided(self) -> list[Skip]:
        return self.skips

    def again(self) -> None:
        self.read_on += 1

    def run(self) -> None:
        for work in self.work:
            asyncio.run(work)
        self.work.clear()


def test_a_shard_passes_over_a_marker_in_its_log_and_one_at_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everfold.history.log_holes.LOOK_AGAIN_S", 0.0)
    owner = Owner(world).take()
    leader = Leader(owner)
    shard, holes = leader.shard, leader.holes
    at, epoch = shard.resume_position()
    leader.answers = [KafkaUnavailable("away"), answer(batch(at, at, marker=MARKER)._replace(epoch=epoch))]
    behind = LogRecord(b"junk", at + 1, epoch, 1)
    assert holes.unbroken([behind]) == []
    assert holes.unbroken([behind]) == [], "nothing is folded before it is known what is in the hole"
    leader.run()
    assert (shard.resume_position()[0], leader.read_on) == (at + 1, 1)
    assert holes.unbroken([behind]) == [behind]
    shard.on_records([behind])
    holes.look_if_still(at + 3)
    assert leader.work == []
    leader.answers = [answer(batch(at + 2, at + 2, marker=MARKER)._replace(epoch=epoch), end=at + 3)]
    holes.look_if_still(at + 3)
    leader.run()
    assert shard.resume_position()[0] == at + 3
    assert owner.lost is None
    fresh = Owner(world).take()
    started(world, fresh)


def test_what_is_before_a_hole_is_folded_and_damage_gives_the_shard_up(world: World) -> None:
    owner = Owner(world).take()
    leader = Leader(owner)
    at, epoch = leader.shard.resume_position()
    records = [LogRecord(b"junk", offset, epoch, 1) for offset in (at, at + 1, at + 3)]
    before = leader.holes.unbroken(records)
    assert [record.offset for record in before] == [at, at + 1]
    leader.shard.on_records(before)
    leader.answers = [answer(batch(at + 2, at + 2, marker=RECORD, intact=False))]
    leader.run()
    assert isinstance(owner.lost, LogDamaged)
    assert f"everfold shard skip 0 --offset {at + 2} --reason …" in str(owner.lost)
    assert leader.read_on == 0


def test_what_an_operator_has_decided_to_skip_is_passed_over_and_counted(world: World) -> None:
    owner = Owner(world).take()
    leader = Leader(owner)
    at, epoch = leader.shard.resume_position()
    broken = batch(at, at + 2, marker=RECORD, intact=False)._replace(epoch=epoch)
    leader.skips = [Skip(at, at + 2, epoch + 1, "another life of these offsets"), Skip(at, at + 2, epoch, "bit rot")]
    leader.answers = [answer(broken), answer(batch(at + 3, at + 3, marker=RECORD), end=at + 4)]
    leader.holes.look()
    leader.holes.look()
    leader.run()
    assert leader.shard.resume_position()[0] == at + 3
    assert (owner.lost, leader.read_on, owner.metrics.of["records_set_aside"]) == (None, 1, 3)


def test_a_skip_holds_where_the_record_can_be_read_too_but_not_in_another_epoch(world: World) -> None:
    """A replica that is whole, or a backup, must not make another state of the log."""
    owner = Owner(world).take()
    shard = Leader(owner).shard
    at, epoch = shard.resume_position()
    holes = LogHoles(shard, None, [Skip(at + 1, at + 1, epoch, "bit rot")], *[None] * 4)  # type: ignore[arg-type]
    records = [LogRecord(b"x", at + number, epoch, 1) for number in range(3)]
    assert [record.skipped for record in holes.unbroken(records)] == ["", "bit rot", ""]
    later = [record._replace(epoch=epoch + 1) for record in records]
    assert [record.skipped for record in holes.unbroken(later)] == ["", "", ""]


def test_interventions_are_read_by_key_and_junk_among_them_is_nothing() -> None:
    skip = Skip(5, 9, 2, "bit rot")
    key, value = skip.record(3)
    other = Skip(7, 7, 2, "elsewhere").record(4)
    rows = {key: value, other[0]: other[1], b"k": b"junk", b"t": None, b"r": codec.head(7) + b"x"}
    assert skips_in(rows, 3) == [skip]
    with pytest.raises(codec.UnknownSchema):
        skips_in({**rows, b"newer": codec.head(registry.ID_LAST)}, 3)


def test_a_lost_position_is_believed_when_the_leader_has_no_damage_there(world: World) -> None:
    """librdkafka takes its position for lost behind a broken batch, too."""
    owner = Owner(world).take()
    leader = Leader(owner)
    at, epoch = leader.shard.resume_position()
    broken = batch(at, at, marker=RECORD, intact=False)._replace(epoch=epoch)
    leader.skips = [Skip(at, at, epoch, "bit rot")]
    leader.answers = [answer(broken), answer(batch(at + 1, at + 1, marker=RECORD))]
    leader.holes.look("offset out of range")
    leader.run()
    assert (owner.lost, leader.read_on) == (None, 1)
    leader.answers = [answer(batch(at + 1, at + 1, marker=RECORD))]
    leader.holes.look("offset out of range")
    leader.run()
    assert isinstance(owner.lost, LogTruncated)


def test_a_look_that_fails_gives_the_shard_up(world: World) -> None:
    owner = Owner(world).take()
    leader = Leader(owner)
    leader.holes.look()
    leader.run()  # there is no answer: IndexError
    assert owner.lost is not None


def test_a_batch_without_a_hole_is_nothing_to_look_into(world: World) -> None:
    owner = Owner(world).take()
    leader = Leader(owner)
    world.append(SHARD_LOG.name, 0, b"", b"junk")
    world.run(SECOND_NS)
    at, epoch = leader.shard.resume_position()
    records = [LogRecord(b"junk", at, epoch, 1), LogRecord(b"junk", at + 1, epoch, 1)]
    assert leader.holes.unbroken(records) is records
    leader.holes.look_if_still(at)
    leader.holes.look_if_still(at)
    assert leader.work == []
