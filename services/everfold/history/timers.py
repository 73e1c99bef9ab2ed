"""The shard clock between records, and the firing of timers that are due.

A shard's time is state: it moves with the records folded (docs/architecture.md). Between records the shell
estimates it: the last shard time plus the boot-time clock's progress since. `ShardClock` keeps the largest
(shard time - boot time) seen, because a record that was folded late says less than one folded at once. When a
`FireTimer` turns out early, the log's clock is behind the estimate; then the estimate is taken anew from the log.

`Timers` proposes a `FireTimer` for each run whose earliest deadline is due, not again while one is in flight, and with
growing pauses when the row is still there afterwards (a quarantined run, whose records are parked).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from everfold.history.machine.step import DueTimer, RunKey
from everfold.history.ports import Cancellable, Metrics, NoMetrics, ShardPorts
from everfold.kernel.time import MILLISECOND_NS, MINUTE_NS, SECOND_NS

_RETRY_FIRST_NS: Final = 100 * MILLISECOND_NS
_RETRY_MAX_NS: Final = MINUTE_NS
_SLEEP_MAX_NS: Final = MINUTE_NS
"""Longest wait without a look at the timers: a suspended machine's event loop may sleep on while boot time passed."""


class ShardClock:
    """Estimates the shard's time between records."""

    __slots__ = ("_ahead_ns", "_boottime_ns")

    def __init__(self, boottime_ns: Callable[[], int]) -> None:
        self._boottime_ns = boottime_ns
        self._ahead_ns: int | None = None

    def folded(self, clock_ns: int) -> None:
        """The shard's time was this when its last record was folded, just now."""
        ahead = clock_ns - self._boottime_ns()
        if self._ahead_ns is None or ahead > self._ahead_ns:
            self._ahead_ns = ahead

    def reset(self, clock_ns: int) -> None:
        """The log's clock is behind the estimate: start again from this."""
        self._ahead_ns = clock_ns - self._boottime_ns()

    def now_ns(self) -> int:
        """The shard's time now, as far as it can be known without a record."""
        assert self._ahead_ns is not None, "the shard clock was read before any record was folded"
        return self._boottime_ns() + self._ahead_ns


class _Attempt:
    __slots__ = ("count", "due_at_ns", "not_before_ns")

    def __init__(self, due_at_ns: int) -> None:
        self.due_at_ns = due_at_ns
        self.count = 0
        self.not_before_ns = 0


class Timers:
    """Fires what is due.

    Args:
        next_timer: due time of the first timer row, or None.
        due_timers: timer rows due by a shard time, in order, at most so many.
        fire: proposes the FireTimer record; calls back with True when folded, False when its fate is unknown.
    """

    def __init__(
        self,
        ports: ShardPorts,
        clock: ShardClock,
        next_timer: Callable[[], int | None],
        due_timers: Callable[[int, int], list[DueTimer]],
        fire: Callable[[DueTimer, Callable[[bool], None]], None],
        in_flight_max: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._ports = ports
        self._clock = clock
        self._next_timer = next_timer
        self._due_timers = due_timers
        self._fire = fire
        self._in_flight_max = in_flight_max
        self._metrics = metrics or NoMetrics()
        #: runs with a FireTimer under way
        self._in_flight: set[RunKey] = set()
        #: run -> its last attempt, while the row is still there; pruned when another due time or no row is seen
        self._attempts: dict[RunKey, _Attempt] = {}
        self._timer: Cancellable | None = None
        self._open = False
        self._proposing = False

    def open(self) -> None:
        """Start firing."""
        self._open = True
        self.look()

    def close(self) -> None:
        """Fire nothing more."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Propose what is due and set the alarm for the next. Call after each batch, when its rows are written."""
        if not self._open:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first = self._next_timer()
        if first is None:
            self._attempts.clear()
            return
        wait = first - self._clock.now_ns()
        if wait <= 0:
            wait = self._fire_due()
        self._timer = self._ports.call_later(min(max(wait, MILLISECOND_NS), _SLEEP_MAX_NS), self._alarm)

    def _alarm(self) -> None:
        self._timer = None
        self.look()

    def _fire_due(self) -> int:
        """Returns how long to wait before the next look."""
        now = self._clock.now_ns()
        boot = self._ports.boottime_ns()
        limit = self._in_flight_max + len(self._attempts)
        due = self._due_timers(now, limit)
        wait = _SLEEP_MAX_NS
        stuck: dict[RunKey, _Attempt] = {}
        for timer in due:
            run = RunKey(timer.namespace_id, timer.workflow_id, timer.run_id)
            attempt = self._attempts.get(run)
            if attempt is None or attempt.due_at_ns != timer.due_at_ns:
                attempt = _Attempt(timer.due_at_ns)
            if run in self._in_flight:
                stuck[run] = attempt
                continue
            if attempt.not_before_ns > boot:
                wait = min(wait, attempt.not_before_ns - boot)
            elif len(self._in_flight) < self._in_flight_max:
                self._propose(run, timer, attempt, boot)
                if run not in self._in_flight:  # refused at once
                    wait = min(wait, attempt.not_before_ns - boot)
            # else: the fold of one of those in flight looks again
            if attempt.count:
                stuck[run] = attempt
        self._attempts = stuck
        following = self._first_after(due, now)
        return min(wait, following) if following is not None else wait

    def _first_after(self, due: list[DueTimer], now: int) -> int | None:
        """Distance to the next timer behind those due; they are in flight or pausing, and their fold looks again."""
        if not due:
            return MILLISECOND_NS  # due by a hair; look again
        later = self._due_timers(now + _SLEEP_MAX_NS, len(due) + 1)
        return later[-1].due_at_ns - now if len(later) > len(due) else None

    def _propose(self, run: RunKey, timer: DueTimer, attempt: _Attempt, boot: int) -> None:
        self._in_flight.add(run)
        # Doubles from the second attempt on: the first repeat is usually an early one, re-armed by its distance.
        pause = min(_RETRY_FIRST_NS << min(attempt.count, 12), _RETRY_MAX_NS) if attempt.count else 0
        attempt.count += 1
        attempt.not_before_ns = boot + pause

        def done(folded: bool) -> None:
            self._in_flight.discard(run)
            if folded:
                late = self._clock.now_ns() - timer.due_at_ns
                self._metrics.observe("timer_lateness_seconds", max(late, 0) / SECOND_NS)
            else:
                attempt.not_before_ns = max(attempt.not_before_ns, self._ports.boottime_ns() + _RETRY_FIRST_NS)
                # One that is refused while it is proposed is seen by the look that proposes it.
                if not self._proposing:
                    self.look()

        self._proposing = True
        try:
            self._fire(timer, done)
        finally:
            self._proposing = False
