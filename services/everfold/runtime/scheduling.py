"""Which threads give way to which.

A thread that is woken usually gets the processor at once, and takes it from the very thread that woke it. So each
answer handed to the gRPC library, each record handed to librdkafka, stopped the event loop in the middle of its turn,
with Python's lock held, at the price of two context switches: a sixth of the loop's time at some hundred calls a
second. Threads of Linux's batch policy (sched(7), SCHED_BATCH) do not preempt when they wake; they run on a free
processor, or when the loop pauses. Measured in docs/decisions/0015-latency-and-requests.md.

Needs no privilege. Where there is no such policy, or it is forbidden, everything stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def give_way() -> None:
    """From now on this thread, and each thread that it starts, takes no processor from others when it wakes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@contextlib.contextmanager
def starting_threads_that_give_way() -> Iterator[None]:
    """Threads that are started within inherit what `give_way` does; the calling thread stays as it is."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getscheduler(0)
    give_way()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, before, os.sched_param(0))
