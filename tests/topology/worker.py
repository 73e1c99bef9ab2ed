"""A topology worker as a process, and what it has made of its source."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from everfold.topology.events import ORIGIN, PREDECESSOR, parse_place
from everfold.topology.publisher import pairs
from everfold.visibility.store import open_visibility
from visibility.records import NAMESPACE_ID

EventPlace = tuple[int, int, int, int]


def await_that(condition: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


class WorkerProcess:
    """`everfold topology worker`, over one directory, in any number of lives."""

    def __init__(self, bootstrap: str, prefix: str, directory: Path, index: Path | None = None) -> None:
        self.directory = directory
        self.index = index or directory / "visibility.db"
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "EVERFOLD_KAFKA_BOOTSTRAP": bootstrap,
            "EVERFOLD_KAFKA_PREFIX": prefix,
            "EVERFOLD_KAFKA_SINGLE_BROKER": "true",
            "EVERFOLD_NODE_DATA_DIR": str(directory),
            "EVERFOLD_VISIBILITY_URL": f"sqlite:///{self.index}",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._environment["EVERFOLD_TOPOLOGY_METRICS_PORT"] = str(self.port)
        self.command = [sys.executable, "-m", "everfold.cli", "topology", "worker"]
        self.process: subprocess.Popen[bytes] | None = None
        self._log = directory.parent / f"{directory.name}.log"

    def add_path(self, directory: Path) -> None:
        self._environment["PYTHONPATH"] = os.pathsep.join([str(directory), self._environment["PYTHONPATH"]])

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self.command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        self.process.kill()
        self.process.wait()

    def stop(self) -> tuple[int, float]:
        """Ends it with SIGTERM: its exit status, and how long that took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20), time.monotonic() - began

    def get(self, path: str) -> str:
        """A page of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def resident_mb(self) -> float:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def listed(self) -> dict[str, tuple[int, int, int]]:
        """Workflow id -> (status, start, close) of everything in the index."""
        if not self.index.exists():
            return {}
        store = open_visibility(f"sqlite:///{self.index}")
        try:
            found: dict[str, tuple[int, int, int]] = {}
            token = b""
            while True:
                infos, token = store.list(NAMESPACE_ID, "", 1000, token, {})
                for info in infos:
                    close = info.close_time.ToNanoseconds() if info.HasField("close_time") else 0
                    found[info.execution.workflow_id] = (info.status, info.start_time.ToNanoseconds(), close)
                if not token:
                    return found
        finally:
            store.close()

    def count(self, query: str, types: dict[str, str]) -> int:
        store = open_visibility(f"sqlite:///{self.index}")
        try:
            return store.count(NAMESPACE_ID, query, types).count
        finally:
            store.close()


def read_all(bootstrap: str, topic: str, partitions: int) -> list[list[Any]]:
    """All records of a topic, by partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    try:
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10) for n in range(partitions)]
        consumer.assign([TopicPartition(topic, n, low) for n, (low, _) in enumerate(ends)])
        found: list[list[Any]] = [[] for _ in range(partitions)]
        while any(len(records) < high - low for records, (low, high) in zip(found, ends, strict=True)):
            for message in consumer.consume(500, 10):
                assert message.error() is None
                found[message.partition() or 0].append(message)
        return found
    finally:
        consumer.close()


def taken(records: list[Any]) -> tuple[list[EventPlace], list[bytes], int]:
    """What a consumer of one partition of `events` makes of it: places and values in order, and repeats dropped."""
    places: list[EventPlace] = []
    values: list[bytes] = []
    repeats = 0
    for message in records:
        headers = {name: value for name, value in pairs(message) if isinstance(value, bytes)}
        place = parse_place(headers[ORIGIN])
        last = places[-1] if places else None
        if last is not None and place <= last:
            repeats += 1
            continue
        before = parse_place(headers[PREDECESSOR]) if PREDECESSOR in headers else None
        assert before == last, f"a gap: {place} follows {before}, the last taken is {last}"
        places.append(place)
        values.append(message.value())
    return places, values, repeats


def group_lag(bootstrap: str, group: str, topics: list[str], partitions: int) -> int:
    """Records behind, as the group's commits tell it."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        wanted = [TopicPartition(topic, n) for topic in topics for n in range(partitions)]
        behind = 0
        for committed in consumer.committed(wanted, timeout=10):
            low, high = consumer.get_watermark_offsets(committed, timeout=10)
            behind += high - (committed.offset if committed.offset >= 0 else low)
        return behind
    finally:
        consumer.close()
