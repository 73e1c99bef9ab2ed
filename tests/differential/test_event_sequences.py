"""Everfold beside a real Temporal server: the same calls, and the same answers and events, attribute by attribute."""

from __future__ import annotations

import pytest

from differential.play import Outcome
from differential.scenarios import SCENARIOS, Scenario
from support.normal import difference

pytestmark = [pytest.mark.differential, pytest.mark.slow, pytest.mark.timeout(300)]


def _parameters() -> list[object]:
    return [pytest.param(scenario, id=f"{scenario.number} {scenario.name}") for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", _parameters())
def test_both_servers_write_the_same_history(scenario: Scenario, outcomes: dict[str, Outcome]) -> None:
    expected = outcomes[scenario.number].expected()
    got = outcomes[scenario.number].got()
    stopped = [line for line in expected if line.startswith("STOPPED")]
    assert not stopped, f"the scenario itself does not work on the real server: {stopped}"
    if got != expected:
        pytest.fail("\n" + difference(expected, got, "temporal", "everfold"), pytrace=False)
