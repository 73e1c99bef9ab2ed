"""Parked long polls: who waits for a run to change.

A long poll reads, finds nothing to say, and parks here; every step that changed its run wakes it, and it reads again.
Bounded, as each holds a client's request; beyond the bound the poll answers at once with what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from everfold.history.machine.step import RunKey


class Waiting:
    """One parked poll."""

    __slots__ = ("_owner", "_table", "run", "wake")

    def __init__(self, owner: Waiters, table: Table, run: RunKey, wake: Callable[[bool], None]) -> None:
        self._owner = owner
        self._table = table
        self.run = run
        self.wake = wake

    def cancel(self) -> None:
        """Wait no longer; harmless when woken."""
        self._owner.forget(self, self._table)


Table = dict[RunKey, list[Waiting]]


class Waiters:
    """Parked polls by run: those who want to hear of every change, and those who wait for the run to close."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._for_change: Table = {}
        self._for_close: Table = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def park(self, run: RunKey, wake: Callable[[bool], None], *, until_closed: bool = False) -> Waiting | None:
        """Call `wake(True)` once when the run changes (or closes), `wake(False)` when the shard is given up.

        Returns:
            What to cancel; None when there is no room.
        """
        if self._count >= self._bound:
            return None
        table = self._for_close if until_closed else self._for_change
        waiting = Waiting(self, table, run, wake)
        table.setdefault(run, []).append(waiting)
        self._count += 1
        return waiting

    def changed(self, runs: Iterable[RunKey], closed: Iterable[RunKey] = ()) -> None:
        """Wake those who wait for these runs."""
        for table, keys in ((self._for_change, runs), (self._for_close, closed)):
            if not table:
                continue
            for run in keys:
                for waiting in table.pop(run, ()):
                    self._count -= 1
                    waiting.wake(True)

    def forget(self, waiting: Waiting, table: Table) -> None:
        """Drop one."""
        parked = table.get(waiting.run)
        if parked is not None and waiting in parked:
            parked.remove(waiting)
            self._count -= 1
            if not parked:
                del table[waiting.run]

    def close(self) -> None:
        """The shard is gone: wake all, to answer UNAVAILABLE."""
        parked = [waiting for table in (self._for_change, self._for_close) for few in table.values() for waiting in few]
        self._for_change.clear()
        self._for_close.clear()
        self._count = 0
        for waiting in parked:
            waiting.wake(False)
