"""Many seeds, spread over the machine's cores."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

from everfold.history.machine.step import Guards
from everfold.history.ports import ShellGuards
from simulation.run import Result, run


def results(
    seeds: Iterable[int],
    *,
    guards: Guards | None = None,
    shell_guards: ShellGuards | None = None,
    until: float | None = None,
) -> Iterator[Result]:
    """The results of runs as they come, until `until` on the monotonic clock. Close the iterator to stop early."""
    cores = os.cpu_count() or 1
    work = partial(_one, guards=guards, shell_guards=shell_guards)
    left = iter(seeds)
    under_way: set[Future[Result]] = set()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while True:
                while len(under_way) < 2 * cores and (until is None or time.monotonic() < until):
                    seed = next(left, None)
                    if seed is None:
                        break
                    under_way.add(pool.submit(work, seed))
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def first_failure(
    seeds_max: int, *, guards: Guards | None = None, shell_guards: ShellGuards | None = None
) -> Result | None:
    """The first seed that fails, of at most so many."""
    series = results(range(seeds_max), guards=guards, shell_guards=shell_guards)
    try:
        return next((result for result in series if not result.ok), None)
    finally:
        series.close()


def _one(seed: int, *, guards: Guards | None, shell_guards: ShellGuards | None) -> Result:
    result = run(seed, guards=guards, shell_guards=shell_guards)
    result.cause = None  # tracebacks do not travel between processes
    return result
