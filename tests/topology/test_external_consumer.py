"""The example consumer, over a real broker: killed in the middle, fed repeats, it counts every event once."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from everfold.kernel.ids import record_key
from everfold.schemas.events import encode_batch
from everfold.schemas.topics import EVENTS, HISTORY
from everfold.topology.chain import place
from everfold.topology.events import ORIGIN, place_header
from topology.source import EVENTS_PER_WORKFLOW, Source

pytestmark = pytest.mark.broker
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "external_consumer.py"


def counted(database: Path) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as raw:
        try:
            return int(raw.execute("SELECT coalesce(sum(events), 0) FROM counts").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def test_the_example_consumer_counts_every_event_once(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> None:
    source = Source(kafka_bootstrap, topic_prefix)
    source.create_topics()
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "enable.idempotence": True})

    def send(workflow: str) -> None:
        shard = source.shards[len(workflow) % 4]
        batches = [fields for topic, fields in shard.workflow(workflow) if topic == HISTORY.name]
        for again in (batches, batches[-2:]):  # the last two of them come twice
            for fields in again:
                key = record_key("default", workflow)
                for event_id, value in encode_batch(fields):
                    origin = place(fields["origin"])
                    assert origin is not None
                    headers: dict[str, str | bytes | None] = {ORIGIN: place_header((*origin, event_id))}
                    producer.produce(topic_prefix + EVENTS.name, value, key, shard.number, headers=headers)
        producer.flush(10)

    database = tmp_path / "events.db"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(EXAMPLE), "--bootstrap", kafka_bootstrap, "--topic", topic_prefix + EVENTS.name]
    command += ["--database", str(database)]
    sent = 0
    for life in range(3):
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as consumer:
            for number in range(20):
                send(f"w{life}-{'x' * (number % 4)}{number}")
                sent += EVENTS_PER_WORKFLOW
            deadline = time.monotonic() + 30
            while not database.exists() or counted(database) < sent - 15 * EVENTS_PER_WORKFLOW:
                assert time.monotonic() < deadline
                assert consumer.poll() is None
                time.sleep(0.01)
            consumer.kill()
    last = subprocess.run(
        [*command, "--until-end"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert counted(database) == sent == 3 * 20 * EVENTS_PER_WORKFLOW
    assert re.search(r"Order +WORKFLOW_EXECUTION_STARTED +60$", last.stdout, re.MULTILINE)
