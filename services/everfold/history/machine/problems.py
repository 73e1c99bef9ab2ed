"""The search attribute by which UIs find workflows in trouble."""

from __future__ import annotations

from typing import Final

from everfold.history.machine.attribute_values import keyword_list

PROBLEMS: Final = "TemporalReportedProblems"


def problem(category: str, cause: str) -> bytes:
    """Its value, as a serialized Payload."""
    return keyword_list([f"category={category}", f"cause={cause}"])
