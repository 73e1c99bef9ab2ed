"""Removing runs: after their retention, because somebody asked, or with their namespace. Logs keep theirs; stores,
index and tasks do not.

Temporal: service/history/deletemanager, api/deleteworkflow, service/worker/deletenamespace.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys
from everfold.history.machine.context import NamespaceInfo, StepContext
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import workflow_not_found
from everfold.history.machine.removal import purge
from everfold.history.machine.state import Run
from everfold.history.machine.step import Reply, RunKey

SWEPT_MAX: Final = 32
"""Runs of a deleted namespace that one record removes: a record must not hold the other workflows up for long."""

SLOTS_MAX: Final = 256
"""Slots that one record looks through for such runs."""

_FROM_THE_FIRST: Final = b""


def decide_delete(ctx: StepContext, namespace: NamespaceInfo, message: bytes) -> Reply:
    """DeleteWorkflowExecution: an open run is terminated first, so that its relations hear of it; then all is gone."""
    target = ws.DeleteWorkflowExecutionRequest.FromString(message).workflow_execution
    run = ctx.find(namespace.namespace_id, namespace.name, target.workflow_id, target.run_id, quarantined=True)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    _remove(ctx, run)
    return Reply(serialize(ws.DeleteWorkflowExecutionResponse()))


def begin_sweep(ctx: StepContext, namespace_id: str) -> None:
    """The namespace is deleted: a timer of its own, due at once, removes its runs."""
    ctx.rows.put(_sweep_row(ctx.now_ns, namespace_id), _FROM_THE_FIRST)


def decide_sweep(ctx: StepContext, namespace_id: str, due_at_ns: int, slots: range) -> Reply:
    """That timer fired: removes some runs of the namespace, and sets the timer anew until none is left.

    Args:
        ctx: the step.
        namespace_id: of the deleted namespace.
        due_at_ns: when the timer was due; the row's value is the slot to go on with, 2 bytes.
        slots: of the shard.
    """
    row = _sweep_row(due_at_ns, namespace_id)
    cursor = ctx.rows.get(row)
    if cursor is None or ctx.now_ns < due_at_ns:
        ctx.step.ignored = True
        return Reply()
    ctx.rows.delete(row)
    first = slots.start if cursor == _FROM_THE_FIRST else int.from_bytes(cursor, "big")
    found: list[bytes] = []
    for looks, slot in enumerate(range(first, slots.stop, slots.step)):
        runs = (key for key, _ in ctx.rows.scan(*keys.runs_of(slot, namespace_id)))
        found += islice(runs, SWEPT_MAX - len(found))
        if len(found) == SWEPT_MAX or looks == SLOTS_MAX:  # there may be more in this slot
            ctx.rows.put(_sweep_row(max(ctx.now_ns, due_at_ns + 1), namespace_id), slot.to_bytes(2, "big"))
            break
    for key in found:
        run = ctx.load(key, quarantined=True)
        assert run is not None
        _remove(ctx, run)
    return Reply()


def _sweep_row(due_at_ns: int, namespace_id: str) -> bytes:
    """A timer row of no run: workflow id and run id are empty."""
    return keys.timer(due_at_ns, 0, keys.run_part(namespace_id, "", ""))


def _remove(ctx: StepContext, run: Run) -> None:
    """An open run is terminated first, so that its relations hear of it."""
    left = end_run(ctx, run, Termination("Delete workflow execution")) if run.running else run
    if left is not None:
        purge(ctx, left)
    ctx.step.changed.append(RunKey(run.namespace_id, run.workflow_id, run.run_id))
