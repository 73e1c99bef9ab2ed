"""Parked long polls: who waits for a run to change.

A long poll reads, finds nothing to say, and parks here; every step that changed its run wakes it, and it reads again.
Bounded, as each holds a client's request; beyond the bound the poll answers at once with what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from everfold.history.machine.step import RunKey


class Waiting:
    """One parked poll."""

    __slots__ = ("_owner", "run", "wake")

    def __init__(self, owner: Waiters, run: RunKey, wake: Callable[[bool], None]) -> None:
        self._owner = owner
        self.run = run
        self.wake = wake

    def cancel(self) -> None:
        """Wait no longer; harmless when woken."""
        self._owner.forget(self)


class Waiters:
    """Parked polls by run."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._by_run: dict[RunKey, list[Waiting]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def park(self, run: RunKey, wake: Callable[[bool], None]) -> Waiting | None:
        """Call `wake(True)` once when the run changes, `wake(False)` when the shard is given up. None: no room."""
        if self._count >= self._bound:
            return None
        waiting = Waiting(self, run, wake)
        self._by_run.setdefault(run, []).append(waiting)
        self._count += 1
        return waiting

    def changed(self, runs: Iterable[RunKey]) -> None:
        """Wake those who wait for these runs."""
        if not self._by_run:
            return
        for run in runs:
            for waiting in self._by_run.pop(run, ()):
                self._count -= 1
                waiting.wake(True)

    def forget(self, waiting: Waiting) -> None:
        """Drop one."""
        parked = self._by_run.get(waiting.run)
        if parked is not None and waiting in parked:
            parked.remove(waiting)
            self._count -= 1
            if not parked:
                del self._by_run[waiting.run]

    def close(self) -> None:
        """The shard is gone: wake all, to answer UNAVAILABLE."""
        parked = [waiting for list_ in self._by_run.values() for waiting in list_]
        self._by_run.clear()
        self._count = 0
        for waiting in parked:
            waiting.wake(False)
