"""`everfold shard skip` finds out what cannot be read, however the batch there is damaged."""

from __future__ import annotations

import pytest

from everfold.cli.skip import Damage, survey
from everfold.runtime.kafka.stored import Stored, StoredBatch

END = 100


def log_of(*broken: int, lies: int = 0, missing: frozenset[int] = frozenset()) -> dict[int, StoredBatch]:
    """A log of batches of one record; `lies`: how much too far a broken one says that it reaches."""
    return {
        offset: StoredBatch(offset, offset + (lies if offset in broken else 0), 4, 1_700_000_000_000, 1, False,
                            offset not in broken)
        for offset in range(END) if offset not in missing
    }  # fmt: skip


def ask(log: dict[int, StoredBatch], offset: int, blind: range = range(0)) -> Stored:
    """The leader's answer; it cannot find its way from the offsets of `blind`."""
    if offset in blind:
        return Stored([], -1, unreadable=True)
    return Stored([batch for first, batch in sorted(log.items()) if first >= offset][:3], END)


@pytest.mark.parametrize(
    ("log", "blind", "at", "expected"),
    [
        (log_of(), range(0), 7, None),
        (log_of(), range(0), END, None),
        (log_of(7), range(0), 7, (7, 7, 4)),
        (log_of(END - 1), range(0), END - 1, (END - 1, END - 1, 4)),
        (log_of(7, 8, 9), range(0), 7, (7, 9, 4)),
        (log_of(7, lies=1 << 30), range(0), 7, (7, 7, 4)),
        (log_of(7, lies=-3), range(0), 7, (7, 7, 4)),
        (log_of(), range(7, 31), 7, (7, 30, 4)),
        (log_of(), range(7, END), 7, (7, END - 1, 4)),
        (log_of(missing=frozenset(range(7, 12))), range(0), 7, (7, 11, 4)),
    ],
)  # fmt: skip
def test_all_that_cannot_be_read_and_no_more(
    log: dict[int, StoredBatch], blind: range, at: int, expected: tuple[int, int, int] | None
) -> None:
    found: Damage | None = survey(lambda offset: ask(log, offset, blind), at, END)
    assert (None if found is None else found[:3]) == expected
