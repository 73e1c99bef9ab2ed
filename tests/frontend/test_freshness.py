"""Lists wait for the index where it is known how far it has to come, and not for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from everfold.frontend import freshness
from everfold.frontend.freshness import Freshness, Place


class Index:
    """Reaches the places one look after the other."""

    def __init__(self, *reached: Mapping[int, Place]) -> None:
        self.reached = list(reached)
        self.looks: list[list[int]] = []

    def look(self, shards: Iterable[int]) -> Mapping[int, Place]:
        self.looks.append(list(shards))
        return self.reached.pop(0) if len(self.reached) > 1 else self.reached[0]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


def test_a_list_waits_until_the_index_has_what_each_shard_had_folded() -> None:
    index = Index({0: (1, 4, 0)}, {0: (1, 5, 2)}, {1: (2, 0, 0)})

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            lists = Freshness(lambda: {0: (1, 5, 1), 1: (1, 9, 3)}, index.look)
            assert await lists.caught_up(threads)
            assert index.looks == [[0, 1], [0, 1], [1]]
            assert await lists.caught_up(threads)
            assert len(index.looks) == 3, "what the index has reached once is not asked again"

    run(scenario())


def test_nothing_folded_is_nothing_to_wait_for() -> None:
    index = Index({})

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            assert await Freshness(dict, index.look).caught_up(threads)
            assert not index.looks

    run(scenario())


def test_a_list_does_not_wait_for_an_index_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness, "WITHIN_S", 0.1)
    newest: dict[int, Place] = {0: (1, 5, 0)}

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            lists = Freshness(lambda: newest, Index({0: (1, 5, 0)}).look)
            assert await lists.caught_up(threads)
            newest[0] = (1, 5, 1)
            began = time.monotonic()
            assert not await lists.caught_up(threads)
            assert 0.1 <= time.monotonic() - began < 1

    run(scenario())


@pytest.mark.parametrize("starting", [0.5, 30.0])
def test_at_the_start_a_list_waits_for_processors_that_are_still_loading(
    starting: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "WITHIN_S", 0.1)
    monkeypatch.setattr(freshness, "STARTING_S", starting)
    index = Index({})

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            lists = Freshness(lambda: {0: (1, 5, 0)}, index.look)
            waiting = asyncio.ensure_future(lists.caught_up(threads))
            await asyncio.sleep(1.0)
            assert waiting.done() == (starting < 1)
            index.reached.append({0: (1, 5, 0)})
            assert await waiting == (starting > 1)

    run(scenario())


def test_lists_that_wait_together_ask_once() -> None:
    index = Index({0: (1, 4, 0)}, {0: (1, 4, 0)}, {0: (1, 5, 0)})

    async def scenario() -> None:
        with ThreadPoolExecutor(4) as threads:
            lists = Freshness(lambda: {0: (1, 5, 0)}, index.look)
            assert all(await asyncio.gather(*(lists.caught_up(threads) for _ in range(50))))
            assert len(index.looks) == 3

    run(scenario())
