"""Namespaces: registering, changing, describing.

Shard 0 decides them; a change is answered once this frontend has read its outcome from the topic, so that a namespace
can be used as soon as the call that made it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import namespace_pb2 as namespace_enums
from temporalio.api.replication.v1 import message_pb2 as replication
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend import validate
from everfold.frontend.calls import CallContext
from everfold.frontend.cluster import CLUSTER_NAME
from everfold.frontend.core import Core, namespace_not_found, parse
from everfold.frontend.limits import FrontendLimits
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.names import too_long
from everfold.kernel.time import HOUR_NS, duration_ns
from everfold.runtime.namespaces import STATE_DELETED, STATE_DEPRECATED, STATE_REGISTERED, Namespace
from everfold.runtime.requests import invalid

_SEEN_SECONDS_MAX: Final = 5.0
"""How long an answer waits for its change to be read back. It is decided by then, so that a late topic is no failure.
"""

_PAGE_SIZE: Final = 100

RETENTION_NS_MIN: Final = HOUR_NS
"""As Temporal's system.namespaceMinRetentionLocal: closed runs stay long enough to be looked at."""


def described(namespace: Namespace, limits: FrontendLimits) -> ws.DescribeNamespaceResponse:
    """A namespace as DescribeNamespace shows it. Capabilities that are not built are absent."""
    response = ws.DescribeNamespaceResponse()
    info = response.namespace_info
    info.name = namespace.name
    info.id = namespace.namespace_id
    info.state = namespace.state  # type: ignore[assignment]
    info.description = namespace.description
    info.owner_email = namespace.owner_email
    info.data.update(namespace.data)
    capabilities = info.capabilities
    capabilities.eager_workflow_start = capabilities.sync_update = capabilities.async_update = True
    capabilities.reported_problems_search_attribute = True  # the Web UI lists the failing workflows only then
    info.limits.blob_size_limit_error = limits.blob_bytes_max
    info.limits.memo_size_limit_error = limits.memo_bytes_max
    config = response.config
    if namespace.config:
        config.MergeFromString(namespace.config)
    config.workflow_execution_retention_ttl.FromNanoseconds(namespace.retention_ns)
    config.bad_binaries.SetInParent()
    config.history_archival_state = namespace_enums.ARCHIVAL_STATE_DISABLED
    config.visibility_archival_state = namespace_enums.ARCHIVAL_STATE_DISABLED
    response.replication_config.active_cluster_name = CLUSTER_NAME
    response.replication_config.clusters.append(replication.ClusterReplicationConfig(cluster_name=CLUSTER_NAME))
    return response


def _retention(value: Duration) -> None:
    if duration_ns(value.seconds, value.nanos) < RETENTION_NS_MIN:
        raise invalid("A valid retention period is not set on request.")


_STATE_CHANGES: Final = frozenset(
    {(STATE_REGISTERED, STATE_DEPRECATED), (STATE_REGISTERED, STATE_DELETED), (STATE_DEPRECATED, STATE_DELETED)}
)


