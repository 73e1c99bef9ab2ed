"""Workflows to lose, and what became of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from temporalio.api.common.v1 import message_pb2 as common_pb2

from support.raw import RawClient
from support.servers import Server

WORKFLOWS = 400 if os.environ.get("EVERFOLD_DAMAGE") == "full" else 40


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


def history(server: Server, workflow_id: str) -> bytes:
    """A workflow's history, as bytes."""
    with connected(server) as client:
        answer = client.call("GetWorkflowExecutionHistory", namespace="default", execution={"workflow_id": workflow_id})
        found: bytes = answer.history.SerializeToString(deterministic=True)
        return found


def histories(server: Server, prefix: str, count: int) -> list[bytes]:
    """Every workflow's history."""
    return [history(server, f"{prefix}-{number}") for number in range(count)]


def tables(directory: Path) -> dict[str, str]:
    """What the table files there hold, by their names."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.rglob("*.sst")}
