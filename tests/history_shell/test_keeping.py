"""A shard's store as its owner keeps it: what is found damaged, by whomever, is told and set aside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from everfold.history.giving_up import HashMismatch, StoreCorrupt, StoreOfLostTail, StoreTrouble
from everfold.history.keeping import StoreKeeper
from everfold.history.machine.rows import Rows, StoreFailed
from everfold.history.store import StoreMemory, shard_directory
from everfold.kernel.errors import LogTruncated
from history_shell.test_store import flip_a_bit
from history_shell.world import Counts


class Kept:
    """A keeper over a full store, and what it tells."""

    def __init__(self, directory: Path) -> None:
        self.told: list[StoreCorrupt] = []
        self.metrics = Counts()
        self.directory = directory
        self.memory = StoreMemory(8 << 20, 4 << 20)
        self.keeper = StoreKeeper(0, directory, "cluster", self.metrics, self.told.append)

    def aside(self) -> list[str]:
        """The reasons of the stores that were set aside."""
        return sorted(kept.name.split("Z-")[1] for kept in self.directory.glob("*.set-aside-*"))


def run(directory: Path, body: Callable[[Kept], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(Kept(directory))

    asyncio.run(main())


async def filled(kept: Kept) -> None:
    store = await kept.keeper.open(kept.memory, "topic")
    store.write({b"%05d" % number: os.urandom(100) for number in range(1000)})
    assert await kept.keeper.flush() is None
    await kept.keeper.close()


def test_damage_that_a_callers_read_meets_is_told_and_the_next_opening_is_empty(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        await filled(kept)
        flip_a_bit(tmp_path)
        store = await kept.keeper.open(kept.memory, "topic")
        with pytest.raises(StoreFailed):
            Rows(store, b"").get(b"00000")  # as the fold and the readers of RPCs do
        assert kept.told == [], "never from inside the read"
        await asyncio.sleep(0)
        assert len(kept.told) == 1
        await kept.keeper.close()
        assert kept.aside() == ["store-corrupt"]
        again = await kept.keeper.open(kept.memory, "topic")
        assert list(again.scan(b"", b"\xff")) == []
        await kept.keeper.close()
        assert kept.aside() == ["store-corrupt"], "once"

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (HashMismatch("x"), ["hash-mismatch"]),
        (StoreOfLostTail("x"), ["store-of-lost-tail"]),
        (StoreTrouble("the disk is full"), []),
        (LogTruncated("the log is short"), []),
        (OSError("Too many open files"), []),
    ],
)
def test_only_a_spoilt_store_is_set_aside(tmp_path: Path, reason: Exception, expected: list[str]) -> None:
    async def body(kept: Kept) -> None:
        await filled(kept)
        await kept.keeper.open(kept.memory, "topic")
        kept.keeper.judge(reason)
        await kept.keeper.close()
        assert kept.aside() == expected
        assert shard_directory(tmp_path, 0).exists() is (not expected)

    run(tmp_path, body)


def test_a_store_that_cannot_be_set_aside_is_not_used_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(kept: Kept) -> None:
        await filled(kept)
        kept.keeper.judge(HashMismatch("x"))
        with monkeypatch.context() as broken:
            broken.setattr(Path, "rename", refuse)
            await kept.keeper.close()
            with pytest.raises(PermissionError):
                await kept.keeper.open(kept.memory, "topic")
        again = await kept.keeper.open(kept.memory, "topic")
        assert again.get(b"00000") is None
        assert kept.aside() == ["hash-mismatch"]
        await kept.keeper.close()

    def refuse(_self: Path, _target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    run(tmp_path, body)


def test_a_store_says_which_topic_it_is_of(tmp_path: Path) -> None:
    async def body(kept: Kept) -> None:
        assert (await kept.keeper.open(kept.memory, "")).topic_id == ""
        await kept.keeper.close()
        assert (await kept.keeper.open(kept.memory, "one")).topic_id == "one", "noted where nothing was said"
        await kept.keeper.close()
        assert (await kept.keeper.open(kept.memory, "two")).topic_id == "one"
        await kept.keeper.close()

    run(tmp_path, body)
