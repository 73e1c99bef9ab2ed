"""A server with a defect in it, and an operator with the `temporal` command who gets rid of what it has caught."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from support.servers import Server, cli, cli_json, everfold_server, temporal_command

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

DEFECT = """
from everfold.history.machine.decide import signal
record_signal = signal.record_signal
def stumbling(turn, request, input_):
    if request.signal_name == "defect":
        raise KeyError("defect")
    record_signal(turn, request, input_)
signal.record_signal = stumbling
"""
"""Loaded by Python at the start of every process of the server."""


def test_it_is_shown_terminated_and_deleted_and_its_id_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEFECT)
    with everfold_server(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as server:
        for workflow_id in ("ended", "removed"):
            start(server, workflow_id)
            refused = send(server, workflow_id, "defect")
            assert "is quarantined: KeyError in SIGNAL_WORKFLOW" in refused, refused
        follower = follow(server, "ended")
        wait_listed(server, "ended", "TemporalReportedProblems='category=WorkflowQuarantined'", "Running")
        assert "WorkflowTaskScheduled" in cli(server.address, "workflow", "show", "-w", "ended").stdout
        assert "is quarantined" in send(server, "ended", "waits")
        cli(server.address, "workflow", "terminate", "-w", "ended", "--reason", "enough")
        assert "WorkflowExecutionTerminated" in follower.communicate(timeout=30)[0]
        wait_listed(server, "ended", "WorkflowId='ended'", "Terminated")
        cli(server.address, "workflow", "delete", "-w", "removed", "--yes")
        gone = cli(server.address, "workflow", "describe", "-w", "removed", check=False)
        assert "not found" in gone.stderr
        for workflow_id in ("ended", "removed"):
            start(server, workflow_id)
            assert send(server, workflow_id, "fine") == ""


def start(server: Server, workflow_id: str) -> None:
    cli(server.address, "workflow", "start", "--type", "T", "--task-queue", "q", "--workflow-id", workflow_id)


def send(server: Server, workflow_id: str, name: str) -> str:
    """Signals, and returns what the command complains of; it would repeat what is UNAVAILABLE for long."""
    done = cli(
        server.address, "workflow", "signal", "-w", workflow_id, "--name", name, "--command-timeout", "3s", check=False
    )
    return done.stderr


def follow(server: Server, workflow_id: str) -> subprocess.Popen[str]:
    """Somebody who waits for the workflow's end with a long poll."""
    command = [str(temporal_command()), "workflow", "show", "--follow", "-w", workflow_id, "--address", server.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_listed(server: Server, workflow_id: str, query: str, status: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        listed = cli_json(server.address, "workflow", "list", "--query", f"{query} AND ExecutionStatus='{status}'")
        assert isinstance(listed, list)
        if workflow_id in [one["execution"]["workflowId"] for one in listed]:
            return
        assert time.monotonic() < deadline, f"{workflow_id} is not listed as {status}\n{server.tail()}"
        time.sleep(0.2)
