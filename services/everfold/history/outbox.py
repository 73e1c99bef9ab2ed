"""The outbox sender: a shard's outputs on their way from its store to other topics.

Outputs are rows of the store (law 5), in order of their origin. The sender holds a window of them in memory: fresh ones
come straight from the batch that made them; when the window is full they stay in the store and are read from there
when there is room. `Chains` keeps each partition in order and sends again after a failure.

The *position* is the last output that is reached over an unbroken run of acknowledgements, over all partitions. At most
once a second, and only when it has moved, the owner appends `OutputsSent{position, offset, state hash}`; the fold of
that record drops the rows. So the sender changes no state, and a crash sends again what no record confirms.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from everfold.history.chains import Chains, Entry
from everfold.history.machine.step import OutboxRow
from everfold.history.ports import Cancellable, Metrics, NoMetrics, ShardPorts, ShellLimits
from everfold.kernel.ids import Origin


class Outbox:
    """Sends outputs and knows how far they are acknowledged.

    Args:
        rows_after: reads outputs from the store: those after an origin (None: all), at most so many, in order. Only
            called when the store holds everything that was given to `add`.
        on_progress: called when the position or the congestion may have changed.
    """

    def __init__(
        self,
        ports: ShardPorts,
        rows_after: Callable[[Origin | None, int], list[OutboxRow]],
        on_progress: Callable[[], None],
        limits: ShellLimits,
        *,
        metrics: Metrics | None = None,
        resend: bool = True,
    ) -> None:
        self._rows_after = rows_after
        self._metrics = metrics or NoMetrics()
        self._on_progress = on_progress
        self._limits = limits
        self._chains = Chains(ports, self._acknowledged, metrics=metrics, resend=resend)
        #: in order of origin; from the first unacknowledged one on
        self._window: deque[Entry] = deque()
        self._window_bytes = 0
        #: the last output that went into the window
        self._cursor: Origin | None = None
        #: whether the store holds outputs after the cursor
        self._behind = False
        self._open = False
        #: whether what is read from the store was there when the shard was taken: a former owner may have sent it
        self._taken_over = False
        self.position: Origin | None = None
        #: topic -> the last output for it that went into the window
        self.newest: dict[str, Origin] = {}

    def open(self, position: Origin | None) -> None:
        """Start sending what comes after `position` (None: everything there is)."""
        self._open = True
        self._cursor = position
        self.position = position
        self._behind = self._taken_over = True
        self.fill()

    def close(self) -> None:
        """Send nothing more."""
        self._open = False
        self._chains.close()
        self._window.clear()

    def add(self, outputs: list[OutboxRow]) -> None:
        """Outputs of a batch that is in the store by now."""
        if not self._open:
            return
        for at, row in enumerate(outputs):
            if self._behind or self._full():
                self._behind = self._behind or at < len(outputs)
                return
            self._push(row)

    def fill(self) -> None:
        """Read outputs from the store into the window, as far as there is room."""
        while self._open and self._behind and not self._full():
            wanted = min(256, self._limits.outbox_entries_max - len(self._window))
            rows = self._rows_after(self._cursor, wanted)
            for row in rows:
                self._push(row)
            if len(rows) < wanted:
                self._behind = self._taken_over = False

    @property
    def depth(self) -> int:
        """Outputs in the window."""
        return len(self._window)

    @property
    def congested(self) -> bool:
        """Whether outputs are made faster than Kafka takes them: more are waiting than the window holds."""
        return self._behind and self._full()

    @property
    def relieved(self) -> bool:
        """Whether the congestion is over, with a margin so that it does not flicker."""
        return not self._behind and len(self._window) <= self._limits.outbox_entries_max // 2

    @property
    def resent(self) -> int:
        """Outputs sent again so far, after failures."""
        return self._chains.resent

    def _full(self) -> bool:
        return (
            len(self._window) >= self._limits.outbox_entries_max or self._window_bytes >= self._limits.outbox_bytes_max
        )

    def _push(self, row: OutboxRow) -> None:
        entry = Entry(row.origin, row.topic, row.partition, row.key, row.value)
        self._window.append(entry)
        self._window_bytes += entry.size
        self._cursor = self.newest[row.topic] = row.origin
        self._metrics.count("outputs_resent" if self._taken_over else "outputs_sent", topic=row.topic)
        self._chains.send(entry)

    def _acknowledged(self) -> None:
        window = self._window
        moved = False
        while window and window[0].acknowledged:
            entry = window.popleft()
            self._window_bytes -= entry.size
            self.position = entry.origin
            moved = True
        if moved:
            self._on_progress()


class SentAnnouncer:
    """Appends `OutputsSent` at most once in so often, and only when the position has moved.

    Args:
        announce: proposes the record for a position; calls back with True when it is folded, False when its fate
            is unknown.
    """

    def __init__(
        self,
        ports: ShardPorts,
        every_ns: int,
        announce: Callable[[Origin, Callable[[bool], None]], None],
        metrics: Metrics | None = None,
    ) -> None:
        self._ports = ports
        self._every_ns = every_ns
        self._announce = announce
        self._metrics = metrics or NoMetrics()
        self._timer: Cancellable | None = None
        self._in_flight = False
        self._closed = False
        self._announced: Origin | None = None
        self._position: Origin | None = None
        self._last_ns: int | None = None

    def open(self, announced: Origin | None) -> None:
        """Begin with what the log already says."""
        self._announced = announced

    def moved(self, position: Origin | None) -> None:
        """The sender's position is this now."""
        self._position = position
        self._arm()

    def close(self) -> None:
        """Announce nothing more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._closed or self._timer is not None or self._in_flight:
            return
        if self._position is None or self._position == self._announced:
            return
        now = self._ports.boottime_ns()
        # The first one waits too: outputs come in bursts, and one record covers the whole burst.
        wait = self._every_ns if self._last_ns is None else max(self._every_ns - (now - self._last_ns), 0)
        self._timer = self._ports.call_later(max(wait, self._every_ns // 4), self._fire)

    def _fire(self) -> None:
        self._timer = None
        position = self._position
        if position is None or position == self._announced:
            return
        self._in_flight = True
        self._last_ns = self._ports.boottime_ns()

        def done(folded: bool) -> None:
            self._in_flight = False
            if folded:
                self._announced = position
            self._arm()

        self._announce(position, done)
