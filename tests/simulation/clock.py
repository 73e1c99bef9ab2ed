"""An asyncio event loop in virtual time: nothing waits, and the next timer is always due.

The services' coroutines run on it unchanged. Time stands still while callbacks run and jumps to the next timer when
none is ready, so an hour costs what happens in it. With no timer and no callback left the run is over.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from typing import Any

from everfold.kernel.time import SECOND_NS

WALL_START_NS = 1_800_000_000 * SECOND_NS


class NothingLeft(BaseException):
    """Nobody waits for time any more: whoever awaits something waits for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self.now_ns = 0
        super().__init__(_Jump(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now_ns / SECOND_NS

    def after(self, delay_ns: int, callback: Callable[..., Any], *args: Any) -> asyncio.TimerHandle:
        """Call back after a delay in nanoseconds."""
        return self.call_at((self.now_ns + max(delay_ns, 0)) / SECOND_NS, callback, *args)


class _Jump(selectors.BaseSelector):
    """A selector that has no events; asked to wait, it moves the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise NothingLeft
        if timeout > 0:
            self._loop.now_ns += max(math.ceil(timeout * SECOND_NS), 1)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return selectors.SelectorKey(fileobj, 0, events, data)  # the loop's own wake-up pipe, which nobody writes

    def unregister(self, fileobj: Any) -> Any:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def get_key(self, fileobj: Any) -> Any:
        raise KeyError(fileobj)

    def get_map(self) -> Any:
        return {}
