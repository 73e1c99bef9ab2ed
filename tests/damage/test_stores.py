"""A store whose files were damaged while the server was down: it serves again from the log, and keeps the files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.api.common.v1 import message_pb2 as common_pb2

from support.raw import RawClient
from support.servers import Server, everfold_server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]

WORKFLOWS = 40 if os.environ.get("EVERFOLD_DAMAGE") != "full" else 400


@contextlib.contextmanager
def connected(server: Server) -> Iterator[RawClient]:
    client = RawClient(server.address)
    try:
        yield client
    finally:
        client.close()


def start_workflows(server: Server, prefix: str, count: int) -> None:
    """With inputs that do not compress, so that rows fill blocks of their own."""
    with connected(server) as client:
        for number in range(count):
            payload = common_pb2.Payload(metadata={"encoding": b"binary/plain"}, data=os.urandom(2000))
            client.call(
                "StartWorkflowExecution",
                namespace="default",
                workflow_id=f"{prefix}-{number}",
                workflow_type={"name": "T"},
                task_queue={"name": "q"},
                input={"payloads": [payload]},
                request_id=f"{prefix}-{number}",
            )


def histories(server: Server, prefix: str, count: int) -> list[bytes]:
    """Every workflow's history, as bytes."""
    with connected(server) as client:
        return [
            client.call(
                "GetWorkflowExecutionHistory", namespace="default", execution={"workflow_id": f"{prefix}-{number}"}
            ).history.SerializeToString(deterministic=True)
            for number in range(count)
        ]


def tables(directory: Path) -> dict[str, str]:
    """What the table files there hold, by their names."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.rglob("*.sst")}


def test_a_flipped_bit_in_a_table_file_costs_a_refold_and_nothing_else(tmp_path: Path) -> None:
    server = everfold_server(tmp_path)
    with server:
        start_workflows(server, "w", WORKFLOWS)
        before = histories(server, "w", WORKFLOWS)
        server.stop()
        store = tmp_path / "data" / "history" / "shard-0000"
        for file in store.rglob("*.sst"):
            content = bytearray(file.read_bytes())
            content[len(content) // 3] ^= 1
            file.write_bytes(content)
        damaged = tables(store)
        assert damaged
        server.start()
        assert histories(server, "w", WORKFLOWS) == before
        start_workflows(server, "later", 1)
        (kept,) = store.parent.glob("shard-0000.set-aside-*-store-corrupt")
        assert damaged.items() <= tables(kept).items()
        log = server.log.read_text()
        assert "store set aside" in log
        assert "checksum mismatch" in log
        assert "in use by another process" not in log
