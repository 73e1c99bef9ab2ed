"""What a request must be before anything is produced, be it an RPC or a command from Kafka: Temporal's rules in
Temporal's words.

Temporal: service/frontend/workflow_handler.go and chasm/lib/workflow/validator.go (1.32). Users' tools and tests match
on the texts, so they are kept, odd capitals included.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.enums.v1 import namespace_pb2 as namespace_enums
from temporalio.api.enums.v1 import workflow_pb2 as workflow_enums
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.taskqueue.v1 import message_pb2 as taskqueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.cron import BadCron, next_time, parse_cron
from everfold.kernel.enums import symbol
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.names import is_run_id, priority_error, queue_error, too_long
from everfold.kernel.time import duration_error, duration_ns
from everfold.runtime.namespaces import STATE_DEPRECATED, STATE_REGISTERED
from everfold.runtime.zones import is_zone


class Limits(Protocol):
    """The bounds of requests, in bytes."""

    @property
    def id_bytes_max(self) -> int:
        """Workflow ids, types, queue names, signal names, identities, request ids."""
        ...

    @property
    def blob_bytes_max(self) -> int:
        """One request's payloads."""
        ...

    @property
    def memo_bytes_max(self) -> int:
        """A workflow's memo."""
        ...


def invalid(message: str) -> StatusError:
    """INVALID_ARGUMENT."""
    return StatusError(Code.INVALID_ARGUMENT, message)


REGISTERED_ONLY: Final = (STATE_REGISTERED,)
"""What may start new runs."""

USABLE: Final = (STATE_REGISTERED, STATE_DEPRECATED)
"""What may do anything else: a deprecated namespace finishes its work."""


class NamespaceState(Protocol):
    """A namespace, as far as it matters here."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def state(self) -> int:
        """temporal.api.enums.v1.NamespaceState."""
        ...


def _state_name(state: int) -> str:
    return symbol(namespace_enums.NamespaceState, state, "NAMESPACE_STATE_").title()


def invalid_state(namespace: NamespaceState, allowed: tuple[int, ...]) -> StatusError:
    """FAILED_PRECONDITION: the namespace's state forbids the call."""
    detail = errordetails.NamespaceInvalidStateFailure(
        namespace=namespace.name,
        state=namespace.state,  # type: ignore[arg-type]
        allowed_states=allowed,  # type: ignore[arg-type]
    )
    must = " or ".join(_state_name(state) for state in allowed)
    return StatusError(
        Code.FAILED_PRECONDITION,
        f"Namespace has invalid state: {_state_name(namespace.state)}. Must be {must}.",
        ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),),
    )


def execution(message: Message, field: str) -> common.WorkflowExecution:
    """The workflow execution that a request names, with a workflow id and a run id that is empty or a UUID."""
    if not message.HasField(field):
        raise invalid("Execution is not set on request.")
    value: common.WorkflowExecution = getattr(message, field)
    if not value.workflow_id:
        raise invalid("WorkflowId is not set on request.")
    if value.run_id and not is_run_id(value.run_id):
        raise invalid("Invalid RunId.")
    return value


def workflow_id(value: str, limit: int) -> None:
    """A workflow id to start."""
    if not value:
        raise invalid("WorkflowId is not set on request.")
    if too_long(value, limit):
        raise id_too_long(value, limit)


def id_too_long(value: str, limit: int) -> StatusError:
    """INVALID_ARGUMENT for a workflow id over the limit in bytes."""
    return invalid(f"WorkflowId exceeds maximum allowed length ({len(value.encode())}/{limit})")


def identity(value: str, limit: int) -> None:
    """The identity of a worker or client."""
    if too_long(value, limit):
        raise invalid("Identity length exceeds limit.")


def task_queue(message: Message, limit: int) -> taskqueue.TaskQueue:
    """The task queue of a request, named, and not by a reserved name."""
    if not message.HasField("task_queue"):
        raise invalid("taskQueue is not set")
    queue: taskqueue.TaskQueue = message.task_queue  # type: ignore[attr-defined]
    if error := queue_error(queue.name, queue.normal_name, limit):
        raise invalid(error)
    return queue


