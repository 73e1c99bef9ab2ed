"""A failure as plain data: what is compared of it, from the outermost to the cause."""

from __future__ import annotations

from typing import Any

from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    TimeoutError,
)


def described(error: BaseException | None) -> list[dict[str, Any]]:
    """The chain of a failure."""
    chain: list[dict[str, Any]] = []
    while error is not None:
        link: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
        if isinstance(error, FailureError):
            link["message"] = error.message
        if isinstance(error, ActivityError | ChildWorkflowError):
            link["retry_state"] = error.retry_state.name if error.retry_state is not None else None
            link["type"] = error.activity_type if isinstance(error, ActivityError) else error.workflow_type
        if isinstance(error, ApplicationError):
            link |= {"type": error.type, "non_retryable": error.non_retryable, "details": list(error.details)}
        if isinstance(error, TimeoutError):
            link["type"] = error.type.name if error.type is not None else None
        chain.append(link)
        error = error.__cause__
    return chain
