"""An activity's options as the event carries them: checked, filled in from each other, capped by the run's timeout.

Temporal: chasm/lib/activity/validator.go, common/retrypolicy/retry_policy.go (1.32).
"""

from __future__ import annotations

from typing import Final

from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.enums.v1 import task_queue_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2

from everfold.history.machine.durations import InvalidDuration, checked_ns, set_duration, to_ns
from everfold.kernel.names import priority_error, queue_error
from everfold.kernel.time import DURATION_NS_MAX, SECOND_NS

DEFAULT_INITIAL_NS: Final = SECOND_NS
DEFAULT_COEFFICIENT: Final = 2.0
DEFAULT_MAXIMUM_FACTOR: Final = 100
_TIMEOUT_PREFIX: Final = "TemporalTimeout:"
_TIMEOUT_NAMES: Final = frozenset(
    "".join(word.capitalize() if word != "TO" else "To" for word in name.removeprefix("TIMEOUT_TYPE_").split("_"))
    for name in workflow_pb2.TimeoutType.keys()  # noqa: SIM118  # an enum wrapper is no dict
    if not name.endswith("UNSPECIFIED")
)


class InvalidActivity(ValueError):
    """The options cannot be used; the text is Temporal's."""


def normalize_activity(
    command: command_pb2.ScheduleActivityTaskCommandAttributes,
    event: history_pb2.ActivityTaskScheduledEventAttributes,
    run_timeout_ns: int,
    workflow_task_queue: str,
    id_length_max: int,
) -> None:
    """Fills the scheduled event from the command.

    Args:
        command: what the worker asked for.
        event: the event to fill.
        run_timeout_ns: the run's timeout; 0 for none.
        workflow_task_queue: the queue of an activity that names none.
        id_length_max: bound of ids and names, in bytes.

    Raises:
        InvalidActivity: the options are not acceptable.
    """
    if not command.HasField("task_queue"):
        raise InvalidActivity("taskQueue is not set")
    if error := queue_error(
        command.task_queue.name or workflow_task_queue, command.task_queue.normal_name, id_length_max
    ):
        raise InvalidActivity(error)
    if not command.activity_id:
        raise InvalidActivity("activityId is not set")
    if not command.activity_type.name:
        raise InvalidActivity("activityType is not set")
    event.retry_policy.CopyFrom(command.retry_policy)
    fill_retry_policy(event.retry_policy)
    check_retry_policy(event.retry_policy)
    for what, value in (("activityId", command.activity_id), ("activityType", command.activity_type.name)):
        if len(value.encode()) > id_length_max:
            raise InvalidActivity(f"{what} exceeds length limit. Length={len(value.encode())} Limit={id_length_max}")
    if error := priority_error(command.priority):
        raise InvalidActivity(f"invalid priorities: {error}")
    event.activity_id = command.activity_id
    event.activity_type.CopyFrom(command.activity_type)
    event.task_queue.name = command.task_queue.name or workflow_task_queue
    event.task_queue.kind = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
    if command.HasField("header"):
        event.header.CopyFrom(command.header)
    if command.HasField("input"):
        event.input.CopyFrom(command.input)
    if command.HasField("priority"):
        event.priority.CopyFrom(command.priority)
    event.use_workflow_build_id = command.use_workflow_build_id
    _set_timeouts(command, event, run_timeout_ns)


def _set_timeouts(
    command: command_pb2.ScheduleActivityTaskCommandAttributes,
    event: history_pb2.ActivityTaskScheduledEventAttributes,
    run_timeout_ns: int,
) -> None:
    values: dict[str, int] = {}
    for what, field in (
        ("ScheduleToCloseTimeout", command.schedule_to_close_timeout),
        ("ScheduleToStartTimeout", command.schedule_to_start_timeout),
        ("StartToCloseTimeout", command.start_to_close_timeout),
        ("HeartbeatTimeout", command.heartbeat_timeout),
    ):
        try:
            values[what] = checked_ns(field)
        except InvalidDuration as error:
            raise InvalidActivity(f"invalid {what}: {error}") from None
    close, start = values["ScheduleToCloseTimeout"], values["ScheduleToStartTimeout"]
    run, heartbeat = values["StartToCloseTimeout"], values["HeartbeatTimeout"]
    if close:
        start = min(start, close) if start else close
        run = min(run, close) if run else close
    elif run:
        close = run_timeout_ns
        start = start or run_timeout_ns
    else:
        raise InvalidActivity(
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            f"ActivityId={command.activity_id} ActivityType={command.activity_type.name}"
        )
    if run_timeout_ns:
        close, start = min(close, run_timeout_ns), min(start, run_timeout_ns)
        run, heartbeat = min(run, run_timeout_ns), min(heartbeat, run_timeout_ns)
    set_duration(event.schedule_to_close_timeout, close)
    set_duration(event.schedule_to_start_timeout, start)
    set_duration(event.start_to_close_timeout, run)
    set_duration(event.heartbeat_timeout, min(heartbeat, run))


def fill_retry_policy(policy: common_pb2.RetryPolicy) -> None:
    """Fills what a retry policy leaves open: 1 s, doubling, up to a hundred times the first interval, for ever. Cuts
    intervals to a century.
    """
    initial_ns = to_ns(policy.initial_interval) or DEFAULT_INITIAL_NS
    maximum_ns = to_ns(policy.maximum_interval) or min(DEFAULT_MAXIMUM_FACTOR * initial_ns, DURATION_NS_MAX)
    set_duration(policy.initial_interval, initial_ns)
    set_duration(policy.maximum_interval, maximum_ns)
    if not policy.backoff_coefficient:
        policy.backoff_coefficient = DEFAULT_COEFFICIENT


def check_retry_policy(policy: common_pb2.RetryPolicy) -> None:
    """Refuses a retry policy that makes no sense.

    Raises:
        InvalidActivity: with Temporal's text.
    """
    if policy.maximum_attempts == 1:
        return
    intervals: dict[str, int] = {}
    for what, field in (("InitialInterval", policy.initial_interval), ("MaximumInterval", policy.maximum_interval)):
        try:
            intervals[what] = checked_ns(field)
        except InvalidDuration as error:
            raise InvalidActivity(f"invalid {what} set on retry policy: {error}") from None
    if policy.backoff_coefficient < 1:
        raise InvalidActivity("BackoffCoefficient cannot be less than 1 on retry policy.")
    if 0 < intervals["MaximumInterval"] < intervals["InitialInterval"]:
        raise InvalidActivity("MaximumInterval cannot be less than InitialInterval on retry policy.")
    if policy.maximum_attempts < 0:
        raise InvalidActivity("MaximumAttempts cannot be negative on retry policy.")
    for name in policy.non_retryable_error_types:
        if name.startswith(_TIMEOUT_PREFIX) and name.removeprefix(_TIMEOUT_PREFIX) not in _TIMEOUT_NAMES:
            raise InvalidActivity(f"Invalid timeout type value: {name.removeprefix(_TIMEOUT_PREFIX)}.")
