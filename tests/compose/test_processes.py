"""The services of compose/cluster.yaml as plain processes on a real broker: two of each make one cluster."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from support.metrics import sample
from support.servers import LOOPBACK, Process, answers, cli, everfold_command, free_port

CLUSTER = Path(__file__).resolve().parents[2] / "compose" / "cluster.yaml"
READY_S = 60.0


class Cluster:
    """The processes, the frontends' addresses, where each process has its metrics, and the environment of the last."""

    def __init__(
        self,
        processes: dict[str, Process],
        frontends: list[str],
        metrics_ports: dict[str, int],
        common: dict[str, str],
    ) -> None:
        self.common = common
        self.processes = processes
        self.frontends = frontends
        self.metrics_ports = metrics_ports


def wait_until_answers(address: str, namespace: str, processes: dict[str, Process]) -> None:
    deadline = time.monotonic() + READY_S
    while not answers(address, namespace):
        dead = [process for process in processes.values() if not process.running]
        assert not dead, "\n".join(process.tail() for process in dead)
        assert time.monotonic() < deadline, "\n".join(process.tail(10) for process in processes.values())
        time.sleep(0.1)


@pytest.fixture
def cluster(kafka_bootstrap: str, topic_prefix: str, tmp_path: Path) -> Iterator[Cluster]:
    """Every service of cluster.yaml, with this machine's broker, ports and directories in place of the containers'."""
    services = yaml.safe_load(CLUSTER.read_text())["services"]
    processes: dict[str, Process] = {}
    frontends: list[str] = []
    metrics_ports: dict[str, int] = {}
    with ExitStack() as stack:
        for name, service in services.items():
            if service.get("image") != "everfold:latest":
                continue
            role = service["command"][0]
            env = {
                **service["environment"],
                "EVERFOLD_KAFKA_BOOTSTRAP": kafka_bootstrap,
                "EVERFOLD_KAFKA_PREFIX": topic_prefix,
                "EVERFOLD_HISTORY_SHARDS": "4",
                "EVERFOLD_MATCHING_PARTITIONS": "2",
                "EVERFOLD_NODE_DATA_DIR": str(tmp_path / name),
                "EVERFOLD_NODE_RPC_IP": LOOPBACK,
                "EVERFOLD_NODE_RPC_PORT": "0",
                "EVERFOLD_METRICS_IP": LOOPBACK,
                "EVERFOLD_METRICS_PORT": str(metrics := free_port()),
                "EVERFOLD_VISIBILITY_URL": f"sqlite:///{tmp_path / 'index.db'}",
            }
            words = list(service["command"])
            if "--advertise" in words:  # a container's name means nothing here
                del words[(at := words.index("--advertise")) : at + 2]
            if "--ip" in words:
                words[words.index("--ip") + 1] = LOOPBACK
            if role == "frontend":
                port = free_port()
                frontends.append(f"{LOOPBACK}:{port}")
                words += ["--port", str(port)]
            process = Process(name, [*everfold_command(), *words], tmp_path / f"{name}.log", env)
            stack.callback(process.stop)
            process.start()
            if role == "topics":
                while process.running:
                    time.sleep(0.05)
            else:
                processes[name] = process
                metrics_ports[name] = metrics
        yield Cluster(processes, frontends, metrics_ports, env)


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_two_of_each_service_make_one_cluster(cluster: Cluster) -> None:
    for address in cluster.frontends:
        wait_until_serves(address, cluster.processes)
    first, second = cluster.frontends
    told = "there is no namespace yet"
    assert any(told in process.log.read_text() for name, process in cluster.processes.items() if "frontend" in name)
    cli(first, "operator", "namespace", "create", "--namespace", "shared", "--retention", "1d")
    wait_until_answers(second, "shared", cluster.processes)
    # Ids of every shard, started at one frontend, described at the other.
    for number in range(8):
        start = ("workflow", "start", "--namespace", "shared", "--type", "T", "--task-queue", "q")
        cli(first, *start, "--workflow-id", f"w{number}")
        described = cli(second, "workflow", "describe", "--namespace", "shared", "--workflow-id", f"w{number}")
        assert f"w{number}" in described.stdout
        query = ("workflow", "list", "--namespace", "shared", "--query", f'WorkflowId="w{number}"')
        wait_until_says(f"w{number}", cluster.frontends[number % 2], *query)
    for name, port in cluster.metrics_ports.items():
        wait_until_shows_metrics(name, port, cluster.processes[name])


@pytest.mark.broker
@pytest.mark.timeout(180)
def test_a_frontend_without_a_workers_index_refuses_lists_and_says_why(cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    address = f"{LOOPBACK}:{port}"
    env = {**cluster.common, "EVERFOLD_NODE_DATA_DIR": str(tmp_path / "apart"), "EVERFOLD_METRICS_PORT": "0"}
    words = ["frontend", "--ip", LOOPBACK, "--port", str(port), "--visibility-url", ""]
    apart = Process("apart", [*everfold_command(), *words], tmp_path / "apart.log", env)
    try:
        apart.start()
        wait_until_serves(address, {"apart": apart, **cluster.processes})
        cli(address, "operator", "namespace", "create", "--namespace", "shared", "--retention", "1d")
        wait_until_answers(address, "shared", {"apart": apart})
        refused = cli(address, "workflow", "list", "--namespace", "shared", check=False).stderr
        assert "found no file" in refused
        assert str(tmp_path / "apart" / "visibility.db") in refused
        assert "--visibility-url" in refused
        assert "lists and counts are refused" in apart.tail(100)
    finally:
        apart.stop()


def wait_until_says(text: str, address: str, *arguments: str) -> None:
    """Waits until the `temporal` command prints that."""
    deadline = time.monotonic() + READY_S
    while True:
        done = cli(address, *arguments, check=False)
        said = done.stdout + done.stderr
        if done.returncode == 0 and text in said:
            return
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def wait_until_shows_metrics(name: str, port: int, process: Process) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError):
            assert sample(port, "process_start_time_seconds") > 0
            return
        assert process.running, process.tail()
        assert time.monotonic() < deadline, f"{name} shows no metrics on port {port}\n{process.tail()}"
        time.sleep(0.1)


def wait_until_serves(address: str, processes: dict[str, Process]) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        done: subprocess.CompletedProcess[str] = cli(address, "operator", "cluster", "health", check=False)
        if done.returncode == 0:
            return
        dead = [process for process in processes.values() if not process.running]
        assert not dead, "\n".join(process.tail() for process in dead)
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.2)
