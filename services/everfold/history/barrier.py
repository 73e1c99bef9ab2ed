"""The read barrier: a read sees everything that was acknowledged to anybody before it arrived (architecture, law 7).

After a read arrives, the shard must fold as far as the log reached then. It learns how far that is in one of two ways,
whichever comes first:

- one question for the log's end, shared by all reads that wait when it is asked (a read that arrives while a question
  is under way waits for the next, as the answer may be older than the read);
- the fold of any own record that was produced after the read arrived: whatever was in the log before lies before it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

from everfold.history.ports import Cancellable, ShardPorts
from everfold.kernel.errors import StatusError
from everfold.kernel.time import MILLISECOND_NS

_RETRY_NS: Final = 200 * MILLISECOND_NS
"""Pause after a failed question. Reads give up at their own deadline."""


class _Wait:
    __slots__ = ("done", "over", "sequence")

    def __init__(self, sequence: int, done: Callable[[StatusError | None], None]) -> None:
        self.sequence = sequence
        self.done = done
        self.over = False

    def cancel(self) -> None:
        """Forget the read; harmless when it was released."""
        self.over = True


class Barrier:
    """Holds reads until the fold has passed the end of the log as of their arrival.

    Args:
        ask_end: asks the broker for the end offset of the shard's log, as of some time after the call.
        enabled: off only in the simulator, to prove that it is needed.
    """

    def __init__(
        self, ports: ShardPorts, ask_end: Callable[[Callable[[int | None], None]], None], *, enabled: bool = True
    ) -> None:
        self._ports = ports
        self._ask_end = ask_end
        self._enabled = enabled
        #: not covered by a question yet, in order of arrival
        self._arrived: deque[_Wait] = deque()
        #: covered by the question under way
        self._asked: list[_Wait] = []
        #: (end offset, tie, wait): released when everything before the end offset is folded
        self._known: list[tuple[int, int, _Wait]] = []
        self._tie = 0
        self._next_offset = 0
        self._timer: Cancellable | None = None
        self._asking = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._arrived) + len(self._asked) + len(self._known)

    def wait(self, last_sequence: int, done: Callable[[StatusError | None], None]) -> Cancellable:
        """Call `done(None)` once the fold has passed the log's end as of now.

        Args:
            last_sequence: the last own record proposed so far; the fold of a later one releases the read.
            done: gets None, or the status when the shard is given up.
        """
        wait = _Wait(last_sequence, done)
        if not self._enabled:
            done(None)
            return wait
        self._arrived.append(wait)
        self._ask()
        return wait

    def folded(self, next_offset: int, own_sequence: int | None) -> None:
        """A record was folded; `own_sequence` when it was proposed by this owner."""
        self._next_offset = next_offset
        if own_sequence is not None and (self._arrived or self._asked or self._known):
            self._release_before(own_sequence)
        known = self._known
        while known and known[0][0] <= next_offset:
            self._release(heapq.heappop(known)[2])

    def close(self, reason: StatusError) -> None:
        """The shard is gone: every read gets this status."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        waits = [*self._arrived, *self._asked, *(wait for _, _, wait in self._known)]
        self._arrived.clear()
        self._asked.clear()
        self._known.clear()
        for wait in waits:
            if not wait.over:
                wait.over = True
                wait.done(reason)

    def _ask(self) -> None:
        if self._asking or self._timer is not None or not self._arrived or self._closed:
            return
        self._asking = True
        self._asked = list(self._arrived)
        self._arrived.clear()
        self._ask_end(self._answered)

    def _answered(self, end: int | None) -> None:
        self._asking = False
        if self._closed:
            return
        asked, self._asked = self._asked, []
        if end is None:
            self._arrived.extendleft(reversed(asked))

            def again() -> None:
                self._timer = None
                self._ask()

            self._timer = self._ports.call_later(_RETRY_NS, again)
            return
        for wait in asked:
            if wait.over:
                continue
            if end <= self._next_offset:
                self._release(wait)
            else:
                self._tie += 1
                heapq.heappush(self._known, (end, self._tie, wait))
        self._ask()

    def _release_before(self, own_sequence: int) -> None:
        # Arrivals are in order, so those that an own record covers are at the front of each list.
        while self._arrived and self._arrived[0].sequence < own_sequence:
            self._release(self._arrived.popleft())
        self._asked = [w for w in self._asked if not self._covered(w, own_sequence)]
        if any(w.sequence < own_sequence for _, _, w in self._known):
            self._known = [k for k in self._known if not self._covered(k[2], own_sequence)]
            heapq.heapify(self._known)

    def _covered(self, wait: _Wait, own_sequence: int) -> bool:
        if wait.sequence < own_sequence:
            self._release(wait)
            return True
        return False

    def _release(self, wait: _Wait) -> None:
        if not wait.over:
            wait.over = True
            wait.done(None)
