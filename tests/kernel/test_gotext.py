"""Go's way to print values, as error texts of a real server show it."""

from __future__ import annotations

from typing import Any

import pytest

from everfold.kernel import gotext


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "<nil>"),
        (True, "true"),
        ("a b", "a b"),
        (7, "7"),
        (1.0, "1"),
        (1.5, "1.5"),
        (-0.0001, "-0.0001"),
        (0.00001, "1e-05"),
        (100_000, "100000"),
        (1_000_000, "1e+06"),
        (1_234_567.5, "1.2345675e+06"),
        (1 << 63, "9.223372036854776e+18"),
        (1e300, "1e+300"),
        (["a", None, [1]], "[a <nil> [1]]"),
        ({"b": 1, "a": "x"}, "map[a:x b:1]"),
        (b'"x"', "[34 120 34]"),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert gotext.shown(value) == text


def test_messages() -> None:
    assert gotext.quoted('a "b"\\\n') == '"a \\"b\\"\\\\\\n"'
    assert gotext.quoted(b"\x00\xff\xc3\xa4") == '"\\x00\\xffä"'
    assert gotext.message([("name", '"q"'), ("kind", "NORMAL")]) == 'name:"q"  kind:NORMAL'