class NamespaceHandlers:
    """The RPCs on namespaces."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def register(self, context: CallContext, request: bytes) -> bytes:
        """RegisterNamespace."""
        core = self._core
        message = parse(ws.RegisterNamespaceRequest, request)
        name = message.namespace
        if not name:
            raise invalid("Namespace not set on request.")
        if too_long(name, core.limits.id_bytes_max):
            raise invalid("Namespace length exceeds limit.")
        core.admission.admit("", "namespace")
        if message.is_global_namespace:
            raise invalid("Cannot register global namespace when not enabled")
        _retention(message.workflow_execution_retention_period)
        validate.refuse_unbuilt(message)
        await core.backend.change_namespaces("REGISTER_NAMESPACE", "", request, core.seconds_left(context))
        await self._seen(context, lambda: core.namespaces.by_name(name) is not None)
        return b""

    async def describe(self, context: CallContext, request: bytes) -> bytes:
        """DescribeNamespace, by name or id."""
        core = self._core
        message = parse(ws.DescribeNamespaceRequest, request)
        if message.namespace and message.id:
            raise invalid("GetNamespace operation failed. Both ID and Name specified in request.")
        if not message.namespace and not message.id:
            raise invalid("Namespace not set on request.")
        namespace = self._find(message.namespace, message.id)
        if namespace is None:
            await core.namespaces.refresh()
            namespace = self._find(message.namespace, message.id)
        if namespace is None:
            raise namespace_not_found(message.namespace or message.id)
        core.admission.admit(namespace.namespace_id, "call")
        return described(namespace, core.limits).SerializeToString()

    def _find(self, name: str, namespace_id: str) -> Namespace | None:
        return self._core.namespaces.by_name(name) if name else self._core.namespaces.by_id(namespace_id)

    async def list(self, context: CallContext, request: bytes) -> bytes:
        """ListNamespaces, by name; a page's token is the last name and id on it."""
        core = self._core
        message = parse(ws.ListNamespacesRequest, request)
        await core.namespaces.refresh()
        size = message.page_size if message.page_size > 0 else _PAGE_SIZE
        after = _page_after(message.next_page_token)
        deleted_too = message.namespace_filter.include_deleted
        response = ws.ListNamespacesResponse()
        for namespace in core.namespaces:
            place = (namespace.name, namespace.namespace_id)
            gone = namespace.deleted or namespace.state == STATE_DELETED
            if (after is not None and place <= after) or (gone and not deleted_too):
                continue
            if len(response.namespaces) == size:
                last = response.namespaces[-1].namespace_info
                response.next_page_token = f"{last.id}/{last.name}".encode()
                break
            response.namespaces.append(described(namespace, core.limits))
        return response.SerializeToString()

    async def update(self, context: CallContext, request: bytes) -> bytes:
        """UpdateNamespace."""
        core = self._core
        message = parse(ws.UpdateNamespaceRequest, request)
        namespace = await core.namespace(message.namespace, "namespace")
        state = message.update_info.state
        if state and state != namespace.state and (namespace.state, state) not in _STATE_CHANGES:
            raise invalid("Invalid namespace state update.")
        if message.config.HasField("workflow_execution_retention_ttl"):
            _retention(message.config.workflow_execution_retention_ttl)
        validate.refuse_unbuilt(message)
        namespace_id, version = namespace.namespace_id, namespace.version
        if _changes(namespace, message):
            left = core.seconds_left(context)
            await core.backend.change_namespaces("UPDATE_NAMESPACE", namespace_id, request, left)
            await self._seen(context, lambda: self._version(namespace_id) > version)
            namespace = core.namespaces.by_id(namespace_id) or namespace
        shown = described(namespace, core.limits)
        return ws.UpdateNamespaceResponse(
            namespace_info=shown.namespace_info, config=shown.config, replication_config=shown.replication_config
        ).SerializeToString()

    async def deprecate(self, context: CallContext, request: bytes) -> bytes:
        """DeprecateNamespace: its runs go on, new ones are refused."""
        core = self._core
        message = parse(ws.DeprecateNamespaceRequest, request)
        namespace = await core.namespace(message.namespace, "namespace")
        if namespace.state != STATE_DEPRECATED:
            namespace_id, version = namespace.namespace_id, namespace.version
            left = core.seconds_left(context)
            await core.backend.change_namespaces("DEPRECATE_NAMESPACE", namespace_id, request, left)
            await self._seen(context, lambda: self._version(namespace_id) > version)
        return b""

    def _version(self, namespace_id: str) -> int:
        known = self._core.namespaces.version_and_bytes(namespace_id)
        return 0 if known is None else known[0]

    async def _seen(self, context: CallContext, condition: Callable[[], bool]) -> None:
        timeout = min(_SEEN_SECONDS_MAX, self._core.seconds_left(context))
        await self._core.namespaces.wait_until(condition, timeout)


def _changes(namespace: Namespace, message: ws.UpdateNamespaceRequest) -> bool:
    """Whether an update asks for anything else than what is."""
    info, config = message.update_info, message.config
    retention = config.workflow_execution_retention_ttl
    return (
        bool(info.description and info.description != namespace.description)
        or bool(info.owner_email and info.owner_email != namespace.owner_email)
        or any(namespace.data.get(key) != value for key, value in info.data.items())
        or bool(info.state and info.state != namespace.state)
        or (
            config.HasField("workflow_execution_retention_ttl")
            and duration_ns(retention.seconds, retention.nanos) != namespace.retention_ns
        )
    )


def _page_after(token: bytes) -> tuple[str, str] | None:
    if not token:
        return None
    try:
        namespace_id, slash, name = token.decode().partition("/")
    except UnicodeDecodeError:
        slash = ""
    if not slash:
        raise StatusError(Code.INVALID_ARGUMENT, "Invalid NextPageToken.")
    return name, namespace_id
