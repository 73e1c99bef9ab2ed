"""How many tasks a queue may dispatch per second: a token bucket, kept as one instant (the generic cell rate
algorithm).
"""

from __future__ import annotations

import math
from typing import Final

from everfold.kernel.time import SECOND_NS

RATE_MIN: Final = 1e-9
RATE_MAX: Final = float(SECOND_NS)
"""From a task in thirty years to one per nanosecond: what pollers ask for beyond means none, and no limit."""

NEVER_NS: Final = 1 << 62
"""Later than any time: when a bucket of rate 0 has its next token."""


class RateLimit:
    """Allows `per_second` tasks with a burst of one second's worth, at least one. Temporal: burst = ceil(rate), at
    least 1. NaN is no limit.
    """

    __slots__ = ("_burst_ns", "_full_at_ns", "_interval_ns", "per_second")

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second = min(per_second, RATE_MAX) if per_second == per_second else RATE_MAX
        if per_second >= RATE_MIN:
            self._interval_ns = max(1, round(SECOND_NS / per_second))
            self._burst_ns = (max(1, math.ceil(per_second)) - 1) * self._interval_ns
        else:
            self._interval_ns, self._burst_ns = NEVER_NS, 0
        #: when the bucket would be full again
        self._full_at_ns = 0

    def change(self, per_second: float) -> None:
        """Another rate from now on; what was taken stays taken."""
        full_at_ns = self._full_at_ns
        self.__init__(per_second)  # type: ignore[misc]
        self._full_at_ns = full_at_ns

    def ready_at_ns(self, now_ns: int) -> int:
        """When the next task may go: `now_ns` or earlier means now."""
        if self.per_second < RATE_MIN:
            return NEVER_NS
        return max(self._full_at_ns - self._burst_ns, 0)

    def take(self, now_ns: int) -> None:
        """One task goes. Call only when it is ready."""
        self._full_at_ns = max(self._full_at_ns, now_ns) + self._interval_ns
