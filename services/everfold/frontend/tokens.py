"""From a task token in a request to the workflow that it belongs to."""

from __future__ import annotations

from typing import Any

from everfold.frontend.core import Core
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


def _undecodable() -> Exception:
    return invalid("Error deserializing task token.")


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
        StatusError: INVALID_ARGUMENT for a token that is none, or of another namespace.
    """
    try:
        token = decode_workflow_task_token(_required(message))
    except BadTaskToken:
        raise _undecodable() from None
    return token, await _namespace(core, token.namespace_id, message)


async def activity_task(core: Core, message: Any) -> tuple[ActivityTaskToken, Namespace]:
    """The activity task that a worker answers. Raises as `workflow_task`."""
    try:
        token = decode_activity_task_token(_required(message))
    except BadTaskToken:
        raise _undecodable() from None
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
