"""Three real Kafka brokers on this machine, made of the embedded broker's parts: killed, paused and started one by one.

Each is broker and controller in one (KRaft). Three copies, two of them in sync before anything is acknowledged, no
unclean elections: what a cluster of Everfold asks of its Kafka. Broker 1 is one of three equals.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.broker import prepare
from everfold.runtime.broker.configuration import Ports, Runtime, java_command, server_properties, tied_to
from support.servers import LOOPBACK, Process, free_port

BROKERS: Final = (1, 2, 3)
HEAP_MB: Final = 192
SESSION_MS: Final = 9000
"""Kafka's own default: for so long a silent broker keeps its leaderships."""

START_SECONDS_MAX: Final = 120.0
LOOK_S: Final = 0.25
WRITE_S: Final = 1.0
PROBE_TOPIC: Final = "probe"
PROBE_PARTITIONS: Final = 6
"""Two for each broker to lead."""


class ThreeBrokers:
    """Three brokers in a directory; `start` them first.

    Attributes:
        bootstrap: the addresses of all three.
        brokers: number -> its process.
    """

    def __init__(self, directory: Path, *, session_ms: int = SESSION_MS) -> None:
        self._directory = directory
        self._session_ms = session_ms
        self._ports = {number: Ports(free_port(), free_port()) for number in BROKERS}
        self.bootstrap = ",".join(f"{LOOPBACK}:{ports.client}" for ports in self._ports.values())
        self.brokers: dict[int, Process] = {}
        self._paused: set[int] = set()

    def start(self) -> None:
        """Formats the three directories, starts the brokers, returns when each knows of all."""
        runtime = prepare(print, archive=False).runtime
        cluster_id = urlsafe_b64encode(uuid.UUID(int=uuid.uuid4().int >> 1).bytes).decode().rstrip("=")
        formats = [subprocess.Popen(self._format(runtime, number, cluster_id)) for number in BROKERS]
        assert [one.wait(START_SECONDS_MAX) for one in formats] == [0, 0, 0]
        for number in BROKERS:
            directory = self._directory / f"broker-{number}"
            options = [f"-Deverfold.broker.log={directory / f'kafka-{number}.log'}"]
            command = java_command(
                runtime, "kafka.Kafka", [str(directory / "server.properties")], heap_mb=HEAP_MB, options=options
            )
            # Not even a test run that is killed leaves them behind.
            self.brokers[number] = Process(
                f"broker-{number}", tied_to(os.getpid(), command), directory / f"broker-{number}.log"
            )
            self.brokers[number].start()
        self._await(lambda found: len(found.brokers) == len(BROKERS), "three brokers", START_SECONDS_MAX)
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([NewTopic(PROBE_TOPIC, PROBE_PARTITIONS, len(BROKERS))])[PROBE_TOPIC].result(
            START_SECONDS_MAX
        )

    def stop(self) -> None:
        """Kills them all: their data goes with the test's directory."""
        for broker in self.brokers.values():
            if broker.running:
                broker.kill()

    def kill(self, *numbers: int) -> None:
        """kill -9."""
        for number in numbers:
            self.brokers[number].kill()

    def start_again(self, *numbers: int) -> None:
        """After a kill."""
        for number in numbers:
            self.brokers[number].start()

    def pause(self, number: int) -> None:
        """SIGSTOP: it holds its connections and says nothing."""
        self._paused.add(number)
        os.kill(self.brokers[number].pid, signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """SIGCONT, after a pause."""
        os.kill(self.brokers[number].pid, signal.SIGCONT)
        self._paused.discard(number)

    def leader(self, topic: str, partition: int = 0) -> int:
        """Which broker leads a partition."""
        found = self._look()
        assert found is not None
        return int(found.topics[topic].partitions[partition].leader)

    def await_writable(self, without: Collection[int] = (), *, seconds_max: float = 120.0) -> None:
        """Returns at the moment from which Kafka takes records again: every partition has a leader, and two in sync,
        none of them among `without`; with nobody left out, when all three are in sync.

        What a broker without a controller says of that is old, so records are written, too.
        """
        copies = len(BROKERS) - len(without)

        def led(found: Any) -> bool:
            partitions = [one for topic in found.topics.values() for one in topic.partitions.values()]
            return all(
                one.leader in one.isrs and len(one.isrs) >= copies and not set(one.isrs) & set(without)
                for one in partitions
            )

        self._await(lambda found: led(found) and self._takes_records(), f"leaders without {[*without]}", seconds_max)

    def _takes_records(self) -> bool:
        """Whether a client of its own has a record acknowledged on each broker that leads, by all that are in sync."""
        producer = Producer(
            {
                "bootstrap.servers": self._living()[0],
                "acks": "all",
                "message.timeout.ms": round(WRITE_S * 1000),
                "socket.timeout.ms": round(WRITE_S * 1000),
                "log_level": 0,
            }
        )
        failed: list[KafkaError] = []

        def report(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        for partition in range(PROBE_PARTITIONS):
            producer.produce(PROBE_TOPIC, b"", partition=partition, on_delivery=report)
        return producer.flush(2 * WRITE_S) == 0 and not failed

    def _await(self, ready: Any, what: str, seconds_max: float) -> None:
        deadline = time.monotonic() + seconds_max
        while (found := self._look()) is None or not ready(found):
            assert time.monotonic() < deadline, (
                f"Kafka has no {what} after {seconds_max:.0f} s: {found and found.topics}"
            )
            time.sleep(LOOK_S)

    def _living(self) -> list[str]:
        return [
            f"{LOOPBACK}:{self._ports[number].client}"
            for number, broker in self.brokers.items()
            if broker.running and number not in self._paused
        ]

    def _look(self) -> Any:
        """What a living broker says; with a client of its own each time, which knows of no other broker yet."""
        for address in self._living():
            try:
                return AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=2)
            except KafkaException:
                continue
        return None

    def _format(self, runtime: Runtime, number: int, cluster_id: str) -> list[str]:
        directory = self._directory / f"broker-{number}"
        directory.mkdir(parents=True)
        (directory / "server.properties").write_text(self._properties(number, directory / "data"))
        return java_command(
            runtime,
            "kafka.tools.StorageTool",
            ["format", "--cluster-id", cluster_id, "--config", str(directory / "server.properties")],
            heap_mb=128,
            options=[f"-Deverfold.broker.log={directory / 'format.log'}"],
        )

    def _properties(self, number: int, log_dir: Path) -> str:
        """The embedded broker's configuration, then what makes it one of three: the last word wins."""
        voters = ",".join(f"{one}@{LOOPBACK}:{ports.controller}" for one, ports in self._ports.items())
        ours: dict[str, object] = {
            "node.id": number,
            "controller.quorum.voters": voters,
            "broker.session.timeout.ms": self._session_ms,
            "default.replication.factor": 3,
            "min.insync.replicas": 2,
            "unclean.leader.election.enable": "false",
            "offsets.topic.replication.factor": 3,
            "transaction.state.log.replication.factor": 3,
            "transaction.state.log.min.isr": 2,
            "share.coordinator.state.topic.replication.factor": 3,
            "share.coordinator.state.topic.min.isr": 2,
        }
        return server_properties(log_dir, self._ports[number]) + "".join(
            f"{key}={value}\n" for key, value in ours.items()
        )
