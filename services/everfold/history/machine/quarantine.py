"""A run whose step raised is set aside, and what arrives for it waits, until it is released or ended (law 9)."""

from __future__ import annotations

import traceback
from typing import Final

import msgpack

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext, Waiting
from everfold.history.machine.deadlines import next_deadline
from everfold.history.machine.outputs import emit_visibility
from everfold.history.machine.problems import PROBLEMS, problem
from everfold.history.machine.rejections import too_many
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply, RunKey
from everfold.kernel.errors import PROCESS_TROUBLE, Code, InvariantViolation, Quarantined, StatusError

PARKED_MAX: Final = 1_000
"""Records that wait for one quarantined run at most; more are refused as busy, so a store cannot grow without bound."""


def set_aside(ctx: StepContext, key: RunKey, run: Run | None, kind: str, defect: Exception) -> None:
    """A step raised: answers so, and quarantines the run that it was about, None where no run is at fault.

    The reason is state, and so holds nothing that hosts may differ in, such as a library's words. The owner's log gets
    more: the words of an InvariantViolation, which are our own; of any other exception, whose text may be a user's
    data, the place alone.
    """
    reason = f"{type(defect).__name__} in {kind}"
    ctx.step.quarantined.append((key, f"{reason}{more_of(defect)}"))
    what = "cannot be changed like this" if run is None else "is quarantined"
    ctx.step.reply = Reply(error=StatusError(Code.INTERNAL, f"workflow {key.workflow_id} {what}: {reason}"))
    if run is None:
        return
    # A closed run has one deadline left, the end of its retention, which needs nothing of its state.
    if run.deadline_ns and (run.running or run.quarantined):
        ctx.rows.delete(keys.timer(run.deadline_ns, run.slot, _part(run)))
        run.deadline_ns = 0
    run.quarantined = run.quarantined or reason
    run.search_attributes[PROBLEMS] = problem("WorkflowQuarantined", run.quarantined)
    _show(ctx, run)
    ctx.put_run(run)


def _show(ctx: StepContext, run: Run) -> None:
    """Tells the index of the run's problem, if what the index is told can still be made of the run."""
    run.transitions += 1
    mark = ctx.mark()
    try:
        emit_visibility(ctx, run)
    except PROCESS_TROUBLE:
        raise
    except Exception:
        ctx.go_back(mark)


def more_of(defect: Exception) -> str:
    """What a log may say of a defect besides its type."""
    if isinstance(defect, InvariantViolation):
        return f": {defect}"
    frame = traceback.extract_tb(defect.__traceback__)[-1]
    return f" at {frame.filename}:{frame.lineno}"


def park(ctx: StepContext, why: Quarantined, record: Waiting) -> StatusError | None:
    """Lets a record wait in a row of its own. The status when too many wait already."""
    slot, part = keys.slot_of_row(why.run_row), keys.part_of_row(why.run_row)
    _, workflow_id, _ = keys.split_run(part)
    count = keys.parked_count(slot, part)
    waiting = _number(ctx.rows.get(count))
    if waiting >= PARKED_MAX:
        full = too_many(f"workflow {workflow_id} is quarantined and {waiting} records wait for it already")
        ctx.step.reply = Reply(error=full)
        return full
    ctx.rows.put(keys.parked(slot, part, record.offset), record.value)
    ctx.rows.put(count, msgpack.packb(waiting + 1))
    waits = StatusError(Code.UNAVAILABLE, f"workflow {workflow_id} is quarantined: {why.reason}")
    ctx.step.reply = Reply(error=waits)
    return None


def waiting_for(ctx: StepContext, run: Run) -> list[Waiting]:
    """The records that wait for the run, in the order in which they came."""
    rows = ctx.rows.scan(*keys.parked_range(run.slot, _part(run)))
    return [Waiting(keys.parked_offset(key), value) for key, value in rows]


def take_waiting(ctx: StepContext, run: Run) -> list[Waiting]:
    """The records that wait for the run, which wait no longer: they are the caller's to decide."""
    waiting = waiting_for(ctx, run)
    for record in waiting:
        ctx.rows.delete(keys.parked(run.slot, _part(run), record.offset))
    if waiting:
        ctx.rows.delete(keys.parked_count(run.slot, _part(run)))
    return waiting


def take_one(ctx: StepContext, run: Run, record: Waiting) -> None:
    """That record waits no longer."""
    ctx.rows.delete(keys.parked(run.slot, _part(run), record.offset))
    count = keys.parked_count(run.slot, _part(run))
    left = _number(ctx.rows.get(count)) - 1
    if left > 0:
        ctx.rows.put(count, msgpack.packb(left))
    else:
        ctx.rows.delete(count)


def drop_marks(ctx: StepContext, run: Run) -> None:
    """The run is about to be ended: its rows beside its own, of which a run that cannot be read does not know, go."""
    run.quarantined = ""
    run.transitions = max(run.transitions, ctx.offset)  # more than any run of this shard can have had
    ctx.rows.delete(keys.sticky(run.slot, _part(run)))
    run.sticky_row = False


def take_up(ctx: StepContext, run: Run) -> None:
    """The run goes on, its deadlines too; what waits for it is for the caller to decide."""
    run.quarantined = ""
    run.search_attributes.pop(PROBLEMS, None)
    _show(ctx, run)
    due = next_deadline(run)
    if due:
        ctx.rows.put(keys.timer(due, run.slot, _part(run)), b"")
        run.deadline_ns = due
    ctx.put_run(run)


def _number(row: bytes | None) -> int:
    return 0 if row is None else int(msgpack.unpackb(row))


def _part(run: Run) -> bytes:
    return keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
