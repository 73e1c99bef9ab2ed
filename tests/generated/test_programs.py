"""Random programs on Everfold, with kill -9 of the server in between, and on a real Temporal server: the same comes of
them, no history shows a fault, the histories replay, and the stores are what the log folds to.

`EVERFOLD_GENERATED_PROGRAMS`, `_SEED` and `_KILLS` set how many programs there are, which ones, and how often the
server is killed while they run; `make generated` runs hundreds. A difference is printed with its seed and program;
`python tests/generated SEED NUMBER temporal` runs one by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from crash.refold import refold
from generated.conftest import AT_ONCE, Stand, played
from generated.driver import Play, where_they_stand
from generated.generator import Program, generate
from generated.interpreter import Interpreter
from generated.outcome import difference
from support.servers import Server

PROGRAMS = int(os.environ.get("EVERFOLD_GENERATED_PROGRAMS") or 40)
SEED = int(os.environ.get("EVERFOLD_GENERATED_SEED") or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("EVERFOLD_GENERATED_KILLS") or max(2, PROGRAMS // 25))
BEFORE_KILL_SECONDS = (1.0, 4.0)
FINISH_SECONDS = 60 + PROGRAMS

pytestmark = [pytest.mark.integration, pytest.mark.differential, pytest.mark.broker, pytest.mark.slow]


@pytest.mark.timeout(240 + 4 * FINISH_SECONDS)
def test_the_same_comes_of_every_program_through_all_kills(
    stand: Stand, real_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = [generate(SEED, number) for number in range(PROGRAMS)]
    with ThreadPoolExecutor(1) as beside:
        began = time.monotonic()
        expected = beside.submit(played, real_server.address, programs, SEED, tmp_path, seconds=FINISH_SECONDS)
        got = Play(stand.server.address, stand.queue, programs, at_once=AT_ONCE, seed=SEED)
        got.start()
        kills = _kill_in_between(stand, got)
        got.finish(FINISH_SECONDS)
        took = time.monotonic() - began
        reference = expected.result()
    unended = asyncio.run(where_they_stand(got))
    stand.stop()
    differences = [text for program in programs if (text := _compared(program, reference, got))]
    unreplayed = asyncio.run(_unreplayed(got.histories))
    shards = refold(stand.broker.bootstrap, "everfold.", stand.directory / "data" / "history")
    with capsys.disabled():
        print(
            f"\nseed {SEED}: {PROGRAMS} programs, {len(got.histories)} runs in {took:.0f} s through {kills} kills;"
            f" {len(differences)} differ; {sum(shard.records for shard in shards)} records refolded, equal on"
            f" {sum(shard.equal for shard in shards)} of {len(shards)} shards",
            flush=True,
        )
    differences += unended
    if differences:
        pytest.fail("\n\n".join(differences), pytrace=False)
    assert unreplayed == []
    assert [shard.detail for shard in shards if not shard.equal] == []
    assert kills >= min(KILLS, 1), "the programs ended before the first kill"


def _kill_in_between(stand: Stand, play: Play) -> int:
    """Kills the server at random moments until the programs have ended, or the number of kills is reached."""
    moments = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        play.wait_for_answers(3)
        time.sleep(moments.uniform(*BEFORE_KILL_SECONDS))
        if not play.running:
            break
        stand.kill_server()
        kills += 1
    return kills


def _compared(program: Program, reference: Play, got: Play) -> str:
    """What is wrong with a program's outcome; empty when nothing is."""
    name = program["id"]
    one, other = (play.outcomes[name].lines(play.nonce) for play in (reference, got))
    faults = [f"temporal: {fault}" for fault in reference.outcomes[name].faults]
    faults += [f"everfold: {fault}" for fault in got.outcomes[name].faults]
    text = difference(one, other)
    if not faults and not text:
        return ""
    if any("did not end" in fault for fault in faults):
        text = ""
    return "\n".join([f"seed {SEED}, program {name}: {json.dumps(program)}", *faults, text])


async def _unreplayed(histories: list[WorkflowHistory]) -> list[str]:
    """Histories that the SDK does not replay, each with the reason."""
    replayer = Replayer(workflows=[Interpreter], workflow_runner=UnsandboxedWorkflowRunner())
    results = await replayer.replay_workflows(_each(histories), raise_on_replay_failure=False)
    return [f"{run}: {error}" for run, error in results.replay_failures.items()]


async def _each(histories: list[WorkflowHistory]) -> AsyncIterator[WorkflowHistory]:
    for history in histories:
        yield history
