"""Everfold's services as processes of their own, so many of each, on a Kafka that runs already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from support.raw import RawClient, RpcError
from support.servers import LOOPBACK, Process, Server, everfold_command, free_port


class Services:
    """The processes.

    Attributes:
        services: by name, e.g. "history-1".
        addresses: of the frontends.
    """

    ROLES = ("history", "matching", "frontend", "worker")

    def __init__(self, directory: Path, kafka: Sequence[str], *, each: int) -> None:
        """Nothing is started.

        Args:
            directory: takes data directories and logs.
            kafka: the arguments that name the cluster.
            each: how many of each role.
        """
        self.directory = directory
        self.services: dict[str, Process] = {}
        self.addresses: list[str] = []
        self._kafka = list(kafka)
        visibility = f"sqlite:///{directory / 'visibility.db'}"
        for role in self.ROLES:
            for number in range(1, each + 1):
                name = f"{role}-{number}"
                arguments = [*self._kafka, "--data-dir", str(directory / name), "--name", name]
                if role in ("frontend", "worker"):
                    arguments += ["--visibility-url", visibility]
                log = directory / f"{name}.log"
                if role == "frontend":
                    port = free_port()
                    address = f"{LOOPBACK}:{port}"
                    command = [*everfold_command(), role, "--ip", LOOPBACK, "--port", str(port), *arguments]
                    self.services[name] = Server(name, address, command, log)
                    self.addresses.append(address)
                else:
                    self.services[name] = Process(name, [*everfold_command(), role, *arguments], log)

    def start(self) -> None:
        """Makes the topics, starts everything, makes the namespace; returns when the frontends answer."""
        command = [*everfold_command(), "topics", "apply", *self._kafka]
        topics = Process("topics", command, self.directory / "topics.log")
        topics.start()
        deadline = time.monotonic() + 60
        while topics.running:
            assert time.monotonic() < deadline, topics.tail()
            time.sleep(0.1)
        for service in self.services.values():
            service.start_only() if isinstance(service, Server) else service.start()
        self._make_namespace()
        for service in self.services.values():
            if isinstance(service, Server):
                service.wait_ready(120)

    def stop(self) -> None:
        """Kills what runs."""
        for service in reversed(self.services.values()):
            if service.running:
                service.kill()

    def _make_namespace(self) -> None:
        """Only start-dev makes `default` by itself; a cluster is given its namespaces."""
        client = RawClient(self.addresses[0])
        deadline = time.monotonic() + 120
        while True:
            try:
                retention = {"seconds": 24 * 3600}
                client.call(
                    "RegisterNamespace",
                    namespace="default",
                    workflow_execution_retention_period=retention,
                    timeout=5,
                )
                break
            except RpcError as error:
                if error.code == "ALREADY_EXISTS":
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        client.close()
