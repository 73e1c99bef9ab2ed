"""Tasks that take their first step at once.

`loop.create_task` leaves the first step to the loop's next turn, and under load something long may come before it: a
request that could have been answered on the spot, a worker's poll above all, waited 4 ms for that
(docs/decisions/0017-the-loop-looks-itself.md).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


if sys.version_info >= (3, 12):

    def start_now(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task whose first step has been taken. Only on the loop's thread, in a callback: not within another task."""
        return asyncio.Task(work, loop=loop, eager_start=True)

else:

    def start_now(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task whose first step has been taken. Only on the loop's thread, in a callback: not within another task."""
        # Python 3.11 has no eager tasks. A task's constructor asks the loop to call the first step soon; here it is
        # called instead. Everything else about the task is as ever.
        first: list[tuple[Callable[[], object], Context]] = []

        def call_soon(step: Callable[[], object], *, context: Context) -> None:
            first.append((step, context))

        loop.call_soon = call_soon  # type: ignore[method-assign, assignment]
        try:
            task = loop.create_task(work)
        finally:
            del loop.call_soon
        ((step, context),) = first
        context.run(step)
        return task
