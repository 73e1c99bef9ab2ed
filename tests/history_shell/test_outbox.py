"""Outputs: in order per partition, again after a failure, announced seldom, and held back when Kafka takes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from everfold.history.chains import Chains, Entry
from everfold.history.ports import Delivered, Headers, ProducerFull, ShellGuards, ShellLimits
from everfold.kernel.ids import Origin
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import HISTORY, SHARD_LOG, VISIBILITY, WORKFLOW_TASKS
from history_shell.messages import signal, start
from history_shell.world import NAMESPACE_ID, Owner, World


@pytest.fixture
def world() -> World:
    return World()


class Wire:
    """A producer whose deliveries the test makes."""

    def __init__(self) -> None:
        self.world = World()
        self.sent: list[tuple[str, int, bytes | None]] = []
        self.reports: list[Delivered] = []
        self.full = False

    def produce(
        self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Headers, on_delivery: Delivered
    ) -> None:
        if self.full:
            raise ProducerFull
        self.sent.append((topic, partition, value))
        self.reports.append(on_delivery)

    def deliver(self, number: int, *, fails: bool = False) -> None:
        self.reports[number](RuntimeError("unknown") if fails else None, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    @property
    def values(self) -> list[bytes | None]:
        return [value for _, _, value in self.sent]


def entry(number: int, topic: str = "t", partition: int = 0) -> Entry:
    return Entry(Origin("SHARD_LOG", 0, 0, number, 0), topic, partition, b"k", b"%d" % number)


def chains_of(wire: Wire, **more: Any) -> Chains:
    return Chains(wire, lambda: None, **more)


def test_after_a_failure_everything_from_the_first_unacknowledged_record_on_goes_out_again() -> None:
    wire = Wire()
    chains = chains_of(wire)
    entries = [entry(n) for n in range(4)]
    for one in entries:
        chains.send(one)
    wire.deliver(0)
    wire.deliver(2)
    wire.deliver(1, fails=True)
    wire.deliver(3)  # of the copy before the hole: says nothing any more
    assert [one.acknowledged for one in entries] == [True, False, False, False]
    assert len(wire.sent) == 4
    wire.world.run(SECOND_NS)
    assert wire.values[4:] == [b"1", b"2", b"3"]
    assert chains.resent == 3
    for number in (4, 5, 6):
        wire.deliver(number)
    assert all(one.acknowledged for one in entries)


def test_what_comes_during_the_pause_goes_out_behind_what_is_sent_again() -> None:
    wire = Wire()
    chains = chains_of(wire)
    chains.send(entry(0))
    wire.deliver(0, fails=True)
    chains.send(entry(1))
    wire.world.run(SECOND_NS)
    assert wire.values == [b"0", b"0", b"1"]


def test_a_failure_stops_its_own_partition_only() -> None:
    wire = Wire()
    chains = chains_of(wire)
    chains.send(entry(0, partition=0))
    wire.deliver(0, fails=True)
    chains.send(entry(1, partition=1))
    assert wire.sent[-1][1] == 1


def test_pauses_grow_while_failures_go_on_and_start_over_after_a_success() -> None:
    wire = Wire()
    chains = chains_of(wire)
    chains.send(entry(0))
    times = []
    for number in range(7):
        before = wire.world.now_ns
        wire.deliver(number, fails=True)
        wire.world.run_until(lambda wanted=number + 2: len(wire.sent) == wanted)  # type: ignore[misc]
        times.append((wire.world.now_ns - before) // MILLISECOND_NS)
    assert times == [100, 200, 400, 800, 1600, 3200, 5000]
    wire.deliver(7)
    chains.send(entry(1))
    wire.deliver(8, fails=True)
    wire.world.run(110 * MILLISECOND_NS)
    assert len(wire.sent) == 10


def test_a_full_producer_is_waited_for_in_order() -> None:
    wire = Wire()
    chains = chains_of(wire)
    wire.full = True
    chains.send(entry(0))
    chains.send(entry(1))
    wire.full = False
    chains.send(entry(2))
    assert wire.sent == []
    wire.world.run(SECOND_NS)
    assert wire.values == [b"0", b"1", b"2"]


def test_with_the_guard_off_a_failed_record_is_lost() -> None:
    wire = Wire()
    chains = chains_of(wire, resend=False)
    chains.send(entry(0))
    wire.deliver(0, fails=True)
    wire.world.run(10 * SECOND_NS)
    assert wire.values == [b"0"]


# ---- with the shard


def places(world: World, topic: str) -> list[tuple[int, int, int]]:
    return [(r["origin"]["epoch"], r["origin"]["offset"], r["origin"]["index"]) for r in world.records(topic)]


def taken_by_a_reader(world: World, topic: str) -> list[tuple[int, int, int]]:
    """What a reader of the chain takes, by the rule of law 6; fails on a gap that never closes."""
    taken: list[tuple[int, int, int]] = []
    gap = False
    for record in world.records(topic):
        origin, before = record["origin"], record["predecessor"]
        place = (origin["epoch"], origin["offset"], origin["index"])
        last = taken[-1] if taken else None
        if last is not None and place <= last:
            continue
        predecessor = None if before is None else (before["epoch"], before["offset"], before["index"])
        if predecessor is not None and (last is None or predecessor > last):
            gap = True
            continue
        gap = False
        taken.append(place)
    assert not gap, "the chain ends in a gap"
    return taken


def open_workflows(world: World, owner: Owner, count: int, first: int = 0) -> None:
    verdicts = [owner.propose("START_WORKFLOW", start(f"w{n}", f"r{n}"), f"w{n}") for n in range(first, first + count)]
    world.run_until(lambda: all(verdicts))


@pytest.mark.parametrize("fates", [["lost"], ["unknown"], ["ok", "lost", "ok"], ["unknown", "lost", "unknown"]])
def test_a_reader_of_the_chain_gets_every_output_once_whatever_happens_to_deliveries(
    world: World, fates: list[str]
) -> None:
    owner = Owner(world).take()
    world.fates[HISTORY.name] = list(fates)
    open_workflows(world, owner, 5)
    world.run(30 * SECOND_NS)
    assert len(taken_by_a_reader(world, HISTORY.name)) == 5
    assert owner.shard.outbox.resent > 0
    assert owner.shard.outbox.depth == 0


def test_without_resending_an_output_is_missing(world: World) -> None:
    owner = Owner(world, guards=ShellGuards(outbox_resend=False)).take()
    world.fates[HISTORY.name] = ["lost"]
    open_workflows(world, owner, 2)
    world.run(30 * SECOND_NS)
    assert len(places(world, HISTORY.name)) == 1


def test_outputs_are_announced_at_most_once_a_second_and_then_their_rows_are_gone(world: World) -> None:
    owner = Owner(world).take()
    for number in range(50):
        open_workflows(world, owner, 1, first=number)
        world.run(100 * MILLISECOND_NS)
    assert 2 <= world.kinds().count("OUTPUTS_SENT") <= 6
    world.run(2 * SECOND_NS)
    assert owner.fold.outbox(None, 10) == []


def test_an_idle_shard_appends_nothing(world: World) -> None:
    owner = Owner(world).take()
    open_workflows(world, owner, 3)
    world.run(5 * SECOND_NS)
    before = len(world.logs[SHARD_LOG.name, 0])
    world.run(3600 * SECOND_NS)
    extra = [record["kind"] for record in world.records(SHARD_LOG.name)[before:]]
    assert "OUTPUTS_SENT" not in extra


def test_the_announced_position_ends_before_the_first_unacknowledged_output(world: World) -> None:
    owner = Owner(world).take()
    world.fates[VISIBILITY.name] = ["lost"] * 1000
    open_workflows(world, owner, 3)
    world.run(10 * SECOND_NS)
    first = min(place for place in places(world, HISTORY.name))
    left = owner.fold.outbox(None, 100)
    assert VISIBILITY.name in [row.topic for row in left]
    assert all(row.origin.place >= first for row in left)
    position = owner.shard.outbox.position
    assert position is None or position.place < min(row.origin.place for row in left if row.topic == VISIBILITY.name)


def test_a_new_owner_sends_again_what_no_record_confirms(world: World) -> None:
    owner = Owner(world).take()
    open_workflows(world, owner, 3)
    world.run(10 * MILLISECOND_NS)
    owner.crash()
    sent = len(world.logs[HISTORY.name, 0])
    again = Owner(world, store=owner.store).take()
    world.run(5 * SECOND_NS)
    assert len(world.logs[HISTORY.name, 0]) == sent + 3
    assert len(taken_by_a_reader(world, HISTORY.name)) == 3
    again.crash()
    confirmed = Owner(world, store=again.store).take()
    world.run(5 * SECOND_NS)
    assert len(world.logs[HISTORY.name, 0]) == sent + 3
    assert confirmed.lost is None


def is_paused(owner: Owner) -> bool:
    return owner.reader.paused


def test_the_window_is_bounded_and_a_shard_whose_outputs_nobody_takes_stops_folding(world: World) -> None:
    owner = Owner(world, limits=ShellLimits(outbox_entries_max=8), batch=2).take()
    open_workflows(world, owner, 1)
    world.run(3 * SECOND_NS)
    for topic in (HISTORY, VISIBILITY, WORKFLOW_TASKS):
        world.fates[topic.name] = ["lost"] * 60
    verdicts = [owner.propose("SIGNAL_WORKFLOW", signal("w0", f"s{n}"), "w0") for n in range(40)]
    world.run(SECOND_NS)
    assert is_paused(owner)
    assert owner.shard.outbox.depth <= 8
    assert not all(verdicts)
    world.run(300 * SECOND_NS)
    assert all(verdicts)
    assert not is_paused(owner)
    assert len(set(places(world, HISTORY.name))) == len(taken_by_a_reader(world, HISTORY.name))
    assert owner.fold.meta.namespaces[NAMESPACE_ID] == 1
