"""Search attributes in requests: which names may be set, and whether a value is of its type.

A payload gets the metadata `type` if the client left it out, so that every reader of the event,
of the visibility record and of the index decodes it without the registry.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.enums.v1 import common_pb2 as common_enums

from everfold.frontend.limits import FrontendLimits
from everfold.kernel.search_attributes import PREDEFINED, check_names, check_sizes, check_values, kind_of
from everfold.runtime.namespaces import Namespace

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


def validate(attributes: common.SearchAttributes, namespace: Namespace, limits: FrontendLimits) -> bool:
    """Checks the search attributes of a start, and notes the type in payloads that come without one.

    Returns:
        Whether a payload was changed.

    Raises:
        StatusError: INVALID_ARGUMENT for an attribute that is not registered, may not be set, does not fit its type, or
            is too large.
    """
    fields, known = attributes.indexed_fields, namespace.search_attributes
    check_names(fields, namespace.name, known)
    check_values(fields, known, limits.search_attributes_max)
    changed = False
    for name, payload in fields.items():
        if "type" not in payload.metadata:
            payload.metadata["type"] = (kind_of(name, known) or "").encode()
            changed = True
    check_sizes(fields, attributes.ByteSize(), limits.search_attribute_bytes_max, limits.search_attributes_bytes_max)
    return changed
