"""The rules of a projection, over a store that is a dictionary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pytest

from everfold.runtime.kafka import KafkaSettings
from everfold.schemas import registry
from everfold.schemas.codec import Undecodable, UnknownSchema
from everfold.schemas.topics import HISTORY, Topic
from everfold.topology import projection as module
from everfold.topology.dead_letters import DeadLetterBox
from everfold.topology.projection import (
    Batch,
    PositionMoved,
    Projection,
    Taken,
    Watermarks,
)
from everfold.topology.state import DeadLetter, Position


class Rec(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = (("h", b"1"),)
    timestamp: int = 7


class Store:
    """What survives a crash."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.applied: list[int] = []
        self.dead: list[DeadLetter] = []


class Box(DeadLetterBox):
    """Dead letters in a list."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(""))
        self.letters: list[DeadLetter] = []

    async def send(self, processor: str, topic: str, partition: int, letters: Sequence[DeadLetter]) -> None:
        assert (processor, topic, partition) == ("listing", "history", 0)
        self.letters += letters


class Listing(Projection):
    """Applies numbers to a list."""

    name: ClassVar[str] = "listing"
    source: ClassVar[Topic] = HISTORY

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.trouble: OSError | None = None
        self.poison: set[int] = set()

    def decode(self, value: bytes) -> Mapping[str, Any]:
        if value == b"junk":
            raise Undecodable("junk")
        if value == b"newer":
            raise UnknownSchema(registry.ID_LAST)
        if value == b"other":
            raise UnknownSchema(7)
        decoded: dict[str, Any] = json.loads(value)
        return decoded

    async def load(self, partition: int) -> Position | None:
        return self.store.position

    async def apply(
        self,
        partition: int,
        expected: Position | None,
        reached: Position,
        taken: Sequence[Taken],
        dead_letters: Sequence[DeadLetter],
    ) -> None:
        if self.store.position != expected:
            raise PositionMoved
        if self.trouble:
            raise self.trouble
        for record in taken:
            if record.origin[1] in self.poison:
                raise KeyError(record.origin[1])
        self.store.applied += [record.origin[1] for record in taken]
        self.store.dead += dead_letters
        self.store.position = reached


def output(number: int, after: int | None = -1) -> bytes:
    """Output `number` of the shard; its predecessor is the number before, unless said otherwise."""
    before = number - 1 if after == -1 else after

    def origin(at: int) -> dict[str, int]:
        return {"epoch": 0, "offset": at, "index": 0}

    fields = {"origin": origin(number), "predecessor": None if before is None or before < 0 else origin(before)}
    return json.dumps(fields).encode()


def batch(first_offset: int, *values: bytes) -> Batch:
    return Batch("history", 0, [Rec(first_offset + n, None, value) for n, value in enumerate(values)])


async def opened(store: Store, first: int = 0, end: int = 100) -> Listing:
    listing = Listing(store)
    start = await listing.open({0: Watermarks(first, end)})
    assert start == {0: store.position.next_offset if store.position else first}
    return listing


def test_a_redelivered_batch_is_applied_once() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(1)))
        await listing.process(batch(0, output(0), output(1)))
        await listing.process(batch(1, output(1), output(2)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2]
    assert store.position == Position(3, (0, 2, 0))


def test_where_nothing_is_stored_any_more_a_trimmed_topic_begins_at_its_first_record() -> None:
    """Another worker had applied something, and its state was removed since."""

    async def run() -> None:
        listing = await opened(store, first=50)
        await listing.process(batch(50, output(7), output(8)))
        store.position = None
        await listing.process(batch(52, output(9)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [7, 8, 9]
    assert store.position == Position(53, (0, 9, 0))


def test_repeats_of_the_sender_are_dropped_and_the_position_moves_over_them() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(1), output(0), output(1), output(2)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2]
    assert store.position == Position(5, (0, 2, 0))


def test_at_a_gap_the_position_waits_for_what_is_missing() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(2)))
        assert store.position == Position(1, (0, 0, 0))
        await listing.process(batch(2, output(3)))
        assert store.position == Position(1, (0, 0, 0))
        await listing.process(batch(3, output(1), output(2), output(3)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2, 3]
    assert store.position == Position(6, (0, 3, 0))


def test_after_a_crash_in_a_gap_reading_starts_before_it() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(2)))
        again = await opened(store)
        await again.process(batch(1, output(2), output(1), output(2)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2]


def test_a_gap_that_stays_open_is_told_again_and_again_and_closes_when_the_rest_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(2)))
        await listing.process(batch(2, output(3)))
        assert store.position == Position(1, (0, 0, 0))
        await listing.process(batch(3, output(1), output(2), output(3)))

    monkeypatch.setattr(module, "GAP_WAIT_S", -1.0)
    store = Store()
    asyncio.run(run())
    assert "records after offset 1 are missing" in capsys.readouterr().out
    assert store.applied == [0, 1, 2, 3]


def test_an_error_before_the_commit_leaves_everything_to_be_applied_again() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0)))
        listing.trouble = OSError("killed")
        with pytest.raises(OSError, match="killed"):
            await listing.process(batch(1, output(1)))
        again = await opened(store)
        await again.process(batch(1, output(1), output(2)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2]


def test_offsets_without_records_are_nothing_while_the_chain_holds() -> None:
    """A foreign transaction leaves markers, which nobody is given."""

    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0)))
        await listing.process(batch(2, output(1)))
        await listing.process(batch(4, output(3)))  # what was lost at 3 is missed by the chain

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1]
    assert store.position == Position(3, (0, 1, 0))


def test_junk_becomes_a_dead_letter_in_the_store_and_in_the_box() -> None:
    async def run() -> None:
        listing = await opened(store)
        listing.dead_letter_box = box
        await listing.process(
            batch(0, output(0), b"junk", b"other", output(1), b'{"origin": null, "predecessor": null}')
        )

    store, box = Store(), Box()
    asyncio.run(run())
    assert store.applied == [0, 1]
    expected = [(1, "junk"), (2, "unknown schema id 7"), (4, "it has no origin")]
    assert [(letter.offset, letter.reason) for letter in store.dead] == expected
    assert box.letters[0] == DeadLetter(1, "junk", b"junk", None, (("h", b"1"),), 7)
    assert box.letters == store.dead
    assert store.position == Position(5, (0, 1, 0))


def test_a_newer_record_holds_up_its_partition_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        listing = Listing(store)
        await listing.open({0: Watermarks(0, 100), 1: Watermarks(0, 100)})
        await listing.process(batch(0, output(0), b"newer", output(1)))
        await listing.process(batch(3, output(2)))
        assert store.position == Position(1, (0, 0, 0))
        assert listing.lag({0: 4}) == {0: 3, 1: 100}
        store.position = None
        await listing.process(batch(0, output(7, None))._replace(partition=1))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 7]
    assert store.dead == []
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "held up" in line]
    assert "a newer Everfold wrote offset 1" in told
    assert "upgrade this worker" in told


def test_a_record_that_cannot_be_taken_is_put_aside_alone() -> None:
    async def run() -> None:
        listing = await opened(store)
        listing.poison = {2, 3}
        await listing.process(batch(0, output(0), output(1), output(2), b"junk", output(3), output(4)))
        await listing.process(batch(6, output(5)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 4, 5]
    assert sorted((letter.offset, letter.reason) for letter in store.dead) == [
        (2, "it cannot be taken: KeyError: 2"), (3, "junk"), (4, "it cannot be taken: KeyError: 3"),
    ]  # fmt: skip
    assert store.position == Position(7, (0, 5, 0))


def test_trouble_of_the_surroundings_is_no_records_fault() -> None:
    async def run() -> None:
        listing = await opened(store)
        listing.trouble = OSError("disk full")
        await listing.process(batch(0, output(0)))

    store = Store()
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(run())
    assert (store.applied, store.dead, store.position) == ([], [], None)


def test_a_dead_letter_inside_a_gap_is_kept_when_the_gap_closes() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(2), b"junk"))
        assert not store.dead
        await listing.process(batch(3, output(1), output(2)))

    store = Store()
    asyncio.run(run())
    assert [letter.offset for letter in store.dead] == [2]


def test_a_trimmed_topic_is_begun_where_it_begins_but_never_skipped_into(capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        listing = await opened(store, first=40)
        await listing.process(batch(40, output(7), output(8)))
        again = Listing(store)
        assert await again.open({0: Watermarks(100, 200)}) == {0: 200}
        await again.process(batch(200, output(9)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [7, 8]
    assert "58 records were trimmed" in capsys.readouterr().out


def test_a_source_that_lost_its_tail_is_read_on_from_its_end() -> None:
    async def run() -> None:
        store.position = Position(10, (0, 9, 0))
        listing = Listing(store)
        assert await listing.open({0: Watermarks(0, 8)}) == {0: 8}
        await listing.process(batch(8, output(8), output(9), output(10)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [10]


def test_two_readers_of_one_partition_apply_every_record_once() -> None:
    async def run() -> None:
        zombie, owner = await opened(store), await opened(store)
        await zombie.process(batch(0, output(0), output(1)))
        await owner.process(batch(0, output(0), output(1), output(2)))
        await zombie.process(batch(2, output(2), output(3)))
        await owner.process(batch(3, output(3), output(4)))

    store = Store()
    asyncio.run(run())
    assert store.applied == [0, 1, 2, 3, 4]


def test_a_batch_for_a_partition_that_was_taken_away_is_left_alone() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.open({})
        await listing.process(batch(0, output(0)))

    store = Store()
    asyncio.run(run())
    assert store.applied == []


def test_lag_counts_what_is_not_applied() -> None:
    async def run() -> None:
        listing = await opened(store)
        await listing.process(batch(0, output(0), output(1)))
        assert listing.lag({0: 10}) == {0: 8}
        assert listing.lag({}) == {0: 98}

    store = Store()
    asyncio.run(run())
