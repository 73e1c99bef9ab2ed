"""Starts a workflow with nothing but a Kafka producer and Everfold's schema file.

    python examples/produce_start.py --bootstrap localhost:9092 --workflow-id order-1 \\
        --type Order --task-queue orders --input '{"item": "book"}'

Nothing of Everfold is imported: any language with a Kafka client and an Avro library can do the same
(docs/commands-topic.md).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import KafkaError, Message, Producer

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas" / "everfold" / "schemas"


def frame(schemas: Path, record: dict[str, Any]) -> bytes:
    """The command in Confluent framing: a zero byte, the schema's id in four bytes, the Avro record."""
    schema = fastavro.parse_schema(json.loads((schemas / "avsc" / "Command.avsc").read_text()))
    lock = json.loads((schemas / "registry.lock.json").read_text())
    out = io.BytesIO()
    out.write(b"\0" + lock["current"]["Command"]["id"].to_bytes(4, "big"))
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def payload(text: str) -> dict[str, Any]:
    """A JSON text as the payload that every Temporal SDK decodes."""
    json.loads(text)
    return {"metadata": {"encoding": b"json/plain"}, "data": text.encode()}


def produce(bootstrap: str, topic: str, key: str, value: bytes) -> Message:
    """Writes one record durably, and returns it with its place."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",  # Java's default: the record reaches the shard that owns the workflow
            "enable.idempotence": True,  # a retry by the client does not become a second command
            "message.timeout.ms": 30_000,
        }
    )
    delivered: list[tuple[KafkaError | None, Message]] = []
    producer.produce(
        topic, key=key.encode(), value=value, on_delivery=lambda error, sent: delivered.append((error, sent))
    )
    producer.flush()
    error, sent = delivered[0]
    if error is not None:
        sys.exit(f"not delivered: {error.str()}")
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts a workflow through Kafka.")
    parser.add_argument("--bootstrap", default="localhost:9092", help="Kafka's address")
    parser.add_argument("--topic", default="everfold.commands", help="the commands topic, with the cluster's prefix")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--workflow-id", required=True)
    parser.add_argument("--type", required=True, help="name of the workflow type")
    parser.add_argument("--task-queue", required=True)
    parser.add_argument("--input", action="append", default=[], metavar="JSON", help="an argument; may be repeated")
    parser.add_argument("--memo", action="append", default=[], metavar="NAME=JSON")
    parser.add_argument("--run-timeout", type=float, metavar="SECONDS", help="longest time of one run")
    parser.add_argument("--id-reuse-policy", default="UNSPECIFIED", help="e.g. REJECT_DUPLICATE")
    parser.add_argument("--id-conflict-policy", default="UNSPECIFIED", help="e.g. USE_EXISTING")
    parser.add_argument("--request-id", help="a start with the same id has effect once; default: a new one")
    parser.add_argument("--schemas", type=Path, default=SCHEMAS, help="directory of avsc/ and registry.lock.json")
    arguments = parser.parse_args()

    memo = {name: payload(text) for name, _, text in (item.partition("=") for item in arguments.memo)}
    body = {
        "workflow_type": arguments.type,
        "task_queue": arguments.task_queue,
        "input": [payload(text) for text in arguments.input],
        "memo": memo,
        "id_reuse_policy": arguments.id_reuse_policy,
        "id_conflict_policy": arguments.id_conflict_policy,
        "run_timeout_ns": None if arguments.run_timeout is None else round(arguments.run_timeout * 1_000_000_000),
    }
    command = {
        "command_id": str(uuid.uuid4()),
        "namespace": arguments.namespace,
        "workflow_id": arguments.workflow_id,
        "identity": "produce_start.py",
        "request_id": arguments.request_id or str(uuid.uuid4()),
        "body": ("everfold.StartWorkflow", body),
    }
    key = f"{arguments.namespace}/{arguments.workflow_id}"
    sent = produce(arguments.bootstrap, arguments.topic, key, frame(arguments.schemas, command))
    print(f"topic {sent.topic()} partition {sent.partition()} offset {sent.offset()}")


if __name__ == "__main__":
    main()
