"""Timers fire by the shard's clock, once, also after a pause, and not in a hot loop."""

from __future__ import annotations

from itertools import pairwise

import pytest

from everfold.history.machine.step import DueTimer
from everfold.history.timers import ShardClock, Timers
from everfold.kernel.time import HOUR_NS, SECOND_NS
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import start
from history_shell.world import WALL_NS, Owner, Ports, World


@pytest.fixture
def world() -> World:
    return World()


def opened(world: World, run_timeout_s: int) -> Owner:
    owner = Owner(world).take()
    verdicts = owner.propose("START_WORKFLOW", start(run_timeout_s=run_timeout_s))
    world.run_until(lambda: verdicts)
    return owner


def fired_at(world: World) -> list[float]:
    return [
        (stored.timestamp_ms * 1_000_000 - WALL_NS) / SECOND_NS
        for stored, record in zip(world.logs[SHARD_LOG.name, 0], world.records(SHARD_LOG.name), strict=True)
        if record["kind"] == "FIRE_TIMER"
    ]


def test_a_timer_fires_when_it_is_due_and_once(world: World) -> None:
    owner = opened(world, run_timeout_s=5)
    world.run(20 * SECOND_NS)
    (at,) = fired_at(world)
    assert 4.9 <= at <= 5.2
    run = owner.offers[0]
    state = owner.fold.run(run.namespace_id, "default", run.workflow_id, run.run_id)
    assert state is not None
    assert not state.running


def test_a_timer_that_fell_due_while_nobody_ran_fires_at_once(world: World) -> None:
    owner = opened(world, run_timeout_s=5)
    owner.crash()
    world.run(HOUR_NS)
    Owner(world, store=owner.store).take()
    world.run(SECOND_NS)
    (at,) = fired_at(world)
    assert 3600 <= at <= 3601.5


def test_a_lost_fire_timer_is_proposed_again(world: World) -> None:
    opened(world, run_timeout_s=5)
    world.run(3 * SECOND_NS)
    world.fates[SHARD_LOG.name] = ["lost"]
    world.run(10 * SECOND_NS)
    assert len(fired_at(world)) == 1


def test_a_proposer_clock_that_runs_ahead_fires_early_once_and_is_armed_again(world: World) -> None:
    """The shard clock follows the broker; an estimate that is ahead of it is taken anew from the log."""
    owner = opened(world, run_timeout_s=5)
    world.broker_ahead_ns = -2 * SECOND_NS  # the broker's clock was set back: it will say "due" two seconds later
    owner.shard.clock.folded(owner.fold.meta.clock_ns + SECOND_NS)
    world.run(30 * SECOND_NS)
    assert 2 <= len(fired_at(world)) <= 4
    run = owner.offers[0]
    state = owner.fold.run(run.namespace_id, "default", run.workflow_id, run.run_id)
    assert state is not None
    assert not state.running


def test_the_shard_clock_keeps_the_best_estimate() -> None:
    now = [100]
    clock = ShardClock(lambda: now[0])
    clock.folded(1000)
    now[0] = 200
    clock.folded(1010)  # folded late: says less
    assert clock.now_ns() == 1100
    clock.reset(1050)
    assert clock.now_ns() == 1050


class Table:
    """Timer rows that fire and stay, as those of a quarantined run would."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rows = [DueTimer("n", f"w{k}", "r", 10 * SECOND_NS) for k in range(3)]
        self.fired: list[tuple[int, str]] = []

    def next_timer(self) -> int | None:
        return min((row.due_at_ns for row in self.rows), default=None)

    def due_timers(self, now_ns: int, limit: int) -> list[DueTimer]:
        return [row for row in self.rows if row.due_at_ns <= now_ns][:limit]


def test_a_timer_row_that_stays_is_fired_at_growing_distances_and_does_not_hide_others(world: World) -> None:
    table = Table(world)
    ports = Ports(world)
    clock = ShardClock(ports.boottime_ns)
    clock.folded(0)
    timers: Timers

    def fire(timer: DueTimer, done: object) -> None:
        table.fired.append((world.now_ns, timer.workflow_id))

        def folded() -> None:
            done(True)  # type: ignore[operator]
            if timer.workflow_id == "w2":
                table.rows = [row for row in table.rows if row.workflow_id != "w2"]
            timers.look()

        world.call_later(1_000_000, folded)

    timers = Timers(ports, clock, table.next_timer, table.due_timers, fire, in_flight_max=2)
    timers.open()
    world.run(HOUR_NS)
    stuck = [at for at, workflow_id in table.fired if workflow_id == "w0"]
    assert len(stuck) < 90
    assert max(b - a for a, b in pairwise(stuck)) <= 61 * SECOND_NS
    assert [workflow_id for _, workflow_id in table.fired].count("w2") == 1


def test_a_timer_that_is_refused_at_once_is_tried_again_later_and_not_in_the_same_breath(world: World) -> None:
    owner = opened(world, run_timeout_s=5)
    world.full = True
    world.run(30 * SECOND_NS)
    assert owner.lost is None
    assert fired_at(world) == []
    world.full = False
    world.run(61 * SECOND_NS)
    assert len(fired_at(world)) == 1


def test_only_timers_that_were_tried_are_remembered(world: World) -> None:
    table = Table(world)
    table.rows = [DueTimer("n", f"w{k}", "r", 10 * SECOND_NS) for k in range(1_000)]
    ports = Ports(world)
    clock = ShardClock(ports.boottime_ns)
    clock.folded(0)
    timers = Timers(ports, clock, table.next_timer, table.due_timers, lambda timer, done: None, in_flight_max=2)
    world.run(20 * SECOND_NS)
    timers.open()
    for _ in range(50):
        timers.look()
    assert len(timers._attempts) == 2
