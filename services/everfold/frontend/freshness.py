"""Lists that show what their reader has just seen happen.

The index follows the log at the distance of two producers' and consumers' rests, a few tenths of a second. Where the
shards are of this process, as with `everfold server start-dev`, it is known how far they have come, and a list waits
until the index is there: who has got a workflow's result finds the workflow closed. Not for ever, as the processors may
be down: then the list says what the index has, as Temporal's do. At the start the processors load for seconds, beside
services that serve already; until the index was there once, a list waits for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Final

Place = tuple[int, int, int]
"""(leader epoch, offset, index) of an output in its shard's log."""

WITHIN_S: Final = 0.5
"""How long a list waits at most: twice what the index usually needs."""

STARTING_S: Final = 10.0
"""How long after the start a list may wait instead, until the index was there once."""

LOOK_EVERY_S: Final = 0.01

_NOTHING: Final[Place] = (-1, -1, -1)


class Freshness:
    """How far the index is behind this process's shards.

    Args:
        folded: shard -> place of the last record for the index that it has made.
        indexed: of these shards, the place that the index has reached. Blocks.
    """

    def __init__(
        self, folded: Callable[[], Mapping[int, Place]], indexed: Callable[[Iterable[int]], Mapping[int, Place]]
    ) -> None:
        self._folded = folded
        self._indexed = indexed
        self._reached: dict[int, Place] = {}
        self._looking = False
        self._started_at = time.monotonic()
        self._was_there = False

    async def caught_up(self, threads: Executor) -> bool:
        """Waits until the index has what is folded now. False when that takes too long."""
        loop = asyncio.get_running_loop()
        wanted = self._folded()
        deadline = time.monotonic() + WITHIN_S
        if not self._was_there:
            deadline = max(deadline, self._started_at + STARTING_S)
        while behind := [shard for shard, place in wanted.items() if self._reached.get(shard, _NOTHING) < place]:
            if time.monotonic() >= deadline:
                return False
            if self._looking:  # somebody else is: lists that wait together ask once
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            self._looking = True
            try:
                self._reached.update(await loop.run_in_executor(threads, self._indexed, behind))
            finally:
                self._looking = False
            if any(self._reached.get(shard, _NOTHING) < wanted[shard] for shard in behind):
                await asyncio.sleep(LOOK_EVERY_S)
        self._was_there = self._was_there or bool(wanted)
        return True
