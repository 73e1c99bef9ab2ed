"""Removing what a shard's store holds of a run."""

from __future__ import annotations

from everfold.history.machine import keys, quarantine
from everfold.history.machine.context import StepContext, run_row
from everfold.history.machine.outputs import emit_visibility
from everfold.history.machine.salvage import bare_run
from everfold.history.machine.state import Run


def purge(ctx: StepContext, run: Run) -> None:
    """Deletes every row of a run, and tells the index. What waited for it is decided after this step."""
    known = bare_run(ctx.rows, run_row(run)) if run.quarantined else run  # the index needs the ids alone
    known.transitions = run.transitions = run.transitions + 1
    emit_visibility(ctx, known, deleted=True)
    part = keys.run_part(run.namespace_id, run.workflow_id, run.run_id)
    if run.deadline_ns:
        ctx.rows.delete(keys.timer(run.deadline_ns, run.slot, part))
    if run.sticky_row:
        ctx.rows.delete(keys.sticky(run.slot, part))
    if run.quarantined:
        ctx.waiting += quarantine.take_waiting(ctx, run)
    for key, _ in list(ctx.rows.scan(*keys.history_range(run.slot, run.run_id, 0, keys.LAST_EVENT))):
        ctx.rows.delete(key)
    current = keys.current(run.slot, run.namespace_id, run.workflow_id)
    if ctx.rows.get(current) == run.run_id.encode():
        ctx.rows.delete(current)
    key = run_row(run)
    ctx.rows.delete(key)
    ctx.cache.drop(key)
