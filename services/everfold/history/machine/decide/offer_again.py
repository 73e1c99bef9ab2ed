"""After Kafka lost a shard's tail, every task that was scheduled before gets a new record.

A start in the lost tail has sent its task's tombstone: the fold of what is left has the task scheduled, the task topic
has it ended, and nobody would ever ask for it. Nothing in the log says that a tail was lost, but a tail is never lost
without a change of the leader; so whoever takes a shard under a newer leader has all tasks of earlier ones offered
again. When nothing was lost, that is a task record more for each task that waits.
"""

from __future__ import annotations

from typing import Final

from everfold.history.machine import quarantine
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.walk import walk
from everfold.history.machine.state import Activity, Run, WorkflowTask
from everfold.history.machine.step import RunKey
from everfold.history.machine.turn import Turn
from everfold.kernel.errors import PROCESS_TROUBLE

KIND: Final = "OFFER_TASKS_AGAIN"


def offer_tasks_again(ctx: StepContext, slots: range, cursor: bytes) -> bytes:
    """Offers tasks of earlier leader epochs anew, from behind the row `cursor` on; b"" is the start.

    Returns:
        Where the next record goes on; b"" when all runs have been looked at. With the same runs again where one of
        them had to be set aside: it is passed over then.
    """
    walked, at = walk(ctx, slots, cursor)
    found = [key for key, run in walked if _waits(run, ctx.epoch)]
    for key in found:
        run = ctx.load(key)
        assert run is not None
        try:
            _offer(Turn(ctx, run), ctx.epoch)
        except PROCESS_TROUBLE:
            raise
        except Exception as defect:
            ctx.go_back()
            named = RunKey(run.namespace_id, run.workflow_id, run.run_id)
            quarantine.set_aside(ctx, named, ctx.load(key), KIND, defect)
            return cursor or slots.start.to_bytes(2, "big")
    return at


def _waits(run: Run, epoch: int) -> bool:
    if not run.running or run.quarantined:
        return False
    return _workflow_task(run, epoch) is not None or bool(_activities(run, epoch))


def _workflow_task(run: Run, epoch: int) -> WorkflowTask | None:
    """The workflow task, if it waits with a record of an earlier epoch."""
    task = run.workflow_task
    return task if task is not None and not task.started_event_id and _is_older(task.task_id, epoch) else None


def _activities(run: Run, epoch: int) -> list[Activity]:
    """The activities that wait with such a record."""
    return [one for one in run.activities.values() if not one.started and _is_older(one.task_id, epoch)]


def _offer(turn: Turn, epoch: int) -> None:
    run = turn.run
    task = _workflow_task(run, epoch)
    if task is not None:
        offer_afresh(turn, task)
    for activity in _activities(run, epoch):
        turn.void_activity_task(activity)
        turn.offer_activity_task(activity)
    turn.finish(bounded=False)


def offer_afresh(turn: Turn, task: WorkflowTask) -> None:
    """Offers the scheduled workflow task once more, where it was offered before."""
    run = turn.run
    # A task with a record is on the normal queue, maybe because the sticky worker is gone; stickiness is kept then.
    sticky = run.sticky_queue
    if task.task_id:
        run.sticky_queue = ""
    turn.void_workflow_task(task)
    turn.offer_workflow_task()
    run.sticky_queue = sticky


def _is_older(task_id: str, epoch: int) -> bool:
    """Whether the task's record was made under an earlier leader; False for a task without record."""
    return bool(task_id) and int(task_id.split("-")[1]) < epoch
