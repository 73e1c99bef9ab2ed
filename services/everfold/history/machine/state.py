"""Mutable state: what a shard knows of a run, and its form as a row.

A `Run` is what Temporal calls mutable state: everything needed to decide the next command without reading the history.
Payloads, failures and policies stay protobuf bytes; the fold never looks inside a payload. Rows are msgpack arrays
whose first element is the version of their layout, fields in the order of `FIELDS`; a layout, once released, is read
for ever, and new fields are added at the end with a default.
"""

from __future__ import annotations

from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgpack

LAYOUT: Final = 1


class Status(IntEnum):
    """temporal.api.enums.v1.WorkflowExecutionStatus."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELED = 4
    TERMINATED = 5
    CONTINUED_AS_NEW = 6
    TIMED_OUT = 7


class TaskKind(IntEnum):
    """How a workflow task relates to the history.

    NORMAL: its scheduled and started events are written. TRANSIENT: a retry of a failed task; they are written only
        when it completes. SPECULATIVE: made for an update alone; it may leave no trace.
    """

    NORMAL = 0
    TRANSIENT = 1
    SPECULATIVE = 2


class WorkflowTask:
    """The one workflow task a run can have. Scheduled; then started, when `started_event_id` is set.

    Attributes:
        attempt: from 1; above 1 the task is transient.
        stamp: counts the offers of this task; a start must name the latest.
        original_scheduled_at_ns: of the first task of a chain of heartbeats.
        timeout_ns: start-to-close.
        queue: the queue that it was offered on; `sticky` tells which kind.
        task_id: key of its task record, empty for none.
        schedule_to_start_deadline_ns: for a sticky task; 0 for none.
    """

    __slots__ = FIELDS = (
        "scheduled_event_id",
        "started_event_id",
        "attempt",
        "kind",
        "stamp",
        "scheduled_at_ns",
        "original_scheduled_at_ns",
        "started_at_ns",
        "timeout_ns",
        "request_id",
        "identity",
        "queue",
        "sticky",
        "task_id",
        "schedule_to_start_deadline_ns",
        "suggest_continue_as_new",
        "history_size_bytes",
        "worker_version",
    )

    scheduled_event_id: int
    started_event_id: int
    attempt: int
    kind: int
    stamp: int
    scheduled_at_ns: int
    original_scheduled_at_ns: int
    started_at_ns: int
    timeout_ns: int
    request_id: str
    identity: str
    queue: str
    sticky: bool
    task_id: str
    schedule_to_start_deadline_ns: int
    suggest_continue_as_new: int
    history_size_bytes: int
    worker_version: bytes

    def __init__(self) -> None:
        self.scheduled_event_id = self.started_event_id = 0
        self.attempt = 1
        self.kind = TaskKind.NORMAL
        self.stamp = 0
        self.scheduled_at_ns = self.original_scheduled_at_ns = self.started_at_ns = self.timeout_ns = 0
        self.request_id = self.identity = self.queue = self.task_id = ""
        self.sticky = False
        self.schedule_to_start_deadline_ns = self.suggest_continue_as_new = self.history_size_bytes = 0
        self.worker_version = b""

    @property
    def written(self) -> bool:
        """True when its scheduled event is in the history; a transient or speculative task's is not."""
        return self.kind == TaskKind.NORMAL


