"""The door for text that does not come out of protobuf, whose parsers take well-formed UTF-8 only."""

from __future__ import annotations

from typing import Any


def well_formed(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair that stands alone, as Go reads them in JSON.

    Python keeps such halves, and then can neither write the text to a database nor send it.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text


def well_formed_json(value: Any) -> Any:
    """The same for every text in a value read from JSON. The caller bounds its depth."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [well_formed_json(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): well_formed_json(item) for key, item in value.items()}
    return value
