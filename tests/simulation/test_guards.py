"""Each guard that the laws rest on is needed, and the simulator would notice its loss."""

from __future__ import annotations

import os
from typing import Any

import pytest

from everfold.history.machine_reads import MachineReads
from everfold.history.queries import QueryView
from simulation.run import run
from simulation.series import first_failure

SEEDS_MAX = 500

FOUND_LAST = {"offer_again": 46, "read_barrier": 17, "query": 53}
"""Seeds by which the loss of a guard was noticed when somebody last looked. They go first, as the search takes half a
minute; what changes in the simulator or the machine changes them, and then the search goes on."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("EVERFOLD_SIM_SECONDS" in os.environ, reason="a long series runs the seeds alone"),
]


def seeds_for(guard: str) -> list[int]:
    return sorted(range(SEEDS_MAX), key=lambda seed: seed != FOUND_LAST.get(guard, 0))


@pytest.mark.parametrize(
    "guard",
    [
        "outbox_resend",
        "start_dedupe",
        "task_start",
        "task_leftover",
        "offer_again",
        "origin_chain",
        "request_id_dedupe",
        "shard_clock",
        "read_barrier",
        "epoch_check",
        "position_check",
        "feature_level",
    ],
)
def test_a_missing_guard_is_noticed(guard: str) -> None:
    found = first_failure(seeds_for(guard), guard)
    assert found is not None, f"{SEEDS_MAX} seeds passed without {guard}"
    print(f"without {guard}: seed {found.seed}: {found.problems[0]}")


def test_a_query_that_does_not_wait_for_the_workflow_task_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    view_of = MachineReads.query_view

    def without_task(self: MachineReads, *of: Any) -> QueryView:
        return view_of(self, *of)._replace(task_pending=False)

    monkeypatch.setattr(MachineReads, "query_view", without_task)
    found = next((result for result in map(run, seeds_for("query")) if not result.ok), None)
    assert found is not None, f"{SEEDS_MAX} seeds passed"
    assert "was asked after signals" in found.problems[0]
    monkeypatch.undo()
    assert run(found.seed).ok
