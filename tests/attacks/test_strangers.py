"""Hostile and careless clients against a real server: its memory is bounded and comes back, and others are served.

`EVERFOLD_ATTACKS=full` is the whole of it (`make attacks`); CI runs a smaller form of each.
"""

from __future__ import annotations

import os
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.raw import RawClient, RpcError
from support.servers import Server, everfold_server, logs_kept
from support.wire import DATA, FRAME_BYTES, Resident, Stranger, bomb, frame, message

FULL = os.environ.get("EVERFOLD_ATTACKS") == "full"
MB = 2**20
GROWTH_MAX_MB = 150
BACK_MB = 100
BACK_SECONDS = 60.0

CACHES_MB = 250
"""What large payloads may leave in the run cache (128 MiB), RocksDB's (64 MiB), and Kafka's buffers."""

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("attacks")
    with logs_kept(directory, request), everfold_server(directory) as server:
        client = RawClient(server.address)
        start(client, "warm", 1_000)
        client.close()
        yield server


def start(client: RawClient, workflow: str, size: int, timeout: float = 60.0) -> None:
    client.call(
        "StartWorkflowExecution",
        timeout=timeout,
        namespace="default",
        workflow_id=workflow,
        workflow_type={"name": "nobody"},
        task_queue={"name": f"queue-{workflow}"},
        input={"payloads": [{"metadata": {"encoding": b"binary/plain"}, "data": os.urandom(size)}]},
        request_id=workflow,
    )


def start_at_last(client: RawClient, server: Server, workflow: str) -> None:
    """As a client that tries again, until the server, which must not end, has its broker back."""
    deadline = time.monotonic() + 60
    while True:
        assert server.running, server.tail()
        try:
            start(client, workflow, 100, 10)
        except RpcError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED") or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


class Honest:
    """Somebody who asks for something small all the time, and notes how long it takes."""

    def __init__(self, address: str) -> None:
        self._client = RawClient(address)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.slowest_s = 0.0
        self.asked = 0

    def __enter__(self) -> Honest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        while not self._ended.wait(0.02):
            began = time.monotonic()
            self._client.call("DescribeNamespace", namespace="default")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.asked += 1


def test_bombs_are_refused_before_they_go_off(server: Server) -> None:
    body = message(bomb((1024 if FULL else 256) * MB), compressed=True)
    strangers = [Stranger(server.address) for _ in range(8 if FULL else 4)]
    with Resident(server.pid) as memory, Honest(server.address) as honest:
        for stranger in strangers:
            stranger.call(1, "GetSystemInfo", body, grpc_encoding="gzip")
        answers = [stranger.frames(20, until=1)[-1] for stranger in strangers]
        time.sleep(0.5)
    for stranger in strangers:
        stranger.close()
    print(f"bombs: {memory.grown_mb:+.0f} MB, others waited {honest.slowest_s:.2f} s")
    assert all(b"after decompression larger than max" in payload for _, _, _, payload in answers)
    assert memory.grown_mb < GROWTH_MAX_MB
    assert honest.slowest_s < 1.5
    assert honest.asked > 5


def test_requests_that_never_end_hold_a_bounded_part(server: Server) -> None:
    """Eight announce 100 MB; the others announce what is allowed and keep back the last byte."""
    with Resident(server.pid) as memory, Honest(server.address) as honest:
        strangers = [Stranger(server.address) for _ in range(12)]
        for stranger in strangers[:8]:
            stranger.ask(1, "GetSystemInfo")
            stranger.send(frame(DATA, 0, 1, b"\0" + (100 * MB).to_bytes(4, "big")))
            blocks = frame(DATA, 0, 1, bytes(FRAME_BYTES)) * 64
            for _ in range(100):
                if not stranger.send(blocks, 5):
                    break
        whole = message(bytes(4 * MB - 100))[:-1]
        frames = [whole[at : at + FRAME_BYTES] for at in range(0, len(whole), FRAME_BYTES)]
        for stranger in strangers[8:]:
            for number in range(1, 2 * (60 if FULL else 20), 2):
                if not stranger.ask(number, "GetSystemInfo"):
                    break
                stranger.send(b"".join(frame(DATA, 0, number, block) for block in frames), 5)
        time.sleep(0.5)
        for stranger in strangers:
            stranger.close()
    left = memory.comes_back(BACK_MB, BACK_SECONDS)
    print(f"unfinished: {memory.grown_mb:+.0f} MB, {left:+.0f} MB afterwards, others waited {honest.slowest_s:.2f} s")
    assert memory.grown_mb < GROWTH_MAX_MB
    assert left <= BACK_MB


def test_answers_that_nobody_reads_hold_a_bounded_part(server: Server) -> None:
    client = RawClient(server.address)
    workflow = f"large-{uuid.uuid4().hex[:8]}"
    start(client, workflow, int(1.9 * MB))
    client.close()
    execution = b"\x0a" + bytes((len(workflow),)) + workflow.encode()
    request = b"\x0a\x07default\x12" + bytes((len(execution),)) + execution
    with Resident(server.pid) as memory, Honest(server.address) as honest:
        strangers = [Stranger(server.address, window=2**31 - 1) for _ in range(200 if FULL else 60)]
        for number in range(1, 7, 2):
            for stranger in strangers:
                stranger.call(number, "GetWorkflowExecutionHistory", message(request))
        time.sleep(6 if FULL else 3)
        for stranger in strangers:
            stranger.close()
    left = memory.comes_back(BACK_MB, BACK_SECONDS)
    print(f"unread: {memory.grown_mb:+.0f} MB, {left:+.0f} MB afterwards, others waited {honest.slowest_s:.2f} s")
    assert memory.grown_mb < GROWTH_MAX_MB
    assert left <= BACK_MB


def test_memory_comes_back_after_a_burst_of_large_starts(server: Server) -> None:
    count = 480 if FULL else 150
    client = RawClient(server.address)

    def one(number: int) -> bool:
        try:
            start(client, f"burst-{number}-{uuid.uuid4().hex[:8]}", int(1.9 * MB), 30)
        except RpcError as error:
            if error.code not in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"):
                raise
            return False
        return True

    with Resident(server.pid) as memory, ThreadPoolExecutor(60) as pool:
        done = list(pool.map(one, range(count)))
    client.close()
    left = memory.comes_back(CACHES_MB, BACK_SECONDS)
    print(f"large starts: {sum(done)} of {count}, {memory.grown_mb:+.0f} MB, {left:+.0f} MB afterwards")
    assert sum(done) > count / 10
    assert left <= CACHES_MB


def test_idle_connections_leave_the_engine_the_descriptors_that_it_needs(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = everfold_server(tmp_path)
    with logs_kept(tmp_path, request):
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        try:
            server.start_only()
            # A hard limit, so that the server cannot raise its own.
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (512, 512))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        server.wait_ready()
        try:
            client = RawClient(server.address)
            start(client, "before", 100)
            strangers = [Stranger(server.address) for _ in range(600)]
            java = next(child for child in server.descendants() if "java" in child.name())
            java.kill()
            time.sleep(1)
            start_at_last(client, server, "after")
            client.close()
            for stranger in strangers:
                stranger.close()
        finally:
            server.stop()
        assert "Too many open files" not in server.log.read_text(errors="replace")
