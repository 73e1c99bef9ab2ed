"""From a public command (a record of the topic `commands`) to the Temporal request that asks for the same.

Nothing is decided here: what the RPC of that name would refuse, the engine refuses. Only what a request cannot express
is refused at once: missing essentials, and a field that the command has no use for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.enums.v1 import workflow_pb2 as enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import SECOND_NS

Fields = Mapping[str, Any]
Request = (
    ws.StartWorkflowExecutionRequest
    | ws.SignalWorkflowExecutionRequest
    | ws.SignalWithStartWorkflowExecutionRequest
    | ws.RequestCancelWorkflowExecutionRequest
    | ws.TerminateWorkflowExecutionRequest
)


class Place(NamedTuple):
    """Where a command was read."""

    topic: str
    partition: int
    epoch: int
    offset: int

    @property
    def request_id(self) -> str:
        """The request id of a command that names none: the same however often this very record is read."""
        return f"{self.topic}/{self.partition}/{self.epoch}/{self.offset}"


class Translated(NamedTuple):
    """A command as the engine takes it.

    Attributes:
        kind: the kind of shard record, e.g. "START_WORKFLOW".
        namespace: the namespace's name.
        run_id: empty for the current run.
        request: the Temporal request, with the namespace by name.
        trace: trace context.
    """

    kind: str
    namespace: str
    workflow_id: str
    run_id: str
    request: Request
    trace: dict[str, str]


def translate(command: Fields, place: Place) -> Translated:
    """The Temporal request of a decoded Command.

    Raises:
        StatusError: an essential field is missing or a field makes no sense for the command (INVALID_ARGUMENT), or the
            command is one that this version does not know (UNIMPLEMENTED).
    """
    name, body = command["body"]
    if name not in _COMMANDS:
        other = body["name"] if name == "OtherCommand" else name
        raise StatusError(Code.UNIMPLEMENTED, f"unknown command {other[:200]!r}")
    kind, make = _COMMANDS[name]
    _require(command, "namespace", "workflow_id")
    request = make(command, body, command["request_id"] or place.request_id)
    return Translated(
        kind, command["namespace"], command["workflow_id"], command["run_id"], request, dict(command["trace"])
    )


def _require(fields: Fields, *names: str) -> None:
    for name in names:
        if not fields[name]:
            raise StatusError(Code.INVALID_ARGUMENT, f"{name} is not set")


def _payload(payload: Fields) -> common.Payload:
    return common.Payload(metadata=payload["metadata"], data=payload["data"])


def _payloads(target: common.Payloads, payloads: list[Fields]) -> None:
    """No payloads leave the field unset, as SDKs do for no arguments."""
    target.payloads.extend(map(_payload, payloads))


def _payload_map(payloads: Mapping[str, Fields]) -> dict[str, common.Payload]:
    return {key: _payload(payload) for key, payload in payloads.items()}


def _duration(target: Duration, field: str, nanoseconds: int | None) -> None:
    if nanoseconds is None:
        return
    if nanoseconds < 0:
        raise StatusError(Code.INVALID_ARGUMENT, f"{field} is negative: {nanoseconds}")
    target.seconds, target.nanos = divmod(nanoseconds, SECOND_NS)
    target.SetInParent()


def _set_start(
    request: ws.StartWorkflowExecutionRequest | ws.SignalWithStartWorkflowExecutionRequest,
    command: Fields,
    body: Fields,
    request_id: str,
) -> None:
    """The fields that both ways of starting have."""
    _require(body, "workflow_type", "task_queue")
    if command["run_id"]:
        raise StatusError(Code.INVALID_ARGUMENT, "run_id is set, but a command that starts a workflow has no run yet")
    request.namespace = command["namespace"]
    request.workflow_id = command["workflow_id"]
    request.identity = command["identity"]
    request.request_id = request_id
    request.workflow_type.name = body["workflow_type"]
    request.task_queue.name = body["task_queue"]
    if body["input"]:
        _payloads(request.input, body["input"])
    _duration(request.workflow_execution_timeout, "execution_timeout_ns", body["execution_timeout_ns"])
    _duration(request.workflow_run_timeout, "run_timeout_ns", body["run_timeout_ns"])
    _duration(request.workflow_task_timeout, "task_timeout_ns", body["task_timeout_ns"])
    _duration(request.workflow_start_delay, "start_delay_ns", body["start_delay_ns"])
    request.workflow_id_reuse_policy = enums.WorkflowIdReusePolicy.Value(
        "WORKFLOW_ID_REUSE_POLICY_" + body["id_reuse_policy"]
    )
    request.workflow_id_conflict_policy = enums.WorkflowIdConflictPolicy.Value(
        "WORKFLOW_ID_CONFLICT_POLICY_" + body["id_conflict_policy"]
    )
    if body["retry_policy"] is not None:
        _set_retry_policy(request.retry_policy, body["retry_policy"])
    request.cron_schedule = body["cron_schedule"]
    if body["memo"]:
        request.memo.CopyFrom(common.Memo(fields=_payload_map(body["memo"])))
    if body["search_attributes"]:
        attributes = common.SearchAttributes(indexed_fields=_payload_map(body["search_attributes"]))
        request.search_attributes.CopyFrom(attributes)
    if body["header"]:
        request.header.CopyFrom(common.Header(fields=_payload_map(body["header"])))
    if body["user_metadata"] is not None:
        request.user_metadata.SetInParent()
        for part in ("summary", "details"):
            if body["user_metadata"][part] is not None:
                getattr(request.user_metadata, part).CopyFrom(_payload(body["user_metadata"][part]))
    if body["priority"] is not None:
        request.priority.CopyFrom(common.Priority(**body["priority"]))


def _set_retry_policy(target: common.RetryPolicy, policy: Fields) -> None:
    target.SetInParent()
    _duration(target.initial_interval, "initial_interval_ns", policy["initial_interval_ns"])
    target.backoff_coefficient = policy["backoff_coefficient"]
    _duration(target.maximum_interval, "maximum_interval_ns", policy["maximum_interval_ns"])
    target.maximum_attempts = policy["maximum_attempts"]
    target.non_retryable_error_types.extend(policy["non_retryable_error_types"])


def _start(command: Fields, body: Fields, request_id: str) -> Request:
    request = ws.StartWorkflowExecutionRequest()
    _set_start(request, command, body, request_id)
    return request


def _signal_with_start(command: Fields, body: Fields, request_id: str) -> Request:
    _require(body, "signal_name")
    request = ws.SignalWithStartWorkflowExecutionRequest(signal_name=body["signal_name"])
    _set_start(request, command, body, request_id)
    if body["signal_input"]:
        _payloads(request.signal_input, body["signal_input"])
    return request


def _execution(command: Fields) -> common.WorkflowExecution:
    return common.WorkflowExecution(workflow_id=command["workflow_id"], run_id=command["run_id"])


def _signal(command: Fields, body: Fields, request_id: str) -> Request:
    _require(body, "signal_name")
    request = ws.SignalWorkflowExecutionRequest(
        namespace=command["namespace"],
        workflow_execution=_execution(command),
        signal_name=body["signal_name"],
        identity=command["identity"],
        request_id=request_id,
    )
    if body["input"]:
        _payloads(request.input, body["input"])
    if body["header"]:
        request.header.CopyFrom(common.Header(fields=_payload_map(body["header"])))
    return request


def _request_cancel(command: Fields, body: Fields, request_id: str) -> Request:
    return ws.RequestCancelWorkflowExecutionRequest(
        namespace=command["namespace"],
        workflow_execution=_execution(command),
        identity=command["identity"],
        request_id=request_id,
        reason=body["reason"],
        first_execution_run_id=body["first_execution_run_id"],
    )


def _terminate(command: Fields, body: Fields, request_id: str) -> Request:
    """The RPC has no request id: terminating what is closed is refused anyway."""
    request = ws.TerminateWorkflowExecutionRequest(
        namespace=command["namespace"],
        workflow_execution=_execution(command),
        identity=command["identity"],
        reason=body["reason"],
        first_execution_run_id=body["first_execution_run_id"],
    )
    if body["details"]:
        _payloads(request.details, body["details"])
    return request


_COMMANDS: Final[dict[str, tuple[str, Callable[[Fields, Fields, str], Request]]]] = {
    "StartWorkflow": ("START_WORKFLOW", _start),
    "SignalWorkflow": ("SIGNAL_WORKFLOW", _signal),
    "SignalWithStartWorkflow": ("SIGNAL_WITH_START_WORKFLOW", _signal_with_start),
    "RequestCancelWorkflow": ("REQUEST_CANCEL_WORKFLOW", _request_cancel),
    "TerminateWorkflow": ("TERMINATE_WORKFLOW", _terminate),
}
"""Public command -> kind of shard record, and what makes its request."""
