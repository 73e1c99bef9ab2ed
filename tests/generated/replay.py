"""Replays exported histories of programs: `python replay.py FILE`, a JSON object of histories by name.

A process of its own, as thousands of workflows that are left in the middle burden the one that collects them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from generated.interpreter import Interpreter


async def main(file: str, histories: dict[str, Any]) -> int:
    """How many are not replayed; those are written to files beside the one they came in."""
    replayer = Replayer(workflows=[Interpreter], workflow_runner=UnsandboxedWorkflowRunner())
    failures = 0
    for name, exported in histories.items():
        history = WorkflowHistory.from_json(name.split()[0], exported)
        result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        if result.replay_failure is not None:
            failures += 1
            Path(file).with_name(f"unreplayed-{failures}.log").write_text(json.dumps(exported, indent=1))
            print(f"{name}: {result.replay_failure!r}")
    return failures


if __name__ == "__main__":
    sys.exit(min(asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[1]).read_text()))), 100))
