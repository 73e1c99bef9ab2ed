"""Callers who wait for an update to reach a stage, in memory only: the update itself is in the log.

News of an update are values of fold steps (`Step.updates`). They are told step by step and before the step's own
proposer is answered, so that a caller whose proposal was folded hears of later steps only, never of what an earlier
update of the same id came to in the same batch. An update that goes on in the next run of a chain takes its callers
along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from temporalio.api.enums.v1 import update_pb2 as update_enums

from everfold.history.machine.step import RunKey, UpdateNews
from everfold.kernel.errors import StatusError

UNSPECIFIED = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_UNSPECIFIED
ADMITTED = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
ACCEPTED = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
COMPLETED = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED


class WaitingUpdate:
    """One caller. It hears of its update until it cancels, also after it was woken: news may come in pairs.

    Attributes:
        wanted: the stage at which it is woken.
        run: who has the update now; None before `begin`.
        stage: the stage reached.
        outcome: serialized Outcome; empty before COMPLETED.
        error: why there will be no outcome.
        aborted: the error is that the run closed before it accepted the update.
    """

    __slots__ = ("_owner", "_wake", "aborted", "cancelled", "error", "outcome", "run", "stage", "update_id", "wanted")

    def __init__(self, owner: UpdateWaiters, update_id: str, wanted: int, wake: Callable[[], None]) -> None:
        self._owner = owner
        self._wake = wake
        self.update_id = update_id
        self.wanted = wanted
        self.run: RunKey | None = None
        self.stage: int = UNSPECIFIED
        self.outcome = b""
        self.error: StatusError | None = None
        self.aborted = False
        self.cancelled = False

    def begin(self, run: RunKey, stage: int, outcome: bytes) -> None:
        """Where the update stands now; what comes next is told. Nothing when the caller has gone meanwhile."""
        if self.cancelled:
            return
        self.run, self.stage, self.outcome = run, stage, outcome
        self._owner.add(self, run)
        self.look()

    def hear(self, news: UpdateNews) -> None:
        """Something happened to the update."""
        if news.stage == "aborted":
            self.error, self.aborted = news.error, True
        elif news.stage == "failed":
            self.error = news.error
        elif news.stage in ("completed", "rejected"):
            self.stage, self.outcome = COMPLETED, news.outcome
        elif news.stage == "accepted":
            self.stage = max(self.stage, ACCEPTED)
        self.look()

    def fail(self, error: StatusError) -> None:
        """There will be no more news."""
        self.error = error
        self._wake()

    def look(self) -> None:
        """Wakes the caller if it has what it waits for."""
        if self.error is not None or self.stage >= self.wanted:
            self._wake()

    def cancel(self) -> None:
        """The caller waits no longer."""
        self.cancelled = True
        self._owner.forget(self)


class UpdateWaiters:
    """The waiting callers of a shard, by run and update id."""

    def __init__(self) -> None:
        self._by_update: dict[tuple[RunKey, str], list[WaitingUpdate]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, waiting: WaitingUpdate, run: RunKey) -> None:
        """Tell it the news of the run's update from now on."""
        self._by_update.setdefault((run, waiting.update_id), []).append(waiting)
        self._count += 1

    def told(self, news: Iterable[UpdateNews]) -> None:
        """News of one fold step, in order."""
        if not self._by_update:
            return
        for item in news:
            if item.stage == "moved":
                self._move(item)
                continue
            for waiting in list(self._by_update.get((item.run, item.update_id), ())):
                waiting.hear(item)

    def forget(self, waiting: WaitingUpdate) -> None:
        """Drop one; harmless when it is not there."""
        if waiting.run is None:
            return
        key = (waiting.run, waiting.update_id)
        found = self._by_update.get(key)
        if found is not None and waiting in found:
            found.remove(waiting)
            self._count -= 1
            if not found:
                del self._by_update[key]

    def close(self, reason: StatusError) -> None:
        """The shard is gone: the update may go on elsewhere, and its callers ask there."""
        waiting = [one for found in self._by_update.values() for one in found]
        self._by_update.clear()
        self._count = 0
        for one in waiting:
            one.fail(reason)

    def _move(self, item: UpdateNews) -> None:
        moved = self._by_update.pop((item.run, item.update_id), None)
        if moved is None:
            return
        run = item.run._replace(run_id=item.run_id)
        for waiting in moved:
            waiting.run = run
        self._by_update.setdefault((run, item.update_id), []).extend(moved)
