"""A VisibilityRecord as rows of the index, and a row of the index as Temporal's WorkflowExecutionInfo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.workflow.v1 import message_pb2 as workflow

from everfold.kernel.search_attributes import DIVISION, PREDEFINED, Undecodable, decode
from everfold.kernel.time import comparable, parse_rfc3339
from everfold.visibility.schema import OPEN_ORDER_NS
from everfold.visibility.sql import ATTRIBUTE_TABLES

Record = Mapping[str, Any]

COLUMNS: Final = (
    "namespace",
    "run_id",
    "workflow_id",
    "workflow_type",
    "task_queue",
    "status",
    "start_time_ns",
    "execution_time_ns",
    "close_time_ns",
    "close_order_ns",
    "history_length",
    "history_size_bytes",
    "state_transition_count",
    "parent_workflow_id",
    "parent_run_id",
    "root_workflow_id",
    "root_run_id",
    "division",
    "memo",
    "search_attributes",
    "partition",
    "epoch",
    "log_offset",
    "log_index",
)
"""The columns of `executions` but for its id, in the order in which `row_of` gives them."""

INFO_COLUMNS: Final = (
    "workflow_id, run_id, workflow_type, task_queue, status, start_time_ns, execution_time_ns, close_time_ns, "
    "history_length, history_size_bytes, state_transition_count, parent_workflow_id, parent_run_id, root_workflow_id, "
    "root_run_id, memo, search_attributes, close_order_ns"
)
"""What `info_of` reads, in its order."""

Place = tuple[int, int, int]
"""(epoch, offset, index): what is compared between origins of one shard."""

BEFORE_ALL: Final[Place] = (-1, -1, -1)


class Attribute(NamedTuple):
    """One value to be searched for, and the table that it belongs into."""

    table: str
    name: str
    value: str | int | float


def place_of(record: Record) -> Place:
    """The record's place in its shard's log; a record without an origin is older than every other."""
    origin = record.get("origin")
    return BEFORE_ALL if origin is None else (origin["epoch"], origin["offset"], origin["index"])


def row_of(record: Record, namespace: int, division: str | None) -> tuple[Any, ...]:
    """The row of `executions`, by COLUMNS."""
    origin = record.get("origin") or {"partition": -1, "epoch": -1, "offset": -1, "index": -1}
    close = record["close_time_ns"]
    return (
        namespace,
        record["run_id"],
        record["workflow_id"],
        record["workflow_type"],
        record["task_queue"],
        record["status"],
        record["start_time_ns"],
        record["execution_time_ns"],
        close,
        OPEN_ORDER_NS if close is None else close,
        record["history_length"],
        record["history_size_bytes"],
        record["state_transition_count"],
        record["parent_workflow_id"] or None,
        record["parent_run_id"] or None,
        record["root_workflow_id"] or None,
        record["root_run_id"] or None,
        division,
        record["memo"] or None,
        record["search_attributes"] or None,
        origin["partition"],
        origin["epoch"],
        origin["offset"],
        origin["index"],
    )


def attributes_of(search_attributes: bytes) -> tuple[list[Attribute], str | None]:
    """The values to be searched for in a SearchAttributes message, and the division that hides the run, if any.

    A value that does not fit its declared type is left out of the search (it is still listed): one such value, which
    only a foreign producer can bring in, must not stop the index.
    """
    found: list[Attribute] = []
    division: str | None = None
    if not search_attributes:
        return found, division
    for name, payload in sorted(common.SearchAttributes.FromString(search_attributes).indexed_fields.items()):
        try:
            value = decode(payload)
        except Undecodable:
            continue
        kind = (
            payload.metadata["type"].decode(errors="replace")
            if "type" in payload.metadata
            else PREDEFINED.get(name, "")
        )
        if name == DIVISION:
            division = value if isinstance(value, str) else None
        elif kind == "KeywordList":
            values = value if isinstance(value, list) else [value]
            if len(values) == 1 and isinstance(values[0], list):
                (values,) = values
            found += [
                Attribute("keywords", name, item) for item in dict.fromkeys(v for v in values if isinstance(v, str))
            ]
        elif (plain := _searchable(kind or _guessed(value), value)) is not None:
            found.append(Attribute(ATTRIBUTE_TABLES[kind or _guessed(value)], name, plain))
    return found, division


def _guessed(value: object) -> str:
    """The type of a value that came without one."""
    if isinstance(value, bool):
        return "Bool"
    if isinstance(value, int):
        return "Int"
    return "Double" if isinstance(value, float) else "Keyword"


def _searchable(kind: str, value: object) -> str | int | float | None:
    if isinstance(value, list) and len(value) == 1:  # older SDKs send single values in lists
        (value,) = value
    if kind in ("Keyword", "Text"):
        return value if isinstance(value, str) else None
    if kind == "Bool":
        return int(value) if isinstance(value, bool) else None
    if kind == "Int":
        plain = isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63
        return value if plain and isinstance(value, int) else None
    if kind == "Double":
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if kind == "Datetime":
        instant = parse_rfc3339(value) if isinstance(value, str) else None
        return None if instant is None else comparable(instant)
    return None


def info_of(row: tuple[Any, ...], types: Mapping[str, str]) -> workflow.WorkflowExecutionInfo:
    """The answer to a list for a row of INFO_COLUMNS. An open run shows no sizes of its history, as on a real server.

    Args:
        row: the row.
        types: the namespace's registered attributes; for payloads that came without their `type`.
    """
    (workflow_id, run_id, workflow_type, task_queue, status, start, execution, close, length, size, transitions) = row[
        :11
    ]
    (parent_id, parent_run, root_id, root_run, memo, search_attributes, _order) = row[11:]
    info = workflow.WorkflowExecutionInfo()
    info.execution.workflow_id = workflow_id
    info.execution.run_id = run_id
    info.type.name = workflow_type
    info.status = status
    info.start_time.FromNanoseconds(start)
    info.execution_time.FromNanoseconds(execution)
    if close is not None:
        info.close_time.FromNanoseconds(close)
        info.execution_duration.FromNanoseconds(close - execution)
        info.history_length = length
        info.history_size_bytes = size
        info.state_transition_count = transitions
    info.task_queue = task_queue
    if parent_id:
        info.parent_execution.workflow_id = parent_id
        info.parent_execution.run_id = parent_run or ""
    if root_id:
        info.root_execution.workflow_id = root_id
        info.root_execution.run_id = root_run or ""
    info.memo.MergeFromString(memo or b"")
    info.search_attributes.MergeFromString(search_attributes or b"")
    for name, payload in info.search_attributes.indexed_fields.items():
        if "type" not in payload.metadata and (kind := types.get(name) or PREDEFINED.get(name)):
            payload.metadata["type"] = kind.encode()
    return info
