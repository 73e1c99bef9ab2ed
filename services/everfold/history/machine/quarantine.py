"""A run whose step raised is set aside, and what arrives for it waits, until it is released (law 9)."""

from __future__ import annotations

import traceback
from typing import Any, Final

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.deadlines import next_deadline
from everfold.history.machine.rejections import too_many
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply, RunKey
from everfold.kernel.errors import Code, InvariantViolation, StatusError

PARKED_MAX: Final = 1_000
"""Records that wait for one quarantined run at most; more are refused as busy, so a store cannot grow without bound."""


def set_aside(ctx: StepContext, run: Run | None, body: dict[str, Any], defect: Exception) -> None:
    """Quarantines the run of a record. The reason is state, and so holds nothing that hosts may differ in, such as a
    library's words. The owner's log gets more: the words of an InvariantViolation, which are our own; of any other
    exception, whose text may be a user's data, the place alone.
    """
    key = RunKey(body["namespace_id"], body["workflow_id"], body["run_id"] if run is None else run.run_id)
    reason = f"{type(defect).__name__} in {body['kind']}"
    ctx.step.quarantined.append((key, f"{reason}{more_of(defect)}"))
    ctx.step.reply = Reply(error=StatusError(Code.INTERNAL, f"workflow {key.workflow_id} is quarantined: {reason}"))
    if run is None:
        return
    run.quarantined = reason
    if run.deadline_ns:
        ctx.rows.delete(keys.timer(run.deadline_ns, run.slot, _part(run)))
        run.deadline_ns = 0
    ctx.put_run(run)


def more_of(defect: Exception) -> str:
    """What a log may say of a defect besides its type."""
    if isinstance(defect, InvariantViolation):
        return f": {defect}"
    frame = traceback.extract_tb(defect.__traceback__)[-1]
    return f" at {frame.filename}:{frame.lineno}"


def park(ctx: StepContext, run: Run, offset: int, value: bytes) -> StatusError | None:
    """Lets the record at `offset` wait in a row of its own. The status when too many wait already."""
    waiting = len(parked(ctx, run))
    if waiting >= PARKED_MAX:
        full = too_many(f"workflow {run.workflow_id} is quarantined and {waiting} records wait for it already")
        ctx.step.reply = Reply(error=full)
        return full
    ctx.rows.put(keys.parked(run.slot, _part(run), offset), value)
    waits = f"workflow {run.workflow_id} is quarantined: {run.quarantined}"
    ctx.step.reply = Reply(error=StatusError(Code.UNAVAILABLE, waits))
    return None


def parked(ctx: StepContext, run: Run) -> list[tuple[bytes, bytes]]:
    """Rows of the records that wait for the run, in the order in which they came."""
    return list(ctx.rows.scan(*keys.parked_range(run.slot, _part(run))))


def take_up(ctx: StepContext, run: Run) -> None:
    """The run goes on, its deadlines too; what waits for it is for the caller to decide."""
    run.quarantined = ""
    due = next_deadline(run)
    if due:
        ctx.rows.put(keys.timer(due, run.slot, _part(run)), b"")
        run.deadline_ns = due
    ctx.put_run(run)


def _part(run: Run) -> bytes:
    return keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
