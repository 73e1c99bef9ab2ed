"""Search attributes in requests: which names may be set, and whether a value is of its type.

Temporal: common/searchattribute/validator.go (1.32). A payload gets the metadata `type` if the client left it out, so
    that
every reader of the event, of the visibility record and of the index decodes it without the registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.enums.v1 import common_pb2 as common_enums

from everfold.frontend.limits import FrontendLimits
from everfold.runtime.namespaces import Namespace
from everfold.runtime.requests import invalid
from everfold.visibility.tree import PREDEFINED, SYSTEM_FIELDS
from everfold.visibility.values import parse_rfc3339

_SHOWN: Final = {"Status": "Keyword", "Duration": "Int"}

SYSTEM: Final[dict[str, str]] = {name: _SHOWN.get(kind, kind) for name, kind in SYSTEM_FIELDS.items()}
"""What every run has: name -> type name."""

INTERNAL: Final = frozenset(
    {
        "TemporalWorkerDeployment",
        "TemporalWorkerDeploymentVersion",
        "TemporalWorkflowVersioningBehavior",
        "TemporalUsedWorkerDeploymentVersions",
    }
)
"""Predefined attributes that only the server may set."""

RESERVED: Final = frozenset({*SYSTEM, *PREDEFINED, "NamespaceId", "Memo", "MemoEncoding", "VisibilityTaskKey"})
"""Names that nobody may register."""

TYPE_NAMES: Final[dict[int, str]] = {
    common_enums.INDEXED_VALUE_TYPE_TEXT: "Text",
    common_enums.INDEXED_VALUE_TYPE_KEYWORD: "Keyword",
    common_enums.INDEXED_VALUE_TYPE_INT: "Int",
    common_enums.INDEXED_VALUE_TYPE_DOUBLE: "Double",
    common_enums.INDEXED_VALUE_TYPE_BOOL: "Bool",
    common_enums.INDEXED_VALUE_TYPE_DATETIME: "Datetime",
    common_enums.INDEXED_VALUE_TYPE_KEYWORD_LIST: "KeywordList",
}
TYPE_NUMBERS: Final = {name: number for number, name in TYPE_NAMES.items()}


def types_of(namespace: Namespace) -> dict[str, str]:
    """Every attribute that the namespace's runs may carry in their payloads: name -> type name."""
    return {**PREDEFINED, **namespace.search_attributes}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_double(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_datetime(value: Any) -> bool:
    return isinstance(value, str) and parse_rfc3339(value) is not None


_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "Text": lambda value: isinstance(value, str),
    "Keyword": lambda value: isinstance(value, str),
    "Int": _is_int,
    "Double": _is_double,
    "Bool": lambda value: isinstance(value, bool),
    "Datetime": _is_datetime,
    "KeywordList": lambda value: isinstance(value, str),
}


def _check_value(name: str, type_name: str, payload: common.Payload) -> None:
    data = payload.data
    if not data or data == b"null" or payload.metadata.get("encoding", b"json/plain") == b"binary/null":
        # Unsets the attribute.
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        shown: Any = "value from payload that is not JSON"
    else:
        # A list stands for its elements, of any type: older SDKs send single values in lists.
        elements = value if isinstance(value, list) else [value]
        if all(element is None or _FITS[type_name](element) for element in elements):
            return
        shown = value
    raise invalid(f"invalid value for search attribute {name} of type {type_name}: {str(shown)[:200]}")


def validate(attributes: common.SearchAttributes, namespace: Namespace, limits: FrontendLimits) -> bool:
    """Checks the search attributes of a start, and notes each one's type in its payload.

    Returns:
        Whether a payload was changed.

    Raises:
        StatusError: INVALID_ARGUMENT for an attribute that is not registered, may not be set, does not fit its type, or
            is too large.
    """
    fields = attributes.indexed_fields
    if not fields:
        return False
    if len(fields) > limits.search_attributes_max:
        raise invalid(f"number of search attributes {len(fields)} exceeds limit {limits.search_attributes_max}")
    changed = False
    for name, payload in fields.items():
        if name in SYSTEM or name in INTERNAL:
            raise invalid(f"{name} attribute can't be set in SearchAttributes")
        type_name = namespace.search_attributes.get(name) or PREDEFINED.get(name)
        if type_name is None:
            raise invalid(f"Namespace {namespace.name} has no mapping defined for search attribute {name}")
        _check_value(name, type_name, payload)
        if len(payload.data) > limits.search_attribute_bytes_max:
            raise invalid(
                f"search attribute {name} value size {len(payload.data)} exceeds size limit "
                f"{limits.search_attribute_bytes_max}"
            )
        if payload.metadata.get("type") != (wanted := type_name.encode()):
            payload.metadata["type"] = wanted
            changed = True
    if (size := attributes.ByteSize()) > limits.search_attributes_bytes_max:
        raise invalid(f"total size of search attributes {size} exceeds size limit {limits.search_attributes_bytes_max}")
    return changed
