"""`everfold server start-dev` as a process: banner, clean stop, carrying on, refusals, and what dies with what."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from pathlib import Path

import psutil
import pytest

from support.certificates import Authority
from support.servers import Server, answers, cli, cli_json, everfold_command, everfold_server, free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

STOP_S = 5.0


def describe(server: Server, workflow_id: str) -> str:
    return cli(server.address, "workflow", "describe", "--workflow-id", workflow_id).stdout


def start(server: Server, workflow_id: str) -> None:
    cli(server.address, "workflow", "start", "--type", "T", "--task-queue", "q", "--workflow-id", workflow_id)


def test_it_prints_its_addresses_stops_within_five_seconds_and_carries_on(tmp_path: Path) -> None:
    metrics = str(free_port())
    options = ("--namespace", "other", "--search-attribute", "Age=Int", "--topology-metrics-port", metrics)
    server = everfold_server(tmp_path, *options)
    with server:
        assert "gRPC:" in server.tail(200)
        assert f"Processors: metrics at http://127.0.0.1:{metrics}/metrics" in server.tail(200)
        assert "survives the kill of any process, not the loss of power" in server.tail(200)
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


def test_a_broker_that_dies_alone_is_started_again(tmp_path: Path) -> None:
    with everfold_server(tmp_path) as server:
        start(server, "before")
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


def test_a_taken_port_is_refused_and_nothing_stays_behind(tmp_path: Path) -> None:
    with everfold_server(tmp_path / "first") as server:
        port = server.address.rpartition(":")[2]
        command = [*everfold_command(), "server", "start-dev", "--ephemeral", "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 1
        assert "--port" in second.stderr


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
