"""Units of time, and the door for times from outside. Instants are UTC nanoseconds since the epoch (`…_at_ns`),
durations nanoseconds too (`…_ns`); 0 means none.

There is one rule against overflow: a duration from outside is cut to a century as soon as it is read. What is made of
durations, an instant of this century and one or two of them, then fits in 64 bits everywhere: in keys, in rows, in Avro
and in the index. An instant from outside (of a search attribute, of a query) is only ever compared: see `comparable`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

MICROSECOND_NS: Final = 1_000
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * SECOND_NS
HOUR_NS: Final = 60 * MINUTE_NS
DAY_NS: Final = 24 * HOUR_NS

DURATION_NS_MAX: Final = 100 * 365 * DAY_NS
"""A hundred years: what a real server, too, cuts longer durations to (common/primitives/timestamp/duration.go)."""

_INT64: Final = 1 << 63

_RFC3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})T((?:[01]\d|2[0-3]):\d{2}:\d{2})(?:\.(\d{1,9})\d*)?(Z|[+-]\d{2}:\d{2})", re.ASCII
)


def duration_ns(seconds: int, nanos: int) -> int:
    """A protobuf Duration in nanoseconds, whatever its two numbers are; cut to DURATION_NS_MAX, on either side of 0."""
    return max(-DURATION_NS_MAX, min(seconds * SECOND_NS + nanos, DURATION_NS_MAX))


def duration_error(seconds: int, nanos: int) -> str:
    """Why a protobuf Duration cannot be a timeout or an interval, in Temporal's words; nothing if it can."""
    if (seconds > 0 and nanos < 0) or (seconds < 0 and nanos > 0):
        return "duration has seconds and nanos with different signs"
    return "negative duration" if seconds < 0 or nanos < 0 else ""


def comparable(ns: int) -> int | float:
    """An instant or a length of time as a database can compare it: a 64-bit integer, or the nearest double beyond that
    (before 1677, after 2262). A double of the year 9999 is 33 microseconds from the next.
    """
    return ns if -_INT64 <= ns < _INT64 else float(ns)


def parse_rfc3339(text: str) -> int | None:
    """An RFC 3339 instant as nanoseconds since the epoch, or None when it is not one. Keeps all nine digits."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        return None
    day, time, fraction, zone = match.groups()
    try:
        instant = datetime.fromisoformat(f"{day}T{time}{'+00:00' if zone == 'Z' else zone}")
    except ValueError:
        return None
    delta = instant - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))
