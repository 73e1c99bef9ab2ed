"""Reading a shard: histories, descriptions, and the rows behind a reply. Changes nothing; the shell passes the
barrier first.

Temporal: service/history/api/getworkflowexecutionhistory, getworkflowexecutionhistoryreverse, describeworkflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgpack
from temporalio.api.enums.v1 import task_queue_pb2
from temporalio.api.enums.v1 import update_pb2 as update_enums
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflow.v1 import message_pb2 as workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys, responses
from everfold.history.machine.context import NamespaceInfo
from everfold.history.machine.decide.search_attributes import set_types
from everfold.history.machine.durations import set_duration
from everfold.history.machine.events import frame_ends, framed, parse_history, serialize, set_field, set_time
from everfold.history.machine.history_rows import batch_start, event_at
from everfold.history.machine.history_tails import HistoryRow
from everfold.history.machine.rejections import invalid, not_found, workflow_not_found
from everfold.history.machine.relations import closed_outcome
from everfold.history.machine.shard_fold import ShardFold
from everfold.history.machine.state import Activity, Run, UpdateStage
from everfold.history.machine.step import HistoryRange, Reply, RunKey
from everfold.kernel.varint import varint

PAGE_EVENTS_MAX: Final = 256
"""Events of a page at most, but for a last batch that is longer (Temporal: history.maximumPageSize)."""

_EVENT_IDS_END: Final = 1 << 63
"""No event has such an id, nor can a key hold one beyond twice that."""

ADMITTED_STAGE: Final = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
ACCEPTED_STAGE: Final = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
COMPLETED_STAGE: Final = update_enums.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
_CLOSE_ONLY: Final = enums.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT


class HistoryAnswer(NamedTuple):
    """A read of a history: the response, or None where it has to wait for a change, or the closing, of `run`."""

    run: RunKey
    response: bytes | None
    until_closed: bool = False


class Page(NamedTuple):
    """Serialized `History.events` entries, and the first event id after them."""

    events: bytes
    next_event_id: int


class Token(NamedTuple):
    """What a page token says.

    Attributes:
        next_event_id: where the next page begins.
        end_event_id: where the reading ends; 0 when it follows a growing history.
        task: scheduled event id of the transient task whose events end the last page; 0 for none.
    """

    run_id: str
    next_event_id: int
    end_event_id: int
    task: int


# ---- pages ----------------------------------------------------------------------------------------------------------


def page(fold: ShardFold, run: Run, first: int, end: int, events_max: int = PAGE_EVENTS_MAX) -> Page:
    """Events [first, end) as bytes, up to about `events_max` of them; whole batches but for the first."""
    parts: list[bytes] = []
    at = first
    limit = min(end, first + events_max)
    previous: HistoryRow | None = None
    for begins, row in _rows(fold, run, first, end):
        if begins >= end:
            break
        if previous is not None:
            parts.append(_cut(previous, first, begins, end))
            at = begins
            if at >= limit:
                return Page(b"".join(parts), at)
        previous = (begins, row)
    if previous is not None:
        parts.append(_cut(previous, first, run.next_event_id, end))
        at = min(run.next_event_id, end)
    return Page(b"".join(parts), at)


def _rows(fold: ShardFold, run: Run, first: int, end: int) -> Iterable[HistoryRow]:
    """The batches that hold events [first, end); others may follow."""
    tail = fold.rows.tails.since(keys.history(run.slot, run.run_id, first))
    if tail is not None:
        return tail
    start = batch_start(fold.rows, run, first)
    rows = fold.rows.scan(*keys.history_range(run.slot, run.run_id, start, end))
    return ((keys.first_event_id(key), row) for key, row in rows)


def _cut(batch: HistoryRow, first: int, batch_end: int, end: int) -> bytes:
    begins, row = batch
    if begins >= first and batch_end <= end:
        return row
    ends = list(frame_ends(row))
    kept = range(max(first - begins, 0), min(end - begins, len(ends)))
    return row[ends[kept.start - 1] if kept.start else 0 : ends[kept.stop - 1]] if kept else b""


def assemble(fold: ShardFold, reply: Reply) -> bytes:
    """A reply with its history: the rows' bytes appended to the response, and a page token where there is more."""
    wanted = reply.history
    if wanted is None:
        return reply.response
    history, token = _task_history(fold, wanted)
    task = _field(ws.PollWorkflowTaskQueueResponse, "history", history) + token
    if not wanted.field:
        return reply.response + task
    # A second occurrence of a message field is merged into the first by every protobuf parser.
    return reply.response + varint(wanted.field << 3 | 2) + varint(len(task)) + task


