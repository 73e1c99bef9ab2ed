"""`everfold server start-dev` as a process: banner, clean stop, carrying on, refusals, and what dies with what."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.enums.v1.workflow_pb2 import WORKFLOW_EXECUTION_STATUS_RUNNING

from support.certificates import Authority
from support.raw import RawClient, RpcError
from support.servers import (
    Server,
    answers,
    banner,
    cli,
    cli_json,
    everfold_command,
    everfold_server,
    free_port,
    start_phases,
)

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

STOP_S = 5.0


def describe(server: Server, workflow_id: str) -> str:
    return cli(server.address, "workflow", "describe", "--workflow-id", workflow_id).stdout


def start(server: Server, workflow_id: str) -> None:
    cli(server.address, "workflow", "start", "--type", "T", "--task-queue", "q", "--workflow-id", workflow_id)


def test_it_prints_its_addresses_stops_within_five_seconds_and_carries_on(tmp_path: Path) -> None:
    metrics = str(free_port())
    options = (
        "--no-fsync",
        "--namespace",
        "other",
        "--search-attribute",
        "Age=Int",
        "--topology-metrics-port",
        metrics,
    )
    server = everfold_server(tmp_path, *options)
    with server:
        assert "gRPC:" in banner(server)
        assert f"Processors: metrics at http://127.0.0.1:{metrics}/metrics" in banner(server)
        assert "survives the kill of any process, not the loss of power" in banner(server)
        assert flush_messages(server) == {str(2**63 - 1)}
        start(server, "kept")
        names = cli(server.address, "operator", "namespace", "list").stdout
        assert "default" in names
        assert "other" in names
        attributes = cli(server.address, "operator", "search-attribute", "list", "--namespace", "other").stdout
        assert "Age" in attributes
        below = server.descendants()
        assert server.stop() < STOP_S
        assert not [process for process in below if process.is_running()]
        server.start()
        assert "kept" in describe(server, "kept")


def test_after_a_kill_it_is_ready_when_its_shards_serve_and_says_where_the_time_went(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "before")
        server.kill()
        server.start()
        assert "before" in describe(server, "before")
        phases = start_phases(server, 2)
        names = ("broker", "group", "open", "refold", "take", "the rest")
        assert re.fullmatch(", ".join(rf"{name} [\d.]+ s" for name in names), phases)
        # Without a name in the group that it keeps, it waits here until the session of its former life is over: 6 s.
        group = re.search(r"group ([\d.]+) s", phases)
        assert group is not None
        assert float(group[1]) < 5


def test_a_timer_that_fell_due_while_the_server_was_down_fires_at_once_after_a_restart(tmp_path: Path) -> None:
    delay_s = 8.0
    with everfold_server(tmp_path) as server:
        cli(server.address, *_start("delayed"), "--start-delay", f"{delay_s:.0f}s")
        due = time.monotonic() + delay_s
        with connected(server) as client:
            assert events(client, "delayed") == ["WORKFLOW_EXECUTION_STARTED"]
        server.stop()
        assert time.monotonic() < due, "the server took so long to stop that this shows nothing"
        time.sleep(due + 0.5 - time.monotonic())
        server.start()
        serves = time.monotonic()
        with connected(server) as client:
            while events(client, "delayed") != ["WORKFLOW_EXECUTION_STARTED", "WORKFLOW_TASK_SCHEDULED"]:
                assert time.monotonic() < serves + 2.0, server.tail()
                time.sleep(0.05)
            task = client.call("PollWorkflowTaskQueue", namespace="default", task_queue={"name": "q"})
            assert task.workflow_execution.workflow_id == "delayed"


def test_it_stops_within_five_seconds_while_a_worker_polls_and_a_workflow_runs(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "running")
        execution = {"workflow_id": "running"}
        with connected(server) as client:
            task = client.call("PollWorkflowTaskQueue", namespace="default", task_queue={"name": "q"})
            assert task.task_token
            waiting = [
                client.begin("PollWorkflowTaskQueue", timeout=60, namespace="default", task_queue={"name": "q"}),
                client.begin("PollActivityTaskQueue", timeout=60, namespace="default", task_queue={"name": "q"}),
                client.begin(
                    "GetWorkflowExecutionHistory", timeout=60, namespace="default", execution=execution,
                    wait_new_event=True, history_event_filter_type=2,
                ),
            ]  # fmt: skip
            time.sleep(1.0)  # they have reached the server
            assert not any(call.done for call in waiting)
            assert server.stop() < STOP_S
            for call in waiting:
                with contextlib.suppress(RpcError):  # an empty answer or a refusal, but none hangs
                    assert not getattr(call.result(5.0), "task_token", b"")
        server.start()
        with connected(server) as client:
            found = client.call("DescribeWorkflowExecution", namespace="default", execution=execution)
            assert found.workflow_execution_info.status == WORKFLOW_EXECUTION_STATUS_RUNNING


@contextlib.contextmanager
def connected(server: Server) -> Iterator[RawClient]:
    client = RawClient(server.address)
    try:
        yield client
    finally:
        client.close()


def events(client: RawClient, workflow_id: str) -> list[str]:
    found = client.call(
        "GetWorkflowExecutionHistory", namespace="default", execution={"workflow_id": workflow_id}
    ).history.events
    return [EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in found]


def test_a_server_that_is_killed_takes_its_children_along_and_loses_nothing(tmp_path: Path) -> None:
    server = everfold_server(tmp_path)
    with server:
        start(server, "kept")
        below = server.descendants()
        assert len(below) >= 2, "expected the broker and the processors"
        server.kill(descendants=False)
        _, alive = psutil.wait_procs(below, timeout=10)
        assert not alive
        server.start()
        assert "kept" in describe(server, "kept")


def flush_messages(server: Server) -> set[str]:
    """After how many records Kafka asks the disk, of the topics that workflows rest on."""
    found = re.search(r"Kafka: +(\S+) \(embedded\), topics (\S+)\*", banner(server))
    assert found is not None
    bootstrap, prefix = found.groups()
    topics = [ConfigResource(ResourceType.TOPIC, f"{prefix}{name}") for name in ("shard-log", "commands")]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    return {answer.result(30)["flush.messages"].value for answer in admin.describe_configs(topics).values()}


def test_a_broker_that_dies_alone_is_started_again(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "before")
        through = "and the loss of power" in banner(server)
        assert flush_messages(server) == {"1" if through else str(2**63 - 1)}
        broker = next(process for process in server.descendants() if "java" in process.name())
        broker.kill()
        deadline = time.monotonic() + 60
        while cli(server.address, *_start("after"), check=False).returncode != 0:
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.2)
        assert "before" in describe(server, "before")


def _start(workflow_id: str) -> tuple[str, ...]:
    return ("workflow", "start", "--type", "T", "--task-queue", "q", "--workflow-id", workflow_id)


def test_interrupt_stops_it_as_well(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        began = time.monotonic()
        psutil.Process(server.pid).send_signal(signal.SIGINT)
        while server.running:
            assert time.monotonic() - began < STOP_S, server.tail()
            time.sleep(0.02)


def test_a_second_server_on_the_same_directory_is_refused_and_told_what_to_do(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        command = [*everfold_command(), "server", "start-dev", "--port", str(free_port()), "--data-dir"]
        second = subprocess.run(
            [*command, str(tmp_path / "data")], capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 1
        assert f"in use by process {server.pid}" in second.stderr
        assert "--data-dir DIR" in second.stderr


@pytest.mark.parametrize("flag", ["--port", "--rpc-port", "--metrics-port", "--topology-metrics-port", "--broker-port"])
def test_a_taken_port_is_named_before_the_broker_is_started(flag: str, tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in ("--port", flag)}
    with socket.create_server(("127.0.0.1", int(ports[flag]))):
        command = [*everfold_command(), "server", "start-dev", "--data-dir", str(tmp_path / "data")]
        done = subprocess.run(
            [*command, *(word for pair in ports.items() for word in pair)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"The address 127.0.0.1:{ports[flag]} cannot be listened on: Address already in use" in done.stderr
    assert f"give {flag}." in done.stderr
    assert not (tmp_path / "data" / "broker").exists()


def test_what_is_kept_is_for_its_owner_alone(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "mine")
        server.stop()
    kept = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    assert {"broker", "history", "visibility.db"} <= {path.name for path in kept}
    assert [path for path in kept if path.stat().st_mode & 0o077] == []


def test_visibility_lists_a_closed_workflow_as_closed_within_a_second(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "one")
        wait_listed(server, "one", "Running", 15.0)  # the processors join their group meanwhile
        cli(server.address, "workflow", "terminate", "--workflow-id", "one", "--reason", "enough")
        wait_listed(server, "one", "Terminated", 1.0)


def wait_listed(server: Server, workflow_id: str, status: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    query = f'WorkflowId="{workflow_id}" AND ExecutionStatus="{status}"'
    while True:
        asked = time.monotonic()
        if cli_json(server.address, "workflow", "list", "--query", query):
            return
        assert asked < deadline, f"not listed as {status} after {seconds} s\n{server.tail()}"


def test_with_a_certificate_it_serves_tls_and_nothing_else(tmp_path: Path, kafka_bootstrap: str) -> None:
    authority = Authority(tmp_path / "certificates")
    signed = authority.sign("server")
    files = ("--tls-cert-path", str(signed.certificate), "--tls-key-path", str(signed.key))
    prefix = ("--kafka-prefix", f"tls-{uuid.uuid4().hex[:8]}.", "--no-topology")
    server = everfold_server(tmp_path, *files, *prefix, kafka=kafka_bootstrap)
    trust = ("--tls-ca-path", str(authority.certificate))
    try:
        server.start_only()
        deadline = time.monotonic() + 60
        while f"{server.address} (TLS)" not in server.tail(200):
            assert server.running, server.tail()
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.1)
        cli(server.address, *_start("one"), *trust)
        assert "one" in cli(server.address, "workflow", "describe", "--workflow-id", "one", *trust).stdout
        assert not answers(server.address)
        # There is no index without the processors, and that is what a list is told.
        listed = cli(server.address, "workflow", "list", *trust, check=False)
        assert "found no file" in listed.stderr
        release = [*everfold_command(), "workflow", "release", "-w", "one", "--address", server.address]
        done = subprocess.run([*release, *trust], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "not quarantined" in done.stderr) == (1, True), done.stderr
    finally:
        server.stop()


def test_config_show_prints_json_for_scripts() -> None:
    shown = subprocess.run(
        [*everfold_command(), "config", "show", "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(shown.stdout)["settings"]["frontend.port"]["value"] == 7233