def fill_request_id(message: Any, limit: int) -> None:
    """Makes a request id where the caller gave none, so that our own retries are one request."""
    if not message.request_id:
        message.request_id = str(uuid.uuid4())
    elif too_long(message.request_id, limit):
        raise invalid("RequestId length exceeds limit.")


def _duration_error(value: Duration) -> str:
    return duration_error(value.seconds, value.nanos)


def workflow_timeouts(message: Any) -> None:
    """The three timeouts of a start: none negative. Zero means none; the machine fills and caps them."""
    for name, shown in (
        ("workflow_execution_timeout", "WorkflowExecutionTimeoutSeconds"),
        ("workflow_run_timeout", "WorkflowRunTimeoutSeconds"),
        ("workflow_task_timeout", "WorkflowTaskTimeoutSeconds"),
    ):
        if message.HasField(name) and (error := _duration_error(getattr(message, name))):
            raise invalid(f"An invalid {shown} is set on request. cause: {error}")


def start_delay(message: Any) -> None:
    """The delay of the first workflow task: not negative, and not with a cron schedule, which has its own."""
    if not message.HasField("workflow_start_delay"):
        return
    if message.cron_schedule:
        raise invalid("CronSchedule and WorkflowStartDelay may not be used together.")
    if error := _duration_error(message.workflow_start_delay):
        raise invalid(f"An invalid WorkflowStartDelaySeconds is set on request. cause: {error}")


def cron_schedule(message: Any, now_ns: int) -> None:
    """A cron schedule: well-formed, in a zone that exists, and one that comes at all."""
    if not message.cron_schedule:
        return
    try:
        cron = parse_cron(message.cron_schedule)
    except BadCron:
        raise invalid("invalid CronSchedule.") from None
    if not is_zone(cron.zone):
        raise invalid("invalid CronSchedule.")
    if next_time(cron, now_ns) is None:
        raise invalid("invalid CronSchedule, no time can be found to satisfy the schedule")


def retry_policy(message: Any) -> None:
    """A workflow's retry policy. Zero values stand for the defaults."""
    if not message.HasField("retry_policy"):
        return
    policy: common.RetryPolicy = message.retry_policy
    if policy.maximum_attempts == 1:
        return
    for name, shown in (("initial_interval", "InitialInterval"), ("maximum_interval", "MaximumInterval")):
        if policy.HasField(name) and (error := _duration_error(getattr(policy, name))):  # type: ignore[arg-type]
            raise invalid(f"invalid {shown} set on retry policy: {error}")
    if policy.backoff_coefficient and policy.backoff_coefficient < 1:
        raise invalid("BackoffCoefficient cannot be less than 1 on retry policy.")
    initial_ns = duration_ns(policy.initial_interval.seconds, policy.initial_interval.nanos)
    longest_ns = duration_ns(policy.maximum_interval.seconds, policy.maximum_interval.nanos)
    if 0 < longest_ns < initial_ns:
        raise invalid("MaximumInterval cannot be less than InitialInterval on retry policy.")
    if policy.maximum_attempts < 0:
        raise invalid("MaximumAttempts cannot be negative on retry policy.")


def check_id_policies(message: Any) -> None:
    """Refuses reuse and conflict policies that contradict each other."""
    reuse, conflict = message.workflow_id_reuse_policy, message.workflow_id_conflict_policy
    if conflict and reuse == workflow_enums.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
        raise invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together with "
            "a WorkflowIDConflictPolicy"
        )
    if (
        conflict == workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
        and reuse == workflow_enums.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
    ):
        raise invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with "
            "WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"
        )


