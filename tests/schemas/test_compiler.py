"""The compiled writers and readers do what fastavro does, and refuse what is not a record."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everfold.schemas import codec, compiler, registry, varint
from schemas.strategies import INT, LONG, records

HAND_WRITTEN = [*registry.ENGINE_RECORDS, "Command"]
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(data: bytes) -> str:
    """The name of the record that the bytes are taken for."""
    try:
        return codec.decode(data)[0]
    except codec.Undecodable as error:
        return "undecodable" if error.reason else "undecodable without a reason"


def with_full_names(value: Any) -> Any:
    """Branch names as fastavro wants them."""
    if isinstance(value, tuple):
        return "everfold." + value[0], with_full_names(value[1])
    if isinstance(value, dict):
        return {key: with_full_names(item) for key, item in value.items()}
    return [with_full_names(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_bytes_are_those_of_fastavro_and_read_back_equal(name: str) -> None:
    schema = registry.current(name).raw
    parsed = fastavro.parse_schema(schema)
    write = compiler.compile_writer(schema)
    read = compiler.compile_reader(schema)

    @RELAXED
    @given(records(schema))
    def holds(record: dict[str, Any]) -> None:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, with_full_names(record))
        data = write(record)
        assert data == out.getvalue()
        assert read(data, 0) == (record, len(data))
        assert write(with_full_names(record)) == data

    holds()


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_a_damaged_record_is_undecodable_or_another_record_but_never_another_error(name: str) -> None:
    @RELAXED
    @given(records(registry.current(name).raw), st.data())
    def holds(record: dict[str, Any], data: st.DataObject) -> None:
        whole = codec.encode(name, record)
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(codec.Undecodable):
            codec.decode(whole[:cut])
        with pytest.raises(codec.Undecodable):
            codec.decode(whole + b"\0")
        place = data.draw(st.integers(5, len(whole) - 1))
        damaged = bytearray(whole)
        damaged[place] = data.draw(st.integers(0, 255))
        assert outcome(bytes(damaged)) in (name, "undecodable")

    holds()


@RELAXED
@given(st.binary(max_size=300), st.sampled_from(registry.RECORDS))
def test_arbitrary_bytes_behind_a_good_id_are_undecodable_or_a_record(junk: bytes, name: str) -> None:
    assert outcome(codec.head(registry.current(name).id) + junk) in (name, "undecodable")


@given(LONG)
def test_a_long_is_written_as_fastavro_writes_it_and_read_back(number: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, "long", number)
    assert varint.long(number) == out.getvalue()
    read = compiler.compile_reader({"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}]})
    assert read(out.getvalue(), 0) == ({"n": number}, len(out.getvalue()))


@pytest.mark.parametrize("bits", range(64))
def test_longs_around_each_power_of_two_are_written_as_fastavro_writes_them(bits: int) -> None:
    for number in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1):
        if not -(2**63) <= number < 2**63:
            with pytest.raises(OverflowError):
                varint.long(number)
            continue
        out = io.BytesIO()
        fastavro.schemaless_writer(out, "long", number)
        assert varint.long(number) == out.getvalue()


@given(INT)
def test_numbers_that_do_not_fit_are_refused_on_writing(number: int) -> None:
    assert varint.int32(number) == varint.long(number)
    with pytest.raises(OverflowError):
        varint.int32(2**31 + abs(number))


def test_blocks_that_say_their_size_are_read() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "long"}}]}
    sized = varint.long(-2) + varint.long(2) + varint.long(7) + varint.long(8)
    plain = varint.long(1) + varint.long(9)
    data = sized + plain + b"\0"
    assert fastavro.schemaless_reader(io.BytesIO(data), fastavro.parse_schema(schema), None) == {"a": [7, 8, 9]}
    assert compiler.compile_reader(schema)(data, 0) == ({"a": [7, 8, 9]}, len(data))


def test_a_count_beyond_the_data_is_refused_before_anything_is_allocated() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}
    with pytest.raises(ValueError, match="longer than the record"):
        compiler.compile_reader(schema)(varint.long(2**60), 0)


def test_nesting_is_bounded() -> None:
    schema = {"type": "record", "name": "Failure", "fields": [{"name": "cause", "type": ["null", "Failure"]}]}
    read = compiler.compile_reader(schema)
    deepest = b"\2" * compiler.DEPTH_MAX + b"\0"
    assert read(deepest, 0)[1] == len(deepest)
    with pytest.raises(ValueError, match="nested deeper than"):
        read(b"\2" * 1_000_000, 0)


def test_fields_with_a_default_may_be_left_out() -> None:
    write = compiler.compile_writer(registry.current("Command").raw)
    short = write({"workflow_id": "order-1", "body": ("TerminateWorkflow", {})})
    full = {
        "command_id": "",
        "namespace": "default",
        "workflow_id": "order-1",
        "run_id": "",
        "identity": "",
        "request_id": "",
        "trace": {},
        "body": ("TerminateWorkflow", {"reason": "", "details": [], "first_execution_run_id": ""}),
    }
    assert short == write(full)
    with pytest.raises(KeyError):
        write({"body": ("TerminateWorkflow", {})})
