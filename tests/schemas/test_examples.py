"""The example producers need nothing of Everfold's but its schema files, and the engine reads what they write."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from everfold.kernel import ids
from everfold.schemas import codec
from everfold.schemas.translate import Place, translate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class FakeMessage:
    def topic(self) -> str:
        return "everfold.commands"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 17


class FakeProducer:
    """Takes one record and says that it was delivered."""

    sent: dict[str, Any]

    def __init__(self, config: dict[str, Any]) -> None:
        FakeProducer.sent = {"config": config}

    def produce(self, topic: str, key: bytes, value: bytes, on_delivery: Any) -> None:
        FakeProducer.sent.update(topic=topic, key=key, value=value, delivered=on_delivery)

    def flush(self) -> None:
        FakeProducer.sent["delivered"](None, FakeMessage())


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(confluent_kafka, "Producer", FakeProducer)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return FakeProducer.sent


@pytest.mark.parametrize("script", ["produce_start.py", "produce_signal.py"])
def test_nothing_of_everfold_is_imported(script: str) -> None:
    tree = ast.parse((EXAMPLES / script).read_text())
    imported = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"confluent_kafka", "fastavro"}


def test_a_produced_start_is_a_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--workflow-id", "order-1", "--type", "Order", "--task-queue", "orders", "--input", '{"item": "book"}']
    sent = run(
        monkeypatch, "produce_start.py", *arguments, "--run-timeout", "1.5", "--id-reuse-policy", "REJECT_DUPLICATE"
    )
    assert capsys.readouterr().out == "topic everfold.commands partition 3 offset 17\n"
    assert sent["config"]["partitioner"] == "murmur2_random"
    assert sent["key"] == ids.record_key("default", "order-1")
    made = translate(codec.decode_command(sent["value"]), Place("everfold.commands", 3, 0, 17))
    request: Any = made.request
    assert made.kind == "START_WORKFLOW"
    assert request.input.payloads[0].data == b'{"item": "book"}'
    assert request.input.payloads[0].metadata["encoding"] == b"json/plain"
    assert request.workflow_run_timeout.nanos == 500_000_000
    assert request.workflow_id_reuse_policy == 3


def test_a_produced_signal_is_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--workflow-id", "order-1", "--signal", "paid", "--input", "42", "--request-id", "once"]
    sent = run(monkeypatch, "produce_signal.py", *arguments)
    made = translate(codec.decode_command(sent["value"]), Place("everfold.commands", 3, 0, 17))
    request: Any = made.request
    assert (made.kind, request.signal_name, request.request_id) == ("SIGNAL_WORKFLOW", "paid", "once")
    assert request.input.payloads[0].data == b"42"


def test_a_produced_signal_may_start_the_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--workflow-id",
        "order-1",
        "--signal",
        "paid",
        "--start-type",
        "Order",
        "--start-task-queue",
        "orders",
    ]
    sent = run(monkeypatch, "produce_signal.py", *arguments)
    made = translate(codec.decode_command(sent["value"]), Place("everfold.commands", 3, 0, 17))
    assert made.kind == "SIGNAL_WITH_START_WORKFLOW"


def test_real_producers_put_the_commands_of_a_workflow_on_its_shard() -> None:
    """Against librdkafka's own mock broker: topics of four partitions that come into being when first used."""
    broker = confluent_kafka.Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": 1})
    metadata = broker.list_topics("everfold.commands", timeout=10)
    bootstrap = str(next(iter(metadata.brokers.values()))).partition("/")[0]
    shards = len(metadata.topics["everfold.commands"].partitions)
    for number in range(3):
        start = ["--workflow-id", f"order-{number}", "--type", "Order", "--task-queue", "orders"]
        signal = ["--workflow-id", f"order-{number}", "--signal", "paid"]
        for script, arguments in (("produce_start.py", start), ("produce_signal.py", signal)):
            done = subprocess.run(
                [sys.executable, str(EXAMPLES / script), "--bootstrap", bootstrap, *arguments],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            shard = ids.shard_of("default", f"order-{number}", shards)
            assert done.stdout.startswith(f"topic everfold.commands partition {shard} offset ")
