"""From an exception to a gRPC status, with its `google.rpc.Status` details as SDKs expect them."""

from __future__ import annotations

import logging
import secrets
import traceback
from typing import Final

from google.rpc import status_pb2

from everfold.kernel.errors import Code, InvariantViolation, ShardLost, StatusError

_log = logging.getLogger(__name__)

DETAILS_KEY: Final = "grpc-status-details-bin"
_FRAMES_MAX: Final = 8
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
    Anything else is a defect of ours: INTERNAL, with an id that stands in the log line too, and nothing of the
    exception's own text, which may hold payloads: the log has its type and where it came from.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, (ShardLost, ConnectionError)):
        return StatusError(Code.UNAVAILABLE, "the owner of this workflow or task queue is moving, please retry")
    if isinstance(error, TimeoutError):
        return StatusError(Code.DEADLINE_EXCEEDED, "no answer within the deadline")
    error_id = secrets.token_hex(4)
    kind = "invariant violated" if isinstance(error, InvariantViolation) else "exception escaped"
    where = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES_MAX))
    _log.error("%s in %s (error id %s): %s\n%s", kind, method, error_id, type(error).__name__, where)
    return StatusError(Code.INTERNAL, f"internal error in {method.rpartition('/')[2]} (error id {error_id})")
