"""Values as Go prints them: Temporal's error texts hold some, and callers read them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

_EXPONENT_MIN: Final = -4
_EXPONENT_MAX: Final = 5
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(value: Any) -> str:
    """A value read from JSON, or bytes, as `%v` prints it: JSON's numbers are all floats there."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return _float(float(value))
    if isinstance(value, (bytes, list)):
        items = (str(item) for item in value) if isinstance(value, bytes) else (shown(item) for item in value)
        return f"[{' '.join(items)}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{shown(value[key])}' for key in sorted(value))}]"
    return str(value)


def _float(value: float) -> str:
    """Shortest digits that mean the value, with an exponent from 1e+06 on (strconv's %g)."""
    number = Decimal(repr(value)).normalize()
    exponent = number.adjusted()
    if number and not _EXPONENT_MIN <= exponent <= _EXPONENT_MAX:
        digits = "".join(map(str, number.as_tuple().digits))
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{'-' if number < 0 else ''}{mantissa}e{exponent:+03d}"
    return f"{number:f}"


def quoted(text: str | bytes) -> str:
    """A string or bytes as prototext writes it."""
    data = text.decode(errors="surrogateescape") if isinstance(text, bytes) else text
    return '"' + "".join(_ESCAPES.get(char) or _character(char) for char in data) + '"'


def _character(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\x{ord(char):02x}" if ord(char) < 0x20 or ord(char) == 0x7F else char


def message(fields: Iterable[tuple[str, str]]) -> str:
    """A protobuf message as its String() gives it: two spaces between fields, which Go chooses once per binary."""
    return "  ".join(f"{name}:{value}" for name, value in fields)


def camel(symbol: str) -> str:
    """A protobuf enum's symbol as Go's String() has it: TIMED_OUT as TimedOut."""
    return "".join(word.capitalize() for word in symbol.split("_"))
