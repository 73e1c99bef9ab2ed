"""Task tokens: the opaque bytes that tie a worker's answer to the attempt of the task that it was given.

Users store activity tokens outside (asynchronous completion) and hand them in days later, so a token names no host
and no partition count, and its first byte is the version of its layout: a layout once released is decoded for ever.

    byte 0      version (1)
    byte 1      kind: 1 workflow task, 2 activity task, 3 query
    then        the fields in the order of the class, without padding:
                  int  8 bytes, signed, big endian
                  str  2 bytes of length, then UTF-8

A token has no integrity check beyond its shape: as in Temporal, what it claims is compared with the run's mutable
    state, and the namespace in it with the namespace of the request.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

VERSION: Final = 1

_WORKFLOW_TASK: Final = 1
_ACTIVITY_TASK: Final = 2
_QUERY: Final = 3

_LENGTH = struct.Struct(">H")
_WORKFLOW_INTS = struct.Struct(">qqqqq")
_ACTIVITY_INTS = struct.Struct(">qqqqq")
_QUERY_INTS = struct.Struct(">q")

_STRING_SIZE_MAX: Final = 0xFFFF
"""What two bytes of length can say; ids and names are bounded far below (1000 bytes) before a task exists."""


class BadTaskToken(ValueError):
    """The bytes are not a task token of the kind that was asked for."""


class WorkflowTaskToken(NamedTuple):
    """One attempt of a workflow task.

    Attributes:
        stamp: the nonce of the task's start, so that a token from before a reset or a lost start never fits.
        started_at_ns: shard time of the start.
    """

    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int
    started_at_ns: int


class ActivityTaskToken(NamedTuple):
    """One attempt of an activity task.

    `scheduled_event_id` and `started_event_id` are 0 where the activity is meant by its id alone.
    """

    namespace_id: str
    workflow_id: str
    run_id: str
    activity_id: str
    activity_type: str
    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int
    started_at_ns: int


class QueryToken(NamedTuple):
    """A direct query that waits in the matching owner of a task queue. It lives no longer than the query."""

    namespace_id: str
    task_queue: str
    query_id: str
    partition: int


def _strings(*values: str) -> bytes:
    parts: list[bytes] = []
    for value in values:
        data = value.encode()
        if len(data) > _STRING_SIZE_MAX:
            raise ValueError(f"expected at most {_STRING_SIZE_MAX} bytes in a task token's field, found {len(data)}")
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def _read(data: bytes, kind: int, count: int, ints: struct.Struct) -> tuple[list[str], tuple[int, ...]]:
    """Takes `count` strings and then `ints`, which must end the token."""
    if len(data) < 2 or data[0] != VERSION or data[1] != kind:
        raise BadTaskToken(
            f"expected a task token of version {VERSION} and kind {kind}, found {data[:2].hex() or 'nothing'}"
        )
    at = 2
    strings: list[str] = []
    try:
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(data, at)
            at += 2
            end = at + size
            if end > len(data):
                raise BadTaskToken("the task token ends inside a field")
            strings.append(data[at:end].decode())
            at = end
        if len(data) - at != ints.size:
            raise BadTaskToken(f"expected {ints.size} bytes of numbers in the task token, found {len(data) - at}")
        return strings, ints.unpack_from(data, at)
    except (struct.error, UnicodeDecodeError) as error:
        raise BadTaskToken(f"the task token is damaged: {error}") from None


def encode_workflow_task_token(token: WorkflowTaskToken) -> bytes:
    """The bytes for `PollWorkflowTaskQueueResponse.task_token`."""
    head = bytes((VERSION, _WORKFLOW_TASK))
    numbers = _WORKFLOW_INTS.pack(
        token.scheduled_event_id, token.started_event_id, token.attempt, token.stamp, token.started_at_ns
    )
    return head + _strings(token.namespace_id, token.workflow_id, token.run_id) + numbers


def decode_workflow_task_token(data: bytes) -> WorkflowTaskToken:
    """Reads a workflow task token.

    Raises:
        BadTaskToken: the bytes are anything else.
    """
    (namespace_id, workflow_id, run_id), numbers = _read(data, _WORKFLOW_TASK, 3, _WORKFLOW_INTS)
    return WorkflowTaskToken(namespace_id, workflow_id, run_id, *numbers)


def encode_activity_task_token(token: ActivityTaskToken) -> bytes:
    """The bytes for `PollActivityTaskQueueResponse.task_token`."""
    head = bytes((VERSION, _ACTIVITY_TASK))
    names = _strings(token.namespace_id, token.workflow_id, token.run_id, token.activity_id, token.activity_type)
    numbers = _ACTIVITY_INTS.pack(
        token.scheduled_event_id, token.started_event_id, token.attempt, token.stamp, token.started_at_ns
    )
    return head + names + numbers


def decode_activity_task_token(data: bytes) -> ActivityTaskToken:
    """Reads an activity task token.

    Raises:
        BadTaskToken: the bytes are anything else.
    """
    (namespace_id, workflow_id, run_id, activity_id, activity_type), numbers = _read(
        data, _ACTIVITY_TASK, 5, _ACTIVITY_INTS
    )
    return ActivityTaskToken(namespace_id, workflow_id, run_id, activity_id, activity_type, *numbers)


def encode_query_token(token: QueryToken) -> bytes:
    """The bytes for the `task_token` of a workflow task that carries a direct query."""
    head = bytes((VERSION, _QUERY))
    return head + _strings(token.namespace_id, token.task_queue, token.query_id) + _QUERY_INTS.pack(token.partition)


def decode_query_token(data: bytes) -> QueryToken:
    """Reads a query token.

    Raises:
        BadTaskToken: the bytes are anything else.
    """
    (namespace_id, task_queue, query_id), (partition,) = _read(data, _QUERY, 3, _QUERY_INTS)
    return QueryToken(namespace_id, task_queue, query_id, partition)
