"""A scenario played on one server, and what came of it on both."""

from __future__ import annotations

import traceback
from concurrent.futures import Future

from differential.scenarios import Scenario
from differential.script import Script


class Outcome:
    """What one scenario did on both servers."""

    def __init__(self, expected: Future[list[str]], got: Future[list[str]]) -> None:
        self._expected, self._got = expected, got

    def expected(self) -> list[str]:
        """The real server's transcript."""
        return self._expected.result()

    def got(self) -> list[str]:
        """Everfold's transcript."""
        return self._got.result()


def play(scenario: Scenario, address: str) -> list[str]:
    """Runs a scenario; one that cannot go on says so at the place where it stopped, which then is the difference."""
    script = Script(address)
    try:
        scenario.body(script)
    except Exception as error:
        script.transcript.append(f"STOPPED: {type(error).__name__}: {error}")
        script.transcript.append("  " + traceback.format_tb(error.__traceback__, limit=2)[-1].strip().splitlines()[-1])
    try:
        return script.finish()
    except Exception as error:
        return [*script.transcript, f"STOPPED: no history: {type(error).__name__}: {error}"]