class Activity:
    """A pending activity, from ActivityTaskScheduled until its closing event.

    Attributes:
        event_row: first event id of the history row that holds its scheduled event.
        event_start: where the event begins in that row, in bytes; `event_end` is behind its end.
        attempt: from 1.
        stamp: counts offers, over all attempts.
        started_at_ns: 0 while it waits for a worker or for its retry.
        next_attempt_at_ns: when the retry is due; 0 when it is not waiting for one.
        expires_at_ns: schedule-to-close; 0 for never.
        coefficient: backoff coefficient as (numerator, denominator).
        last_failure: serialized Failure; empty for none.
        heartbeat_details: serialized Payloads; empty for none.
        heartbeat_recorded_at_ns: of the last heartbeat; 0 for none.
        priority: serialized Priority; None when the command had none, which the worker is not told then.
    """

    __slots__ = FIELDS = (
        "scheduled_event_id",
        "activity_id",
        "activity_type",
        "task_queue",
        "event_row",
        "event_start",
        "event_end",
        "attempt",
        "stamp",
        "scheduled_at_ns",
        "first_scheduled_at_ns",
        "started_at_ns",
        "next_attempt_at_ns",
        "expires_at_ns",
        "schedule_to_start_ns",
        "schedule_to_close_ns",
        "start_to_close_ns",
        "heartbeat_ns",
        "last_heartbeat_at_ns",
        "request_id",
        "identity",
        "task_id",
        "initial_interval_ns",
        "maximum_interval_ns",
        "maximum_attempts",
        "coefficient",
        "non_retryable_types",
        "last_failure",
        "heartbeat_details",
        "cancel_requested_event_id",
        "priority",
        "last_worker_identity",
        "last_attempt_completed_at_ns",
        "heartbeat_recorded_at_ns",
        "reset",
        "reset_heartbeat",
    )

    scheduled_event_id: int
    activity_id: str
    activity_type: str
    task_queue: str
    event_row: int
    event_start: int
    event_end: int
    attempt: int
    stamp: int
    scheduled_at_ns: int
    first_scheduled_at_ns: int
    started_at_ns: int
    next_attempt_at_ns: int
    expires_at_ns: int
    schedule_to_start_ns: int
    schedule_to_close_ns: int
    start_to_close_ns: int
    heartbeat_ns: int
    last_heartbeat_at_ns: int
    request_id: str
    identity: str
    task_id: str
    initial_interval_ns: int
    maximum_interval_ns: int
    maximum_attempts: int
    coefficient: list[int]
    non_retryable_types: list[str]
    last_failure: bytes
    heartbeat_details: bytes
    cancel_requested_event_id: int
    priority: bytes | None
    last_worker_identity: str
    last_attempt_completed_at_ns: int
    heartbeat_recorded_at_ns: int
    reset: bool
    reset_heartbeat: bool

    def __init__(self) -> None:
        for name in self.FIELDS:
            setattr(self, name, 0)
        self.activity_id = self.activity_type = self.task_queue = self.request_id = self.identity = self.task_id = ""
        self.last_worker_identity = ""
        self.last_failure = self.heartbeat_details = b""
        self.priority = None
        self.coefficient = [2, 1]
        self.non_retryable_types = []
        self.reset = self.reset_heartbeat = False
        self.attempt = 1

    @property
    def started(self) -> bool:
        """True while a worker has it."""
        return self.started_at_ns != 0


class UserTimer:
    """A timer that the workflow started: TimerStarted's id, and when it fires."""

    __slots__ = FIELDS = ("started_event_id", "fires_at_ns")

    started_event_id: int
    fires_at_ns: int

    def __init__(self, started_event_id: int = 0, fires_at_ns: int = 0) -> None:
        self.started_event_id = started_event_id
        self.fires_at_ns = fires_at_ns


class Child:
    """A child workflow, from StartChildWorkflowExecutionInitiated until its closing event.

    Attributes:
        run_id: of the child's first run; "" until it has started.
        started_event_id: ChildWorkflowExecutionStarted; 0 until it has its id.
        started: True once the child is known to run, also while that event is buffered.
        parent_close_policy: temporal.api.enums.v1.ParentClosePolicy.
    """

    __slots__ = FIELDS = (
        "initiated_event_id",
        "namespace",
        "namespace_id",
        "workflow_id",
        "run_id",
        "workflow_type",
        "started_event_id",
        "started",
        "parent_close_policy",
    )

    initiated_event_id: int
    namespace: str
    namespace_id: str
    workflow_id: str
    run_id: str
    workflow_type: str
    started_event_id: int
    started: bool
    parent_close_policy: int

    def __init__(self) -> None:
        self.initiated_event_id = self.started_event_id = self.parent_close_policy = 0
        self.namespace = self.namespace_id = self.workflow_id = self.run_id = self.workflow_type = ""
        self.started = False