def _task_history(fold: ShardFold, wanted: HistoryRange) -> tuple[bytes, bytes]:
    run = fold.run_by_key(wanted.run)
    assert run is not None
    found = page(fold, run, wanted.first_event_id, wanted.end_event_id)
    if found.next_event_id >= wanted.end_event_id:
        return found.events + b"".join(framed(event) for event in wanted.suffix), b""
    task = run.workflow_task.scheduled_event_id if wanted.suffix and run.workflow_task is not None else 0
    token = encode_token(Token(run.run_id, found.next_event_id, wanted.end_event_id, task))
    return found.events, _field(ws.PollWorkflowTaskQueueResponse, "next_page_token", token)


def _field(message: type, name: str, data: bytes) -> bytes:
    """A length-delimited field as bytes."""
    number = message.DESCRIPTOR.fields_by_name[name].number  # type: ignore[attr-defined]
    return varint(number << 3 | 2) + varint(len(data)) + data


def encode_token(token: Token) -> bytes:
    """A page token's bytes."""
    packed: bytes = msgpack.packb([1, *token])
    return packed


def decode_token(data: bytes) -> Token:
    """A page token from its bytes.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    try:
        match msgpack.unpackb(data):
            case [1, str(run_id), int(first), int(end), int(task)] if _are_event_ids(first, end, task):
                return Token(run_id, first, end, task)
    except (ValueError, msgpack.exceptions.UnpackException):
        pass
    raise invalid("Invalid NextPageToken.")


def _are_event_ids(*numbers: int) -> bool:
    """Whether keys can hold them: a client may have bent its token."""
    return all(0 <= number < _EVENT_IDS_END for number in numbers)


def _page_size(wanted: int) -> int:
    return wanted if 0 < wanted < PAGE_EVENTS_MAX else PAGE_EVENTS_MAX


# ---- GetWorkflowExecutionHistory ------------------------------------------------------------------------------------


def get_history(
    fold: ShardFold, namespace_id: str, namespace: str, message: bytes, *, final: bool = False
) -> HistoryAnswer:
    """GetWorkflowExecutionHistory.

    Args:
        fold: the shard.
        namespace_id: of the namespace.
        namespace: its name.
        message: the request.
        final: answer with what there is; otherwise a long poll with nothing new gives no response, and is to be asked
            again when the run has changed.

    Raises:
        StatusError: unknown run, or a token of another one.
    """
    request = ws.GetWorkflowExecutionHistoryRequest.FromString(message)
    token = decode_token(request.next_page_token) if request.next_page_token else None
    run_id = request.execution.run_id
    if token is not None and run_id and run_id != token.run_id:
        raise invalid("RunId in the request does not match the NextPageToken.")
    run_id = token.run_id if token else run_id
    run = fold.run(namespace_id, namespace, request.execution.workflow_id, run_id)
    if run is None:
        raise workflow_not_found(request.execution.workflow_id, run_id)
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    if request.history_event_filter_type == _CLOSE_ONLY:
        return HistoryAnswer(key, _close_event(fold, run, request.wait_new_event, final), True)
    return HistoryAnswer(key, _all_events(fold, run, request, token, final))


def _close_event(fold: ShardFold, run: Run, wait: bool, final: bool) -> bytes | None:
    if not run.running:
        last = page(fold, run, run.next_event_id - 1, run.next_event_id)
        return _history_response(last.events, b"")
    if not wait:
        return _history_response(b"", b"")
    if not final:
        return None
    return _history_response(b"", encode_token(Token(run.run_id, run.next_event_id, 0, 0)))


def _all_events(
    fold: ShardFold, run: Run, request: ws.GetWorkflowExecutionHistoryRequest, token: Token | None, final: bool
) -> bytes | None:
    first = token.next_event_id if token else 1
    end = token.end_event_id if token and token.end_event_id else run.next_event_id
    wait = request.wait_new_event
    if first >= end and wait and run.running:
        if not final:
            return None
        return _history_response(b"", encode_token(Token(run.run_id, first, 0, 0)))
    found = page(fold, run, first, end, _page_size(request.maximum_page_size))
    if found.next_event_id < end:
        next_token = Token(run.run_id, found.next_event_id, 0 if wait else end, token.task if token else 0)
        return _history_response(found.events, encode_token(next_token))
    if wait and run.running:
        return _history_response(found.events, encode_token(Token(run.run_id, found.next_event_id, 0, 0)))
    events = found.events
    task = run.workflow_task
    if token is not None and token.task and task is not None and task.scheduled_event_id == token.task:
        events += b"".join(framed(event) for event in responses.transient_suffix(run, task))
    return _history_response(events, b"")


def _history_response(events: bytes, token: bytes) -> bytes:
    out = _field(ws.GetWorkflowExecutionHistoryResponse, "history", events)
    if token:
        out += _field(ws.GetWorkflowExecutionHistoryResponse, "next_page_token", token)
    return out


def get_history_reverse(fold: ShardFold, namespace_id: str, namespace: str, message: bytes) -> bytes:
    """GetWorkflowExecutionHistoryReverse: newest first, no waiting."""
    request = ws.GetWorkflowExecutionHistoryReverseRequest.FromString(message)
    token = decode_token(request.next_page_token) if request.next_page_token else None
    run_id = token.run_id if token else request.execution.run_id
    run = fold.run(namespace_id, namespace, request.execution.workflow_id, run_id)
    if run is None:
        raise workflow_not_found(request.execution.workflow_id, run_id)
    end = min(token.next_event_id, run.next_event_id) if token else run.next_event_id
    first = max(1, end - _page_size(request.maximum_page_size))
    found = page(fold, run, first, end, PAGE_EVENTS_MAX)
    history = parse_history(found.events)
    response = ws.GetWorkflowExecutionHistoryReverseResponse()
    response.history.events.extend(reversed(list(history.events)))
    if first > 1:
        response.next_page_token = encode_token(Token(run.run_id, first, 0, 0))
    return serialize(response)


# ---- updates --------------------------------------------------------------------------------------------------------


class UpdateStatus(NamedTuple):
    """How far an update has come.

    Attributes:
        stage: temporal.api.enums.v1.UpdateWorkflowExecutionLifecycleStage.
        outcome: serialized Outcome of a completed update; empty before.
    """

    run: RunKey
    stage: int
    outcome: bytes


def update_status(
    fold: ShardFold, namespace_id: str, namespace: str, workflow_id: str, run_id: str, update_id: str
) -> UpdateStatus:
    """The state of an update, its outcome read from the history.

    Raises:
        StatusError: NOT_FOUND, for the workflow or the update.
    """
    run = fold.run(namespace_id, namespace, workflow_id, run_id)
    if run is None:
        raise workflow_not_found(workflow_id, run_id)
    update = run.updates.get(update_id)
    if update is None:
        raise not_found(f"update {json.dumps(update_id, ensure_ascii=False)} not found")
    key = RunKey(run.namespace_id, run.workflow_id, run.run_id)
    if update.stage == UpdateStage.COMPLETED:
        event = event_at(fold.rows, run, update.completed_event_id)
        assert event is not None
        outcome = event.workflow_execution_update_completed_event_attributes.outcome
        return UpdateStatus(key, COMPLETED_STAGE, serialize(outcome))
    if update.stage == UpdateStage.ACCEPTED and not run.running:
        return UpdateStatus(key, COMPLETED_STAGE, closed_outcome())
    return UpdateStatus(key, ACCEPTED_STAGE if update.stage == UpdateStage.ACCEPTED else ADMITTED_STAGE, b"")


# ---- DescribeWorkflowExecution --------------------------------------------------------------------------------------


def describe(fold: ShardFold, info: NamespaceInfo, message: bytes) -> bytes:
    """DescribeWorkflowExecution.

    Raises:
        StatusError: NOT_FOUND.
    """
    request = ws.DescribeWorkflowExecutionRequest.FromString(message)
    target = request.execution
    run = fold.run(info.namespace_id, info.name, target.workflow_id, target.run_id)
    if run is None:
        raise workflow_not_found(target.workflow_id, target.run_id)
    response = ws.DescribeWorkflowExecutionResponse()
    config = response.execution_config
    config.task_queue.name = run.task_queue
    config.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    started = event_at(fold.rows, run, 1)
    if started is not None:  # absent or 0 there, so here: the state does not tell the two apart
        a = started.workflow_execution_started_event_attributes
        for name in ("workflow_execution_timeout", "workflow_run_timeout"):
            if a.HasField(name):
                getattr(config, name).CopyFrom(getattr(a, name))
        response.workflow_extended_info.original_start_time.CopyFrom(started.event_time)
    set_duration(config.default_workflow_task_timeout, run.task_timeout_ns)
    set_field(config, "user_metadata", run.user_metadata)
    _fill_info(response.workflow_execution_info, run, info)
    for activity in run.activities.values():
        _fill_activity(response.pending_activities.add(), run, activity)
    for child in run.children.values():
        entry = response.pending_children.add()
        entry.workflow_id, entry.run_id = child.workflow_id, child.run_id
        entry.workflow_type_name = child.workflow_type
        entry.initiated_id = child.initiated_event_id
        entry.parent_close_policy = child.parent_close_policy  # type: ignore[assignment]
    task = run.workflow_task
    if task is not None:
        pending = response.pending_workflow_task
        pending.state = (
            enums.PENDING_WORKFLOW_TASK_STATE_STARTED
            if task.started_event_id
            else enums.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        )
        set_time(pending.scheduled_time, task.scheduled_at_ns)
        set_time(pending.original_scheduled_time, task.original_scheduled_at_ns)
        if task.started_event_id:
            set_time(pending.started_time, task.started_at_ns)
        pending.attempt = task.attempt
    extended = response.workflow_extended_info
    if run.execution_expires_at_ns:
        set_time(extended.execution_expiration_time, run.execution_expires_at_ns)
    if run.run_expires_at_ns:
        set_time(extended.run_expiration_time, run.run_expires_at_ns)
    extended.cancel_requested = run.cancel_requested
    extended.reset_run_id = run.reset_run_id
    if run.original_run_id != run.run_id:  # a reset made it (mutable_state_impl.go, IsResetRun)
        set_time(extended.last_reset_time, run.started_at_ns)
    if request_id := run.start_request_id or run.create_request_id:
        known = extended.request_id_infos[request_id]
        known.event_type = 1  # type: ignore[assignment]
        known.event_id = 1
    return serialize(response)


def _fill_info(out: workflow_pb2.WorkflowExecutionInfo, run: Run, namespace: NamespaceInfo) -> None:
    out.execution.workflow_id = run.workflow_id
    out.execution.run_id = run.run_id
    out.type.name = run.workflow_type
    set_time(out.start_time, run.started_at_ns)
    set_time(out.execution_time, run.execution_at_ns)
    if run.closed_at_ns:
        set_time(out.close_time, run.closed_at_ns)
        set_duration(out.execution_duration, run.closed_at_ns - run.execution_at_ns)
    out.status = int(run.status)  # type: ignore[assignment]
    out.history_length = run.next_event_id - 1
    out.history_size_bytes = run.history_size_bytes
    out.state_transition_count = run.transitions
    out.task_queue = run.task_queue
    out.memo.SetInParent()
    for name, payload in run.memo.items():
        out.memo.fields[name].ParseFromString(payload)
    out.search_attributes.SetInParent()
    for name, payload in run.search_attributes.items():
        out.search_attributes.indexed_fields[name].ParseFromString(payload)
    set_types(out.search_attributes, namespace)
    out.auto_reset_points.SetInParent()
    for data in run.reset_points:
        out.auto_reset_points.points.add().ParseFromString(data)
    root = run.root or [run.workflow_id, run.run_id]
    out.root_execution.workflow_id, out.root_execution.run_id = root[0], root[1]
    if run.parent:
        out.parent_namespace_id = run.parent[0]
        out.parent_execution.workflow_id, out.parent_execution.run_id = run.parent[2], run.parent[3]
    out.first_run_id = run.first_run_id
    set_field(out, "priority", run.priority)
    set_field(out, "most_recent_worker_version_stamp", run.worker_version_stamp)
    out.worker_deployment_name = run.worker_deployment


def _fill_activity(out: workflow_pb2.PendingActivityInfo, run: Run, activity: Activity) -> None:
    out.activity_id = activity.activity_id
    out.activity_type.name = activity.activity_type
    if activity.cancel_requested_event_id:
        out.state = enums.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
    elif activity.started:
        out.state = enums.PENDING_ACTIVITY_STATE_STARTED
    else:
        out.state = enums.PENDING_ACTIVITY_STATE_SCHEDULED
    if activity.heartbeat_details:
        out.heartbeat_details.ParseFromString(activity.heartbeat_details)
    if activity.heartbeat_recorded_at_ns:
        set_time(out.last_heartbeat_time, activity.heartbeat_recorded_at_ns)
    if activity.started:
        set_time(out.last_started_time, activity.started_at_ns)
    out.attempt = activity.attempt
    out.maximum_attempts = activity.maximum_attempts
    set_time(out.scheduled_time, activity.scheduled_at_ns)
    if activity.next_attempt_at_ns:
        set_time(out.next_attempt_schedule_time, activity.next_attempt_at_ns)
        set_duration(out.current_retry_interval, activity.next_attempt_at_ns - activity.last_attempt_completed_at_ns)
    if activity.last_attempt_completed_at_ns:
        set_time(out.last_attempt_complete_time, activity.last_attempt_completed_at_ns)
    if activity.expires_at_ns:
        set_time(out.expiration_time, activity.expires_at_ns)
    if activity.last_failure:
        out.last_failure.ParseFromString(activity.last_failure)
    out.last_worker_identity = activity.last_worker_identity
    options = out.activity_options
    options.task_queue.name = options.task_queue.normal_name = activity.task_queue
    set_duration(options.schedule_to_close_timeout, activity.schedule_to_close_ns)
    set_duration(options.schedule_to_start_timeout, activity.schedule_to_start_ns)
    set_duration(options.start_to_close_timeout, activity.start_to_close_ns)
    set_duration(options.heartbeat_timeout, activity.heartbeat_ns)
    set_field(options, "priority", activity.priority)
    policy = options.retry_policy
    set_duration(policy.initial_interval, activity.initial_interval_ns)
    set_duration(policy.maximum_interval, activity.maximum_interval_ns)
    policy.backoff_coefficient = activity.coefficient[0] / activity.coefficient[1]
    policy.maximum_attempts = activity.maximum_attempts
    policy.non_retryable_error_types.extend(activity.non_retryable_types)
    set_field(out, "priority", activity.priority)


def events_of(fold: ShardFold, run: Run) -> list[history_pb2.HistoryEvent]:
    """The whole history, parsed: for audits and tests."""
    return list(parse_history(page(fold, run, 1, run.next_event_id, run.next_event_id).events).events)
