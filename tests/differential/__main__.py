"""Prints what a server does in chosen scenarios: `python tests/differential HOST:PORT [NUMBER...]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from differential.play import play
from differential.scenarios import SCENARIOS


def main(address: str, numbers: list[str]) -> None:
    """Plays the scenarios, one after the other."""
    for scenario in SCENARIOS:
        if not numbers or scenario.number in numbers:
            print(f"=== {scenario.number} {scenario.name}")
            print("\n".join(play(scenario, address)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
