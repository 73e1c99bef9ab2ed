"""Failures that stand for a worker's answer when that answer is too large to keep."""

from __future__ import annotations

from typing import Final

from temporalio.api.failure.v1 import message_pb2 as failures

_TEXT_CHARS_MAX: Final = 4 * 1024
_DEPTH_MAX: Final = 5


def server_failure(message: str) -> failures.Failure:
    """A failure of the server's own that no retry mends."""
    failure = failures.Failure(message=message)
    failure.server_failure_info.non_retryable = True
    return failure


def truncated(failure: failures.Failure, depth: int = _DEPTH_MAX) -> failures.Failure:
    """What a person needs of a failure: its texts, cut, and its causes; no payloads."""
    short = failures.Failure(
        message=failure.message[:_TEXT_CHARS_MAX],
        source=failure.source[:_TEXT_CHARS_MAX],
        stack_trace=failure.stack_trace[:_TEXT_CHARS_MAX],
    )
    if failure.HasField("application_failure_info"):
        short.application_failure_info.type = failure.application_failure_info.type[:_TEXT_CHARS_MAX]
        short.application_failure_info.non_retryable = failure.application_failure_info.non_retryable
    if failure.HasField("cause") and depth > 0:
        short.cause.CopyFrom(truncated(failure.cause, depth - 1))
    return short
