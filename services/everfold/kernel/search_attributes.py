"""Search attributes, whatever sets them: which names there are, whether a value is of its type, how large they may be.

Temporal: common/searchattribute/validator.go, sadefs/encode_value.go (1.32), as it is over an SQL database: a list of
several values is for KeywordList only (common/persistence/visibility/defs.go, AllowListForValidation), because no other
index can hold one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

from everfold.kernel import gotext
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.text import well_formed_json
from everfold.kernel.time import parse_rfc3339

Kind = Literal["Keyword", "KeywordList", "Text", "Int", "Double", "Bool", "Datetime"]

SYSTEM: Final[Mapping[str, Kind]] = {
    "WorkflowId": "Keyword",
    "RunId": "Keyword",
    "WorkflowType": "Keyword",
    "TaskQueue": "Keyword",
    "ExecutionStatus": "Keyword",
    "StartTime": "Datetime",
    "ExecutionTime": "Datetime",
    "CloseTime": "Datetime",
    "HistoryLength": "Int",
    "HistorySizeBytes": "Int",
    "ExecutionDuration": "Int",
    "StateTransitionCount": "Int",
    "ParentWorkflowId": "Keyword",
    "ParentRunId": "Keyword",
    "RootWorkflowId": "Keyword",
    "RootRunId": "Keyword",
}
"""What every run has, and only the engine sets."""

DIVISION: Final = "TemporalNamespaceDivision"
"""Runs that have it (schedules, batches) are hidden, unless the query names it."""

INTERNAL: Final[Mapping[str, Kind]] = {
    "TemporalUsedWorkerDeploymentVersions": "KeywordList",
    "TemporalWorkerDeployment": "Keyword",
    "TemporalWorkerDeploymentVersion": "Keyword",
    "TemporalWorkflowVersioningBehavior": "Keyword",
}
"""Predefined attributes that only the server may set."""

PREDEFINED: Final[Mapping[str, Kind]] = {
    "BatcherNamespace": "Keyword",
    "BatcherUser": "Keyword",
    "BinaryChecksums": "KeywordList",
    "BuildIds": "KeywordList",
    "TemporalChangeVersion": "KeywordList",
    DIVISION: "Keyword",
    "TemporalPauseInfo": "KeywordList",
    "TemporalReportedProblems": "KeywordList",
    "TemporalScheduledById": "Keyword",
    "TemporalSchedulePaused": "Bool",
    "TemporalScheduledStartTime": "Datetime",
    **INTERNAL,
}
"""Attributes that exist without being registered."""

_RESERVED: Final = frozenset({*SYSTEM, *PREDEFINED, "NamespaceId", "Memo", "MemoEncoding", "VisibilityTaskKey"})
_RESERVED_PREFIX: Final = "Temporal"
"""Attributes that come with later versions begin so."""

_DEPTH_MAX: Final = 32
"""A value is a scalar or a list; what is nested deeper is not decoded, as how deep one can depends on the process."""

_SHOWN_MAX: Final = 1_000
"""Characters of a wrong value in a refusal, which a gRPC trailer has to hold."""

_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


class Payload(Protocol):
    """temporal.api.common.v1.Payload."""

    @property
    def metadata(self) -> Mapping[str, bytes]:
        """The encoding, and the type."""
        ...

    @property
    def data(self) -> bytes:
        """The value."""
        ...


def kind_of(name: str, custom: Mapping[str, str]) -> str | None:
    """The type of an attribute that a caller may name; `custom` are the namespace's own."""
    return custom.get(name) or PREDEFINED.get(name)


def is_reserved(name: str) -> bool:
    """Whether a namespace cannot have an attribute of its own by that name."""
    return name in _RESERVED or name.startswith(_RESERVED_PREFIX)


