"""The history rows kept in memory say what the store says."""

from __future__ import annotations

from shard_driver import NAMESPACE, NAMESPACE_ID, ShardDriver, complete_workflow, schedule_activity, start_timer

from everfold.history.machine import keys, reads
from everfold.history.machine.history_tails import BYTES_MAX, ROWS_MAX, RUNS_MAX, HistoryTails
from everfold.history.machine.shard_fold import ShardFold


def key(run: str, event_id: int) -> bytes:
    return keys.history(1, run, event_id)


def test_every_range_of_a_history_is_the_same_from_memory_and_from_the_store(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), schedule_activity("a"), start_timer("t", 100))
    shard.complete_activity(shard.poll_activity())
    for _ in range(ROWS_MAX):
        shard.signal()
    shard.complete(shard.poll(), start_timer("u", 5))
    shard.sleep(6)
    cold = ShardFold(0, shard.store, 1 << 20)
    warm_run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    cold_run = cold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert warm_run is not None
    assert cold_run is not None
    assert shard.fold.rows.tails.since(keys.history(warm_run.slot, warm_run.run_id, warm_run.next_event_id - 1))
    assert cold.rows.tails.since(keys.history(warm_run.slot, warm_run.run_id, warm_run.next_event_id - 1)) is None
    for first in range(1, warm_run.next_event_id + 1):
        for end in range(first, warm_run.next_event_id + 2):
            assert reads.page(shard.fold, warm_run, first, end) == reads.page(cold, cold_run, first, end)


def test_what_is_asked_for_is_whole_or_not_there() -> None:
    tails = HistoryTails()
    for first in (1, 3, 7):
        tails.note(key("r", first), b"row %d" % first)
    assert tails.since(key("r", 4)) == [(3, b"row 3"), (7, b"row 7")]
    assert tails.since(key("r", 9)) == [(7, b"row 7")]
    for first in range(8, 8 + ROWS_MAX - 1):
        tails.note(key("r", first), b"row")
    assert tails.since(key("r", 6)) is None
    assert tails.since(key("other", 1)) is None


def test_memory_is_bounded() -> None:
    tails = HistoryTails()
    tails.note(key("large", 1), b"x" * (BYTES_MAX + 1))
    assert tails.since(key("large", 1)) is None
    tails.note(key("first", 1), b"row")
    for number in range(RUNS_MAX):
        tails.note(key(f"run {number}", 1), b"row")
    assert tails.since(key("first", 1)) is None
    assert tails.since(key("run 0", 1)) is not None


def test_the_rows_of_a_run_that_is_deleted_are_forgotten(shard: ShardDriver) -> None:
    tails = HistoryTails()
    tails.note(key("r", 1), b"row")
    tails.note(key("r", 1), None)
    assert tails.since(key("r", 1)) is None


def test_a_closed_run_is_read_to_its_end(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), complete_workflow())
    run = shard.fold.run(NAMESPACE_ID, NAMESPACE, "w", "")
    assert run is not None
    assert [event.event_id for event in reads.events_of(shard.fold, run)] == [1, 2, 3, 4, 5]