def fill_id_policies(message: Any, default_conflict: workflow_enums.WorkflowIdConflictPolicy.ValueType) -> None:
    """Makes both policies explicit; the old TERMINATE_IF_RUNNING becomes its conflict policy."""
    if not message.workflow_id_conflict_policy:
        if message.workflow_id_reuse_policy == workflow_enums.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
            message.workflow_id_conflict_policy = workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
            message.workflow_id_reuse_policy = workflow_enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
        else:
            message.workflow_id_conflict_policy = default_conflict
    if not message.workflow_id_reuse_policy:
        message.workflow_id_reuse_policy = workflow_enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE


def priority(message: Any) -> None:
    """Priority and fairness of a workflow's tasks."""
    if not message.HasField("priority"):
        return
    if error := priority_error(message.priority):
        raise invalid(error)


def blob(size: int, limit: int) -> None:
    """One request's payloads."""
    if size > limit:
        raise invalid("Blob data size exceeds limit.")


def memo(size: int, limit: int) -> None:
    """A workflow's memo."""
    if size > limit:
        raise invalid("Memo size exceeds limit.")


LINKS_MAX: Final = 10
LINK_BYTES_MAX: Final = 4000


def links(message: Any) -> None:
    """Links to other executions; as Temporal's frontend.maxLinksPerRequest and frontend.linkMaxSize."""
    if len(message.links) > LINKS_MAX:
        raise invalid(f"cannot attach more than {LINKS_MAX} links per request, got {len(message.links)}")
    for link in message.links:
        if (size := link.ByteSize()) > LINK_BYTES_MAX:
            raise invalid(f"link exceeds allowed size of {LINK_BYTES_MAX}, got {size}")


# ---- the requests that may come from Kafka, too ---------------------------------------------------------------------

USER_TERMINATE_REASON: Final = "terminated by user via frontend"
USER_TERMINATE_IDENTITY: Final = "frontend-service"

AttributesCheck = Callable[[common.SearchAttributes], object]


def _unchecked(_: common.SearchAttributes) -> None:
    """For the shard's own door: the fold checks search attributes itself."""