def check_names(fields: Mapping[str, Payload], namespace: str, custom: Mapping[str, str]) -> None:
    """Refuses names that the namespace does not know.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    for name in sorted(fields):
        if name not in SYSTEM and kind_of(name, custom) is None:
            raise _invalid(f"Namespace {namespace} has no mapping defined for search attribute {name}")


def check_values(fields: Mapping[str, Payload], custom: Mapping[str, str], count_max: int) -> None:
    """Refuses too many attributes, such as only the engine sets, and values of another type.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    if len(fields) > count_max:
        raise _invalid(f"number of search attributes {len(fields)} exceeds limit {count_max}")
    for name in sorted(fields):
        kind = kind_of(name, custom)
        if kind is None or (name in INTERNAL and name not in custom):
            raise _invalid(f"{name} attribute can't be set in SearchAttributes")
        if wrong := _wrong_value(kind, fields[name]):
            raise _invalid(f"invalid value for search attribute {name} of type {kind}: {wrong[:_SHOWN_MAX]}")


def unsets(payload: Payload) -> bool:
    """Whether a value is no value: null, or an empty list. A start drops it, an upsert removes the attribute."""
    null = payload.metadata.get("encoding", b"") == b"binary/null"
    return null or payload.data.strip() in (b"", b"null", b"[]")


def check_sizes(fields: Mapping[str, Payload], total: int, value_max: int, total_max: int) -> None:
    """Refuses values that are too large, each or all together.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    for name in sorted(fields):
        if (size := len(fields[name].data)) > value_max:
            raise _invalid(f"search attribute {name} value size {size} exceeds size limit {value_max}")
    if total > total_max:
        raise _invalid(f"total size of search attributes {total} exceeds size limit {total_max}")


def _invalid(text: str) -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, text)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


_FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "Text": _is_string,
    "Keyword": _is_string,
    "Int": _is_int,
    "Double": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "Bool": lambda value: isinstance(value, bool),
    "Datetime": lambda value: isinstance(value, str) and parse_rfc3339(value) is not None,
    "KeywordList": lambda value: isinstance(value, list) and all(item is None or _is_string(item) for item in value),
}


class Undecodable(ValueError):
    """No converter can read the payload."""


def _wrong_value(kind: str, payload: Payload) -> str:
    """The value as Temporal's text shows it if it is not of that type, nor a list of one such; null unsets."""
    try:
        value = decode(payload)
    except Undecodable:
        return f"value from <{_shown_payload(payload)}>"
    fits = _FITS[kind]
    if value is None or fits(value):
        return ""
    if isinstance(value, list) and (not value or (len(value) == 1 and (value[0] is None or fits(value[0])))):
        return ""
    return gotext.shown(value)


def decode(payload: Payload) -> Any:
    """The value of a payload: what JSON has, or bytes. Its texts are well-formed, its numbers finite, it is shallow.

    Raises:
        Undecodable: it is in no encoding that is known here, or cannot be read within those bounds.
    """
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null":
        return None
    if encoding == b"binary/plain":
        return payload.data
    if encoding != b"json/plain":
        raise Undecodable
    text = payload.data.decode(errors="replace")
    if _too_deep(text):
        raise Undecodable
    try:
        value = json.loads(text, parse_constant=_not_a_number, parse_float=_finite, parse_int=_integer)
    except ValueError:
        raise Undecodable from None
    return well_formed_json(value)


def _too_deep(text: str) -> bool:
    depth = 0
    for char in _JSON_STRING.sub("", text):
        depth += (char in "[{") - (char in "]}")
        if depth > _DEPTH_MAX:
            return True
    return False


def _not_a_number(_: str) -> float:
    raise Undecodable


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Undecodable
    return value


def _integer(text: str) -> int:
    """An integer; like Go, none that a double cannot come near to (which also bounds the work)."""
    _finite(text)
    return int(text)


def _shown_payload(payload: Payload) -> str:
    entries = [
        ("metadata", f"{{{gotext.message([('key', gotext.quoted(key)), ('value', gotext.quoted(value))])}}}")
        for key, value in sorted(payload.metadata.items())
    ]
    return gotext.message([*entries, ("data", gotext.quoted(payload.data))] if payload.data else entries)
