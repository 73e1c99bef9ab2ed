"""Failures that stand for a worker's answer when that answer is too large to keep."""

from __future__ import annotations

from typing import Final

from temporalio.api.failure.v1 import message_pb2 as failures

KEPT_BYTES: Final = 512 * 1024
"""What is kept of a failure that is larger than a blob may be (a real server's limit.blobSize.warn)."""


def server_failure(message: str) -> failures.Failure:
    """A failure of the server's own that no retry mends."""
    failure = failures.Failure(message=message)
    failure.server_failure_info.non_retryable = True
    return failure
