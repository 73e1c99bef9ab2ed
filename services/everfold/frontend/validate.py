"""What a request must be before anything is produced: Temporal's rules in Temporal's words, and the fields not built
yet.

Temporal: service/frontend/workflow_handler.go and chasm/lib/workflow/validator.go (1.32). Users' tools and tests match
    on
the texts, so they are kept, odd capitals included.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.enums.v1 import reset_pb2 as reset_enums
from temporalio.api.enums.v1 import workflow_pb2 as workflow_enums
from temporalio.api.taskqueue.v1 import message_pb2 as taskqueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.cluster import CLUSTER_NAME
from everfold.frontend.core import invalid
from everfold.kernel.cron import BadCron, next_time, parse_cron
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.zones import is_zone

# Fields not built
# ------------------------------------------------------------------------------------------------------


def _attaches(message: Any) -> bool:
    options = message.on_conflict_options
    return bool(options.attach_request_id or options.attach_completion_callbacks or options.attach_links)


def _replicates(message: ws.UpdateNamespaceRequest) -> bool:
    config = message.replication_config
    return bool(config.active_cluster_name not in ("", CLUSTER_NAME) or len(config.clusters) > 1 or config.state)


_ARCHIVAL_ENABLED: Final = 2

UNBUILT: Final[Mapping[type[Message], Mapping[str, Callable[[Any], bool] | None]]] = {
    #: request -> field -> when it asks for what is not built; None: whenever it is set
    ws.StartWorkflowExecutionRequest: {
        "completion_callbacks": None,
        "versioning_override": None,
        "time_skipping_config": None,
        "on_conflict_options": _attaches,
        "propagated_nexus_serialization_context": None,
    },
    ws.SignalWithStartWorkflowExecutionRequest: {
        "versioning_override": None,
        "time_skipping_config": None,
    },
    ws.UpdateWorkflowExecutionRequest: {
        "request.completion_callbacks": lambda message: bool(message.request.completion_callbacks),
        "request.propagated_nexus_serialization_context": lambda message: message.request.HasField(
            "propagated_nexus_serialization_context"
        ),
    },
    ws.ResetWorkflowExecutionRequest: {"post_reset_operations": None},
    ws.RespondWorkflowTaskCompletedRequest: {"page_number": None, "intermediate_page": None},
    ws.DescribeTaskQueueRequest: {"report_task_reachability": None},
    ws.RegisterNamespaceRequest: {
        "clusters": lambda message: len(message.clusters) > 1,
        "history_archival_state": lambda message: message.history_archival_state == _ARCHIVAL_ENABLED,
        "visibility_archival_state": lambda message: message.visibility_archival_state == _ARCHIVAL_ENABLED,
    },
    ws.UpdateNamespaceRequest: {
        "replication_config": _replicates,
        "delete_bad_binary": None,
        "promote_namespace": None,
        "config.bad_binaries": lambda message: bool(message.config.bad_binaries.binaries),
        "config.history_archival_state": lambda message: message.config.history_archival_state == _ARCHIVAL_ENABLED,
        "config.visibility_archival_state": lambda message: (
            message.config.visibility_archival_state == _ARCHIVAL_ENABLED
        ),
        "config.custom_search_attribute_aliases": lambda message: bool(message.config.custom_search_attribute_aliases),
    },
}
"""The request fields whose meaning is not built: refused by name, never accepted and ignored (architecture section 8).

