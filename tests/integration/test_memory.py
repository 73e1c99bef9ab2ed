"""Memory is bounded: many open workflows with a small cache, and many workflows one after the other.

`EVERFOLD_MEMORY_SCALE=1` runs the whole of it (5,000 open workflows; 20,000 after 2,000); CI runs a tenth.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.raw import RawClient
from support.servers import Process, Server, everfold_server, logs_kept
from support.toolchains import REPOSITORY, Unavailable, go_binary

SCALE = float(os.environ.get("EVERFOLD_MEMORY_SCALE", "0.1"))
OPEN = int(5_000 * SCALE)
CACHED_RUNS = 100
FIRST, ALL = int(2_000 * SCALE), int(20_000 * SCALE)
GROWTH_MAX_MB = 150
NAMESPACE = "default"

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300 + 1500 * SCALE)]


@pytest.fixture(scope="module")
def load() -> Path:
    try:
        return go_binary(REPOSITORY / "benchmarks" / "load")
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    arguments = ("--history-run-cache-runs", str(CACHED_RUNS)) if "cache" in request.node.name else ()
    with logs_kept(tmp_path, request), everfold_server(tmp_path, *arguments) as server:
        yield server


def test_more_open_workflows_than_the_run_cache_holds_all_complete(server: Server, load: Path, tmp_path: Path) -> None:
    queue = f"memory-{uuid.uuid4().hex[:8]}"
    client = RawClient(server.address)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: _start(client, queue, number), range(OPEN)))
    _wait_for_count(client, f'TaskQueue = "{queue}" AND ExecutionStatus = "Running"', OPEN, 60)
    command = [str(load), "-address", server.address, "-mode", "worker", "-task-queue", queue]
    worker = Process("load-worker", command, tmp_path / "load-worker.log")
    worker.start()
    try:
        _wait_for_count(client, f'TaskQueue = "{queue}" AND ExecutionStatus = "Completed"', OPEN, 120 + OPEN / 10)
    finally:
        worker.kill()
        client.close()


def test_memory_stops_growing_with_the_number_of_workflows(server: Server, load: Path, tmp_path: Path) -> None:
    _run(load, server, FIRST, tmp_path)
    after_first = server.rss_bytes()
    _run(load, server, ALL - FIRST, tmp_path)
    grown = (server.rss_bytes() - after_first) / 2**20
    print(f"RSS after {FIRST} workflows {after_first / 2**20:.0f} MB, after {ALL} {grown:+.0f} MB")
    assert grown <= GROWTH_MAX_MB


def _run(load: Path, server: Server, workflows: int, directory: Path) -> None:
    flags = ["-workflows", str(workflows), "-concurrency", "64", "-sequential", "0", "-timeout", "30m"]
    process = Process("load", [str(load), "-address", server.address, *flags], directory / "load.log")
    process.start()
    deadline = time.monotonic() + 60 + workflows / 10
    while process.running:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"{workflows} workflows took too long\n{process.tail()}")
        time.sleep(0.2)
    last = process.tail(1)
    assert f'"workflows":{workflows}' in last, last


def _start(client: RawClient, queue: str, number: int) -> None:
    client.call(
        "StartWorkflowExecution",
        namespace=NAMESPACE,
        workflow_id=f"{queue}-{number}",
        workflow_type={"name": "chain"},
        task_queue={"name": queue},
        input={"payloads": [{"metadata": {"encoding": b"json/plain"}, "data": b'{"Activities":1}'}]},
        request_id=str(uuid.uuid4()),
    )


def _wait_for_count(client: RawClient, query: str, expected: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        count = client.call("CountWorkflowExecutions", namespace=NAMESPACE, query=query).count
        if count == expected:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{count} of {expected} after {timeout:.0f} s: {query}")
        time.sleep(0.2)
