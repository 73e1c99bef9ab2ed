"""Runs that follow one another: continue-as-new, workflow retry, cron. The successor is made in the same step.

Temporal: service/history/workflow/retry.go, mutable_state_impl.go (AddContinueAsNewEvent, ContinueAsNewMinBackoff),
common/backoff/cron.go.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import task_queue_pb2, workflow_pb2
from temporalio.api.failure.v1 import message_pb2 as failure_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine import events, keys
from everfold.history.machine.apply import add_update, drop_update
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.activity import is_retryable
from everfold.history.machine.decide.failures import (
    CommandFailed,
    check_duration,
    check_filled_retry_policy,
    check_length,
    check_queue,
    shown_queue,
)
from everfold.history.machine.decide.schedule import schedule_workflow_task
from everfold.history.machine.decide.search_attributes import check_command_attributes, set_types
from everfold.history.machine.durations import fill_timeouts, set_duration, to_ns
from everfold.history.machine.events import copy_fields, set_time, time_ns
from everfold.history.machine.history_rows import event_at
from everfold.history.machine.state import Run, UpdateStage
from everfold.history.machine.step import RunKey, UpdateNews
from everfold.history.machine.turn import Turn
from everfold.kernel.cron import BadCron, backoff_to_next, parse_cron
from everfold.kernel.retry import backoff_ns, coefficient_ratio

ContinueAsNew = command_pb2.ContinueAsNewWorkflowExecutionCommandAttributes
Started = history_pb2.WorkflowExecutionStartedEventAttributes


_OF_THE_START_ALONE: Final = (
    "identity",
    "eager_execution_accepted",
    "continued_failure",
    "workflow_execution_expiration_time",
)
"""What WorkflowExecutionStarted says of the request that made it, and not of the workflow."""

_PARENTS: Final = ("parent_workflow_execution", "root_workflow_execution")

REQUESTS_HANDED_ON_MAX: Final = 256
"""Request ids of the latest signals that the next run knows: a sender that asks again, because no answer came, does so
within seconds, and every step writes them all."""


class Successor(NamedTuple):
    """The run that follows one that has ended of itself: its backoff, or why there is none. `run_id` names it.

    Attributes:
        state: temporal.api.enums.v1.RetryState, for the closing event.
        cron: it follows by the cron schedule; otherwise by the retry policy.
    """

    state: int
    backoff_ns: int = 0
    run_id: str = ""
    cron: bool = False


class ContinueAsNewTimeouts(NamedTuple):
    """Of the run that follows: those that the command leaves open taken from the present run, none longer than it may
    be. The execution's own end is another matter: every run of the chain has that instant.
    """

    run_ns: int
    task_ns: int
    backoff_ns: int


def decide_successor(ctx: StepContext, run: Run, failure: failure_pb2.Failure | None) -> Successor:
    """Whether the workflow is run again: by its retry policy if it failed, else when its cron schedule comes.

    Args:
        ctx: the step.
        run: the run that closes.
        failure: of a run that failed or timed out; None when it completed.
    """
    found = Successor(workflow_pb2.RETRY_STATE_UNSPECIFIED) if failure is None else _decide_retry(ctx, run, failure)
    if found.run_id or not run.cron_schedule:
        return found
    wait_ns = cron_backoff_ns(ctx, run.cron_schedule, run.execution_at_ns)
    return found if wait_ns is None else Successor(found.state, wait_ns, ctx.new_id(), cron=True)


def cron_backoff_ns(ctx: StepContext, schedule: str, scheduled_ns: int) -> int | None:
    """The wait of a run that is made now until its schedule comes; None if it never does.

    Args:
        ctx: the step.
        schedule: a cron schedule that was accepted before, so that it is well-formed and its zone known.
        scheduled_ns: when the run before was due; now, if there is none.
    """
    try:
        cron = parse_cron(schedule)
    except BadCron:
        return None
    zone = ctx.zone(cron.zone)
    return None if zone is None else backoff_to_next(cron, scheduled_ns, ctx.now_ns, zone)


def check_cron(ctx: StepContext, schedule: str, cause: str, what: str = "", about: str = "") -> None:
    """Refuses a command whose cron schedule is malformed, names an unknown zone, or never comes.

    Raises:
        CommandFailed: with that cause; `what` and `about` begin and end the text.
    """
    if schedule and cron_backoff_ns(ctx, schedule, ctx.now_ns) is None:
        raise CommandFailed(cause, f"{what}: invalid CronSchedule.. {about}" if what else "invalid CronSchedule.")


def _decide_retry(ctx: StepContext, run: Run, failure: failure_pb2.Failure) -> Successor:
    if not run.retry_policy:
        return Successor(workflow_pb2.RETRY_STATE_RETRY_POLICY_NOT_SET)
    policy = common_pb2.RetryPolicy.FromString(run.retry_policy)
    if not is_retryable(failure, list(policy.non_retryable_error_types)):
        return Successor(workflow_pb2.RETRY_STATE_NON_RETRYABLE_FAILURE)
    if policy.maximum_attempts and run.attempt >= policy.maximum_attempts:
        return Successor(workflow_pb2.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED)
    info = failure.application_failure_info
    maximum_ns = to_ns(policy.maximum_interval)
    if failure.HasField("application_failure_info") and info.HasField("next_retry_delay"):
        asked_ns = to_ns(info.next_retry_delay)
        wait_ns = asked_ns if 0 < asked_ns <= maximum_ns else maximum_ns  # a real server's way; activities have another
    else:
        numerator, denominator = coefficient_ratio(policy.backoff_coefficient)
        wait_ns = backoff_ns(to_ns(policy.initial_interval), numerator, denominator, run.attempt, maximum_ns)
    if run.execution_expires_at_ns and ctx.now_ns + wait_ns > run.execution_expires_at_ns:
        return Successor(workflow_pb2.RETRY_STATE_TIMEOUT)
    return Successor(workflow_pb2.RETRY_STATE_IN_PROGRESS, wait_ns, ctx.new_id())


def start_successor(
    turn: Turn,
    successor: Successor,
    failure: failure_pb2.Failure | None = None,
    result: common_pb2.Payloads | None = None,
) -> None:
    """Starts the next run with the input of this one. Called after the closing event was recorded.

    Args:
        turn: the run that has closed.
        successor: what was decided.
        failure: of this run, which the next one is told.
        result: of this run if it completed; a failed one hands on the last result that it knew.
    """
    attributes = Started()
    attributes.CopyFrom(first_event(turn).workflow_execution_started_event_attributes)
    for name in _OF_THE_START_ALONE:
        attributes.ClearField(name)
    if failure is not None:
        attributes.continued_failure.CopyFrom(failure)
    if successor.cron:
        attributes.initiator = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
        attributes.attempt = 1
        if failure is None:
            attributes.ClearField("last_completion_result")
        if result is not None:
            attributes.last_completion_result.CopyFrom(result)
    else:
        attributes.initiator = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_RETRY
        attributes.attempt = turn.run.attempt + 1
    set_duration(attributes.first_workflow_task_backoff, successor.backoff_ns)
    _start_successor(turn, attributes, successor.run_id)


def start_continued(turn: Turn, command: ContinueAsNew, run_id: str) -> None:
    """Starts the run that ContinueAsNew asks for. Called after the closing event was recorded.

    Memo, search attributes and retry policy are the command's alone: SDKs repeat there what is to stay.
    """
    previous = first_event(turn).workflow_execution_started_event_attributes
    closing = turn.events[-1].workflow_execution_continued_as_new_event_attributes
    attributes = Started()
    attributes.workflow_type.CopyFrom(closing.workflow_type)
    attributes.task_queue.CopyFrom(closing.task_queue)
    copy_fields(closing, attributes, ("input", "header", "memo", "search_attributes", "last_completion_result"))
    if closing.HasField("failure"):
        attributes.continued_failure.CopyFrom(closing.failure)
    copy_fields(previous, attributes, ("workflow_execution_timeout", "priority", *_PARENTS))
    attributes.workflow_run_timeout.CopyFrom(closing.workflow_run_timeout)
    attributes.workflow_task_timeout.CopyFrom(closing.workflow_task_timeout)
    copy_fields(command, attributes, ("retry_policy",))
    attributes.initiator = closing.initiator or workflow_pb2.CONTINUE_AS_NEW_INITIATOR_WORKFLOW
    attributes.attempt = 1
    attributes.cron_schedule = command.cron_schedule
    for name in ("parent_workflow_namespace", "parent_workflow_namespace_id", "parent_initiated_event_id"):
        setattr(attributes, name, getattr(previous, name))
    backoff_ns = _least_backoff(turn, to_ns(closing.backoff_start_interval))
    if backoff_ns or closing.HasField("backoff_start_interval"):
        set_duration(attributes.first_workflow_task_backoff, backoff_ns)
    _start_successor(turn, attributes, run_id)


def check_continue_as_new(turn: Turn, command: ContinueAsNew, cause: str) -> ContinueAsNewTimeouts:
    """Refuses options that the next run could not have, and fills its retry policy in.

    Source: command_attr_validator.go, ValidateContinueAsNewWorkflowExecutionAttributes.

    Raises:
        CommandFailed: with that cause.
    """
    run, limits = turn.run, turn.ctx.limits
    name, longest = "ContinueAsNewWorkflowExecutionCommand", limits["limit.maxIDLength"]
    type_name = command.workflow_type.name or run.workflow_type
    check_length(limits, "WorkflowType", type_name, name, cause, f"WorkflowType={type_name}")
    about = f"WorkflowType={type_name} TaskQueue={shown_queue(command.task_queue, run.task_queue)}"
    check_queue(cause, command.task_queue, run.task_queue, longest, f"error validating {name} TaskQueue", about)
    run_ns, task_ns, backoff = (
        check_duration(cause, field, f"Invalid {what} on {name}", about)
        for what, field in (
            ("WorkflowRunTimeout", command.workflow_run_timeout),
            ("WorkflowTaskTimeout", command.workflow_task_timeout),
            ("BackoffStartInterval", command.backoff_start_interval),
        )
    )
    run_ns, task_ns = fill_timeouts(
        run.execution_timeout_ns,
        run_ns or run.run_timeout_ns,
        task_ns or run.task_timeout_ns,
        limits["history.defaultWorkflowTaskTimeout"],
        limits["history.maxWorkflowTaskTimeout"],
    )
    if command.HasField("retry_policy"):
        check_filled_retry_policy(cause, command.retry_policy, f"invalid WorkflowRetryPolicy on {name}", about)
    check_command_attributes(
        turn.ctx.namespace(run.namespace_id),
        command.search_attributes,
        limits,
        f"invalid SearchAttributes on {name}",
        about,
    )
    return ContinueAsNewTimeouts(run_ns, task_ns, backoff)


def record_continued_as_new(
    turn: Turn, command: ContinueAsNew, completed_event_id: int, run_id: str, timeouts: ContinueAsNewTimeouts
) -> history_pb2.HistoryEvent:
    """Writes WorkflowExecutionContinuedAsNew, options that are not given taken from the present run."""
    run = turn.run
    event = turn.new(events.CONTINUED_AS_NEW)
    a = event.workflow_execution_continued_as_new_event_attributes
    a.new_execution_run_id = run_id
    a.workflow_type.name = command.workflow_type.name or run.workflow_type
    a.task_queue.name = command.task_queue.name or run.task_queue
    a.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    copy_fields(command, a, ("input", "header", "memo", "search_attributes", "failure", "last_completion_result"))
    namespace = turn.ctx.namespace(run.namespace_id)
    if namespace is not None and a.HasField("search_attributes"):
        set_types(a.search_attributes, namespace)
    set_duration(a.workflow_run_timeout, timeouts.run_ns)
    set_duration(a.workflow_task_timeout, timeouts.task_ns)
    if command.HasField("backoff_start_interval"):
        set_duration(a.backoff_start_interval, timeouts.backoff_ns)
    a.initiator = command.initiator
    a.inherit_build_id = command.inherit_build_id
    a.workflow_task_completed_event_id = completed_event_id
    return turn.record(event)


def _least_backoff(turn: Turn, backoff: int) -> int:
    """A run lives at least a second, its successor's backoff included, so that a loop cannot spin."""
    least = turn.ctx.limits["history.workflowIdReuseMinimalInterval"]
    lived = turn.ctx.now_ns - turn.run.started_at_ns
    return backoff if lived + backoff >= least else least - lived