class External:
    """A signal or cancel request on its way to another workflow, until that one's shard has answered."""

    __slots__ = FIELDS = ("initiated_event_id", "kind", "namespace", "namespace_id", "workflow_id", "run_id", "control")

    initiated_event_id: int
    kind: str
    namespace: str
    namespace_id: str
    workflow_id: str
    run_id: str
    control: str

    def __init__(self) -> None:
        self.initiated_event_id = 0
        self.kind = self.namespace = self.namespace_id = self.workflow_id = self.run_id = self.control = ""


class UpdateStage(IntEnum):
    """How far an update has come. A rejected one leaves no trace."""

    ADMITTED = 1
    ACCEPTED = 2
    COMPLETED = 3


class Update:
    """An update of the workflow.

    Attributes:
        request: serialized temporal.api.update.v1.Request; empty once accepted, the event has it.
        sent: the pending workflow task carries it.
        accepted_event_id: WorkflowExecutionUpdateAccepted.
        completed_event_id: WorkflowExecutionUpdateCompleted, whose outcome is read from the history.
        any_run: the caller named no run, so the update may follow the workflow into its next run.
    """

    __slots__ = FIELDS = (
        "update_id",
        "stage",
        "request",
        "sent",
        "accepted_event_id",
        "completed_event_id",
        "any_run",
    )

    update_id: str
    stage: int
    request: bytes
    sent: bool
    accepted_event_id: int
    completed_event_id: int
    any_run: bool

    def __init__(self) -> None:
        self.update_id = ""
        self.stage = UpdateStage.ADMITTED
        self.request = b""
        self.sent = self.any_run = False
        self.accepted_event_id = self.completed_event_id = 0


