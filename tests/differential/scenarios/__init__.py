"""The scenarios, by their numbers in Temporal's event sequences.

A scenario is a function of a `Script`. `later` names what the engine does not build yet: such a scenario is written and
tried against the real server, and joins the comparison when its word is removed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from differential.script import Script

Body = Callable[[Script], None]


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        number: the event sequence it belongs to, e.g. "16b"; a word for what has no number there.
        name: what happens, as a sentence.
        body: the script.
        later: why it is not compared yet; empty when it is.
    """

    number: str
    name: str
    body: Body
    later: str = ""


SCENARIOS: Final[list[Scenario]] = []


def scenario(number: str, name: str, *, later: str = "") -> Callable[[Body], Body]:
    """Registers a scenario."""

    def register(body: Body) -> Body:
        assert all(known.number != number for known in SCENARIOS), f"two scenarios are called {number}"
        SCENARIOS.append(Scenario(number, name, body, later))
        return body

    return register


for _module in (
    "workflow_tasks",
    "sticky_and_queries",
    "timers_and_signals",
    "activities",
    "closing",
    "starting",
    "later",
):
    importlib.import_module(f"{__name__}.{_module}")