Whoever builds one takes its line out. Fields of worker versioning and the worker fleet are not here: they
are accepted, and kept where they belong in events.
"""


def _is_set(message_type: type[Message], name: str) -> Callable[[Any], bool]:
    field = message_type.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated or field.message_type is None:
        return lambda message: bool(getattr(message, name))
    return lambda message: bool(message.HasField(name))


_UNBUILT_CHECKS: Final = {
    message_type: [(name, check or _is_set(message_type, name)) for name, check in checks.items()]
    for message_type, checks in UNBUILT.items()
}


def refuse_unbuilt(message: Message) -> None:
    """Refuses a request that asks for what is not built.

    Raises:
        StatusError: UNIMPLEMENTED, naming the field.
    """
    for name, asks in _UNBUILT_CHECKS[type(message)]:
        if asks(message):
            raise StatusError(Code.UNIMPLEMENTED, f"{message.DESCRIPTOR.name}.{name} is not supported by this server")


# Ids and names
# ---------------------------------------------------------------------------------------------------------

_UUID: Final = re.compile(r"(urn:uuid:)?\{?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\}?")

RESERVED_QUEUE_PREFIX: Final = "/_sys/"
"""What Temporal puts before the names of a queue's further partitions."""


def too_long(text: str, limit: int) -> bool:
    """Whether a text is over the limit in UTF-8. A character has at most four bytes, so that most need no encoding."""
    return len(text) * 4 > limit and len(text.encode()) > limit


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


def is_run_id(text: str) -> bool:
    """Whether a text can be a run id."""
    return _UUID.fullmatch(text) is not None


def workflow_id(value: str, limit: int) -> None:
    """A workflow id to start."""
    if not value:
        raise invalid("WorkflowId is not set on request.")
    if too_long(value, limit):
        raise invalid(f"WorkflowId exceeds maximum allowed length ({len(value.encode())}/{limit})")


def identity(value: str, limit: int) -> None:
    """The identity of a worker or client."""
    if too_long(value, limit):
        raise invalid("Identity length exceeds limit.")


def task_queue(message: Message, limit: int) -> taskqueue.TaskQueue:
    """The task queue of a request, named, and not by a reserved name."""
    if not message.HasField("task_queue"):
        raise invalid("taskQueue is not set")
    queue: taskqueue.TaskQueue = message.task_queue  # type: ignore[attr-defined]
    if not queue.name:
        raise invalid("missing task queue name")
    for name in (queue.name, queue.normal_name):
        if too_long(name, limit):
            raise invalid("taskQueue length exceeds limit")
    if queue.name.startswith(RESERVED_QUEUE_PREFIX):
        raise invalid(f"task queue name cannot start with reserved prefix {RESERVED_QUEUE_PREFIX}")
    return queue


def fill_request_id(message: Any, limit: int) -> None:
    """Makes a request id where the caller gave none, so that our own retries are one request."""
    if not message.request_id:
        message.request_id = str(uuid.uuid4())
    elif too_long(message.request_id, limit):
        raise invalid("RequestId length exceeds limit.")


# Durations, policies
# ---------------------------------------------------------------------------------------------------


def _duration_error(value: Duration) -> str:
    if (value.seconds > 0 and value.nanos < 0) or (value.seconds < 0 and value.nanos > 0):
        return "duration has seconds and nanos with different signs"
    return "negative duration" if value.seconds < 0 or value.nanos < 0 else ""


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
    initial, longest = policy.initial_interval.ToNanoseconds(), policy.maximum_interval.ToNanoseconds()
    if 0 < longest < initial:
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


FAIRNESS_KEY_BYTES_MAX: Final = 64
"""As Temporal's common/priorities."""


def reapply(message: ws.ResetWorkflowExecutionRequest) -> None:
    """What a reset applies again."""
    if message.reset_reapply_type not in reset_enums.ResetReapplyType.values():
        raise invalid(f"unknown reset reapply type: {message.reset_reapply_type}")


def priority(message: Any) -> None:
    """Priority and fairness of a workflow's tasks."""
    if not message.HasField("priority"):
        return
    value: common.Priority = message.priority
    if value.priority_key < 0:
        raise invalid("priority key can't be negative")
    if too_long(value.fairness_key, FAIRNESS_KEY_BYTES_MAX):
        raise invalid("fairness key length exceeds limit")
    if value.fairness_weight < 0:
        raise invalid("must be greater than zero")


# Sizes
# -----------------------------------------------------------------------------------------------------------------


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
