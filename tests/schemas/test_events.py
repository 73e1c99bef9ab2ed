"""Typed history events: nothing that protobuf knows is lost, and the schema is the one that the generator makes."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2

from everfold.schemas import codec, event_schema, events, registry
from schemas.strategies import fill, messages

ATTRIBUTES = event_schema.EVENT.oneofs_by_name["attributes"].fields
ORIGIN = {"source": "SHARD_LOG", "partition": 1, "epoch": 2, "offset": 33, "index": 0}
CONTEXT = events.EventContext("ns-id", "default", "order-1", "run-1", "Order", ORIGIN)


def number_of(attribute: str) -> int:
    name = attribute.removesuffix("_event_attributes").upper()
    return event_type_pb2.EventType.Value(f"EVENT_TYPE_{name}")


def round_trip(event: message_pb2.HistoryEvent) -> message_pb2.HistoryEvent:
    name, record = codec.decode(events.encode_event(events.prefix(CONTEXT), event))
    assert name == "HistoryEvent"
    assert {key: record[key] for key in CONTEXT._fields} == CONTEXT._asdict()
    assert record["event_id"] == event.event_id
    assert codec.encode("HistoryEvent", record) == events.encode_event(events.prefix(CONTEXT), event)
    return events.to_protobuf(record)


@st.composite
def history_events(draw: st.DrawFn, attribute: str) -> message_pb2.HistoryEvent:
    event = message_pb2.HistoryEvent(event_type=number_of(attribute))  # type: ignore[arg-type]
    for field in event_schema.EVENT.fields:
        if field.containing_oneof is None and field.name != "event_type" and draw(st.booleans()):
            fill(draw, event, field, 2)
    field = event_schema.EVENT.fields_by_name[attribute]
    assert field.message_type is not None
    getattr(event, attribute).CopyFrom(draw(messages(field.message_type)))
    getattr(event, attribute).SetInParent()
    return event


@pytest.mark.parametrize("attribute", [field.name for field in ATTRIBUTES])
def test_every_event_type_survives_the_way_to_avro_and_back(attribute: str) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history_events(attribute))
    def holds(event: message_pb2.HistoryEvent) -> None:
        back = round_trip(event)
        assert back == event
        assert back.SerializeToString(deterministic=True) == event.SerializeToString(deterministic=True)

    holds()


@st.composite
def full_events(draw: st.DrawFn, attribute: str) -> message_pb2.HistoryEvent:
    event = message_pb2.HistoryEvent(event_id=1, event_type=number_of(attribute))  # type: ignore[arg-type]
    field = event_schema.EVENT.fields_by_name[attribute]
    assert field.message_type is not None
    getattr(event, attribute).SetInParent()
    for inner in field.message_type.fields:
        fill(draw, getattr(event, attribute), inner, 4)
    return event


@pytest.mark.parametrize("attribute", [field.name for field in ATTRIBUTES])
def test_an_event_with_every_field_of_its_type_set_survives(attribute: str) -> None:
    @settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
    @given(full_events(attribute))
    def holds(event: message_pb2.HistoryEvent) -> None:
        assert round_trip(event) == event

    holds()


def test_fastavro_writes_the_same_bytes_and_reads_the_same_values() -> None:
    schema = registry.current("HistoryEvent")
    parsed = fastavro.parse_schema(codec._plain(schema.raw))

    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([field.name for field in ATTRIBUTES]).flatmap(history_events))
    def holds(event: message_pb2.HistoryEvent) -> None:
        data = events.encode_event(events.prefix(CONTEXT), event)
        record: Any = fastavro.schemaless_reader(
            io.BytesIO(data[5:]), parsed, None, return_record_name=True, return_record_name_override=True
        )
        assert codec._short(record) == codec.decode(data)[1]
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, record)
        assert out.getvalue() == data[5:]

    holds()


def test_the_checked_in_schema_is_what_the_generator_makes() -> None:
    made = event_schema.render(event_schema.generate())
    assert registry.avsc_text("HistoryEvent") == made, "run python -m everfold.schemas.event_schema"


def test_the_event_types_of_a_batch_are_temporals() -> None:
    batch = next(f for f in registry.current("HistoryBatch").raw["fields"] if f["name"] == "events")
    enum = next(f["type"] for f in batch["type"]["items"]["fields"] if f["name"] == "event_type")
    assert set(enum["symbols"]) >= {symbol for symbol, _ in event_schema.event_types()}


def test_an_event_type_newer_than_the_schema_travels_whole() -> None:
    event = message_pb2.HistoryEvent(event_id=7, event_type=9999)  # type: ignore[arg-type]
    event.event_time.seconds = 1_795_367_837
    data = events.encode_event(events.prefix(CONTEXT), event)
    record = codec.decode(data)[1]
    assert record["event_type"] == "UNKNOWN"
    assert record["attributes"][0] == event_schema.OTHER
    assert record["attributes"][1]["event_type_number"] == 9999
    assert events.to_protobuf(record) == event


def test_a_number_of_an_enum_newer_than_the_schema_is_carried() -> None:
    event = message_pb2.HistoryEvent(event_id=7, event_type=event_type_pb2.EVENT_TYPE_WORKFLOW_TASK_FAILED)
    event.workflow_task_failed_event_attributes.cause = 99  # type: ignore[assignment]
    event.workflow_task_failed_event_attributes.failure.timeout_failure_info.timeout_type = 2
    said = codec.decode(events.encode_event(events.prefix(CONTEXT), event))[1]["attributes"][1]
    assert (said["cause"], said["cause_number"]) == ("UNKNOWN", 99)
    timeout = said["failure"]["timeout_failure_info"]
    assert (timeout["timeout_type"], timeout["timeout_type_number"]) == ("TIMEOUT_TYPE_SCHEDULE_TO_START", 2)
    assert round_trip(event) == event


def test_an_event_without_attributes_travels_whole() -> None:
    event = message_pb2.HistoryEvent(event_id=7, event_type=event_type_pb2.EVENT_TYPE_TIMER_FIRED)
    assert round_trip(event) == event


def test_the_time_is_exact_to_the_nanosecond_also_beyond_the_year_2262() -> None:
    event = message_pb2.HistoryEvent(event_id=1, event_type=event_type_pb2.EVENT_TYPE_TIMER_FIRED)
    event.timer_fired_event_attributes.timer_id = "t"
    for seconds in (-62_135_596_800, -1, 0, 1_795_367_837, 253_402_300_799):
        event.event_time.seconds, event.event_time.nanos = seconds, 123_456_789
        assert round_trip(event) == event


def test_a_failure_nested_as_deeply_as_protobuf_allows_survives() -> None:
    event = message_pb2.HistoryEvent(event_id=1, event_type=event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED)
    failure = event.workflow_execution_failed_event_attributes.failure
    for depth in range(95):
        failure.message = str(depth)
        failure = failure.cause
    message_pb2.HistoryEvent.FromString(event.SerializeToString())
    assert round_trip(event) == event


def test_a_batch_becomes_one_record_per_event() -> None:
    made = []
    for event_id in (4, 5):
        event = message_pb2.HistoryEvent(event_id=event_id, event_type=event_type_pb2.EVENT_TYPE_TIMER_FIRED)
        event.timer_fired_event_attributes.timer_id = str(event_id)
        made.append(event)
    thin = [
        {"event_id": e.event_id, "event_type": "TIMER_FIRED", "event_time_ns": 0, "event": e.SerializeToString()}
        for e in made
    ]
    batch = {**CONTEXT._asdict(), "first_event_id": 4, "time_ns": 1, "events": thin}
    batch = codec.decode_history_batch(codec.encode_history_batch(batch))
    typed = events.encode_batch(batch)
    assert [event_id for event_id, _ in typed] == [4, 5]
    assert [events.to_protobuf(codec.decode(data)[1]) for _, data in typed] == made
