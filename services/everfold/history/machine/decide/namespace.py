"""Namespaces: shard 0 decides names and ids, and tells everybody through the `namespaces` topic.

A namespace's row on shard 0 is the truth; other shards learn of it by `NamespaceChanged` records, put before the first
record that needs that version (law 2). Replies carry the namespace's Avro record, as written to the topic.
Temporal: service/frontend/namespace_handler.go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from temporalio.api.enums.v1 import common_pb2 as enums_common
from temporalio.api.enums.v1 import namespace_pb2 as enums_namespace
from temporalio.api.errordetails.v1 import message_pb2 as errordetails_pb2
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.decide.purge import begin_sweep
from everfold.history.machine.durations import to_ns
from everfold.history.machine.events import serialize
from everfold.history.machine.rejections import invalid, namespace_not_found, status, too_many
from everfold.history.machine.step import Reply
from everfold.kernel.errors import Code
from everfold.kernel.gotext import camel
from everfold.kernel.search_attributes import is_reserved
from everfold.kernel.time import HOUR_NS
from everfold.schemas import codec
from everfold.schemas.topics import NAMESPACES

Record = dict[str, Any]

RETENTION_MIN_NS: Final = HOUR_NS
"""The least retention that a real server (1.32) takes."""

NAMESPACES_MAX: Final = 10_000
"""Namespaces of a cluster, deleted ones included, as their rows stay. Every process holds them all."""

NAMESPACE_BYTES_MAX: Final = 64 * 1024
"""A namespace's record: data and search attributes only grow, and no record may outgrow what Kafka takes."""

SYSTEM_NAMESPACE: Final = "temporal-system"
"""A real server keeps its own workflows there, so that clients and the UI take it for no user's."""

_REGISTERED: Final = enums_namespace.NAMESPACE_STATE_REGISTERED
_TYPE_NAMES: Final = {
    number: camel(name.removeprefix("INDEXED_VALUE_TYPE_")) for name, number in enums_common.IndexedValueType.items()
}


def decide_register(ctx: StepContext, message: bytes) -> Reply:
    """RegisterNamespace."""
    request = ws.RegisterNamespaceRequest.FromString(message)
    if request.namespace == SYSTEM_NAMESPACE or _by_name(ctx, request.namespace) is not None:
        raise status(
            Code.ALREADY_EXISTS,
            f'Namespace "{request.namespace}" already exists',
            errordetails_pb2.NamespaceAlreadyExistsFailure(),
        )
    retention_ns = to_ns(request.workflow_execution_retention_period)
    _check_retention(retention_ns)
    count = len(ctx.facts.namespaces)
    if count >= NAMESPACES_MAX:
        raise too_many(f"the cluster has {count} namespaces, deleted ones included; it takes no more")
    record: Record = {
        "namespace_id": ctx.new_id(),
        "name": request.namespace,
        "version": 0,
        "state": _REGISTERED,
        "description": request.description,
        "owner_email": request.owner_email,
        "data": {key: request.data[key] for key in sorted(request.data)},
        "retention_ns": retention_ns,
        "search_attributes": {},
        "created_at_ns": ctx.now_ns,
        "deleted": False,
        "config": b"",
    }
    return _publish(ctx, record)


def decide_update(ctx: StepContext, message: bytes) -> Reply:
    """UpdateNamespace: what is set changes, data entries are merged."""
    request = ws.UpdateNamespaceRequest.FromString(message)
    record = _existing(ctx, request.namespace)
    info = request.update_info
    if info.description:
        record["description"] = info.description
    if info.owner_email:
        record["owner_email"] = info.owner_email
    record["data"] = {**record["data"], **{key: info.data[key] for key in sorted(info.data)}}
    if info.state:
        record["state"] = info.state
    if request.config.HasField("workflow_execution_retention_ttl"):
        retention_ns = to_ns(request.config.workflow_execution_retention_ttl)
        _check_retention(retention_ns)
        record["retention_ns"] = retention_ns
    if request.HasField("config"):
        record["config"] = serialize(request.config)
    return _publish(ctx, record)


def decide_deprecate(ctx: StepContext, message: bytes) -> Reply:
    """DeprecateNamespace: no new workflows from now on."""
    record = _existing(ctx, ws.DeprecateNamespaceRequest.FromString(message).namespace)
    record["state"] = enums_namespace.NAMESPACE_STATE_DEPRECATED
    return _publish(ctx, record)


