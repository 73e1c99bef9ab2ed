"""From an exception to a gRPC status, with its `google.rpc.Status` details as SDKs expect them."""

from __future__ import annotations

from typing import Final

from google.rpc import status_pb2

from everfold.kernel.errors import OWNER_MOVES, Code, ShardLost, StatusError
from everfold.runtime.defects import defect_in

DETAILS_KEY: Final = "grpc-status-details-bin"
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

    A `StatusError` is itself. What a shard or a broker in trouble lets through is UNAVAILABLE, which SDKs retry.
    Anything else is a defect of ours.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, (ShardLost, ConnectionError)):
        return StatusError(Code.UNAVAILABLE, OWNER_MOVES)
    if isinstance(error, TimeoutError):
        return StatusError(Code.DEADLINE_EXCEEDED, "no answer within the deadline")
    return defect_in(method, error)
