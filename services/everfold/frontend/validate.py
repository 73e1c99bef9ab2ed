"""The fields that are not built yet, and what only RPCs have to be checked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from temporalio.api.enums.v1 import reset_pb2 as reset_enums
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.cluster import CLUSTER_NAME
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.requests import invalid


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
    ws.ResetActivityExecutionRequest: {
        "activity_id without workflow_id": lambda message: not message.workflow_id,
    },
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


def reapply(message: ws.ResetWorkflowExecutionRequest) -> None:
    """What a reset applies again."""
    if message.reset_reapply_type not in reset_enums.ResetReapplyType.values():
        raise invalid(f"unknown reset reapply type: {message.reset_reapply_type}")
