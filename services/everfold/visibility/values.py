"""What a field takes for a value: literals become plain numbers and strings, or are refused in Temporal's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NoReturn

from temporalio.api.enums.v1.workflow_pb2 import WorkflowExecutionStatus

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import comparable, parse_rfc3339
from everfold.visibility.tree import STATUS_NAMES, STATUSES, Field, FieldType, Value


def refuse(text: str) -> NoReturn:
    """Refuses the query."""
    raise StatusError(Code.INVALID_ARGUMENT, f"invalid query: {text}")


def unsupported(text: str) -> NoReturn:
    """Refuses something that the language has elsewhere."""
    refuse(f"operation is not supported: {text}")


def invalid(text: str) -> NoReturn:
    """Refuses a condition."""
    refuse(f"invalid expression: {text}")


def shown_type(field: Field) -> str:
    """The type's name as the caller knows it."""
    return {"Status": "Keyword", "Duration": "Int", "Schedule": "Keyword"}.get(field.type, field.type)


def _type_refused(field: Field, value: Value) -> NoReturn:
    if isinstance(value, bool):
        shown, name = str(value).lower(), "bool"
    elif isinstance(value, str):
        shown, name = f'"{value}"', "string"
    else:
        shown, name = str(value), "int64" if isinstance(value, int) else "float64"
    invalid(f"invalid value type for search attribute {field.name} of type {shown_type(field)}: {shown} (type: {name})")


_INT64: Final = 1 << 63

_API_STATUSES: Final = dict(WorkflowExecutionStatus.items())
"""WORKFLOW_EXECUTION_STATUS_TIMED_OUT and so on."""


def _text(field: Field, value: Value) -> Value:
    return value if isinstance(value, str) else _type_refused(field, value)


def _int(field: Field, value: Value) -> Value:
    if isinstance(value, (bool, str)):
        _type_refused(field, value)
    if not -_INT64 <= value < _INT64:
        invalid(f"value of search attribute {field.name} is out of range: {value}")
    return value


def _double(field: Field, value: Value) -> Value:
    return _type_refused(field, value) if isinstance(value, (bool, str)) else float(value)


def _bool(field: Field, value: Value) -> Value:
    return value if isinstance(value, bool) else _type_refused(field, value)


def _status(field: Field, value: Value) -> Value:
    """A status by its number, by its name ("TimedOut"), or as the API spells it."""
    if isinstance(value, str):
        number = STATUSES.get(value, _API_STATUSES.get(value))
        return number if number is not None else invalid(f"invalid {field.name} value '{value}'")
    if isinstance(value, (bool, float)):
        _type_refused(field, value)
    return value if value in STATUS_NAMES else invalid(f"invalid {field.name} value {value}")


def _datetime(field: Field, value: Value) -> Value:
    if not isinstance(value, str):
        return _int(field, value)
    instant = parse_rfc3339(value)
    return comparable(instant) if instant is not None else invalid(f"unable to parse datetime '{value}'")


def _duration(field: Field, value: Value) -> Value:
    if not isinstance(value, str):
        return _int(field, value)
    duration = parse_duration(value)
    if duration is None:
        invalid(f"invalid duration value for search attribute {field.name}: {value}")
    return comparable(duration)


_SCHEDULE_PREFIX: Final = "temporal-sys-scheduler:"


def _schedule(field: Field, value: Value) -> Value:
    return f"{_SCHEDULE_PREFIX}{value}" if isinstance(value, str) else _type_refused(field, value)


_CONVERTERS: Final[dict[FieldType, Callable[[Field, Value], Value]]] = {
    "Keyword": _text,
    "KeywordList": _text,
    "Text": _text,
    "Int": _int,
    "Double": _double,
    "Bool": _bool,
    "Datetime": _datetime,
    "Status": _status,
    "Schedule": _schedule,
    "Duration": _duration,
}


def convert(field: Field, value: Value) -> Value:
    """The literal as a value of the field's type. Raises StatusError when it is none."""
    return _CONVERTERS[field.type](field, value)


_UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_DURATION_PART: Final = re.compile(r"(\d+)(?:\.(\d{0,18}))?(ns|us|µs|ms|s|m|h|d)", re.ASCII)
_CLOCK: Final = re.compile(r"(\d{1,6}):(\d{2}):(\d{2})", re.ASCII)


def parse_duration(text: str) -> int | None:
    """Nanoseconds of a duration: Go's form ("1h30m", "250ms", also days), "HH:MM:SS", or a count of nanoseconds."""
    if len(text) > 64:
        return None
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (int(part) for part in clock.groups())
        return (hours * 3600 + minutes * 60 + seconds) * 1_000_000_000 if minutes < 60 and seconds < 60 else None
    negative, body = (text[0] == "-", text[1:]) if text[:1] in ("-", "+") else (False, text)
    if not body:
        return None
    total = 0
    if body.isascii() and body.isdigit():
        total = int(body)
    else:
        at = 0
        while at < len(body):
            part = _DURATION_PART.match(body, at)
            if part is None:
                return None
            whole, fraction, unit = part.groups()
            total += int(whole) * _UNITS_NS[unit]
            if fraction:
                total += int(fraction) * _UNITS_NS[unit] // 10 ** len(fraction)
            at = part.end()
    return -total if negative else total