class Run:
    """The mutable state of one run.

    Attributes:
        slot: the workflow id's slot; prefix of its rows.
        original_run_id: the run id at creation; kept through a reset, and the seed of the SDKs' randomness.
        started_at_ns: when the run was made: of one that a reset made, the reset's time, not that of its first event.
        first_task_at_ns: when the first workflow task is due, for a delayed start; 0 once scheduled.
        next_event_id: id of the next history event.
        workflow_task_attempt: attempt of the next workflow task; above 1 it will be transient.
        last_completed_started_id: WorkflowTaskStarted id of the last completed task, 0 for none.
        last_completion: [scheduled id, started id, attempt, inline started id, eager activities' scheduled ids, digest
            of the request] of the last completed workflow task, for a completion whose answer was lost.
        sticky_queue: the worker's own queue, "" for none; `sticky_timeout_ns` is its schedule-to-start timeout.
        request_ids: request id -> id of the signal's event (0 while buffered, or of a run before), oldest first,
            bounded.
        close_attempted: the workflow tried to close and met buffered events; signals are refused until its next task
            ends.
        activities: scheduled event id -> Activity.
        timers: timer id -> UserTimer.
        children: initiated event id -> Child.
        externals: initiated event id -> External.
        updates: update id -> Update.
        buffered: serialized events that wait for the started workflow task to end; they have no ids yet.
        memo: name -> serialized Payload; `search_attributes` likewise.
        priority: serialized Priority of the start; None when it had none. `user_metadata` likewise.
        deadline_ns: due time of the run's timer row; 0 for none.
        sticky_row: True while the row exists that marks a scheduled task without a task record.
        quarantined: why the run is parked; "" when it is not.
        parent: [namespace id, namespace, workflow id, run id, initiated event id] of the parent; empty for none.
        root: [workflow id, run id] of the root of the tree; empty when that is this run.
        retry_policy: serialized RetryPolicy of the workflow; empty for none.
        successor_run_id: the run that followed this one in its chain.
        reset_run_id: the latest run that a reset made from this one; results of children go there.
        reset_points: serialized ResetPointInfo of the first workflow task that each worker build completed, oldest
            first, those of earlier runs of the chain included.
        worker_version_stamp: serialized, of the worker that completed the latest task; None when it sent none.
        start_request_id: of a run that a reset made: the request of its WorkflowExecutionStarted; else "".
        worker_deployment: name of that worker's deployment; "" for none.
    """

    FIELDS: Final = (
        "namespace_id",
        "namespace",
        "workflow_id",
        "run_id",
        "slot",
        "workflow_type",
        "task_queue",
        "first_run_id",
        "original_run_id",
        "create_request_id",
        "started_at_ns",
        "execution_at_ns",
        "first_task_at_ns",
        "execution_timeout_ns",
        "run_timeout_ns",
        "task_timeout_ns",
        "execution_expires_at_ns",
        "run_expires_at_ns",
        "status",
        "closed_at_ns",
        "close_event_id",
        "next_event_id",
        "history_size_bytes",
        "transitions",
        "attempt",
        "workflow_task_attempt",
        "last_completed_started_id",
        "last_completion",
        "sticky_queue",
        "sticky_timeout_ns",
        "signal_count",
        "request_ids",
        "cancel_requested",
        "cancel_request_id",
        "close_attempted",
        "buffered",
        "memo",
        "search_attributes",
        "deadline_ns",
        "sticky_row",
        "quarantined",
        "priority",
        "user_metadata",
        "parent",
        "root",
        "last_task_failed",
        "task_stamp",
        "retention_ns",
        "worker_name",
        "worker_version",
        "retry_policy",
        "cron_schedule",
        "successor_run_id",
        "updates_total",
        "reset_run_id",
        "reset_points",
        "task_problems",
        "worker_version_stamp",
        "worker_deployment",
        "start_request_id",
    )
    _NESTED: Final = (
        "workflow_task",
        "activities",
        "timers",
        "activity_ids",
        "children",
        "externals",
        "row_bytes",
        "updates",
    )
    __slots__ = FIELDS + _NESTED

    namespace_id: str
    namespace: str
    workflow_id: str
    run_id: str
    slot: int
    workflow_type: str
    task_queue: str
    first_run_id: str
    original_run_id: str
    create_request_id: str
    started_at_ns: int
    execution_at_ns: int
    first_task_at_ns: int
    execution_timeout_ns: int
    run_timeout_ns: int
    task_timeout_ns: int
    execution_expires_at_ns: int
    run_expires_at_ns: int
    status: int
    closed_at_ns: int
    close_event_id: int
    next_event_id: int
    history_size_bytes: int
    transitions: int
    attempt: int
    workflow_task_attempt: int
    last_completed_started_id: int
    last_completion: list[Any]
    sticky_queue: str
    sticky_timeout_ns: int
    signal_count: int
    request_ids: dict[str, int]
    cancel_requested: bool
    cancel_request_id: str
    close_attempted: bool
    buffered: list[bytes]
    memo: dict[str, bytes]
    search_attributes: dict[str, bytes]
    deadline_ns: int
    sticky_row: bool
    quarantined: str
    priority: bytes | None
    user_metadata: bytes | None
    parent: list[Any]
    root: list[str]
    last_task_failed: list[Any]
    task_problems: int
    task_stamp: int
    retention_ns: int
    worker_name: str
    worker_version: str
    retry_policy: bytes
    cron_schedule: str
    successor_run_id: str
    updates_total: int
    reset_run_id: str
    reset_points: list[bytes]
    worker_version_stamp: bytes | None
    worker_deployment: str
    start_request_id: str

    children: dict[int, Child]
    externals: dict[int, External]
    updates: dict[str, Update]
    workflow_task: WorkflowTask | None
    activities: dict[int, Activity]
    timers: dict[str, UserTimer]
    activity_ids: dict[str, int]
    row_bytes: int

    def __init__(self) -> None:
        for name in self.FIELDS:
            setattr(self, name, 0)
        for name in (
            "namespace_id",
            "namespace",
            "workflow_id",
            "run_id",
            "workflow_type",
            "task_queue",
            "first_run_id",
            "original_run_id",
            "create_request_id",
            "sticky_queue",
            "cancel_request_id",
            "quarantined",
            "worker_name",
            "worker_version",
            "cron_schedule",
            "successor_run_id",
            "reset_run_id",
            "worker_deployment",
            "start_request_id",
        ):
            setattr(self, name, "")
        self.status = Status.RUNNING
        self.next_event_id = 1
        self.attempt = self.workflow_task_attempt = 1
        self.cancel_requested = self.close_attempted = self.sticky_row = False
        self.last_completion = []
        self.request_ids = {}
        self.buffered = []
        self.memo = {}
        self.search_attributes = {}
        self.priority = self.user_metadata = self.worker_version_stamp = None
        self.retry_policy = b""
        self.children = {}
        self.externals = {}
        self.updates = {}
        self.parent = []
        self.root = []
        self.last_task_failed = []
        self.reset_points = []
        self.workflow_task = None
        self.activities = {}
        self.timers = {}
        self.activity_ids = {}
        self.row_bytes = 0

    @property
    def running(self) -> bool:
        """True until the run's closing event."""
        return self.status == Status.RUNNING

    @property
    def task_started(self) -> bool:
        """True while a worker has the workflow task; outside events are buffered then."""
        return self.workflow_task is not None and self.workflow_task.started_event_id != 0


