"""Search attributes: registered names, right types, bounded sizes.

Temporal: common/searchattribute/validator.go. The types come from the namespace as the shard's log has told it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine.context import NamespaceInfo
from everfold.history.machine.rejections import invalid
from everfold.kernel.limits import Limits

PREDEFINED: Final = {
    "TemporalChangeVersion": "KeywordList",
    "BinaryChecksums": "KeywordList",
    "BuildIds": "KeywordList",
    "BatcherNamespace": "Keyword",
    "BatcherUser": "Keyword",
    "TemporalScheduledStartTime": "Datetime",
    "TemporalScheduledById": "Keyword",
    "TemporalSchedulePaused": "Bool",
    "TemporalNamespaceDivision": "Keyword",
    "TemporalPauseInfo": "KeywordList",
    "TemporalReportedProblems": "KeywordList",
    "TemporalWorkerDeploymentVersion": "Keyword",
    "TemporalWorkerDeployment": "Keyword",
    "TemporalWorkflowVersioningBehavior": "Keyword",
    "TemporalUsedWorkerDeploymentVersions": "KeywordList",
}
"""Attributes that every namespace has and that a caller may set."""

SYSTEM: Final = frozenset(
    (
        "WorkflowId",
        "RunId",
        "WorkflowType",
        "TaskQueue",
        "ExecutionStatus",
        "StartTime",
        "ExecutionTime",
        "CloseTime",
        "HistoryLength",
        "HistorySizeBytes",
        "ExecutionDuration",
        "StateTransitionCount",
        "ParentWorkflowId",
        "ParentRunId",
        "RootWorkflowId",
        "RootRunId",
    )
)
"""Attributes that only the engine sets."""


def check_search_attributes(namespace: NamespaceInfo, attributes: common_pb2.SearchAttributes, limits: Limits) -> None:
    """Refuses attributes that are unknown, reserved, of the wrong type, too many or too large.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    fields = attributes.indexed_fields
    if not fields:
        return
    if len(fields) > limits["limit.numberOfSearchAttributeKeys"]:
        raise invalid(
            f"number of search attributes {len(fields)} exceeds limit {limits['limit.numberOfSearchAttributeKeys']}"
        )
    for name in sorted(fields):
        if name in SYSTEM:
            raise invalid(f"{name} attribute can't be set in SearchAttributes")
        kind = namespace.search_attributes.get(name) or PREDEFINED.get(name)
        if kind is None:
            raise invalid(f"Namespace {namespace.name} has no mapping defined for search attribute {name}")
        payload = fields[name]
        if len(payload.data) > limits["limit.searchAttributeSizeOfValue"]:
            raise invalid(
                f"search attribute {name} value size {len(payload.data)} exceeds size limit "
                f"{limits['limit.searchAttributeSizeOfValue']}"
            )
        _check_value(name, kind, payload)
    total = attributes.ByteSize()
    if total > limits["limit.searchAttributeTotalSize"]:
        raise invalid(
            f"total size of search attributes {total} exceeds size limit {limits['limit.searchAttributeTotalSize']}"
        )


def set_types(attributes: common_pb2.SearchAttributes, namespace: NamespaceInfo) -> None:
    """Adds each attribute's type to its payload's metadata: SDKs and the Web UI decode by it."""
    for name in sorted(attributes.indexed_fields):
        kind = namespace.search_attributes.get(name) or PREDEFINED.get(name)
        if kind is not None:
            attributes.indexed_fields[name].metadata["type"] = kind.encode()


def _check_value(name: str, kind: str, payload: common_pb2.Payload) -> None:
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null" or not payload.data:
        return
    try:
        value = json.loads(payload.data)
    except ValueError:
        raise invalid(f"invalid value for search attribute {name} of type {kind}: unable to decode") from None
    if value is None or value == [] or _fits(kind, value):
        return
    if isinstance(value, list) and len(value) == 1 and _fits(kind, value[0]):
        return
    raise invalid(f"invalid value for search attribute {name} of type {kind}: {value!r}")


def _fits(kind: str, value: Any) -> bool:
    if kind == "Int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "Double":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "Bool":
        return isinstance(value, bool)
    if kind == "KeywordList":
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    return isinstance(value, str)
