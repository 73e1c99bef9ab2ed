"""Logs that lack what was acknowledged: the shard stops with its store untouched, on any host (law 8)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everfold.history.giving_up import Aftermath, HashMismatch, StoreOfLostTail, aftermath
from everfold.history.ports import ShellGuards
from everfold.history.stopped import Stop
from everfold.history.tail import LogFacts, position_of
from everfold.kernel.errors import LogTruncated
from everfold.kernel.positions import ShardPosition
from everfold.kernel.time import SECOND_NS
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import start
from history_shell.world import Owner, World


@pytest.fixture
def world() -> World:
    return World()


def gone_owner(world: World, workflows: int = 3) -> Owner:
    """An owner that has folded some workflows, and is gone."""
    owner = Owner(world).take()
    for number in range(workflows):
        owner.propose("START_WORKFLOW", start(f"w{number}"), f"w{number}")
        world.run(SECOND_NS)
    owner.crash()
    return owner


def said_by(owner: Owner, topic_id: str = "") -> ShardPosition:
    return position_of(owner.fold.meta, topic_id)


def cut(world: World, records: int) -> None:
    """An unclean leader change takes the last records."""
    del world.logs[SHARD_LOG.name, 0][-records:]
    world.epoch += 1


def take(world: World, known: ShardPosition | None = None, **more: object) -> Owner:
    return Owner(world, log_facts=LogFacts(known), **more).take()  # type: ignore[arg-type]


def test_a_log_that_ends_before_the_store_stops_the_shard_and_the_loss_is_counted(world: World) -> None:
    owner = gone_owner(world)
    cut(world, 2)
    rows = dict(owner.store.rows)
    again = take(world, store=owner.store)
    assert isinstance(again.lost, LogTruncated)
    assert "2 acknowledged records lost" in str(again.lost)
    assert f"the store has applied offset {owner.fold.meta.applied_offset} (epoch 0, 20" in str(again.lost)
    assert aftermath(again.lost) is Aftermath.STOPPED
    assert owner.store.rows == rows


@pytest.mark.parametrize("guarded", [True, False])
def test_a_host_without_that_store_does_not_serve_the_short_log_either(world: World, guarded: bool) -> None:
    known = said_by(gone_owner(world))
    cut(world, 2)
    other = take(world, known, guards=ShellGuards(position_check=guarded))
    assert other.served is not guarded
    if guarded:
        assert isinstance(other.lost, LogTruncated)
        assert f"its owner had folded offset {known.offset}" in str(other.lost)


def test_a_log_written_anew_at_the_same_offsets_stops_the_shard(world: World) -> None:
    """Somebody who knew nothing of the positions has served it meanwhile, so that its end tells nothing."""
    known = said_by(gone_owner(world))
    cut(world, 2)
    gone_owner(world, 5)
    other = take(world, known)
    assert isinstance(other.lost, LogTruncated)
    assert f"a record of epoch 1 at offset {known.offset}" in str(other.lost)
    assert not other.served


def test_another_state_behind_the_same_record_sets_the_store_aside(world: World) -> None:
    first, second = gone_owner(world, 1), gone_owner(world, 1)
    known = replace(said_by(second), state_hash=b"x" * 16)
    other = take(world, known, store=first.store)
    assert isinstance(other.lost, HashMismatch)
    assert aftermath(other.lost) is Aftermath.SET_ASIDE
    assert take(world, known).served, "a state that was folded from the first record is the definition"


def test_an_owner_whose_log_has_everything_serves(world: World) -> None:
    owner = gone_owner(world)
    assert take(world, said_by(owner), store=owner.store).served
    assert take(world, said_by(owner)).served


@pytest.mark.parametrize("facts_of", ["store", "known"])
def test_a_topic_that_was_made_again_is_recognised_by_its_id(world: World, facts_of: str) -> None:
    owner = gone_owner(world)
    facts = LogFacts(topic_id="two", store_topic_id="one")
    if facts_of == "known":
        facts = LogFacts(said_by(owner, "one"), "two", "")
    again = Owner(world, store=owner.store, log_facts=facts).take()
    assert isinstance(again.lost, LogTruncated)
    assert "the topic was deleted and made again" in str(again.lost)
    assert aftermath(again.lost) is Aftermath.STOPPED


def test_a_store_of_the_former_topic_is_set_aside_where_the_shard_is_served_from_the_new_one(world: World) -> None:
    owner = gone_owner(world)
    facts = LogFacts(replace(said_by(owner, "two"), offset=0), "two", "one")
    again = Owner(world, store=owner.store, log_facts=facts).take()
    assert isinstance(again.lost, StoreOfLostTail)


# ---- an operator decides


def let_go(world: World, stopped: Owner, known: ShardPosition | None) -> ShardPosition:
    stop = Stop(str(stopped.lost), said_by(stopped), LogFacts(known))
    return stop.without_tail(len(world.logs[SHARD_LOG.name, 0]), 0, "somebody")


def test_a_tail_that_was_let_go_is_no_reason_to_stop_any_more(world: World) -> None:
    owner = gone_owner(world)
    older = gone_owner(world)
    known = said_by(older)
    cut(world, 2)
    stopped = take(world, known, store=older.store)
    lowered = let_go(world, stopped, known)
    again = take(world, lowered, store=older.store)
    assert isinstance(again.lost, StoreOfLostTail), "the store has what is not there any more"
    assert aftermath(again.lost) is Aftermath.SET_ASIDE
    assert take(world, lowered).served
    assert take(world, lowered, store=owner.store).served, "a store from before the tail is as good as ever"


def test_a_store_that_was_ahead_of_what_was_said_counts_too(world: World) -> None:
    owner = gone_owner(world)
    ahead = said_by(owner)
    cut(world, 2)
    known = replace(ahead, offset=ahead.offset - 4, epoch=-1)
    stopped = take(world, known, store=owner.store)
    assert isinstance(stopped.lost, LogTruncated)
    assert Stop("", ahead, LogFacts(known)).lost == ahead
    lowered = let_go(world, stopped, known)
    assert isinstance(take(world, lowered, store=owner.store).lost, StoreOfLostTail)
    assert take(world, lowered).served


def test_a_host_that_was_away_while_a_tail_was_let_go_sets_its_store_aside(world: World) -> None:
    owner = gone_owner(world)
    known = said_by(owner)
    cut(world, 2)
    lowered = let_go(world, take(world, known, store=owner.store), known)
    meanwhile = take(world, lowered)
    for number in range(5):
        meanwhile.propose("START_WORKFLOW", start(f"v{number}"), f"v{number}")
        world.run(SECOND_NS)
    now = replace(said_by(meanwhile), repairs=lowered.repairs, lost=lowered.lost)
    # Its consumer is told so by Kafka: the log has another record at its position.
    away = Owner(world, store=owner.store, log_facts=LogFacts(now)).take(wait=False)
    away.shard.on_log_lost("log truncation detected")
    assert isinstance(away.lost, StoreOfLostTail)


def test_a_store_that_was_passed_by_unnoticed_is_set_aside(world: World) -> None:
    """Its last records were lost before anybody had heard of them, and the shard has been served since."""
    owner = gone_owner(world)
    cut(world, 2)
    meanwhile = gone_owner(world, 5)
    away = Owner(world, store=owner.store, log_facts=LogFacts(said_by(meanwhile))).take(wait=False)
    away.shard.on_log_lost("log truncation detected")
    assert isinstance(away.lost, StoreOfLostTail)
    assert "has been served without it since" in str(away.lost)


def test_a_store_and_an_owner_that_differ_at_one_offset_are_judged_by_the_log(world: World) -> None:
    owner = gone_owner(world)
    other = replace(said_by(owner), epoch=3)
    again = take(world, other, store=owner.store)  # the log has the store's record
    assert isinstance(again.lost, LogTruncated)
    assert "a record of epoch 0" in str(again.lost)
    stale = Owner(world, store=owner.store, log_facts=LogFacts(other)).take(wait=False)
    stale.shard.on_log_lost("log truncation detected")  # the log has the owner's
    assert isinstance(stale.lost, StoreOfLostTail)


def test_what_a_stopped_shard_says(world: World) -> None:
    owner = gone_owner(world)
    cut(world, 1)
    stopped = take(world, store=owner.store)
    words = Stop(str(stopped.lost), said_by(stopped), LogFacts()).words(
        "everfold.shard-log", said_by(stopped).offset, "`everfold shard repair 0 --keep-log`"
    )
    for part in (
        "1 acknowledged record lost",
        f"The log of everfold.shard-log ends at offset {said_by(stopped).offset}",
        "Nothing was changed",
        "`everfold shard repair 0 --keep-log`",
        "set aside (renamed and kept)",
    ):
        assert part in words
