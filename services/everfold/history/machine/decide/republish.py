"""REPUBLISH_VISIBILITY: every run of the shard goes to the index's topic again, for an index that is built anew."""

from __future__ import annotations

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.walk import walk
from everfold.history.machine.outputs import emit_visibility
from everfold.history.machine.step import Reply


def republish(ctx: StepContext, slots: range, cursor: bytes = b"", *, due_at_ns: int = 0) -> None:
    """Writes some runs, from behind the row `cursor` on. A timer, due at once, goes on until all are written.

    Args:
        ctx: the step.
        slots: of the shard.
        cursor: b"" for the start.
        due_at_ns: of the timer that fired; the next one is another, as an owner fires each once.
    """
    found, at = walk(ctx, slots, cursor)
    for _, run in found:
        emit_visibility(ctx, run)
    if at:
        ctx.rows.put(_row(max(ctx.now_ns, due_at_ns + 1)), at)


def decide_republish(ctx: StepContext, due_at_ns: int, slots: range) -> Reply:
    """That timer fired."""
    row = _row(due_at_ns)
    cursor = ctx.rows.get(row)
    if cursor is None or ctx.now_ns < due_at_ns:
        ctx.step.ignored = True
        return Reply()
    ctx.rows.delete(row)
    republish(ctx, slots, cursor, due_at_ns=due_at_ns)
    return Reply()


def _row(due_at_ns: int) -> bytes:
    """A timer row of no run and no namespace."""
    return keys.timer(due_at_ns, 0, keys.run_part("", "", ""))
