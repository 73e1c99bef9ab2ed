"""The search attribute by which UIs find workflows in trouble."""

from __future__ import annotations

import json
from typing import Final

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine.events import serialize

PROBLEMS: Final = "TemporalReportedProblems"


def problem(category: str, cause: str) -> bytes:
    """Its value, as a serialized Payload."""
    said = [f"category={category}", f"cause={cause}"]
    payload = common_pb2.Payload(data=json.dumps(said, separators=(",", ":")).encode())
    payload.metadata["encoding"] = b"json/plain"
    payload.metadata["type"] = b"KeywordList"
    return serialize(payload)
