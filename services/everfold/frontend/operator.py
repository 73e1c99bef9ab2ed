"""OperatorService: search attributes of a namespace, its end, and the one cluster there is."""

from __future__ import annotations

from temporalio.api.enums.v1 import common_pb2 as common_enums
from temporalio.api.operatorservice.v1 import request_response_pb2 as op
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.calls import CallContext
from everfold.frontend.cluster import CLUSTER_NAME, ClusterFacts
from everfold.frontend.core import Core, parse
from everfold.frontend.search_attributes import TYPE_NAMES, TYPE_NUMBERS
from everfold.kernel.search_attributes import PREDEFINED, SYSTEM, is_reserved
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import invalid

_SEEN_SECONDS_MAX = 5.0
"""As in `namespace.py`."""


def _numbers(types: dict[str, str]) -> dict[str, int]:
    return {name: TYPE_NUMBERS[kind] for name, kind in types.items()}


class OperatorHandlers:
    """Search attributes, deletion of namespaces, clusters."""

    def __init__(self, core: Core, facts: ClusterFacts) -> None:
        self._core = core
        self._facts = facts
        self._system = _numbers({**SYSTEM, **PREDEFINED})

    async def add_search_attributes(self, context: CallContext, request: bytes) -> bytes:
        """AddSearchAttributes. A name that exists is left as it is, as in Temporal; the CLI warns beforehand."""
        message = parse(op.AddSearchAttributesRequest, request)
        if not message.search_attributes:
            raise invalid("SearchAttributes are not set on request.")
        for name, kind in message.search_attributes.items():
            if is_reserved(name):
                raise invalid(f"Search attribute {name} is reserved by system.")
            if kind not in common_enums.IndexedValueType.values():
                raise invalid(f"Unknown search attribute type: {kind}.")
            if kind not in TYPE_NAMES:
                raise invalid(
                    "Unable to create search attributes: cannot have more than 0 search attribute of type Unspecified."
                )
        namespace = await self._namespace(message.namespace)
        new = {
            name: kind for name, kind in message.search_attributes.items() if name not in namespace.search_attributes
        }
        if new:
            added = op.AddSearchAttributesRequest(namespace=message.namespace, search_attributes=new)
            await self._change(context, "ADD_SEARCH_ATTRIBUTES", namespace, added.SerializeToString(deterministic=True))
        return b""

    async def remove_search_attributes(self, context: CallContext, request: bytes) -> bytes:
        """RemoveSearchAttributes. A name that does not exist is no error."""
        message = parse(op.RemoveSearchAttributesRequest, request)
        if not message.search_attributes:
            raise invalid("SearchAttributes are not set on request.")
        namespace = await self._namespace(message.namespace)
        for name in message.search_attributes:
            if is_reserved(name) and name not in namespace.search_attributes:
                raise invalid(f"Unable to remove non-custom search attributes: {name}.")
        if any(name in namespace.search_attributes for name in message.search_attributes):
            await self._change(context, "REMOVE_SEARCH_ATTRIBUTES", namespace, request)
        return b""

    async def list_search_attributes(self, context: CallContext, request: bytes) -> bytes:
        """ListSearchAttributes."""
        message = parse(op.ListSearchAttributesRequest, request)
        if not message.namespace:
            raise invalid("Namespace is not set on request.")
        namespace = await self._core.namespace(message.namespace)
        return op.ListSearchAttributesResponse(
            custom_attributes=_numbers(dict(namespace.search_attributes)),  # type: ignore[arg-type]
            system_attributes=self._system,  # type: ignore[arg-type]
        ).SerializeToString()

    async def get_search_attributes(self, context: CallContext, request: bytes) -> bytes:
        """WorkflowService.GetSearchAttributes, which old SDKs call: it names no namespace, so all of them are in it."""
        keys = dict(self._system)
        for namespace in self._core.namespaces:
            if not namespace.deleted:
                keys.update(_numbers(dict(namespace.search_attributes)))
        return ws.GetSearchAttributesResponse(keys=keys).SerializeToString()  # type: ignore[arg-type]

    async def delete_namespace(self, context: CallContext, request: bytes) -> bytes:
        """DeleteNamespace: gone from every list at once, its name free for another one."""
        message = parse(op.DeleteNamespaceRequest, request)
        core = self._core
        if message.namespace and message.namespace_id:
            raise invalid("Only one of namespace name or Id should be set on request.")
        if not message.namespace and not message.namespace_id:
            raise invalid("Namespace is not set on request.")
        if message.namespace:
            namespace = await core.namespace(message.namespace, "namespace")
        else:
            namespace = await core.namespace_by_id(message.namespace_id, "namespace")
        deleted = op.DeleteNamespaceRequest(namespace_id=namespace.namespace_id)
        await self._change(context, "DELETE_NAMESPACE", namespace, deleted.SerializeToString(deterministic=True))
        shown = f"{namespace.name}-deleted-{namespace.namespace_id[:5]}"
        return op.DeleteNamespaceResponse(deleted_namespace=shown).SerializeToString()

    async def list_clusters(self, context: CallContext, request: bytes) -> bytes:
        """ListClusters: this one."""
        parse(op.ListClustersRequest, request)
        row = op.ClusterMetadata(
            cluster_name=CLUSTER_NAME,
            cluster_id=self._facts.cluster_id,
            address=self._facts.address,
            initial_failover_version=1,
            history_shard_count=self._facts.shard_count,
            is_connection_enabled=True,
        )
        return op.ListClustersResponse(clusters=[row]).SerializeToString()

    async def _namespace(self, name: str) -> Namespace:
        if not name:
            raise invalid("Namespace is not set on request.")
        return await self._core.namespace(name, "namespace")

    async def _change(self, context: CallContext, kind: str, namespace: Namespace, message: bytes) -> None:
        core = self._core
        left = core.seconds_left(context)
        await core.backend.change_namespaces(kind, namespace.namespace_id, message, left)

        def seen() -> bool:
            known = core.namespaces.version_and_bytes(namespace.namespace_id)
            return known is None or known[0] > namespace.version

        await core.namespaces.wait_until(seen, min(_SEEN_SECONDS_MAX, core.seconds_left(context)))
