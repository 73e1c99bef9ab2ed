"""Protobuf durations in the machine: read through the kernel's door, filled in from each other, written."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from everfold.kernel.time import SECOND_NS, duration_error, duration_ns


class InvalidDuration(ValueError):
    """A duration that is negative or not well-formed."""


def to_ns(field: Duration) -> int:
    """Nanoseconds of a duration, unset meaning 0; a century at most. It may be negative."""
    return duration_ns(field.seconds, field.nanos)


def checked_ns(field: Duration) -> int:
    """Nanoseconds of a duration that must not be negative.

    Raises:
        InvalidDuration: negative, or seconds and nanos of different sign.
    """
    if error := duration_error(field.seconds, field.nanos):
        raise InvalidDuration(error)
    return to_ns(field)


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
