"""Each guard that the laws rest on is needed, and the simulator would notice its loss."""

from __future__ import annotations

import os

import pytest

from everfold.history.machine.step import Guards
from everfold.history.ports import ShellGuards
from simulation.series import first_failure

SEEDS_MAX = 500

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("EVERFOLD_SIM_SECONDS" in os.environ, reason="a long series runs the seeds alone"),
]

MACHINE = ("start_dedupe", "request_id_dedupe", "origin_chain", "shard_clock", "task_start")
SHELL = ("outbox_resend", "read_barrier")


@pytest.mark.parametrize("guard", MACHINE)
def test_a_machine_without_one_of_its_guards_is_caught(guard: str) -> None:
    found = first_failure(SEEDS_MAX, guards=Guards(**{guard: False}))
    assert found is not None, f"{SEEDS_MAX} seeds passed without {guard}"
    print(f"without {guard}: seed {found.seed}: {found.problems[0]}")


@pytest.mark.parametrize("guard", SHELL)
def test_a_shell_without_one_of_its_guards_is_caught(guard: str) -> None:
    found = first_failure(SEEDS_MAX, shell_guards=ShellGuards(**{guard: False}))
    assert found is not None, f"{SEEDS_MAX} seeds passed without {guard}"
    print(f"without {guard}: seed {found.seed}: {found.problems[0]}")


def test_a_shard_that_does_not_check_leader_epochs_is_caught() -> None:
    found = first_failure(SEEDS_MAX, guards=Guards(epoch_check=False), shell_guards=ShellGuards(epoch_check=False))
    assert found is not None, f"{SEEDS_MAX} seeds passed without the epoch check"
    print(f"without the epoch check: seed {found.seed}: {found.problems[0]}")
