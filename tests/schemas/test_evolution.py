"""FULL_TRANSITIVE: what may change in a schema, what may not, and that every released version is still compatible."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from everfold.schemas import evolution, registry

BASE: dict[str, Any] = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "count", "type": "int", "default": 0},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"], "default": "NEW"}},
        {"name": "strict", "type": {"type": "enum", "name": "Strict", "symbols": ["A", "B"]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "prices", "type": {"type": "map", "values": "long"}, "default": {}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 0},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 16}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {
            "name": "body",
            "type": [
                {"type": "record", "name": "Cash", "fields": [{"name": "sum", "type": "long"}]},
                {"type": "record", "name": "Card", "fields": [{"name": "parent", "type": ["null", "Order"]}]},
            ],
        },
    ],
}


def changed(name: str, **change: Any) -> dict[str, Any]:
    """BASE with one field changed."""
    schema = copy.deepcopy(BASE)
    field = next(field for field in schema["fields"] if field["name"] == name)
    field.update(change)
    return schema


def without(name: str) -> dict[str, Any]:
    return {**BASE, "fields": [field for field in BASE["fields"] if field["name"] != name]}


def having(**field: Any) -> dict[str, Any]:
    return {**BASE, "fields": [*BASE["fields"], field]}


BODY = BASE["fields"][-1]["type"]
CHEQUE = {"type": "record", "name": "Cheque", "fields": []}
STATES = ["NEW", "PAID", "SENT"]

ALLOWED = {
    "nothing": BASE,
    "a field with a default added": having(name="colour", type="string", default=""),
    "a field with a default removed": without("count"),
    "fields in another order": {**BASE, "fields": BASE["fields"][::-1]},
    "documentation": {**BASE, "doc": "An order."},
    "a default changed": changed("count", default=1),
    "a symbol added to an enum with a default": changed("state", type={**BASE["fields"][2]["type"], "symbols": STATES}),
    "a named type spelled with its full name": changed(
        "state", type={**BASE["fields"][2]["type"], "name": "shop.State"}
    ),
}
REFUSED = {
    "a field without a default removed": (without("id"), "id: was not written, and has no default"),
    "a field without a default added": (having(name="colour", type="string"), "colour: was not written"),
    "a type changed": (changed("id", type="long"), "string was written, long is expected"),
    "a type widened, which old readers cannot follow": (changed("count", type="long"), "long was written, int"),
    "a field made nullable": (changed("id", type=["null", "string"]), "branch null was written"),
    "a field no longer nullable": (changed("note", type="string", default=""), "branch null was written"),
    "an element's type changed": (changed("tags", type={"type": "array", "items": "int"}), "tags\\[\\]: string was"),
    "a map's type changed": (changed("prices", type={"type": "map", "values": "string"}), "prices\\[\\]"),
    "an array turned into a map": (changed("tags", type={"type": "map", "values": "string"}), "array was written"),
    "a logical type dropped": (changed("at", type="long"), "timestamp-micros"),
    "a fixed resized": (changed("hash", type={"type": "fixed", "name": "Hash", "size": 20}), "size 16 was written"),
    "a union reordered": (changed("body", type=BODY[::-1]), "changed their order"),
    "a branch added": (changed("body", type=[*BODY, CHEQUE]), "branch shop.Cheque was written"),
    "a branch removed": (changed("body", type=BODY[:1]), "branch shop.Card was written"),
    "a symbol added to an enum without a default": (
        changed("strict", type={"type": "enum", "name": "Strict", "symbols": ["A", "B", "C"]}),
        "no symbol C, and no default",
    ),
    "a symbol removed from an enum without a default": (
        changed("strict", type={"type": "enum", "name": "Strict", "symbols": ["A"]}),
        "no symbol B, and no default",
    ),
    "an enum's default removed while it grows": (
        changed("state", type={"type": "enum", "name": "State", "symbols": STATES[:1]}),
        "no symbol PAID, and no default",
    ),
    "a type renamed": ({**BASE, "name": "Purchase"}, "shop.Order was written, shop.Purchase is expected"),
    "a namespace changed": ({**BASE, "namespace": "store"}, "shop.Order was written"),
}


@pytest.mark.parametrize("change", ALLOWED)
def test_allowed(change: str) -> None:
    assert evolution.incompatible(ALLOWED[change], BASE) == []


@pytest.mark.parametrize("change", REFUSED)
def test_refused(change: str) -> None:
    schema, why = REFUSED[change]
    problems = evolution.incompatible(schema, BASE)
    with pytest.raises(AssertionError, match=why):
        assert not problems, "\n".join(problems)


def test_each_released_version_counts_and_not_only_the_last() -> None:
    text = having(name="colour", type="string", default="red")
    number = having(name="colour", type="long", default=0)
    versions = [("1.0", text), ("1.1", BASE)]
    assert evolution.check("Order", number, [versions[1]]) == []
    problems = evolution.check("Order", number, versions)
    assert problems
    assert all(problem.startswith("Order 1.0: ") for problem in problems)


@pytest.mark.parametrize("name", registry.RECORDS)
def test_the_current_schema_is_compatible_with_every_released_version(name: str) -> None:
    current = registry.current(name).raw
    assert evolution.check(name, current, [("itself", current), *evolution.released(name)]) == []


@pytest.mark.parametrize("name", registry.RECORDS)
def test_an_essential_field_of_a_real_schema_cannot_be_removed(name: str) -> None:
    current = registry.current(name).raw
    essential = next(field for field in current["fields"] if "default" not in field)
    cut = json.loads(json.dumps({**current, "fields": [f for f in current["fields"] if f is not essential]}))
    assert any(essential["name"] in problem for problem in evolution.check(name, cut, [("1.0", current)]))
