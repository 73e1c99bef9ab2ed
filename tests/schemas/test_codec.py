"""Framing, schema ids, and what is said of bytes that are not a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from everfold.schemas import codec, registry

FIRE_TIMER: dict[str, Any] = {
    "kind": "FIRE_TIMER",
    "namespace_id": "",
    "workflow_id": "",
    "run_id": "",
    "origin": None,
    "predecessor": None,
    "acknowledged": None,
    "proposer": {"instance": 1, "sequence": 2, "clock_ns": 1_795_367_837_438_500_228},
    "trace": {},
    "facts": {},
    "body": {"due_at_ns": 5},
    "start": None,
    "command": None,
}


def test_a_record_is_framed_with_the_id_of_the_lock_file() -> None:
    data = codec.encode_shard_record(FIRE_TIMER)
    assert data[:5] == b"\0" + registry.lock()["current"]["ShardRecord"]["id"].to_bytes(4, "big")
    assert data[:5] == b"\0EV\0\1"
    assert codec.decode(data) == ("ShardRecord", FIRE_TIMER)
    assert codec.decode_shard_record(data) == FIRE_TIMER


def test_the_body_of_a_shard_record_may_be_given_with_its_branch_or_without() -> None:
    named = {**FIRE_TIMER, "body": ("FireTimer", {"due_at_ns": 5})}
    assert codec.encode_shard_record(named) == codec.encode("ShardRecord", FIRE_TIMER)


def test_every_kind_of_shard_record_has_a_body_and_reads_back() -> None:
    fields = {field["name"]: field for field in registry.current("ShardRecord").raw["fields"]}
    bodies = {branch["name"]: branch for branch in fields["body"]["type"]}
    sample: dict[Any, Any] = {"string": "s", "bytes": b"b", "int": 1, "long": 2, "Origin": None}
    sample["Origin"] = {"source": "COMMANDS", "partition": 1, "epoch": 2, "offset": 3, "index": 0}

    def made(of: Any) -> Any:
        if isinstance(of, str):
            return sample[of] if of in sample else filled(bodies[of])
        if isinstance(of, list):
            return made(of[1])  # of a thing that may be null
        return "WORKFLOW" if of["type"] == "enum" else {"a": 1} if of["type"] == "map" else filled(of)

    def filled(schema: Any) -> dict[str, Any]:
        return {field["name"]: made(field["type"]) for field in schema["fields"]}

    for kind in fields["kind"]["type"]["symbols"][1:]:
        record = {**FIRE_TIMER, "kind": kind, "body": filled(bodies[codec.body_of(kind)])}
        assert codec.decode_shard_record(codec.encode_shard_record(record)) == record


def test_another_record_than_expected_is_undecodable() -> None:
    with pytest.raises(codec.Undecodable, match="expected a Member, found a ShardRecord"):
        codec.decode_member(codec.encode_shard_record(FIRE_TIMER))


def test_bytes_without_framing_are_undecodable() -> None:
    for data in (b"", b"\0EV\0", b'{"workflow_id": "order-1"}'):
        with pytest.raises(codec.Undecodable, match="not in Confluent framing"):
            codec.decode(data)


def test_an_unknown_schema_id_is_told_apart() -> None:
    with pytest.raises(codec.UnknownSchema, match="unknown schema id 7") as caught:
        codec.decode(b"\0\0\0\0\7whatever")
    assert caught.value.schema_id == 7


def test_the_reason_says_what_is_wrong() -> None:
    data = codec.encode_shard_record(FIRE_TIMER)
    with pytest.raises(codec.Undecodable, match="cut off"):
        codec.decode(data[:-1])
    with pytest.raises(codec.Undecodable, match="goes on for 1 bytes"):
        codec.decode(data + b"x")
    with pytest.raises(codec.Undecodable, match="symbol or branch"):
        codec.decode(data[:5] + b"\x7e" + data[6:])


@pytest.fixture
def older_command(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """An id that stands for a released version of Command without command_id and with a field that is gone since."""
    old = json.loads(registry.avsc_text("Command"))
    old["fields"] = [field for field in old["fields"] if field["name"] != "command_id"]
    old["fields"].insert(0, {"name": "colour", "type": "string", "default": ""})
    old_id = registry.ID_FIRST + 999
    known = {**registry.ids(), old_id: ("Command", "0.0.1")}
    texts = registry.avsc_text
    monkeypatch.setattr(registry, "ids", lambda: known)
    monkeypatch.setattr(registry, "avsc_text", lambda name, version="": json.dumps(old) if version else texts(name))
    yield old_id
    codec._older.cache_clear()


def test_a_record_of_a_released_schema_is_read_as_the_current_one(older_command: int) -> None:
    from everfold.schemas import compiler

    write = compiler.compile_writer(registry.by_id(older_command).raw, codec.head(older_command))
    body = ("SignalWorkflow", {"signal_name": "paid"})
    data = write({"colour": "red", "workflow_id": "order-1", "body": body})
    name, record = codec.decode(data)
    assert name == "Command"
    assert record["command_id"] == ""
    assert "colour" not in record
    assert record["body"] == ("SignalWorkflow", {"signal_name": "paid", "input": [], "header": {}})
    with pytest.raises(codec.Undecodable, match="cut off"):
        codec.decode(data[:-1])
