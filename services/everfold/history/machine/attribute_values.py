"""The values of search attributes that the engine sets of itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine.events import serialize


def keyword(value: str) -> bytes:
    """Of an attribute of type Keyword: a serialized Payload."""
    return _encoded("Keyword", as_json(value))


def keyword_list(values: Sequence[str]) -> bytes:
    """Of an attribute of type KeywordList: a serialized Payload."""
    return _encoded("KeywordList", as_json(values))


def as_json(value: str | Sequence[str]) -> bytes:
    """What such a payload has inside."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _encoded(kind: str, data: bytes) -> bytes:
    payload = common_pb2.Payload(data=data)
    payload.metadata["encoding"] = b"json/plain"
    payload.metadata["type"] = kind.encode()
    return serialize(payload)
