"""How long after kill -9 of everything `start-dev` takes a start again, with many open workflows, and where that goes.

`EVERFOLD_RESTART_OPEN=20000` is the whole of it, with its bar of 10 s (`make restart`); CI has 500 and a generous one.
"""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.raw import RawClient, RpcError
from support.servers import Server, everfold_server, logs_kept, start_phases

OPEN = int(os.environ.get("EVERFOLD_RESTART_OPEN", "500"))
BAR_S = 10.0 if OPEN >= 20_000 else 30.0
AT_ONCE = 64

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(600)]


def start(client: RawClient, workflow_id: str, timeout: float = 20.0) -> None:
    client.call(
        "StartWorkflowExecution",
        timeout=timeout,
        namespace="default",
        workflow_id=workflow_id,
        workflow_type={"name": "T"},
        task_queue={"name": "nobody-polls"},
        request_id=str(uuid.uuid4()),
    )


def seconds_to_a_start(server: Server) -> float:
    """From now until a start is acknowledged. The client connects anew for each try: its own pauses do not count."""
    began = time.monotonic()
    while True:
        client = RawClient(server.address)
        try:
            start(client, "after", timeout=1.0)
            return time.monotonic() - began
        except RpcError as refused:
            if refused.code == "ALREADY_EXISTS":  # a try that was acknowledged too late
                return time.monotonic() - began
            if time.monotonic() > began + 120:
                raise AssertionError(f"{refused}\n{server.tail()}") from refused
            time.sleep(0.05)
        finally:
            client.close()


def test_a_start_is_acknowledged_soon_after_a_kill_with_many_open_workflows(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with logs_kept(tmp_path, request), everfold_server(tmp_path) as server:
        client = RawClient(server.address)
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: start(client, f"open-{number}"), range(OPEN)))
        print(f"\n{OPEN} workflows started in {time.monotonic() - began:.1f} s")
        client.close()
        server.kill()
        server.start_only()
        seconds = seconds_to_a_start(server)
        phases = start_phases(server, 2)
        print(f"a start acknowledged {seconds:.1f} s after the restart; until ready: {phases}")
        assert seconds < BAR_S
        client = RawClient(server.address)
        described = client.call(
            "DescribeWorkflowExecution", namespace="default", execution={"workflow_id": f"open-{OPEN - 1}"}
        )
        assert described.workflow_execution_info.execution.workflow_id == f"open-{OPEN - 1}"
        client.close()
