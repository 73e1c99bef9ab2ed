"""A seed is all that a run depends on."""

from __future__ import annotations

import os
import subprocess
import sys

from simulation.run import run

SEED = 11


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = run(SEED), run(SEED)
    assert first.trace == second.trace
    assert first.records == second.records
    assert first.counts == second.counts


def test_another_process_with_another_hash_seed_gives_the_same_run() -> None:
    program = f"from simulation.run import run; print(run({SEED}).trace)"
    env = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    other = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=100)
    assert other.stdout.strip() == run(SEED).trace, other.stderr


def test_another_seed_gives_another_run() -> None:
    assert run(SEED).trace != run(SEED + 1).trace