def decide_delete(ctx: StepContext, message: bytes) -> Reply:
    """Operator DeleteNamespace: its name is free at once, nothing is served by it any more, and its runs are removed.

    The row stays, as the name in it routes what is still under way for its workflows.
    """
    request = operator.DeleteNamespaceRequest.FromString(message)
    if request.namespace_id:
        row = ctx.rows.get(keys.namespace(request.namespace_id))
        record = None if row is None else codec.decode(row)[1]
        if record is None or record["deleted"]:
            raise namespace_not_found(request.namespace_id)
    else:
        record = _existing(ctx, request.namespace)
    record["state"] = enums_namespace.NAMESPACE_STATE_DELETED
    record["deleted"] = True
    begin_sweep(ctx, record["namespace_id"])
    return _publish(ctx, record)


def decide_add_search_attributes(ctx: StepContext, message: bytes) -> Reply:
    """Operator AddSearchAttributes: names that exist with the same type are left alone."""
    request = operator.AddSearchAttributesRequest.FromString(message)
    record = _existing(ctx, request.namespace)
    attributes = dict(record["search_attributes"])
    changed = False
    for name in sorted(request.search_attributes):
        kind = _TYPE_NAMES.get(request.search_attributes[name], "Unspecified")
        if is_reserved(name):
            raise invalid(f"Search attribute {name} is reserved by system.")
        if kind == "Unspecified":
            raise invalid(f"Unable to parse search attribute type for {name}.")
        if name in attributes:
            if attributes[name] != kind:
                raise status(
                    Code.ALREADY_EXISTS, f"Search attribute {name} already exists with type {attributes[name]}."
                )
            continue
        attributes[name] = kind
        changed = True
    if not changed:
        ctx.step.ignored = True
        return Reply(codec.encode("Namespace", record))
    record["search_attributes"] = attributes
    return _publish(ctx, record)


def decide_remove_search_attributes(ctx: StepContext, message: bytes) -> Reply:
    """Operator RemoveSearchAttributes."""
    request = operator.RemoveSearchAttributesRequest.FromString(message)
    record = _existing(ctx, request.namespace)
    attributes = dict(record["search_attributes"])
    for name in request.search_attributes:
        if name not in attributes:
            raise status(Code.NOT_FOUND, f"Search attribute {name} doesn't exist.")
        del attributes[name]
    record["search_attributes"] = attributes
    return _publish(ctx, record)


def _check_retention(retention_ns: int) -> None:
    if retention_ns < RETENTION_MIN_NS:
        raise invalid("A valid retention period is not set on request. The minimum is 1 hour.")


def _existing(ctx: StepContext, name: str) -> Record:
    record = _by_name(ctx, name)
    if record is None:
        raise namespace_not_found(name)
    return record


def _by_name(ctx: StepContext, name: str) -> Record | None:
    for _, row in ctx.rows.scan(keys.NAMESPACES, keys.OUTBOX):
        record = codec.decode(row)[1]
        if record["name"] == name and not record["deleted"]:
            return record
    return None


def _publish(ctx: StepContext, record: Record) -> Reply:
    """Writes the row and the topic's record, one version on."""
    record["version"] += 1
    namespace_id = record["namespace_id"]
    ctx.emit(NAMESPACES, 0, namespace_id.encode(), "Namespace", record)
    data = codec.encode("Namespace", record)
    if len(data) > NAMESPACE_BYTES_MAX and not record["deleted"]:
        raise invalid(
            f"namespace {record['name']} would have {len(data)} bytes of data, configuration and search attributes, "
            f"expected at most {NAMESPACE_BYTES_MAX}"
        )
    ctx.put_namespace(namespace_id, record["version"], data)
    return Reply(data)


DECIDERS: Final[dict[str, Callable[[StepContext, bytes], Reply]]] = {
    "REGISTER_NAMESPACE": decide_register,
    "UPDATE_NAMESPACE": decide_update,
    "DEPRECATE_NAMESPACE": decide_deprecate,
    "DELETE_NAMESPACE": decide_delete,
    "ADD_SEARCH_ATTRIBUTES": decide_add_search_attributes,
    "REMOVE_SEARCH_ATTRIBUTES": decide_remove_search_attributes,
}
