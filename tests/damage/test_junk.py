"""Junk and foreign transactions on every topic of the engine: workflows complete, lists are fresh, restarts as well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from damage.scene import Vandal, Workflows, await_that, bootstrap_of
from everfold.schemas.topics import SHARD_LOG
from support.servers import Server, everfold_server

pytestmark = [pytest.mark.broker, pytest.mark.timeout(400)]

FULL = os.environ.get("EVERFOLD_DAMAGE") == "full"
BURSTS = (1, 10, 1000) if FULL else (10,)
ON_THE_LOG = 1000
FRESH_S = 30


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with everfold_server(tmp_path, "--shards", "2") as running:
        yield running


def works(server: Server, name: str, waiting: list[str]) -> None:
    """New workflows and those that waited complete, and the list has them."""
    workflows = Workflows(server)
    try:
        names = [f"{name}-{number}" for number in range(16)]
        for workflow_id in names:
            workflows.start(workflow_id)
        workflows.complete(len(names) + len(waiting))
        expected = {*names, *waiting}
        await_that(lambda: expected <= workflows.completed(), FRESH_S, server.tail)
    finally:
        workflows.close()


def test_junk_and_transactions_on_every_topic_stop_nothing(server: Server) -> None:
    vandal = Vandal(bootstrap_of(server))
    places = [(topic, number) for topic, count in vandal.partitions().items() for number in range(count)]
    logs = [place for place in places if place[0].endswith(SHARD_LOG.name)]
    assert len(logs) > 1
    works(server, "before", [])
    workflows = Workflows(server)
    waiting = [f"waits-{number}" for number in range(8)]
    for workflow_id in waiting:
        workflows.start(workflow_id)
    for burst in BURSTS:
        for topic, partition in places:
            vandal.junk(topic, partition, burst)
    for topic, partition in logs:
        vandal.junk(topic, partition, ON_THE_LOG)
    works(server, "after-junk", waiting)
    vandal.transactions(places)
    # Markers are now the last of each log, behind the last record: a read has to wait for the end of the log.
    workflows.start("behind-markers")
    workflows.close()
    works(server, "after-transactions", ["behind-markers"])
    vandal.transactions(places)
    server.kill()
    server.start()
    workflows = Workflows(server)
    seconds = await_that(lambda: bool(workflows.describe("waits-0") or True), FRESH_S, server.tail)
    workflows.close()
    works(server, "after-a-crash", [])
    log = server.log.read_text()
    assert "shard given up" not in log
    assert "the processors died" not in log
    told = log.count("are set aside")
    # A burst of a thousand is a few batches; each start that refolds tells of them again.
    assert len(logs) <= told <= 400, told
    assert log.count("a foreign transaction's marker") >= len(logs)
    print(f"{len(places)} partitions; {told} lines about junk; a read after the restart took {seconds:.1f} s")
