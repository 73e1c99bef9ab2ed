"""Two processes of each service: the guides' programs pass, and any one of them may die under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crash.conftest import TASK_QUEUE, Cluster
from crash.load import Load, worker_command
from crash.probe import require_served
from support.servers import Process, Server

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow]

PROGRAMS = Path(__file__).parents[1] / "conformance" / "python" / "programs.py"
FULL = "EVERFOLD_CRASH_ROUNDS" in os.environ
"""`make crash` kills each process in turn; otherwise one of each service dies."""

SERVING_AGAIN_SECONDS_MAX = 15.0
UP_SECONDS_MAX = 60.0


@pytest.mark.timeout(600)
def test_two_of_each_service_run_the_programs_through_either_frontend(cluster: Cluster) -> None:
    for address in cluster.addresses:
        done = subprocess.run(
            [sys.executable, str(PROGRAMS), address], capture_output=True, text=True, timeout=240, check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert [line["program"] for line in lines if "error" in line] == [], lines
        assert len(lines) == 6, done.stderr


@pytest.mark.timeout(900)
def test_any_one_process_of_two_of_each_service_may_die_under_load(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = [
        Process(f"sdk-worker-{n}", worker_command(address, TASK_QUEUE), tmp_path / f"sdk-worker-{n}.log")
        for n, address in enumerate(cluster.addresses, 1)
    ]
    load = Load(cluster.addresses, TASK_QUEUE, in_flight=int(os.environ.get("EVERFOLD_CRASH_IN_FLIGHT", "100")))
    took: dict[str, float] = {}
    try:
        for worker in workers:
            worker.start()
        load.start()
        load.wait_for_progress()
        for name, service in cluster.services.items():
            if not (FULL or name.endswith("-1")):
                continue
            killed_at = time.monotonic()
            service.kill()
            require_served(_frontends_without(cluster, name), f"the kill of {name}")
            took[name] = time.monotonic() - killed_at
            with capsys.disabled():
                print(f"\nkill -9 of {name}: everything serves again after {took[name]:.1f} s", end="", flush=True)
            # The next kill is of one of two that both serve: what is measured is the takeover, not a start.
            ups = _times_up(service)
            service.start()
            deadline = time.monotonic() + UP_SECONDS_MAX
            while _times_up(service) == ups:
                assert service.running, service.tail()
                assert time.monotonic() < deadline, service.tail()
                time.sleep(0.1)
            time.sleep(2)
        report = load.finish(240)
    finally:
        for worker in workers:
            if worker.running:
                worker.kill()
    with capsys.disabled():
        print(f"\nchecked {report.workflows} workflows with {report.signals} signals", flush=True)
    assert report.faults == []
    assert {name: seconds for name, seconds in took.items() if seconds > SERVING_AGAIN_SECONDS_MAX} == {}


def _times_up(service: Process) -> int:
    """How often its log says that it serves; the processors say what they hold."""
    text = service.log.read_text(errors="replace")
    return text.count('"event": "serves"') + text.count('"event": "partitions"')


def _frontends_without(cluster: Cluster, killed: str) -> list[str]:
    return [
        service.address for name, service in cluster.services.items() if isinstance(service, Server) and name != killed
    ]
