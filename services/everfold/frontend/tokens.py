"""From a task token in a request to the workflow that it belongs to."""

from __future__ import annotations

from typing import Any, Final, NoReturn

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from everfold.frontend.core import Core
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.tokens import (
    ActivityTaskToken,
    BadTaskToken,
    QueryToken,
    WorkflowTaskToken,
    decode_activity_task_token,
    decode_query_token,
    decode_workflow_task_token,
)
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import invalid

_TEMPORALS_NAMESPACE, _TEMPORALS_WORKFLOW, _TEMPORALS_RUN = 1, 2, 3
_TEMPORALS_FIRST_BYTE: Final = b"\x0a"
"""Begins a token of a Temporal server: the tag of its first field, the namespace's id. None of ours begins so."""


def _undecodable() -> Exception:
    return invalid("Error deserializing task token.")


async def _refuse(core: Core, message: Any) -> NoReturn:
    """Refuses a token that is not ours. One that a Temporal server gave (proto/internal/…/token/v1/message.proto) is
    of a workflow that is not here: a worker that moves over, or a service that completes an activity later, takes
    NOT_FOUND as the end of the task, and INVALID_ARGUMENT as a defect.
    """
    token: bytes = message.task_token
    if not token.startswith(_TEMPORALS_FIRST_BYTE):
        raise _undecodable()
    try:
        found = UnknownFieldSet(Empty.FromString(token))
        fields = {found[place].field_number: found[place].data for place in range(len(found))}
        namespace_id, workflow_id, run_id = (
            fields.get(number, b"").decode() for number in (_TEMPORALS_NAMESPACE, _TEMPORALS_WORKFLOW, _TEMPORALS_RUN)
        )
    except (DecodeError, UnicodeDecodeError, AttributeError):
        raise _undecodable() from None
    await _namespace(core, namespace_id, message)
    if not workflow_id:
        raise invalid("Business ID is not set on request.")
    if not run_id:
        raise StatusError(Code.NOT_FOUND, f"workflow not found for ID: {workflow_id}")
    raise StatusError(
        Code.NOT_FOUND, f'workflow execution not found for workflow ID "{workflow_id}" and run ID "{run_id}"'
    )


async def _namespace(core: Core, namespace_id: str, message: Any) -> Namespace:
    """The token's namespace, which must be the one that the request names, if it names one."""
    if not namespace_id:
        raise invalid("Namespace not set on request.")
    namespace = await core.namespace_by_id(namespace_id)
    if message.namespace and message.namespace != namespace.name:
        await core.namespace(message.namespace, "poll")
        raise invalid("Operation requested with a token from a different namespace.")
    return namespace


def _required(message: Any) -> bytes:
    token: bytes = message.task_token
    if not token:
        raise invalid("Task token not set on request.")
    return token


async def workflow_task(core: Core, message: Any) -> tuple[WorkflowTaskToken, Namespace]:
    """The workflow task that a worker answers.

    Raises:
        StatusError: INVALID_ARGUMENT for a token that is none, or of another namespace; NOT_FOUND for a Temporal
            server's.
    """
    try:
        token = decode_workflow_task_token(_required(message))
    except BadTaskToken:
        await _refuse(core, message)
    return token, await _namespace(core, token.namespace_id, message)


async def activity_task(core: Core, message: Any) -> tuple[ActivityTaskToken, Namespace]:
    """The activity task that a worker answers. Raises as `workflow_task`."""
    try:
        token = decode_activity_task_token(_required(message))
    except BadTaskToken:
        await _refuse(core, message)
    return token, await _namespace(core, token.namespace_id, message)


async def query_task(core: Core, message: Any) -> tuple[QueryToken, Namespace]:
    """The direct query that a worker answers. Raises as `workflow_task`."""
    try:
        token = decode_query_token(_required(message))
    except BadTaskToken:
        raise _undecodable() from None
    if not token.task_queue or not token.query_id:
        raise invalid("Invalid TaskToken.")
    return token, await _namespace(core, token.namespace_id, message)
