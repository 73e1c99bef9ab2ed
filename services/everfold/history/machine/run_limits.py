"""How large a run may grow: looked at whenever a step changes it, and the step that crosses a limit comes to nothing.

Temporal: service/history/workflow/context.go, enforceHistorySizeCheck and its kin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events
from everfold.history.machine.state import Run
from everfold.kernel.limits import Limits

_COUNT: Final = "Workflow history count exceeds limit."
_SIZE: Final = "Workflow history size exceeds limit."
_STATE: Final = "Workflow mutable state size exceeds limit."


class RunTooLarge(Exception):
    """The step would leave a run open that is beyond a limit: nothing of it counts, and the run ends.

    Attributes:
        run: as the step has made it.
        reason: of its termination, and what the caller hears.
    """

    def __init__(self, run: Run, reason: str) -> None:
        super().__init__(reason)
        self.run = run
        self.reason = reason


def check_size(limits: Limits, run: Run, new: Sequence[history_pb2.HistoryEvent]) -> None:
    """Refuses to go on with an open run that is too large. A new run is none yet.

    As on a real server, the bytes are those before this step, and new events from outside do not count as long as they
    stand at the end: there they are still in the buffer when it looks.

    Raises:
        RunTooLarge: it is.
    """
    if not run.running or not run.transitions:
        return
    count = run.next_event_id - 1
    if count > limits["limit.historyCount.error"]:
        for event in reversed(new):
            if event.event_type not in events.BUFFERED:
                break
            count -= 1
    if count > limits["limit.historyCount.error"]:
        raise RunTooLarge(run, _COUNT)
    if run.history_size_bytes > limits["limit.historySize.error"]:
        raise RunTooLarge(run, _SIZE)
    if run.row_bytes > (most := limits["limit.mutableStateSize.error"]) and _state_bytes(run) > most:
        raise RunTooLarge(run, _STATE)


def _state_bytes(run: Run) -> int:
    """Size of the mutable state before this step. What updates ask for counts elsewhere (maxInFlightUpdatePayloads)."""
    return run.row_bytes - sum(len(update.request) for update in run.updates.values())
