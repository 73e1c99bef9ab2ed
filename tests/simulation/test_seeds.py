"""The laws hold under every seed. `make sim SECONDS=...` goes on for as long as it is told."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter

import pytest

from simulation.run import RECORDS_MIN
from simulation.series import results

SEEDS = 200
FIRST = int(os.environ.get("EVERFOLD_SIM_FIRST", "0"))
SECONDS = float(os.environ.get("EVERFOLD_SIM_SECONDS", "0"))


@pytest.mark.slow
@pytest.mark.timeout(0 if SECONDS else 1800)
def test_the_laws_hold_under_every_seed() -> None:
    began = time.monotonic()
    seeds = itertools.count(FIRST) if SECONDS else range(FIRST, FIRST + SEEDS)
    failures, counts, ran = [], Counter[str](), 0
    for result in results(seeds, until=began + SECONDS if SECONDS else None):
        ran += 1
        counts.update(result.counts)
        counts["records"] += result.records
        assert not result.ok or result.records >= RECORDS_MIN
        if not result.ok:
            failures.append(result)
            print(result.report(), flush=True)
    print(f"\n{ran} seeds in {time.monotonic() - began:.0f} s: {dict(sorted(counts.items()))}")
    assert not failures, "\n".join(result.report() for result in failures)
    # A series in which nothing went wrong would prove nothing.
    assert counts["lost:LogTruncated"]
    assert counts["lost:UnknownFeatureLevel"]
    assert counts["folded"] > 2 * counts["records"]
    for what in (
        "resets",
        "signals from workflows",
        "signals refused to workflows",
        "updates answered",
        "queries answered",
        "set aside",
    ):
        assert counts[what], what
    ends = ("COMPLETED", "CONTINUED_AS_NEW", "FAILED", "TIMED_OUT")  # of runs that others follow
    assert all(counts[f"successors after EVENT_TYPE_WORKFLOW_EXECUTION_{end}"] for end in ends)
