"""The shape of JSON: which keys there are and what kind of value each has, whatever the values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def shape(value: object, path: str = "") -> set[str]:
    """`path: kind` of everything in a JSON value; the items of an array share one path."""
    return set(_shape(value, path))


def _shape(value: object, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield f"{path}: object"
        for key, item in value.items():
            yield from _shape(item, f"{path}.{key}")
    elif isinstance(value, list):
        yield f"{path}: array"
        for item in value:
            yield from _shape(item, f"{path}[]")
    elif isinstance(value, bool):
        yield f"{path}: bool"
    elif isinstance(value, int | float):
        yield f"{path}: number"
    else:
        yield f"{path}: {'null' if value is None else 'string'}"


def without(lines: set[str], patterns: Iterable[str]) -> set[str]:
    """A shape less the paths that match a pattern at their beginning."""
    ignored = [re.compile(pattern) for pattern in patterns]
    return {line for line in lines if not any(pattern.match(line) for pattern in ignored)}