def start(
    message: ws.StartWorkflowExecutionRequest,
    limits: Limits,
    size: int,
    now_ns: int,
    check_attributes: AttributesCheck = _unchecked,
) -> None:
    """Checks a start, and makes explicit what the caller left open.

    Args:
        message: the start; changed in place.
        limits: see there.
        size: of the request, serialized: a small one cannot hold a big payload.
        now_ns: for a cron schedule, which must come at all.
        check_attributes: refuses search attributes.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    workflow_id(message.workflow_id, limits.id_bytes_max)
    retry_policy(message)
    start_delay(message)
    cron_schedule(message, now_ns)
    if not message.workflow_type.name:
        raise invalid("WorkflowType is not set on request.")
    if too_long(message.workflow_type.name, limits.id_bytes_max):
        raise invalid("WorkflowType length exceeds limit.")
    task_queue(message, limits.id_bytes_max)
    workflow_timeouts(message)
    fill_request_id(message, limits.id_bytes_max)
    identity(message.identity, limits.id_bytes_max)
    check_id_policies(message)
    fill_id_policies(message, workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL)
    check_attributes(message.search_attributes)
    priority(message)
    links(message)
    if size > limits.blob_bytes_max:
        blob(message.input.ByteSize(), limits.blob_bytes_max)
    if size > limits.memo_bytes_max:
        memo(message.memo.ByteSize(), limits.memo_bytes_max)


def signal_with_start(
    message: ws.SignalWithStartWorkflowExecutionRequest,
    limits: Limits,
    size: int,
    now_ns: int,
    check_attributes: AttributesCheck = _unchecked,
) -> None:
    """As `start`, for SignalWithStart, which has texts and an order of its own."""
    longest = limits.id_bytes_max
    workflow_id(message.workflow_id, longest)
    if not message.signal_name:
        raise invalid("signal not set")
    if too_long(message.signal_name, longest):
        length = len(message.signal_name.encode())
        raise invalid(f"signal name exceeds maximum allowed length ({length}/{longest})")
    if not message.workflow_type.name:
        raise invalid("workflow type not set")
    if too_long(message.workflow_type.name, longest):
        length = len(message.workflow_type.name.encode())
        raise invalid(f"workflow type name exceeds maximum allowed length ({length}/{longest})")
    task_queue(message, longest)
    fill_request_id(message, longest)
    identity(message.identity, longest)
    workflow_timeouts(message)
    retry_policy(message)
    start_delay(message)
    cron_schedule(message, now_ns)
    check_id_policies(message)
    if message.workflow_id_conflict_policy == workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL:
        raise invalid(
            "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this operation."
        )
    fill_id_policies(message, workflow_enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING)
    check_attributes(message.search_attributes)
    priority(message)
    links(message)
    if size > limits.blob_bytes_max:
        blob(message.input.ByteSize(), limits.blob_bytes_max)
        blob(message.signal_input.ByteSize(), limits.blob_bytes_max)
    if size > limits.memo_bytes_max:
        memo(message.memo.ByteSize(), limits.memo_bytes_max)


def signal(message: ws.SignalWorkflowExecutionRequest, limits: Limits, size: int) -> None:
    """Checks a signal. One without a request id stays so: it is a new signal each time, as in Temporal."""
    execution(message, "workflow_execution")
    if not message.signal_name:
        raise invalid("SignalName is not set on request.")
    if too_long(message.signal_name, limits.id_bytes_max):
        raise invalid("SignalName length exceeds limit.")
    identity(message.identity, limits.id_bytes_max)
    links(message)
    if size > limits.blob_bytes_max:
        blob(message.input.ByteSize(), limits.blob_bytes_max)
    if too_long(message.request_id, limits.id_bytes_max):
        raise invalid("RequestId length exceeds limit.")


def request_cancel(message: ws.RequestCancelWorkflowExecutionRequest, limits: Limits) -> bool:
    """Checks a cancel request. Returns whether it was changed: one without a request id gets one."""
    execution(message, "workflow_execution")
    identity(message.identity, limits.id_bytes_max)
    links(message)
    if message.request_id:
        return False
    fill_request_id(message, limits.id_bytes_max)
    return True


def terminate(message: ws.TerminateWorkflowExecutionRequest, limits: Limits, size: int) -> bool:
    """Checks a termination. Returns whether it was changed: a history says that a user did it, and not the server."""
    execution(message, "workflow_execution")
    identity(message.identity, limits.id_bytes_max)
    links(message)
    if size > limits.blob_bytes_max:
        blob(message.details.ByteSize(), limits.blob_bytes_max)
    if message.reason and message.identity:
        return False
    message.reason = message.reason or USER_TERMINATE_REASON
    message.identity = message.identity or USER_TERMINATE_IDENTITY
    return True


def check_command(message: Message, namespace: NamespaceState, limits: Limits, now_ns: int) -> None:
    """Checks a command from Kafka as its RPC is checked, and makes explicit what it left open.

    Raises:
        StatusError: as the RPC of that name.
    """
    size = message.ByteSize()
    starts = isinstance(message, (ws.StartWorkflowExecutionRequest, ws.SignalWithStartWorkflowExecutionRequest))
    allowed = REGISTERED_ONLY if starts else USABLE
    if namespace.state not in allowed:
        raise invalid_state(namespace, allowed)
    if isinstance(message, ws.StartWorkflowExecutionRequest):
        start(message, limits, size, now_ns)
    elif isinstance(message, ws.SignalWithStartWorkflowExecutionRequest):
        signal_with_start(message, limits, size, now_ns)
    elif isinstance(message, ws.SignalWorkflowExecutionRequest):
        signal(message, limits, size)
    elif isinstance(message, ws.RequestCancelWorkflowExecutionRequest):
        request_cancel(message, limits)
    elif isinstance(message, ws.TerminateWorkflowExecutionRequest):
        terminate(message, limits, size)
    else:
        raise TypeError(f"{type(message).__name__} is no command")
