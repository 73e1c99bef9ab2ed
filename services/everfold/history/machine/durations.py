"""Protobuf durations as nanoseconds, with Temporal's validation and cap (common/primitives/timestamp/duration.go)."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from everfold.kernel.time import DAY_NS, SECOND_NS

DURATION_MAX_NS: Final = 100 * 365 * DAY_NS
"""A hundred years: longer ones are cut to it, so that an instant plus a duration always fits in 63 bits."""


class InvalidDuration(ValueError):
    """A duration that is negative or not well-formed."""


def to_ns(field: Duration) -> int:
    """Nanoseconds of a duration, unset meaning 0."""
    return field.seconds * SECOND_NS + field.nanos


def checked_ns(field: Duration) -> int:
    """Nanoseconds of a duration that must not be negative, capped.

    Raises:
        InvalidDuration: negative, or seconds and nanos of different sign.
    """
    if field.seconds < 0 or field.nanos < 0:
        raise InvalidDuration("negative duration")
    if field.nanos > 999_999_999:
        raise InvalidDuration("nanos out of range")
    return min(to_ns(field), DURATION_MAX_NS)


def fill_timeouts(execution_ns: int, run_ns: int, task_ns: int, default_ns: int, maximum_ns: int) -> tuple[int, int]:
    """(run timeout, workflow-task timeout) as they apply: none longer than what is around it.

    Args:
        execution_ns: timeout of the chain of runs, 0 for none.
        run_ns: timeout of one run, 0 for the chain's.
        task_ns: timeout of a workflow task, 0 for the default.
        default_ns: of a workflow task.
        maximum_ns: of a workflow task.
    """
    if execution_ns and (not run_ns or run_ns > execution_ns):
        run_ns = execution_ns
    task_ns = min(task_ns or default_ns, maximum_ns)
    return run_ns, min(task_ns, run_ns) if run_ns else task_ns


def set_duration(field: Duration, value_ns: int) -> None:
    """Sets a Duration; sets it also when zero, because SDKs read an absent one as null (TypeScript breaks on it)."""
    field.seconds, field.nanos = divmod(value_ns, SECOND_NS)
    field.SetInParent()
