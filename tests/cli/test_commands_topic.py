"""The Kafka front door of a real server: the examples as users run them, and what becomes of a record that is none."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from support.servers import Server, banner, cli, cli_json, everfold_server
from support.toolchains import REPOSITORY

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

SCHEMAS = REPOSITORY / "schemas" / "everfold" / "schemas"
NONSENSE = b'{"start": "a workflow"}'
SECONDS_MAX = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with everfold_server(tmp_path_factory.mktemp("commands-topic")) as server:
        yield server


@pytest.fixture(scope="module")
def bootstrap(server: Server) -> str:
    """As the banner tells it to users."""
    told = re.search(r"Kafka:\s+(127\.0\.0\.1:\d+) \(embedded\), topics everfold\.", banner(server))
    assert told is not None, server.tail(200)
    return told[1]


def example(name: str, bootstrap: str, *arguments: str) -> int:
    """Runs an example, and returns the partition of its record."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / name), "--bootstrap", bootstrap, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = re.fullmatch(r"topic everfold\.commands partition (\d+) offset \d+\n", done.stdout)
    assert told is not None, done.stdout
    return int(told[1])


def start(bootstrap: str, workflow_id: str, request_id: str) -> int:
    named = ("--workflow-id", workflow_id, "--type", "Order", "--task-queue", "orders", "--input", '{"item": "book"}')
    return example("produce_start.py", bootstrap, *named, "--request-id", request_id)


def signal(bootstrap: str, workflow_id: str, name: str, request_id: str) -> int:
    named = ("--workflow-id", workflow_id, "--signal", name, "--input", "42")
    return example("produce_signal.py", bootstrap, *named, "--request-id", request_id)


def history(server: Server, workflow_id: str, last: str) -> list[dict[str, Any]]:
    """The events of a workflow, once one of that kind is there."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        shown = cli(server.address, "workflow", "show", "-w", workflow_id, "--output", "json", check=False).stdout
        events: list[dict[str, Any]] = json.loads(shown)["events"] if shown.startswith("{") else []
        if any(last in json.dumps(event) for event in events):
            return events
        assert time.monotonic() < deadline, f"{workflow_id} has no {last}\n{server.tail()}"
        time.sleep(0.2)


def of_type(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["eventType"] == f"EVENT_TYPE_{name}"]


def rejections(bootstrap: str, count: int) -> list[dict[str, Any]]:
    """All of `commands-rejected` once it has `count` records, read with fastavro and the published schema alone."""
    schema = fastavro.parse_schema(json.loads((SCHEMAS / "avsc" / "RejectedCommand.avsc").read_text()))
    lock = json.loads((SCHEMAS / "registry.lock.json").read_text())
    header = b"\0" + lock["current"]["RejectedCommand"]["id"].to_bytes(4, "big")
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "a-users", "isolation.level": "read_committed",
         "enable.auto.commit": False}
    )  # fmt: skip
    place = TopicPartition("everfold.commands-rejected", 0, 0)
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + SECONDS_MAX
    try:
        consumer.assign([place])
        while len(found) < count or max(consumer.position([place])[0].offset, 0) < end(consumer, place):
            assert time.monotonic() < deadline, f"{len(found)} records on {place.topic}"
            record = consumer.poll(0.5)
            if record is None:
                continue
            assert record.error() is None, record.error()
            value = record.value()
            assert value is not None
            assert value[:5] == header
            decoded = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)
            assert isinstance(decoded, dict)
            found.append({**decoded, "key": record.key()})
    finally:
        consumer.close()
    return found


def end(consumer: Consumer, place: TopicPartition) -> int:
    watermarks = consumer.get_watermark_offsets(place, timeout=10)
    assert watermarks is not None
    return int(watermarks[1])


def test_an_example_that_is_run_twice_with_one_request_id_has_effect_once(server: Server, bootstrap: str) -> None:
    partitions = {start(bootstrap, "order-1", "start-of-order-1") for _ in range(2)}
    partitions |= {signal(bootstrap, "order-1", "paid", "payment-1") for _ in range(2)}
    partitions.add(signal(bootstrap, "order-1", "last", "payment-2"))
    assert len(partitions) == 1, "the records of one workflow are in one partition, so that `last` comes last"
    events = history(server, "order-1", "last")
    (started,) = of_type(events, "WORKFLOW_EXECUTION_STARTED")
    attributes = started["workflowExecutionStartedEventAttributes"]
    assert attributes["workflowType"]["name"] == "Order"
    assert attributes["identity"] == "produce_start.py"
    names = [
        event["workflowExecutionSignaledEventAttributes"]["signalName"]
        for event in of_type(events, "WORKFLOW_EXECUTION_SIGNALED")
    ]
    assert names == ["paid", "last"]
    deadline = time.monotonic() + SECONDS_MAX
    while not (runs := cli_json(server.address, "workflow", "list", "--query", 'WorkflowId="order-1"')):
        assert time.monotonic() < deadline, server.tail()
        time.sleep(0.2)
    assert isinstance(runs, list)
    assert len(runs) == 1


def test_a_record_that_is_nonsense_is_told_on_commands_rejected_and_stops_nothing(
    server: Server, bootstrap: str
) -> None:
    partition = start(bootstrap, "order-2", "start-of-order-2")
    before = len(rejections(bootstrap, 0))
    producer = Producer({"bootstrap.servers": bootstrap})
    offsets: list[int] = []
    producer.produce(
        "everfold.commands", key=b"whatever", value=NONSENSE, partition=partition, headers=[("trace", b"t-1")],
        on_delivery=lambda _error, sent: offsets.append(sent.offset() or 0),
    )  # fmt: skip
    assert producer.flush(30) == 0
    assert signal(bootstrap, "order-2", "after", "signal-of-order-2") == partition
    assert len(of_type(history(server, "order-2", "after"), "WORKFLOW_EXECUTION_SIGNALED")) == 1
    found = rejections(bootstrap, before + 1)[before:]
    assert len(found) == 1, "only the nonsense is rejected: what was asked twice is not"
    rejected = found[0]
    assert rejected["reason"] == "not in Confluent framing: expected a zero byte and a 4-byte schema id"
    assert rejected["code"] == 3
    assert (rejected["partition"], rejected["offset"]) == (partition, offsets[0])
    assert rejected["sample"] == NONSENSE
    assert rejected["sha256"] == hashlib.sha256(NONSENSE).digest()
    assert rejected["key"] == b"whatever"
    assert rejected["topic"] == "everfold.commands"
    assert rejected["headers"] == [{"name": "trace", "value": b"t-1"}]


def test_a_command_that_is_asked_twice_is_no_rejection(server: Server, bootstrap: str) -> None:
    start(bootstrap, "order-3", "start-of-order-3")
    before = len(rejections(bootstrap, 0))
    start(bootstrap, "order-3", "start-of-order-3")
    start(bootstrap, "order-3", "another start")
    found = rejections(bootstrap, before + 1)[before:]
    assert [rejected["code"] for rejected in found] == [6], "the third, which is a start of its own"
    assert [found[0][name] for name in ("request_id", "workflow_id")] == ["another start", "order-3"]
    assert found[0]["key"] == b"default/order-3"
    assert len(of_type(history(server, "order-3", "STARTED"), "WORKFLOW_EXECUTION_STARTED")) == 1
