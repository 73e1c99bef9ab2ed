"""Clocks, behind an interface so that the simulator can put virtual time in their place.

Three clocks, each for one purpose:

    wall_ns      UTC. What a proposer stamps into its records; may jump, and nothing is measured with it.
    boot_ns      elapsed time including suspend (CLOCK_BOOTTIME). What timers are driven by, so that a laptop that
                 slept fires them when it wakes.
    monotonic_ns elapsed time without suspend. Latencies and deadlines of calls.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell reads the time. The pure machine never sees one: its time is in the records."""

    def wall_ns(self) -> int:
        """UTC nanoseconds since the epoch."""
        ...

    def boot_ns(self) -> int:
        """Nanoseconds since some start, counting time spent suspended; never goes back."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start, not counting time spent suspended; never goes back."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ns(self) -> int:
        """UTC nanoseconds since the epoch."""
        return time.time_ns()

    if hasattr(time, "CLOCK_BOOTTIME"):

        def boot_ns(self) -> int:
            """Nanoseconds since boot, counting time spent suspended."""
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    else:  # outside Linux the monotonic clock is the nearest thing

        def boot_ns(self) -> int:
            """Nanoseconds since some start."""
            return time.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start, not counting time spent suspended."""
        return time.monotonic_ns()