def first_event(turn: Turn) -> history_pb2.HistoryEvent:
    """WorkflowExecutionStarted of the run."""
    if turn.events and turn.events[0].event_id == 1:
        return turn.events[0]
    event = event_at(turn.ctx.rows, turn.run, 1)
    assert event is not None, f"run {turn.run.run_id} has no first event"
    return event


def _start_successor(turn: Turn, attributes: Started, run_id: str) -> None:
    """Makes the next run of the chain, points the workflow id at it, and moves updates that may follow."""
    previous, ctx = turn.run, turn.ctx
    run = Run()
    run.namespace_id, run.namespace = previous.namespace_id, previous.namespace
    run.workflow_id, run.run_id, run.slot = previous.workflow_id, run_id, previous.slot
    run.create_request_id = f"{previous.run_id}:successor"
    run.retention_ns = previous.retention_ns
    run.request_ids = dict.fromkeys(list(previous.request_ids)[-REQUESTS_HANDED_ON_MAX:], 0)
    nextturn = Turn(ctx, run)
    event = nextturn.new(events.STARTED)
    a = event.workflow_execution_started_event_attributes
    a.CopyFrom(attributes)
    a.continued_execution_run_id = previous.run_id
    a.first_execution_run_id = previous.first_run_id
    a.original_execution_run_id = run_id
    a.workflow_id = run.workflow_id
    _hand_on_reset_points(turn, a)
    if previous.execution_expires_at_ns:
        set_time(a.workflow_execution_expiration_time, previous.execution_expires_at_ns)
    assert time_ns(event.event_time) == ctx.now_ns
    nextturn.record(event)
    _move_updates(ctx, previous, run)
    nextturn.visible = True
    ctx.rows.put(keys.current(run.slot, run.namespace_id, run.workflow_id), run_id.encode())
    schedule_workflow_task(nextturn)
    nextturn.finish()


def _hand_on_reset_points(turn: Turn, a: Started) -> None:
    """The points of the run that closes can be used as long as it is retained."""
    previous = turn.run
    a.ClearField("prev_auto_reset_points")
    for data in previous.reset_points:
        point = a.prev_auto_reset_points.points.add()
        point.ParseFromString(data)
        if point.run_id == previous.run_id:
            set_time(point.expire_time, turn.ctx.now_ns + previous.retention_ns)


def _move_updates(ctx: StepContext, previous: Run, run: Run) -> None:
    """Updates not yet accepted, of callers who named no run, go on in the next run (their callers wait for them
    there).
    """
    key = RunKey(previous.namespace_id, previous.workflow_id, previous.run_id)
    for update in list(previous.updates.values()):
        if update.stage == UpdateStage.ADMITTED and update.any_run:
            drop_update(previous, update.update_id)
            update.sent = False
            add_update(run, update)
            ctx.step.updates.append(UpdateNews(key, update.update_id, "moved", run_id=run.run_id))
