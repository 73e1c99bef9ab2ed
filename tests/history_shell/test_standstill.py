"""A partition that has records and does not move is said, with its reason; one that moves, or is done, is not."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from everfold.history.ports import NoMetrics
from everfold.history.standstill import SAY_AGAIN_S, STILL_S, Standstill
from everfold.kernel.ids import shard_of
from everfold.kernel.time import SECOND_NS
from everfold.schemas.topics import COMMANDS, SHARD_LOG
from history_shell.test_ingress import command, of_shard, put
from history_shell.world import Owner, World


class Gauges(NoMetrics):
    def __init__(self) -> None:
        self.still_s: dict[str, float] = {}

    def gauge(self, name: str, value: float, **labels: str) -> None:
        assert name == "partition_standstill_seconds"
        self.still_s["/".join(labels.values())] = value


def looked(standstill: Standstill, looks: list[tuple[float, int, int]]) -> list[dict[str, Any]]:
    """What is said at looks of (seconds, position, records)."""
    with capture_logs() as logs:
        for now_s, position, records in looks:
            standstill.look("commands", 3, position, records, "a reason", now_s)
    return [dict(entry) for entry in logs]


def test_a_partition_that_stands_still_is_said_after_ten_seconds_and_every_minute() -> None:
    gauges = Gauges()
    standstill = Standstill(gauges)
    said = looked(standstill, [(5.0 * n, 7, 12) for n in range(30)])
    assert [entry["seconds"] for entry in said] == [10, 70, 130]
    assert {entry["log_level"] for entry in said} == {"warning"}
    assert (said[0]["partition"], said[0]["offset"], said[0]["records"]) == (3, 7, 12)
    assert said[0]["reason"] == "a reason"
    assert gauges.still_s == {"commands/3": 145.0}
    (moves,) = looked(standstill, [(150.0, 8, 11)])
    assert (moves["event"], moves["seconds"]) == ("partition moves again", 150)
    assert gauges.still_s == {"commands/3": 0.0}


def test_a_partition_that_moves_or_has_nothing_is_not_said() -> None:
    standstill = Standstill(NoMetrics())
    assert STILL_S < SAY_AGAIN_S
    assert looked(standstill, [(9.0 * n, n, 1_000) for n in range(20)]) == []
    assert looked(standstill, [(200 + 9.0 * n, 19, 0) for n in range(20)]) == []
    assert looked(standstill, [(400.0, 19, 1), (409.0, 19, 1)]) == []


def test_a_partition_of_somebody_else_is_forgotten() -> None:
    standstill = Standstill(NoMetrics())
    assert len(looked(standstill, [(0.0, 7, 1), (10.0, 7, 1)])) == 1
    standstill.forget(3)
    assert looked(standstill, [(11.0, 7, 1), (20.0, 7, 1)]) == []


# ---- the reasons


@pytest.fixture
def world() -> World:
    return World()


def test_an_ingress_says_what_it_waits_for(world: World) -> None:
    owner = Owner(world, 0, 2).take()
    owner.namespaces.readable = False
    owner.namespaces.after_refresh = {"namespace-2": ("new", 1)}
    ingress = owner.open_ingress()
    assert ingress.waits_for == "Kafka delivers nothing behind offset -1; a transaction may be open"
    workflow_id = next(f"w{n}" for n in range(100) if shard_of("new", f"w{n}", 2) == 0)
    put(world, command("StartWorkflow", workflow_id, namespace="new"))
    world.run(SECOND_NS // 10)
    assert ingress.waits_for == "the topic of namespaces cannot be read, and namespace new is unknown here"
    owner.namespaces.readable = True
    owner.reader.pause()
    world.run(SECOND_NS)
    assert ingress.waits_for == "namespace new is on its way to the shard's log"
    owner.reader.resume()
    world.run(SECOND_NS)
    assert ingress.waiting == 0
    world.fates[COMMANDS.name] = ["lost"]
    put(world, command("StartWorkflow", of_shard(1)))
    world.run(SECOND_NS // 10)
    assert ingress.waits_for == "Kafka does not take the copy for partition 1: delivery lost"
    put(world, command("StartWorkflow", of_shard(0)))
    world.run(SECOND_NS)
    owner.reader.pause()
    put(world, command("SignalWorkflow", of_shard(0)))
    world.run(SECOND_NS)
    assert ingress.waits_for.startswith("1 commands are in the shard's log or on the way, and are not folded: Kafka")


def test_marks_of_transactions_at_the_end_are_no_lag(world: World) -> None:
    """An offset that never becomes a command."""
    owner = Owner(world).take()
    ingress = owner.open_ingress()
    put(world, command("StartWorkflow"))
    world.run(SECOND_NS)
    assert ingress.next_offset == 1
    ingress.reached_end(2)
    assert ingress.next_offset == 2
    owner.reader.pause()
    put(world, command("SignalWorkflow"))
    world.run(SECOND_NS)
    assert ingress.next_offset == 1


def test_a_shard_says_what_its_log_waits_for(world: World) -> None:
    owner = Owner(world).take(wait=False)
    assert owner.shard.waits_for == "the shard is opening"
    world.run(SECOND_NS)
    assert owner.shard.waits_for == "Kafka delivers nothing of the shard's log"
    assert world.logs[SHARD_LOG.name, 0]
