"""How far a shard's log is known to reach, and what is known after a tail was let go."""

from __future__ import annotations

from dataclasses import replace

from everfold.kernel.positions import LOST_TAILS_MAX, Positions, ShardPosition, without_tail

AT_100 = ShardPosition(0, 100, 5, b"hash", 1, topic_id="one")


def let_go(known: ShardPosition, end: int, topic_id: str = "one") -> ShardPosition:
    return without_tail(known, end=end, topic_id=topic_id, at_ns=7, by="somebody")


def test_the_highest_position_holds_and_a_latecomer_is_covered_again() -> None:
    positions = Positions()
    positions.received(AT_100)
    assert positions.news([AT_100]) == []
    positions.received(replace(AT_100, offset=90))
    assert positions.get(0) == AT_100
    assert positions.news([AT_100]) == [AT_100], "the topic's last word is the latecomer's"
    positions.received(AT_100)
    assert positions.news([AT_100]) == []
    assert positions.news([replace(AT_100, offset=101)]) == [replace(AT_100, offset=101)]


def test_a_position_after_more_repairs_holds_though_it_is_lower() -> None:
    positions = Positions()
    positions.received(AT_100)
    lowered = let_go(AT_100, 80)
    assert (lowered.offset, lowered.epoch, lowered.repairs) == (79, -1, 1)
    positions.received(lowered)
    positions.received(replace(AT_100, offset=120))  # a zombie's
    assert positions.get(0) == lowered
    ahead = ShardPosition(0, 85, 6, topic_id="one")
    assert positions.news([ahead]) == [replace(ahead, repairs=1, lost=lowered.lost)]


def test_only_positions_of_the_tail_that_was_let_go_belong_to_it() -> None:
    lowered = let_go(AT_100, 80)
    assert lowered.let_go("one", 80, 5)
    assert lowered.let_go("one", 130, 4), "more of the same tail than anybody had said"
    assert not lowered.let_go("one", 79, 5), "that record is still there"
    assert not lowered.let_go("one", 90, 6), "a later record, which nobody has let go"
    assert not lowered.let_go("another", 90, 5)
    assert lowered.let_go("", 90, 5), "a store that does not say which topic it is of"


def test_a_second_loss_before_anybody_served_is_of_the_same_records() -> None:
    again = let_go(let_go(AT_100, 80), 60)
    assert (again.offset, again.repairs) == (59, 2)
    assert again.let_go("one", 70, 5)


def test_of_a_log_that_was_written_anew_nothing_is_known_any_more() -> None:
    lowered = let_go(AT_100, 150)
    assert lowered.offset == -1
    assert lowered.let_go("one", 3, 5)
    assert not lowered.let_go("one", 3, 6)


def test_everything_of_a_topic_that_was_made_again_is_let_go() -> None:
    lowered = let_go(AT_100, 3, "two")
    assert (lowered.offset, lowered.topic_id) == (-1, "two")
    assert lowered.let_go("one", 500, 99)
    assert not lowered.let_go("two", 500, 99)


def test_the_tails_remembered_are_bounded() -> None:
    position = AT_100
    for number in range(LOST_TAILS_MAX + 5):
        position = replace(let_go(position, 80), offset=100 + number, epoch=5 + number)
    assert position.repairs == LOST_TAILS_MAX + 5
    assert len(position.lost) == LOST_TAILS_MAX
    assert position.lost[-1].epoch == 5 + LOST_TAILS_MAX + 3
