"""kill -9 at random moments while 200 workflows are in flight and signals arrive: nothing is lost, nothing comes twice.

`EVERFOLD_CRASH_ROUNDS=20,3,3` sets how many rounds there are of every server process, of the broker alone, and of
everything; `make crash` runs those, CI fewer. The moments come from `EVERFOLD_CRASH_SEED`, which every round prints.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from crash.conftest import Stand
from crash.refold import refold

ROUNDS = [int(part) for part in os.environ.get("EVERFOLD_CRASH_ROUNDS", "2,1,1").split(",")]
SEED = int(os.environ.get("EVERFOLD_CRASH_SEED", str(random.SystemRandom().randrange(10**6))))
BEFORE_KILL_SECONDS = (1.0, 6.0)
FINISH_SECONDS = 300.0

pytestmark = [pytest.mark.integration, pytest.mark.broker, pytest.mark.slow]


@pytest.mark.timeout(600 + 60 * sum(ROUNDS))
def test_every_workflow_completes_once_with_every_signal_through_all_kills(
    stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(SEED)
    kinds = ["server"] * ROUNDS[0] + ["broker"] * ROUNDS[1] + ["everything"] * ROUNDS[2]
    moments.shuffle(kinds)
    worked_again = 0.0
    for number, kind in enumerate(kinds, 1):
        time.sleep(moments.uniform(*BEFORE_KILL_SECONDS))
        killed_at = time.monotonic()
        _kill(stand, kind)
        stand.load.wait_for_progress(90)
        serving = time.monotonic() - killed_at
        refolded = stand.counted("everfold_records_refolded_total")
        resent = stand.counted("everfold_outputs_resent_total")
        worked_again += (refolded + resent) if kind != "broker" else 0
        with capsys.disabled():
            print(
                f"\nround {number:2} of {len(kinds)} (seed {SEED}): kill -9 of {kind}: serving again after"
                f" {serving:.1f} s, {refolded:.0f} records refolded, {resent:.0f} outputs sent again;"
                f" {stand.load.signals_acknowledged} signals so far",
                end="",
                flush=True,
            )
    report = stand.load.finish(FINISH_SECONDS)
    with capsys.disabled():
        print(f"\nchecked {report.workflows} workflows with {report.signals} signals", flush=True)
    assert report.faults == []
    if any(kind != "broker" for kind in kinds):
        assert worked_again > 0, "no round refolded or resent anything: the kills came too late or too early"
    _stop_for_refold(stand)
    for shard in refold(stand.broker.bootstrap, "everfold.", stand.directory / "data" / "history"):
        with capsys.disabled():
            print(f"shard {shard.shard}: {shard.records} records refolded from the first, equal: {shard.equal}")
        assert shard.equal, shard.detail


def _kill(stand: Stand, kind: str) -> None:
    if kind == "broker":
        stand.broker.kill_java()
        return
    stand.server.kill()
    if kind == "everything":
        stand.broker.kill()
        stand.broker.start()
    stand.server.start(90)


def _stop_for_refold(stand: Stand) -> None:
    for worker in stand.workers:
        worker.kill()
    stand.server.stop()
