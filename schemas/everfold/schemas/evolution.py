"""FULL_TRANSITIVE: a schema may change only so that it and every released version can read each other.

The check walks a reader's and a writer's schema side by side by Avro's schema-resolution rules, and is a little
stricter: names do not change (no aliases), the branches of a union keep their order, and a logical type stays what it
is. So:

    allowed    a field with a default added, or one with a default removed; documentation; a symbol added to or
               removed from an enum that has a default
    refused    a field without a default added or removed; a type changed, int to long included (old readers); a branch
               added to, removed from or moved in a union; a symbol of an enum without a default; a renamed type

"Removed" and "added" come in pairs because each is the other seen from the other side. What cannot be expressed gets a
new field with a default, or goes into one of the branches kept for it (Request, OtherCommand, OtherAttributes).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from everfold.schemas import registry
from everfold.schemas.compiler import PRIMITIVES, full_name

_PROMOTED: Final = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}
"""Written type -> other types that can read it."""


class _Names:
    """One schema with the types that it names."""

    def __init__(self, schema: Any) -> None:
        self.types: dict[str, tuple[Mapping[str, Any], str]] = {}
        self._collect(schema, "")

    def _collect(self, schema: Any, namespace: str) -> None:
        if isinstance(schema, list):
            for branch in schema:
                self._collect(branch, namespace)
        elif isinstance(schema, dict):
            kind = schema["type"]
            if kind in ("record", "enum", "fixed"):
                name = full_name(schema, namespace)
                inside = name.rpartition(".")[0]
                self.types[name] = (schema, inside)
                for field in schema.get("fields", ()):
                    self._collect(field["type"], inside)
            else:
                self._collect(schema.get("items", schema.get("values", kind)), namespace)

    def at(self, schema: Any, namespace: str) -> tuple[str, str, Any, str]:
        """(kind, full name or logical type, definition, namespace inside it)."""
        if isinstance(schema, list):
            return "union", "", schema, namespace
        if isinstance(schema, str):
            if schema in PRIMITIVES:
                return schema, "", schema, namespace
            name = schema if "." in schema or not namespace else f"{namespace}.{schema}"
            definition, inside = self.types[name]
            return definition["type"], name, definition, inside
        kind = schema["type"]
        if kind in ("record", "enum", "fixed"):
            name = full_name(schema, namespace)
            return kind, name, schema, name.rpartition(".")[0]
        if kind in ("array", "map"):
            return kind, "", schema, namespace
        if isinstance(kind, str) and kind in PRIMITIVES:
            return kind, schema.get("logicalType", ""), schema, namespace
        return self.at(kind, namespace)


class _Walk:
    def __init__(self, reader: Any, writer: Any) -> None:
        self.reader = _Names(reader)
        self.writer = _Names(writer)
        self.seen: set[tuple[str, str]] = set()

    def walk(self, reader: Any, writer: Any, path: str, spaces: tuple[str, str]) -> list[str]:
        """What keeps `reader` from reading what `writer` wrote. `spaces` are the namespaces that enclose them."""
        read_kind, read_name, read, read_space = self.reader.at(reader, spaces[0])
        write_kind, write_name, write, write_space = self.writer.at(writer, spaces[1])
        inside = (read_space, write_space)
        if read_kind == "union" or write_kind == "union":
            return self.union(read, write, path, inside)
        if read_kind != write_kind:
            if read_kind in _PROMOTED.get(write_kind, ()):
                return []
            return [f"{path}: {write_kind} was written, {read_kind} is expected"]
        if read_name != write_name:
            return [f"{path}: {write_name or write_kind} was written, {read_name or read_kind} is expected"]
        if read_kind == "record":
            return self.record(read, write, path, inside)
        if read_kind == "enum":
            unknown = [symbol for symbol in write["symbols"] if symbol not in read["symbols"]]
            return [f"{path}: no symbol {s}, and no default" for s in unknown] if "default" not in read else []
        if read_kind == "fixed":
            return (
                []
                if read["size"] == write["size"]
                else [f"{path}: size {write['size']} was written, not {read['size']}"]
            )
        if read_kind in ("array", "map"):
            part = "items" if read_kind == "array" else "values"
            return self.walk(read[part], write[part], f"{path}[]", inside)
        return []

    def record(
        self, read: Mapping[str, Any], write: Mapping[str, Any], path: str, inside: tuple[str, str]
    ) -> list[str]:
        pair = (f"{inside[0]}.{read['name']}", f"{inside[1]}.{write['name']}")
        if pair in self.seen:
            return []
        self.seen.add(pair)
        written = {field["name"]: field for field in write["fields"]}
        found: list[str] = []
        for field in read["fields"]:
            name = field["name"]
            if name in written:
                found += self.walk(field["type"], written[name]["type"], f"{path}.{name}", inside)
            elif "default" not in field:
                found.append(f"{path}.{name}: was not written, and has no default")
        return found

    def union(self, read: Any, write: Any, path: str, inside: tuple[str, str]) -> list[str]:
        readers = read if isinstance(read, list) else [read]
        writers = write if isinstance(write, list) else [write]
        keys = [self.key(self.reader, branch, inside[0]) for branch in readers]
        found: list[str] = []
        places: list[int] = []
        for branch in writers:
            key = self.key(self.writer, branch, inside[1])
            if key not in keys:
                found.append(f"{path}: branch {key} was written, and is not expected")
                continue
            places.append(keys.index(key))
            found += self.walk(readers[places[-1]], branch, f"{path}<{key}>", inside)
        if places != sorted(places):
            found.append(f"{path}: the branches have changed their order")
        return found

    @staticmethod
    def key(names: _Names, branch: Any, namespace: str) -> str:
        kind, name, _, _ = names.at(branch, namespace)
        return name if kind in ("record", "enum", "fixed") else kind


def unreadable(reader: Any, writer: Any) -> list[str]:
    """What keeps a reader's schema from reading what a writer's schema wrote; empty if nothing does."""
    return _Walk(reader, writer).walk(reader, writer, "", ("", ""))


def incompatible(new: Any, old: Any) -> list[str]:
    """What keeps two versions of a schema from reading each other; empty if nothing does."""
    forward = [f"new data, old reader: {problem}" for problem in unreadable(old, new)]
    backward = [f"old data, new reader: {problem}" for problem in unreadable(new, old)]
    return backward + forward


def check(name: str, new: Any, versions: Iterable[tuple[str, Any]]) -> list[str]:
    """What keeps a record's schema from being compatible with each of its released (version, schema) pairs."""
    return [f"{name} {version}: {problem}" for version, old in versions for problem in incompatible(new, old)]


def released(name: str) -> list[tuple[str, Any]]:
    """A record's released (version, schema) pairs, oldest first."""
    versions = [version for version, records in registry.lock()["released"].items() if name in records]
    return [(version, json.loads(registry.avsc_text(name, version))) for version in versions]
