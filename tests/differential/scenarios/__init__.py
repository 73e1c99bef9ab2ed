"""The scenarios, by their numbers in Temporal's event sequences.

A scenario is a function of a `Script`.
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
    """

    number: str
    name: str
    body: Body


SCENARIOS: Final[list[Scenario]] = []


def scenario(number: str, name: str) -> Callable[[Body], Body]:
    """Registers a scenario."""

    def register(body: Body) -> Body:
        assert all(known.number != number for known in SCENARIOS), f"two scenarios are called {number}"
        SCENARIOS.append(Scenario(number, name, body))
        return body

    return register


for _module in (
    "workflow_tasks",
    "sticky_and_queries",
    "timers_and_signals",
    "activities",
    "closing",
    "starting",
    "relations",
    "children",
    "chains",
    "updates",
    "update_failures",
    "activity_resets",
    "limits",
    "fields",
):
    importlib.import_module(f"{__name__}.{_module}")
