"""A store whose files were damaged while the server was down: it serves again from the log, and keeps the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from damage.workflows import WORKFLOWS, histories, start_workflows, tables
from support.servers import everfold_server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(240)]


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
