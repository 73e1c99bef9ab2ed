"""From an exception to a gRPC status, with its `google.rpc.Status` details as SDKs expect them."""

from __future__ import annotations

from typing import Final

from google.rpc import status_pb2

from everfold.kernel.errors import OWNER_MOVES, Code, ShardLost, StatusError
from everfold.runtime.defects import defect_in

DETAILS_KEY: Final = "grpc-status-details-bin"
TEXT_ALONE_BYTES_MAX: Final = 2_500
"""Of a text without details. Temporal's longest shows two names of 1,000 bytes."""

TEXT_BYTES_MAX: Final = 1_500
DETAILS_BYTES_MAX: Final = 4_000
"""Of a status. Both travel as headers, the text with up to three bytes for each of its own, the details in Base64;
clients take 8 KiB of headers. One that gets more tells its user RESOURCE_EXHAUSTED, which SDKs try again for ever.
"""

_TYPE_URL: Final = "type.googleapis.com/"


def details_bytes(error: StatusError) -> bytes | None:
    """The value of the `grpc-status-details-bin` trailer, or None: like Temporal, nothing is sent without details."""
    if not error.details:
        return None
    status = status_pb2.Status(code=int(error.code), message=error.message)
    for name, value in error.details:
        status.details.add(type_url=_TYPE_URL + name, value=value)
    data: bytes = status.SerializeToString()
    return data


def status_of(error: Exception, method: str) -> StatusError:
    """The status that a failed call ends with.

    A `StatusError` is itself, within what headers hold: its text may show a value of the client's. What a shard or a
    broker in trouble lets through is UNAVAILABLE, which SDKs retry. Anything else is a defect of ours.
    """
    if isinstance(error, StatusError):
        return _bounded(error)
    if isinstance(error, (ShardLost, ConnectionError)):
        return StatusError(Code.UNAVAILABLE, OWNER_MOVES)
    if isinstance(error, TimeoutError):
        return StatusError(Code.DEADLINE_EXCEEDED, "no answer within the deadline")
    return defect_in(method, error)


def _bounded(error: StatusError) -> StatusError:
    text, details = error.message, error.details
    if sum(len(value) for _, value in details) > DETAILS_BYTES_MAX:
        details = ()
    most = TEXT_BYTES_MAX if details else TEXT_ALONE_BYTES_MAX
    if len(text) * 4 > most and len(data := text.encode()) > most:
        text = f"{data[: most - 3].decode(errors='ignore')}…"
    if text is error.message and details is error.details:
        return error
    return StatusError(error.code, text, details)
