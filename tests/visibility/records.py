"""VisibilityRecords for tests, in few words."""

from __future__ import annotations

import json
import uuid
from typing import Any

from temporalio.api.common.v1 import message_pb2 as common

NAMESPACE_ID = "9d6b2a2e-7c1f-4f57-9a57-000000000001"
SECOND = 1_000_000_000
STATUS = {"Running": 1, "Completed": 2, "Failed": 3, "Canceled": 4, "Terminated": 5}
TYPES = {
    "Customer": "Keyword",
    "Amount": "Int",
    "Weight": "Double",
    "Paid": "Bool",
    "Due": "Datetime",
    "Tags": "KeywordList",
    "Notes": "Text",
    "billing.Plan.name": "Keyword",
}


def attributes(**values: Any) -> bytes:
    """SearchAttributes as the machine stores them: JSON payloads with their type."""
    message = common.SearchAttributes()
    for name, value in values.items():
        payload = message.indexed_fields[name]
        payload.metadata["encoding"] = b"json/plain"
        if name in TYPES:
            payload.metadata["type"] = TYPES[name].encode()
        payload.data = json.dumps(value).encode()
    return message.SerializeToString(deterministic=True)


def record(
    workflow_id: str,
    *,
    run_id: str = "",
    offset: int = 0,
    index: int = 0,
    epoch: int = 0,
    partition: int = 0,
    status: str = "Running",
    started: float = 0,
    closed: float | None = None,
    deleted: bool = False,
    searched: bytes = b"",
    predecessor: tuple[int, int, int] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    return {
        "namespace_id": NAMESPACE_ID,
        "namespace": "default",
        "workflow_id": workflow_id,
        "run_id": run_id or str(uuid.uuid5(uuid.NAMESPACE_OID, workflow_id)),
        "workflow_type": "Order",
        "task_queue": "orders",
        "status": STATUS[status],
        "start_time_ns": int(started * SECOND),
        "execution_time_ns": int(started * SECOND),
        "close_time_ns": None if closed is None else int(closed * SECOND),
        "history_length": 5,
        "history_size_bytes": 500,
        "state_transition_count": 3,
        "memo": b"",
        "search_attributes": searched,
        "parent_workflow_id": "",
        "parent_run_id": "",
        "root_workflow_id": workflow_id,
        "root_run_id": "",
        "deleted": deleted,
        "version": 1,
        "origin": {"source": "SHARD_LOG", "partition": partition, "epoch": epoch, "offset": offset, "index": index},
        "predecessor": None
        if predecessor is None
        else {
            "source": "SHARD_LOG",
            "partition": partition,
            "epoch": predecessor[0],
            "offset": predecessor[1],
            "index": predecessor[2],
        },
        **fields,
    }
