"""Reads `events` into a database of its own, exactly once: how many events of each type each workflow type had.

    python examples/external_consumer.py --bootstrap localhost:9092 --database events.db

Nothing of Everfold is used but its schema files; any language with a Kafka client and an Avro library can do it.
It is exactly once because of three things (docs/topology.md):

1. what is counted and how far the topic was read are written in one transaction of the database;
2. a start continues from the database's position, and Kafka's consumer group is not used at all;
3. an event is taken only if its origin is after the last one taken from its partition, so a repeat by the topology
   (after a kill, or by a former owner of the partition) is dropped.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas" / "everfold" / "schemas"

TABLES = """
CREATE TABLE IF NOT EXISTS counts (workflow_type TEXT, event_type TEXT, events INTEGER NOT NULL,
    PRIMARY KEY (workflow_type, event_type));
CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next_offset INTEGER, origin TEXT);
"""

Origin = tuple[int, ...]


class Reader:
    """Decodes HistoryEvent records: Confluent framing, then Avro."""

    def __init__(self, schemas: Path) -> None:
        self._schema = fastavro.parse_schema(json.loads((schemas / "avsc" / "HistoryEvent.avsc").read_text()))
        lock = json.loads((schemas / "registry.lock.json").read_text())
        self._id = int(lock["current"]["HistoryEvent"]["id"])

    def decode(self, value: bytes) -> dict[str, Any]:
        if value[:1] != b"\0" or int.from_bytes(value[1:5], "big") != self._id:
            sys.exit("a record of another schema version: take the schema files of the version that writes")
        event = fastavro.schemaless_reader(io.BytesIO(value[5:]), self._schema, None)
        assert isinstance(event, dict)
        return event


def origin_of(message: Message) -> Origin:
    """epoch:offset:index:event_id; within a partition later events compare greater."""
    headers = message.headers()
    assert isinstance(headers, list)
    value = dict(headers)["everfold-origin"]
    assert isinstance(value, bytes)
    return tuple(int(part) for part in value.split(b":"))


def take(database: sqlite3.Connection, reader: Reader, messages: list[Message]) -> int:
    """Counts a batch of records, and moves the positions, in one transaction. Returns how many were new."""
    taken = 0
    with database:  # one transaction: all of it, or nothing
        for message in messages:
            partition, offset, value = message.partition(), message.offset(), message.value()
            assert partition is not None
            assert offset is not None
            assert value is not None
            origin = origin_of(message)
            row = database.execute("SELECT origin FROM positions WHERE partition = ?", (partition,)).fetchone()
            new = row is None or origin > tuple(json.loads(row[0]))
            if new:
                event = reader.decode(value)
                taken += 1
                database.execute(
                    "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET events = events + 1",
                    (event["workflow_type"], event["event_type"]),
                )
            database.execute(
                "INSERT INTO positions VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset, origin = excluded.origin",
                (partition, offset + 1, json.dumps(origin) if new else row[0]),
            )
    return taken


def assign(consumer: Consumer, database: sqlite3.Connection, topic: str) -> dict[int, int]:
    """Starts every partition at the database's position, else at its beginning. Returns the ends as of now."""
    described = consumer.list_topics(topic, timeout=10).topics[topic]
    if described.error is not None:
        sys.exit(f"no topic {topic}: {described.error}")
    known = dict(database.execute("SELECT partition, next_offset FROM positions"))
    starts, ends = [], {}
    for partition in described.partitions:
        first, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        next_offset = known.get(partition, first)
        if next_offset < first:
            sys.exit(f"partition {partition}: {first - next_offset} events were trimmed before they were read")
        starts.append(TopicPartition(topic, partition, next_offset))
        ends[partition] = end
    consumer.assign(starts)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts history events into SQLite, exactly once.")
    parser.add_argument("--bootstrap", default="localhost:9092", help="Kafka's address")
    parser.add_argument("--topic", default="everfold.events", help="the events topic, with the cluster's prefix")
    parser.add_argument("--database", default="events.db", help="the SQLite file that keeps counts and positions")
    parser.add_argument("--until-end", action="store_true", help="stop at what is the end now, and print the counts")
    parser.add_argument("--schemas", type=Path, default=SCHEMAS, help="directory of avsc/ and registry.lock.json")
    arguments = parser.parse_args()

    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    reader = Reader(arguments.schemas)
    database = sqlite3.connect(arguments.database)
    database.executescript(TABLES)
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": "unused",  # librdkafka wants one; nothing is committed to it
            "enable.auto.commit": False,
            "auto.offset.reset": "error",  # a position that is gone is an error, not a reason to begin anew
        }
    )
    ends = assign(consumer, database, arguments.topic)
    while not stopping:
        messages = consumer.consume(500, 0.2)
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._TRANSPORT:  # brokers that are away come back
                sys.exit(f"cannot read on: {error}")
        read = [message for message in messages if message.error() is None]
        if read:
            taken = take(database, reader, read)
            print(f"{taken} events, {len(read) - taken} repeats", flush=True)
        elif arguments.until_end:
            known = dict(database.execute("SELECT partition, next_offset FROM positions"))
            if all(known.get(partition, 0) >= end for partition, end in ends.items()):
                break
    consumer.close()
    for row in database.execute("SELECT workflow_type, event_type, events FROM counts ORDER BY 1, 2"):
        print("{:30} {:45} {:8}".format(*row))
    database.close()


if __name__ == "__main__":
    main()
