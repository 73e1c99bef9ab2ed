"""A flipped bit in the broker's files: the shard waits for an operator, and says which command goes on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from damage.scene import await_that
from damage.workflows import WORKFLOWS, histories, history, start_workflows
from support.raw import RpcError
from support.servers import LOOPBACK, everfold_command, everfold_server, free_port

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

LOST = "w-5"


def flip_a_bit_of(workflow: str, broker: Path) -> None:
    """In the record that started it: its batch's checksum does not hold any more."""
    (segment,) = broker.rglob("everfold.shard-log-0/*.log")
    content = segment.read_bytes()
    at = content.index(workflow.encode())
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))


def test_a_record_that_nobody_can_read_is_skipped_by_the_command_that_the_log_names(tmp_path: Path) -> None:
    port = free_port()
    server = everfold_server(tmp_path, "--broker-port", str(port))
    with server:
        start_workflows(server, "w", WORKFLOWS)
        before = histories(server, "w", WORKFLOWS)
        server.stop()
        flip_a_bit_of(LOST, tmp_path / "data")
        stores = tmp_path / "data" / "history"
        os.rename(stores / "shard-0000", tmp_path / "lost-store")  # what is folded already is not read again
        server.start_only()
        named = re.compile(r"everfold (shard skip 0 --offset \d+)")
        await_that(lambda: named.search(server.log.read_text()) is not None, 60, server.tail)
        (command,) = set(named.findall(server.log.read_text()))
        arguments = [*command.split(), "--reason", "bit rot", "--kafka", f"{LOOPBACK}:{port}", "--yes"]
        done = subprocess.run(
            [*everfold_command(), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "a batch with a broken checksum" in done.stdout
        server.wait_ready(90)
        start_workflows(server, "later", 1)
        for number, was in enumerate(before):
            workflow = f"w-{number}"
            if workflow != LOST:
                assert history(server, workflow) == was
        with pytest.raises(RpcError, match="NOT_FOUND"):
            history(server, LOST)
