"""How far this machine's clock is from the brokers', bounded from both sides of a produce.

The broker's stamp of an own record was made after the record was sent and before it was folded. So, with everything
read on this machine's clock, stamp - folded <= skew <= stamp - sent. Queueing widens such an interval but never moves
it past the truth; the intersection over many records is tight. The *bound* is the smallest skew, by size, that all of
the recent intervals allow: 0 while they all contain 0, so that a busy broker is not taken for a wrong clock.
"""

from __future__ import annotations

from typing import Final

from everfold.kernel.time import MILLISECOND_NS, MINUTE_NS, SECOND_NS

BOUND_MAX_NS: Final = SECOND_NS
"""Beyond this a process takes no new shards. The shard clock allows a proposer to be ahead of the broker by as much."""

_WINDOW_NS: Final = MINUTE_NS
"""Intervals older than this are forgotten: clocks are set right, and brokers change."""


class ClockSkew:
    """The bound, over the shards of a process."""

    def __init__(self) -> None:
        self._least_ns: int | None = None
        self._most_ns: int | None = None
        self._since_ns = 0

    def measured(self, sent_at_ns: int, stamp_ms: int, folded_at_ns: int) -> None:
        """An own record: sent, stamped by the broker, folded."""
        if folded_at_ns - self._since_ns > _WINDOW_NS or folded_at_ns < self._since_ns:
            self._least_ns = self._most_ns = None
            self._since_ns = folded_at_ns
        least = stamp_ms * MILLISECOND_NS - folded_at_ns
        most = (stamp_ms + 1) * MILLISECOND_NS - sent_at_ns  # a stamp is cut to whole milliseconds
        if self._least_ns is None or least > self._least_ns:
            self._least_ns = least
        if self._most_ns is None or most < self._most_ns:
            self._most_ns = most

    def bound_ns(self, now_ns: int) -> int:
        """The broker's clock is at least this far ahead of ours (negative: behind); 0 when nothing speaks against 0."""
        if self._least_ns is None or self._most_ns is None or now_ns - self._since_ns > 2 * _WINDOW_NS:
            return 0
        if self._least_ns > 0:
            return self._least_ns
        return min(self._most_ns, 0)
