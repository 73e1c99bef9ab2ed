"""Which schemas there are, and which id stands for which: the `.avsc` files and the checked-in lock file.

    avsc/<Record>.avsc               the schemas of this build, what it writes
    released/<version>/<Record>.avsc what was ever released, what it must still be able to read; never edited
    registry.lock.json               record -> id and SHA-256 of the schema's Parsing Canonical Form,
                                     for this build and for every released version

A record carries its schema's id (Confluent framing), so ids are for ever: a schema that differs from a released one
gets a new id, and a reader resolves the old ids to the current schema by Avro's rules. No registry is needed to run.

Ids start at 0x45560001. Registries count from 1, so an id of somebody's registry never stands for one of our schemas:
such a record is refused for its unknown id instead of being misread.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

import fastavro
from fastavro.schema import to_parsing_canonical_form

ID_FIRST: Final = 0x45560001
"""`00 45 56 …` in a hex dump of a record ("EV"), far above what registries hand out."""

ID_LAST: Final = 0x4556FFFF
"""No release goes beyond it: the rest of the 32 bits is everybody's."""

ENGINE_RECORDS: Final = (
    "ShardRecord",
    "HistoryBatch",
    "WorkflowTask",
    "ActivityTask",
    "VisibilityRecord",
    "Namespace",
    "Member",
    "ShardPosition",
    "RejectedCommand",
    "DeadLetter",
    "Intervention",
)
PUBLIC_RECORDS: Final = ("Command", "HistoryEvent")
RECORDS: Final = ENGINE_RECORDS + PUBLIC_RECORDS
"""Every record that Everfold writes to Kafka, named as its `.avsc` file."""


@dataclass(frozen=True)
class RecordSchema:
    """One version of one record's schema.

    Attributes:
        name: the record, e.g. "ShardRecord".
        id: what stands for this version on the wire.
        text: the `.avsc` file.
        raw: the file as JSON.
    """

    name: str
    id: int
    text: str
    raw: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the Parsing Canonical Form: the same for schemas that write the same bytes."""
        return fingerprint(self.raw)


def fingerprint(raw: Any) -> str:
    """SHA-256, in hex, of a schema's Parsing Canonical Form."""
    return hashlib.sha256(to_parsing_canonical_form(fastavro.parse_schema(raw)).encode()).hexdigest()


def avsc_text(name: str, version: str = "") -> str:
    """The text of a record's schema in this build, or in a released version."""
    root = files("everfold.schemas")
    folder = root / "released" / version if version else root / "avsc"
    return (folder / f"{name}.avsc").read_text(encoding="utf-8")


@cache
def lock() -> dict[str, Any]:
    """The lock file: `current` and `released`, each from record to `{id, sha256}`. Not to be changed by the caller."""
    text = (files("everfold.schemas") / "registry.lock.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value


@cache
def current(name: str) -> RecordSchema:
    """The schema with which this build writes a record."""
    text = avsc_text(name)
    return RecordSchema(name, lock()["current"][name]["id"], text, json.loads(text))


@cache
def ids() -> dict[int, tuple[str, str]]:
    """Every id that this build can read -> (record, released version or "" for the current schema)."""
    known: dict[int, tuple[str, str]] = {}
    for version, records in lock()["released"].items():
        for name, entry in records.items():
            known.setdefault(entry["id"], (name, version))
    for name, entry in lock()["current"].items():
        known[entry["id"]] = (name, "")
    return known


def by_id(schema_id: int) -> RecordSchema:
    """The schema that an id stands for.

    Raises:
        KeyError: the id is not in the lock file.
    """
    name, version = ids()[schema_id]
    if not version:
        return current(name)
    text = avsc_text(name, version)
    return RecordSchema(name, schema_id, text, json.loads(text))
