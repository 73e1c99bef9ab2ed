"""Ending a run from outside, whatever state it is in: also one that is quarantined (law 9).

Such a run's state is not to be trusted, and damage may show only now. So a run is ended by the first of these that
works:

    as any run             from its last good state: the event, the parent, the children, the updates
    from its core          what was under way is dropped, unseen; the event, the parent, the children, the updates
    by deleting its rows   no event: the workflow id is free, and the run is not found any more
"""

from __future__ import annotations

from typing import NamedTuple

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine import quarantine
from everfold.history.machine.context import StepContext, run_row
from everfold.history.machine.decide.closing import terminate
from everfold.history.machine.relations import abort_updates
from everfold.history.machine.removal import purge
from everfold.history.machine.salvage import bare_run
from everfold.history.machine.state import Run
from everfold.history.machine.step import RunKey
from everfold.history.machine.turn import Turn
from everfold.kernel.errors import PROCESS_TROUBLE


class Termination(NamedTuple):
    """What WorkflowExecutionTerminated says."""

    reason: str
    details: common_pb2.Payloads | None = None
    identity: str = "history-service"
    links: tuple[common_pb2.Link, ...] = ()


def end_run(ctx: StepContext, run: Run, how: Termination) -> Run | None:
    """Terminates an open run. What waited for a quarantined one is decided after this step.

    Returns:
        The run as it is now; None when nothing is left of it.
    """
    if run.quarantined:
        ctx.waiting += quarantine.take_waiting(ctx, run)
        quarantine.drop_marks(ctx, run)
    ctx.put_run(run)  # so that a second attempt begins with what the first began with
    mark = ctx.mark()
    told = ""
    for drop in (False, True):
        try:
            if drop:
                _drop_unfinished(run)
            _terminate(ctx, run, how)
        except PROCESS_TROUBLE:
            raise
        except Exception as defect:
            told = f"{type(defect).__name__} at its end{quarantine.more_of(defect)}"
            ctx.go_back(mark)
            again = ctx.load(run_row(run))
            assert again is not None
            run = again
        else:
            _tell(ctx, run, told)
            return run
    _tell(ctx, run, told)
    abort_updates(ctx, run)
    purge(ctx, bare_run(ctx.rows, run_row(run)))
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    ctx.step.changed.append(key)
    ctx.step.closed.append(key)
    return None


def _terminate(ctx: StepContext, run: Run, how: Termination) -> None:
    turn = Turn(ctx, run)
    terminate(turn, how.reason, how.details, how.identity, list(how.links))
    turn.finish()


def _tell(ctx: StepContext, run: Run, defect: str) -> None:
    """The owner's log hears of a run whose end has lost something."""
    if defect:
        ctx.step.quarantined.append((RunKey(run.namespace_id, run.workflow_id, run.run_id), defect))


def _drop_unfinished(run: Run) -> None:
    """Leaves of a run what its end needs: its ids, its relations and its updates.

    Task records of what is dropped get their tombstones when somebody asks for their start (`leftovers`).
    """
    run.workflow_task = None
    run.buffered = []
    run.activities, run.activity_ids, run.timers, run.externals = {}, {}, {}, {}
    run.memo, run.search_attributes = {}, {}
