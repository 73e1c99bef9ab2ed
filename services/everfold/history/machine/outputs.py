"""The records that a step writes for others: history batches, task records, visibility records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.search_attributes import set_types
from everfold.history.machine.events import TYPE_NAMES, serialize, time_ns
from everfold.history.machine.state import Run
from everfold.kernel.ids import record_key
from everfold.schemas.topics import HISTORY, VISIBILITY, Topic

PART_BYTES_MAX: Final = 1024 * 1024
"""A step's history is split into parts of this size: far below the 8 MiB record limit, so a part with its envelope
always fits, and big enough that a usual batch is one part. A single event may be larger (a blob is at most 2 MiB)."""


def emit_history(
    ctx: StepContext, run: Run, events: Sequence[history_pb2.HistoryEvent], serialized: Sequence[bytes]
) -> None:
    """The events of this step for the `history` topic, in parts."""
    part = 0
    size = 0
    entries: list[dict[str, Any]] = []
    for event, data in zip(events, serialized, strict=True):
        if entries and size + len(data) > PART_BYTES_MAX:
            _emit_part(ctx, run, part, entries)
            part, size, entries = part + 1, 0, []
        entries.append(
            {
                "event_id": event.event_id,
                "event_type": TYPE_NAMES[event.event_type],
                "event_time_ns": time_ns(event.event_time),
                "event": data,
            }
        )
        size += len(data)
    _emit_part(ctx, run, part, entries)


def _emit_part(ctx: StepContext, run: Run, part: int, entries: list[dict[str, Any]]) -> None:
    record = {
        "namespace_id": run.namespace_id,
        "namespace": run.namespace,
        "workflow_id": run.workflow_id,
        "run_id": run.run_id,
        "workflow_type": run.workflow_type,
        "first_event_id": entries[0]["event_id"],
        "part": part,
        "time_ns": ctx.now_ns,
        "events": entries,
    }
    ctx.emit(HISTORY, ctx.facts.shard, record_key(run.namespace, run.workflow_id), "HistoryBatch", record)


def emit_task(
    ctx: StepContext,
    topic: Topic,
    schema: str,
    run: Run,
    queue: str,
    scheduled_event_id: int,
    attempt: int,
    stamp: int,
    deadline_ns: int,
    priority: bytes | None,
) -> str:
    """A task record; returns its id, which is the place where it was made."""
    origin = ctx.next_output()
    task_id = f"{origin.partition}-{origin.epoch}-{origin.offset}-{origin.index}"
    wanted = common_pb2.Priority.FromString(priority or b"")
    record = {
        "task_id": task_id,
        "namespace_id": run.namespace_id,
        "task_queue": queue,
        "workflow_id": run.workflow_id,
        "run_id": run.run_id,
        "scheduled_event_id": scheduled_event_id,
        "attempt": attempt,
        "stamp": stamp,
        "created_at_ns": ctx.now_ns,
        "schedule_to_start_deadline_ns": deadline_ns,
        "priority_key": wanted.priority_key,
        "fairness_key": wanted.fairness_key,
        "fairness_weight": wanted.fairness_weight,
        "shard": ctx.facts.shard,
    }
    ctx.emit(topic, ctx.task_partition(run.namespace_id, queue), task_id.encode(), schema, record)
    return task_id


def emit_visibility(ctx: StepContext, run: Run, *, deleted: bool = False) -> None:
    """The run as a row of the visibility index."""
    memo = common_pb2.Memo()
    for name, payload in run.memo.items():
        memo.fields[name].ParseFromString(payload)
    attributes = common_pb2.SearchAttributes()
    for name, payload in run.search_attributes.items():
        attributes.indexed_fields[name].ParseFromString(payload)
    namespace = ctx.namespace(run.namespace_id)
    if namespace is not None:
        set_types(attributes, namespace, anew=True)
    parent = run.parent
    root = run.root or [run.workflow_id, run.run_id]
    record = {
        "namespace_id": run.namespace_id,
        "namespace": run.namespace,
        "workflow_id": run.workflow_id,
        "run_id": run.run_id,
        "workflow_type": run.workflow_type,
        "task_queue": run.task_queue,
        "status": int(run.status),
        "start_time_ns": run.started_at_ns,
        "execution_time_ns": run.execution_at_ns,
        "close_time_ns": run.closed_at_ns or None,
        "history_length": run.next_event_id - 1,
        "history_size_bytes": run.history_size_bytes,
        "state_transition_count": run.transitions,
        "memo": serialize(memo),
        "search_attributes": serialize(attributes),
        "parent_workflow_id": parent[2] if parent else "",
        "parent_run_id": parent[3] if parent else "",
        "root_workflow_id": root[0],
        "root_run_id": root[1],
        "deleted": deleted,
        "version": run.transitions,
    }
    ctx.emit(VISIBILITY, ctx.facts.shard, run.run_id.encode(), "VisibilityRecord", record)
