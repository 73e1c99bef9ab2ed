"""A receiving thread and the loop take turns at a library's queue."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable

import pytest

from everfold.runtime.handover import LATE_S, QUIET_LOOKS, Handover


class Source:
    """A queue as a library has it, and a thread that waits for it."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.got: list[object] = []
        self.by_thread = self.looks = 0
        self.trouble: Exception | None = None
        self.ended = threading.Event()
        self.handover = Handover(asyncio.get_running_loop(), self.look)
        self.thread = threading.Thread(target=self.receive, daemon=True)
        self.thread.start()

    def receive(self) -> None:
        while (item := self.items.get()) is not None:
            self.by_thread += 1
            try:
                self.handover.give(lambda item=item: self.got.append(item))  # type: ignore[misc]
            except RuntimeError as error:
                self.trouble = error
                break
        self.ended.set()

    def look(self) -> bool:
        self.looks += 1
        try:
            item = self.items.get_nowait()
        except queue.Empty:
            return False
        self.got.append(item)
        if isinstance(item, Exception):
            raise item
        return True

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def put_to_a_late_loop(self, item: object) -> None:
        self.items.put(item)
        time.sleep(20 * LATE_S)  # noqa: ASYNC251
        await self.until(lambda: item in self.got)

    async def end(self) -> None:
        self.handover.take_back()
        await self.until(lambda: self.handover._timer is None)
        self.items.put(None)
        await self.until(self.ended.is_set)


def test_a_late_loop_takes_what_follows_itself() -> None:
    async def body() -> None:
        source = Source()
        await source.put_to_a_late_loop(0)
        for number in range(1, 50):
            source.items.put(number)
        await source.until(lambda: len(source.got) == 50)
        assert source.got == list(range(50))
        assert source.by_thread == 1
        await source.end()

    asyncio.run(body())


def test_a_loop_in_time_leaves_it_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfold.runtime.handover.LATE_S", 10)

    async def body() -> None:
        source = Source()
        for number in range(20):
            source.items.put(number)
            await source.until(lambda number=number: number in source.got)  # type: ignore[misc]
        assert (source.by_thread, source.looks) == (20, 0)
        await source.end()

    asyncio.run(body())


def test_the_thread_waits_again_when_nothing_comes() -> None:
    async def body() -> None:
        source = Source()
        await source.put_to_a_late_loop("first")
        await source.until(lambda: source.looks >= QUIET_LOOKS)
        looks = source.looks
        await asyncio.sleep(0.05)
        assert source.looks == looks == QUIET_LOOKS
        source.items.put("second")
        await source.until(lambda: source.got == ["first", "second"])
        assert source.by_thread == 2
        await source.end()

    asyncio.run(body())


def test_the_turn_can_be_given_back_at_once() -> None:
    async def body() -> None:
        source = Source()
        await source.put_to_a_late_loop("first")
        source.handover.take_back()
        source.items.put("second")
        await source.until(lambda: source.by_thread == 2)
        await source.end()

    asyncio.run(body())


def test_trouble_in_a_look_does_not_end_the_looking() -> None:
    async def body() -> None:
        source = Source()
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        trouble = ValueError("bad batch")
        await source.put_to_a_late_loop("first")
        source.items.put(trouble)
        source.items.put("after it")
        await source.until(lambda: source.got == ["first", trouble, "after it"])
        assert reported == [trouble]
        await source.end()

    asyncio.run(body())


def test_a_thread_whose_loop_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everfold.runtime.handover._LOOP_CHECK_S", 0.01)

    async def begin() -> Source:
        source = Source()
        await source.put_to_a_late_loop("first")
        return source

    source = asyncio.run(begin())
    assert source.ended.wait(10)
    assert isinstance(source.trouble, RuntimeError)
