"""Names and numbers that callers choose, whatever request or command carries them: what is wrong with them, if
anything, in Temporal's words.

Temporal: common/tqid/task_queue_validator.go, common/primitives/task_queues.go, common/priorities/priority_util.go.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

RESERVED_QUEUE_PREFIX: Final = "/_sys/"
"""What Temporal puts before the names of a queue's further partitions."""

FAIRNESS_KEY_BYTES_MAX: Final = 64

_UUID: Final = re.compile(r"(urn:uuid:)?\{?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\}?")


class Priority(Protocol):
    """temporal.api.common.v1.Priority."""

    priority_key: int
    fairness_key: str
    fairness_weight: float


def too_long(text: str, limit: int) -> bool:
    """Whether a text is over the limit in UTF-8. A character has at most four bytes, so that most need no encoding."""
    return len(text) * 4 > limit and len(text.encode()) > limit


def is_run_id(text: str) -> bool:
    """Whether a text can be a run id."""
    return _UUID.fullmatch(text) is not None


def queue_error(name: str, normal_name: str, limit: int) -> str:
    """Why a task queue cannot be used, or nothing."""
    if not name:
        return "missing task queue name"
    if too_long(name, limit) or too_long(normal_name, limit):
        return "taskQueue length exceeds limit"
    if name.startswith(RESERVED_QUEUE_PREFIX):
        return f"task queue name cannot start with reserved prefix {RESERVED_QUEUE_PREFIX}"
    return ""


def priority_error(value: Priority) -> str:
    """Why a priority cannot be used, or nothing."""
    if value.priority_key < 0:
        return "priority key can't be negative"
    if too_long(value.fairness_key, FAIRNESS_KEY_BYTES_MAX):
        return "fairness key length exceeds limit"
    return "must be greater than zero" if value.fairness_weight < 0 else ""
