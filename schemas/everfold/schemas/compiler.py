"""From an Avro schema to Python functions that write and read it.

fastavro interprets a schema for each value. The engine encodes and decodes several records per request on the one
thread that does everything, so here the schema is turned into straight-line Python once, as `dataclasses` does for
classes: a shard record is written in about a third of fastavro's time and read in half (docs/decisions/0002). The bytes
are those that fastavro writes, which a property test holds for every schema.

What the functions take and give:

    record  -> dict; on writing, fields that have a default may be left out
    union   -> the value; of several records, `(branch name, dict)`, the name with or without its Avro namespace
    enum    -> the symbol
    bytes, string, int, long, float, double, boolean, array, map -> as one expects

Logical types are not interpreted: a timestamp is its number. Readers refuse what is truncated, negative where it cannot
be, beyond its symbols or branches, or nested deeper than `DEPTH_MAX`; they raise ValueError, IndexError,
UnicodeDecodeError or struct.error, and never trust a length to allocate anything.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from everfold.schemas import varint

DEPTH_MAX: Final = 128
"""Records inside records, on both sides. Protobuf parsers stop at 100, so everything that has been a protobuf fits."""

Schema = Any
Writer = Callable[[Mapping[str, Any]], bytes]
Reader = Callable[[bytes, int], tuple[dict[str, Any], int]]

PRIMITIVES: Final = frozenset(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])


def full_name(schema: Mapping[str, Any], namespace: str) -> str:
    """The full name of a named type that is defined inside `namespace`."""
    name: str = schema["name"]
    if "." in name:
        return name
    inside = schema.get("namespace", namespace)
    return f"{inside}.{name}" if inside else name


def resolved(schema: Schema, namespace: str = "", names: dict[str, Any] | None = None) -> tuple[Schema, dict[str, Any]]:
    """The schema with full names everywhere and named types replaced by their names, and those types by name."""
    names = {} if names is None else names
    if isinstance(schema, str):
        if schema in PRIMITIVES:
            return schema, names
        return (schema if "." in schema or not namespace else f"{namespace}.{schema}"), names
    if isinstance(schema, list):
        return [resolved(branch, namespace, names)[0] for branch in schema], names
    kind = schema["type"]
    if kind == "array":
        return {"type": "array", "items": resolved(schema["items"], namespace, names)[0]}, names
    if kind == "map":
        return {"type": "map", "values": resolved(schema["values"], namespace, names)[0]}, names
    if kind in ("record", "enum", "fixed"):
        name = full_name(schema, namespace)
        inside = name.rpartition(".")[0]
        entry = {**schema, "name": name}
        names[name] = entry
        if kind == "record":
            entry["fields"] = [{**f, "type": resolved(f["type"], inside, names)[0]} for f in schema["fields"]]
        return name, names
    return resolved(kind, namespace, names)  # a primitive in an object, perhaps with a logical type


def default_value(schema: Schema, value: Any, names: Mapping[str, Any]) -> Any:
    """A field's default as the functions here would read it: JSON has no bytes, and a union's default is of its first
    branch.
    """
    if isinstance(schema, list):
        return default_value(schema[0], value, names)
    if schema == "bytes":
        return value.encode("latin-1")
    if isinstance(schema, str) and schema in names:
        entry = names[schema]
        if entry["type"] == "record":
            return {
                f["name"]: default_value(f["type"], value[f["name"]] if f["name"] in value else f["default"], names)
                for f in entry["fields"]
            }
    if isinstance(schema, dict) and schema["type"] == "array":
        return [default_value(schema["items"], item, names) for item in value]
    if isinstance(schema, dict) and schema["type"] == "map":
        return {key: default_value(schema["values"], item, names) for key, item in value.items()}
    return value


class _Source:
    """Python source under construction: functions, and the constants that they use."""

    def __init__(self, names: Mapping[str, Any], constants: dict[str, Any]) -> None:
        self.names = names
        self.constants = constants
        self.functions: list[str] = []
        self.made: dict[str, str] = {}
        self._count = 0

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def constant(self, value: Any) -> str:
        if value is None or value in ("", b"") or (isinstance(value, (int, bytes)) and not isinstance(value, bool)):
            return repr(value)
        name = self.fresh("K")
        self.constants[name] = value
        return name

    def named(self, schema: Schema) -> Any:
        return self.names.get(schema) if isinstance(schema, str) else None

    def recursive(self, name: str) -> bool:
        """Whether values of a named type can hold others of the same type."""
        seen: set[str] = set()
        todo = [self.names[name]]
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                if item == name:
                    return True
                if item in self.names and item not in seen:
                    seen.add(item)
                    todo.append(self.names[item])
            elif isinstance(item, list):
                todo += item
            elif item["type"] == "record":
                todo += [f["type"] for f in item["fields"]]
            else:
                todo += [item[k] for k in ("items", "values") if k in item]
        return False

    def build(self, root: str) -> Any:
        exec(compile("\n".join(self.functions), "<avro>", "exec"), self.constants)  # our own schema files, compiled
        return self.constants[root]


class _WriterSource(_Source):
    """A value becomes an expression of type bytes; what has to be computed first becomes statements."""

    def __init__(
        self, names: Mapping[str, Any], constants: dict[str, Any], branch_of: Callable[[Mapping[str, Any]], str] | None
    ) -> None:
        super().__init__(names, constants)
        self.branch_of = branch_of

    def function(self, schema: Schema) -> str:
        """The name of a function `f(value) -> bytes` for a schema."""
        key = repr(schema)
        if key not in self.made:
            name = self.made[key] = self.fresh("write")
            lines: list[str] = []
            parts = self.parts(schema, "v", lines)
            body = "".join(f"    {line}\n" for line in lines)
            result = parts[0] if len(parts) == 1 else f"join(({', '.join(parts)},))" if parts else "b''"
            self.functions.append(f"def {name}(v):\n{body}    return {result}\n")
        return self.made[key]

    def parts(self, schema: Schema, value: str, lines: list[str]) -> list[str]:
        """Expressions whose concatenation is the value's encoding. `value` is a name, evaluated as often as one
        likes.
        """
        if schema == "null":
            return []
        if schema == "boolean":
            return [f"(b'\\1' if {value} else b'\\0')"]
        if schema in ("int", "long"):
            return [
                f"(T[{value}] if 0 <= {value} < {varint.SMALL} else {'int32' if schema == 'int' else 'long'}({value}))"
            ]
        if schema in ("float", "double"):
            return [f"pack_{schema}({value})"]
        if schema in ("bytes", "string"):
            data, size = self.fresh("d"), self.fresh("n")
            lines.append(f"{data} = {value}" + (".encode()" if schema == "string" else ""))
            lines.append(f"{size} = len({data})")
            return [f"(T[{size}] if {size} < {varint.SMALL} else long({size}))", data]
        if isinstance(schema, list):
            return self.union(schema, value)
        entry = self.named(schema)
        if entry is None:
            return [f"(b'\\0' if not {value} else {self.collection(schema)}({value}))"]
        if entry["type"] == "enum":
            table = self.constant({symbol: varint.long(i) for i, symbol in enumerate(entry["symbols"])})
            return [f"{table}[{value}]"]
        parts: list[str] = []
        for field in entry["fields"]:
            inner = self.fresh("v")
            if "default" in field:
                default = self.constant(default_value(field["type"], field["default"], self.names))
                lines.append(f"{inner} = {value}[{field['name']!r}] if {field['name']!r} in {value} else {default}")
            else:
                lines.append(f"{inner} = {value}[{field['name']!r}]")
            if isinstance(field["type"], list) and self.branch_of is not None and "null" not in field["type"]:
                lines.append(f"if type({inner}) is not tuple: {inner} = (branch_of({value}), {inner})")
            nested = self.named(field["type"])
            if nested is not None and nested["type"] == "record" and self.recursive(field["type"]):
                parts.append(f"{self.function(field['type'])}({inner})")
            else:
                parts += self.parts(field["type"], inner, lines)
        return parts

    def union(self, branches: list[Schema], value: str) -> list[str]:
        if len(branches) == 2 and branches[0] == "null":
            return [f"(b'\\0' if {value} is None else b'\\2' + {self.function(branches[1])}({value}))"]
        table: dict[str, str] = {}
        for index, branch in enumerate(branches):
            entry = self.named(branch)
            if branch == "null":
                continue
            if entry is None or entry["type"] != "record":
                raise ValueError(f"a union of {branches} is not supported: expected records, and null first if at all")
            short = branch.rpartition(".")[2]
            table[branch] = table[short] = f"({varint.long(index)!r}, {self.function(branch)})"
        name = self.fresh("write")
        pairs = ", ".join(f"{key!r}: {pair}" for key, pair in table.items())
        null = "    if v is None: return b'\\0'\n" if branches[0] == "null" else ""
        self.functions.append(
            f"def {name}(v):\n{null}    index, write = {name}_table[v[0]]\n    return index + write(v[1])\n"
            f"{name}_table = {{{pairs}}}\n"
        )
        return [f"{name}({value})"]

    def collection(self, schema: Mapping[str, Any]) -> str:
        key = f"items of {schema}"
        if key not in self.made:
            name = self.made[key] = self.fresh("write")
            if schema["type"] == "array":
                loop = f"out += map({self.function(schema['items'])}, v)"
            else:
                value = self.function(schema["values"])
                loop = f"for key, item in v.items(): out += (string(key), {value}(item))"
            self.functions.append(
                f"def {name}(v):\n    out = [long(len(v))]\n    {loop}\n    out.append(b'\\0')\n    return join(out)\n"
            )
        return self.made[key]


class _ReaderSource(_Source):
    """Statements that take a value from `b` at `p` and leave it in a name. Functions are `f(b, p, depth) -> (value,
    p)`.
    """

    def __init__(self, names: Mapping[str, Any], constants: dict[str, Any], tagged: bool) -> None:
        super().__init__(names, constants)
        self.tagged = tagged

    def function(self, schema: Schema) -> str:
        """The name of a reading function for a schema."""
        key = repr(schema)
        if key not in self.made:
            name = self.made[key] = self.fresh("read")
            lines: list[str] = []
            entry = self.named(schema)
            if entry is not None and entry["type"] == "record":
                lines.append(f"if depth > {DEPTH_MAX}: raise ValueError('nested deeper than {DEPTH_MAX} records')")
                result = self.record(entry, lines)
            else:
                result = self.take(schema, lines)
            body = "".join(f"    {line}\n" for line in lines)
            self.functions.append(f"def {name}(b, p, depth):\n{body}    return {result}, p\n")
        return self.made[key]

    def record(self, entry: Mapping[str, Any], lines: list[str]) -> str:
        items = []
        for field in entry["fields"]:
            items.append(f"{field['name']!r}: {self.take(field['type'], lines)}")
        return "{" + ", ".join(items) + "}"

    def index(self, lines: list[str]) -> None:
        """Leaves twice a length or index in `c`."""
        lines += ["c = b[p]; p += 1", "if c & 129: c, p = length(b, p, c)"]

    def take(self, schema: Schema, lines: list[str]) -> str:
        """Adds the statements for one value; returns an expression that is good until `c` changes, or a name."""
        name = self.fresh("v")
        entry = self.named(schema)
        if schema == "null":
            return "None"
        if schema == "boolean":
            lines += [f"{name} = b[p] == 1", "if b[p] > 1: raise ValueError('neither true nor false')", "p += 1"]
        elif schema in ("int", "long"):
            lines += ["c = b[p]; p += 1", "if c & 128: c, p = more(b, p, c)", f"{name} = (c >> 1) ^ -(c & 1)"]
            if schema == "int":
                lines.append("if c >> 32: raise ValueError('an int longer than 32 bits')")
        elif schema in ("float", "double"):
            size = 4 if schema == "float" else 8
            lines.append(f"{name} = unpack_{schema}(b, p)[0]; p += {size}")
        elif schema in ("bytes", "string"):
            self.index(lines)
            decode = ".decode()" if schema == "string" else ""
            lines.append(f"e = p + (c >> 1); {name} = b[p:e]{decode}; p = e")
        elif isinstance(schema, list):
            self.union(schema, name, lines)
        elif entry is None:
            lines += [f"if b[p]: {name}, p = {self.collection(schema)}(b, p, depth)"]
            lines += [f"else: {name} = {'[]' if schema['type'] == 'array' else '{}'}; p += 1"]
        elif entry["type"] == "enum":
            self.index(lines)
            lines.append(f"{name} = {self.constant(tuple(entry['symbols']))}[c >> 1]")
        else:
            if self.recursive(schema):
                lines.append(f"{name}, p = {self.function(schema)}(b, p, depth + 1)")
            else:
                lines.append(f"{name} = {self.record(entry, lines)}")
        return name

    def union(self, branches: list[Schema], name: str, lines: list[str]) -> None:
        if len(branches) == 2 and branches[0] == "null":
            inner = self.function(branches[1])
            lines += [
                "c = b[p]; p += 1",
                f"if c == 0: {name} = None",
                f"elif c == 2: {name}, p = {inner}(b, p, depth + 1)",
            ]
            lines.append(f"else: {name}, p = nullable(b, p, depth + 1, c, {inner})")
            return
        self.index(lines)
        table = self.fresh("U")
        pairs = []
        for branch in branches:
            short = "null" if branch == "null" else branch.rpartition(".")[2]
            pairs.append(f"({short!r}, {self.function(branch)})")
        self.functions.append(f"{table} = ({', '.join(pairs)},)\n")
        lines.append(f"t, f = {table}[c >> 1]; {name}, p = f(b, p, depth + 1)")
        if self.tagged:
            lines.append(f"if {name} is not None: {name} = (t, {name})")

    def collection(self, schema: Mapping[str, Any]) -> str:
        key = f"items of {schema}"
        if key not in self.made:
            name = self.made[key] = self.fresh("read")
            array = schema["type"] == "array"
            lines: list[str] = [] if array else ["k, p = string_from(b, p)"]
            value = self.take(schema["items" if array else "values"], lines)
            lines.append(f"out.append({value})" if array else f"out[k] = {value}")
            steps = "".join(f"            {line}\n" for line in lines)
            self.functions.append(
                f"def {name}(b, p, depth):\n    out = {'[]' if array else '{}'}\n"
                "    while True:\n        n, p = block(b, p)\n        if not n: return out, p\n"
                f"        for _ in range(n):\n{steps}"
            )
        return self.made[key]


def _nullable(
    data: bytes, position: int, depth: int, first: int, read: Callable[[bytes, int, int], Any]
) -> tuple[Any, int]:
    """A nullable value whose branch is not written in the one usual byte."""
    index, position = varint.length(data, position, first)
    if index > 2:
        raise ValueError("no such branch of a union")
    value: tuple[Any, int] = read(data, position, depth) if index else (None, position)
    return value


def compile_writer(
    schema: Schema, head: bytes = b"", branch_of: Callable[[Mapping[str, Any]], str] | None = None
) -> Writer:
    """A function from a record to `head` and its encoding.

    Args:
        schema: the record's schema, as JSON.
        head: what the encoding begins with.
        branch_of: of a record, the branch of its union of records, where the value is not given with it.

    Raises:
        (the function) KeyError for a missing field or an unknown symbol or branch, OverflowError for a number out of
        range, AttributeError or TypeError for a value of another type.
    """
    root, names = resolved(schema)
    constants: dict[str, Any] = {
        "T": varint.TABLE,
        "long": varint.long,
        "int32": varint.int32,
        "string": varint.text,
        "join": b"".join,
        "branch_of": branch_of,
        "pack_float": struct.Struct("<f").pack,
        "pack_double": struct.Struct("<d").pack,
    }
    source = _WriterSource(names, constants, branch_of)
    lines: list[str] = []
    parts = [repr(head), *source.parts(root, "v", lines)]
    body = "".join(f"    {line}\n" for line in lines)
    source.functions.append(f"def write(v):\n{body}    return join(({', '.join(parts)},))\n")
    writer: Writer = source.build("write")
    return writer


def compile_reader(schema: Schema, tagged: bool = True) -> Reader:
    """A function from bytes and a position to a record and the position after it, which may lie beyond the end: check
    it.

    Args:
        schema: the record's schema, as JSON.
        tagged: whether a union of several records gives `(branch name, dict)` or only the dict.
    """
    root, names = resolved(schema)
    constants: dict[str, Any] = {
        "more": varint.more,
        "length": varint.length,
        "block": varint.block,
        "nullable": _nullable,
        "string_from": varint.text_from,
        "unpack_float": struct.Struct("<f").unpack_from,
        "unpack_double": struct.Struct("<d").unpack_from,
    }
    source = _ReaderSource(names, constants, tagged)
    inner = source.function(root)
    source.functions.append(f"def read(b, p): return {inner}(b, p, 0)\n")
    reader: Reader = source.build("read")
    return reader
