"""What a library's threads receive, on its way to the event loop.

A thread that waits for the library and wakes the loop is right while little happens. While much does, it is late: it
needs Python's lock to hand anything over, which the loop gives away for moments that are too short for a thread that
has to be woken first. Under load a request waited 4 ms for that, as long as for all the rest. So when a batch finds the
loop late, the loop itself looks from then on, every millisecond, until there has been nothing for a few looks; then the
thread waits again. Measured in docs/decisions/0017-the-loop-looks-itself.md.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

LOOK_EVERY_S: Final = 0.001
"""The finest that the loop's timers are. A look that finds nothing costs some microseconds."""

LATE_S: Final = 0.001
"""A loop that takes this long to come to a batch is busy. Below, a thread that wakes it is quicker than a timer."""

QUIET_LOOKS: Final = 4
"""Looks without anything, after which the thread waits again. That costs a switch of threads, as much as ten looks."""

_LOOP_CHECK_S: Final = 1.0
"""How often a thread whose turn is over makes sure that there still is a loop."""


class Handover:
    """Between one receiving thread and the loop, which take turns; only one of them takes from the library at a time.

    Args:
        loop: the event loop.
        look: on the loop: takes and handles what is there, without waiting. False when there was nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], bool]) -> None:
        self._loop = loop
        self._look = look
        self._threads_turn = threading.Event()
        self._threads_turn.set()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = 0
        self._given_at = 0.0

    def give(self, handle: Callable[[], None]) -> None:
        """In the thread: have `handle` called on the loop, and come back when it is the thread's turn again.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._threads_turn.clear()
        self._given_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._begin, handle)
        while not self._threads_turn.wait(_LOOP_CHECK_S):
            if self._loop.is_closed():
                raise RuntimeError("the event loop is closed")

    def take_back(self) -> None:
        """On the loop: it looks no more; the thread has something to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._threads_turn.set()

    def _begin(self, handle: Callable[[], None]) -> None:
        if time.monotonic() - self._given_at < LATE_S:
            self._threads_turn.set()
        else:
            self._quiet = 0
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._looked)
        handle()

    def _looked(self) -> None:
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._looked)
        if self._look():
            self._quiet = 0
            return
        self._quiet += 1
        if self._quiet >= QUIET_LOOKS:
            self.take_back()
