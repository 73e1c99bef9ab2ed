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
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory

from crash.refold import refold
from generated.conftest import AT_ONCE, Stand, played
from generated.driver import Play, histories_told
from generated.generator import Program, generate
from generated.outcome import difference
from support.servers import Server

PROGRAMS = int(os.environ.get("EVERFOLD_GENERATED_PROGRAMS") or 40)
SEED = int(os.environ.get("EVERFOLD_GENERATED_SEED") or random.SystemRandom().randrange(10**6))
KILLS = int(os.environ.get("EVERFOLD_GENERATED_KILLS") or max(2, PROGRAMS // 25))
REPLAY = Path(__file__).with_name("replay.py")
BEFORE_KILL_SECONDS = (1.0, 4.0)
FINISH_SECONDS = 90 + 2 * PROGRAMS

pytestmark = [pytest.mark.integration, pytest.mark.differential, pytest.mark.broker, pytest.mark.slow]


@pytest.mark.timeout(300 + 3 * FINISH_SECONDS)
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
    differing = {program["id"]: text for program in programs if (text := _compared(program, reference, got))}
    for program in programs:
        if program["id"] in differing:
            told = asyncio.run(histories_told(got, program))
            (tmp_path / f"{program['id']}.log").write_text(differing[program["id"]] + "\n\n" + told)
    stand.stop()
    unreplayed = _unreplayed(got.histories, tmp_path)
    shards = refold(stand.broker.bootstrap, "everfold.", stand.directory / "data" / "history")
    with capsys.disabled():
        print(
            f"\nseed {SEED}: {PROGRAMS} programs, {len(got.histories)} runs in {took:.0f} s through {kills} kills;"
            f" {len(differing)} differ; {sum(shard.records for shard in shards)} records refolded, equal on"
            f" {sum(shard.equal for shard in shards)} of {len(shards)} shards",
            flush=True,
        )
    if differing:
        pytest.fail("\n\n".join(differing.values()), pytrace=False)
    assert unreplayed == ""
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


def _unreplayed(histories: list[WorkflowHistory], directory: Path) -> str:
    """What the SDK's replayer says of histories that it does not replay; empty when it replays all."""
    exported = directory / "histories.json"
    exported.write_text(json.dumps({f"{one.workflow_id} {one.run_id}": one.to_json_dict() for one in histories}))
    done = subprocess.run([sys.executable, REPLAY, exported], capture_output=True, text=True, timeout=300, check=False)
    return "" if done.returncode == 0 else done.stdout or done.stderr[-3000:]
