"""An index that is built anew is told of every run, so many per record."""

from __future__ import annotations

import pytest
from shard_driver import ShardDriver, complete_workflow, start_timer

from everfold.history.machine import keys
from everfold.history.machine.decide import walk
from everfold.schemas import codec


def goes_on(shard: ShardDriver) -> bool:
    timers = [key for key in shard.store.rows if key.startswith(keys.TIMERS)]
    return any(keys.timer_parts(key)[2] == keys.run_part("", "", "") for key in timers)


@pytest.mark.parametrize("count", [1, 10, 1_000])
def test_every_run_is_written_once_and_the_others_go_on_meanwhile(
    count: int, shard: ShardDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "LOOKS_MAX", 64)
    shard.replay = False  # a fold of the whole log at each step
    shard.check_runs = lambda: None
    for number in range(count):
        shard.start(f"w{number}")
    shard.complete(shard.poll("w0"), start_timer("t", 3600))
    at = len(shard.steps)
    shard.append("REPUBLISH_VISIBILITY", {})
    shard.signal("meanwhile", workflow_id="w0")
    while goes_on(shard):
        shard.sleep(0.001)
    told = [
        codec.decode(row.value)[1]["workflow_id"]
        for step in shard.steps[at:]
        for row in step.outputs
        if row.topic == "visibility" and row.value
    ]
    assert sorted(told) == sorted(f"w{number}" for number in range(count))
    assert max(len(step.outputs) for step in shard.steps[at:]) <= 64
    shard.complete(shard.poll("w0"), complete_workflow())
