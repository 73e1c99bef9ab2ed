"""Programs as in the guides of Temporal's SDKs, unmodified, in every language whose toolchain is here.

Each language's folder holds one command that runs all programs against an address and prints a line of JSON for each.
A language that is left out says why in pytest's summary (`-ra` is on).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.toolchains import Unavailable, go_binary, typescript_program

HERE = Path(__file__).parent

EXPECTED: dict[str, object] = {
    "hello": "Hello, Everfold!",
    "retried": "attempt 3 after 2 heartbeats",
    "timer": "the timer fired",
    "signal": "Ada and Grace",
    "query": [[], ["Ada"], ["Ada", "Grace"]],
    "cancel": "cancelled",
}

COMMANDS: dict[str, Callable[[], list[str]]] = {
    "python": lambda: [sys.executable, str(HERE / "python" / "programs.py")],
    "go": lambda: [str(go_binary(HERE / "go"))],
    "typescript": lambda: typescript_program(HERE / "typescript"),
}

pytestmark = [pytest.mark.integration, pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=list(COMMANDS))
def outcome(request: pytest.FixtureRequest, address: str) -> dict[str, dict[str, object]]:
    """What each program of one language printed."""
    try:
        command = COMMANDS[request.param]()
    except Unavailable as reason:
        pytest.skip(f"{request.param}: {reason}")
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=240, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"{request.param} printed nothing; exit code {done.returncode}\n{done.stderr}"
    return {line["program"]: line for line in lines}


@pytest.mark.parametrize("program", list(EXPECTED))
def test_the_program_of_the_guide_returns_what_the_guide_promises(
    outcome: dict[str, dict[str, object]], program: str
) -> None:
    assert outcome[program].get("result") == EXPECTED[program], outcome[program]


def test_the_go_sdk_replays_the_histories_of_its_programs(outcome: dict[str, dict[str, object]]) -> None:
    if "replay" not in outcome:
        pytest.skip("only the Go programs replay themselves")
    assert outcome["replay"].get("result") == len(EXPECTED), outcome["replay"]


@pytest.fixture(scope="module")
def replays(address: str) -> list[dict[str, object]]:
    """What the replays of the Python SDK printed."""
    command = [sys.executable, str(HERE / "python" / "replays.py"), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("cached", [0, 100])
@pytest.mark.parametrize(("program", "runs"), [("everything", 4), ("updated", 2), ("retried", 3)])
def test_the_python_sdk_replays_exported_histories(
    replays: list[dict[str, object]], program: str, runs: int, cached: int
) -> None:
    (line,) = [line for line in replays if (line["program"], line["cached"]) == (program, cached)]
    counts = line.get("result")
    assert isinstance(counts, list), line
    assert len(counts) == runs, line
