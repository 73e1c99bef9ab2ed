"""Task ids of events never fall, however many events one record writes."""

from __future__ import annotations

from shard_driver import NAMESPACE_ID, ShardDriver, record_marker

from everfold.history.machine import reads


def test_task_ids_do_not_fall_behind_a_step_with_more_events_than_they_can_number() -> None:
    shard = ShardDriver()
    shard.replay = False
    shard.start()
    shard.complete(shard.poll(), *(record_marker("m") for _ in range(5_000)))
    shard.signal("next")
    run = shard.fold.run(NAMESPACE_ID, "default", "w", "")
    assert run is not None
    ids = [event.task_id for event in reads.events_of(shard.fold, run)]
    assert len(ids) > 5_000
    assert ids == sorted(ids)