_run_fields = attrgetter(*Run.FIELDS)
_task_fields = attrgetter(*WorkflowTask.FIELDS)
_activity_fields = attrgetter(*Activity.FIELDS)
_child_fields = attrgetter(*Child.FIELDS)
_external_fields = attrgetter(*External.FIELDS)
_update_fields = attrgetter(*Update.FIELDS)
_T = TypeVar("_T", WorkflowTask, Activity, Child, External, Update)
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def encode_run(run: Run) -> bytes:
    """The run's row. Equal runs give equal bytes: maps keep their order, which the log decides."""
    task = run.workflow_task
    packed: bytes = _packer.pack(
        (
            LAYOUT,
            _run_fields(run),
            None if task is None else _task_fields(task),
            [_activity_fields(a) for a in run.activities.values()],
            [(key, t.started_event_id, t.fires_at_ns) for key, t in run.timers.items()],
            [_child_fields(c) for c in run.children.values()],
            [_external_fields(e) for e in run.externals.values()],
            [_update_fields(u) for u in run.updates.values()],
        )
    )
    return packed


def decode_run(row: bytes) -> Run:
    """A run from its row.

    Raises:
        ValueError: the row has a layout that this build does not know.
    """
    layout, fields, task, activities, timers, children, externals, updates = msgpack.unpackb(row, strict_map_key=False)
    if layout != LAYOUT:
        raise ValueError(f"expected a run of layout {LAYOUT}, found {layout}; the store was written by a newer version")
    run = Run()
    for name, value in zip(Run.FIELDS, fields, strict=False):
        setattr(run, name, value)
    if task is not None:
        run.workflow_task = _fill(WorkflowTask(), task)
    for values in activities:
        activity = _fill(Activity(), values)
        run.activities[activity.scheduled_event_id] = activity
        run.activity_ids[activity.activity_id] = activity.scheduled_event_id
    for timer_id, started_event_id, fires_at_ns in timers:
        run.timers[timer_id] = UserTimer(started_event_id, fires_at_ns)
    for values in children:
        child = _fill(Child(), values)
        run.children[child.initiated_event_id] = child
    for values in externals:
        external = _fill(External(), values)
        run.externals[external.initiated_event_id] = external
    for values in updates:
        update = _fill(Update(), values)
        run.updates[update.update_id] = update
    run.row_bytes = len(row)
    return run


def _fill(target: _T, values: list[Any]) -> _T:
    for name, value in zip(target.FIELDS, values, strict=False):
        setattr(target, name, value)
    return target
