"""Looking at all runs of a shard, so many per record: a record must not hold the others up for long."""

from __future__ import annotations

from typing import Final

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.salvage import read_run
from everfold.history.machine.state import Run

LOOKS_MAX: Final = 256
"""Runs and slots that one record looks at, at some 20 us each: a record holds the other shards up for 5 ms at most. A
shard of a million runs takes 4000 records, one after the other, while it serves."""


def walk(ctx: StepContext, slots: range, cursor: bytes) -> tuple[list[tuple[bytes, Run]], bytes]:
    """The next runs behind the row `cursor`; b"" is the start. Those that cannot be read are left out.

    Returns:
        Each run with its row's key, and where the next record goes on; b"" when all have been looked at.
    """
    looks = LOOKS_MAX
    found: list[tuple[bytes, Run]] = []
    for slot in range(int.from_bytes(cursor[:2], "big") if cursor else slots.start, slots.stop, slots.step):
        start, end = keys.kind_of_slot(slot, b"r")
        for key, row in ctx.rows.scan(max(start, cursor + b"\0"), end):
            run = read_run(row)
            if run is not None:
                found.append((key, run))
            looks -= 1
            if not looks:
                return found, key
        looks -= 1
        if looks <= 0:
            return found, end
    return found, b""
