"""`python -m simulation --seed 7 [--verbose]` runs one seed, `--seconds 60` as many as there is time for."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback

from simulation.run import run
from simulation.series import guards_without


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--first", type=int, default=0, help="first seed of a series")
    parser.add_argument("--count", type=int, default=0, help="number of seeds")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a series runs")
    parser.add_argument("--without", default="", metavar="GUARD", help="switch a guard off, e.g. read_barrier")
    parser.add_argument("--verbose", action="store_true", help="tell what happens")
    options = parser.parse_args()
    began = time.monotonic()
    guards, shell_guards = guards_without(options.without)
    if options.seed is not None:
        result = run(options.seed, guards=guards, shell_guards=shell_guards, verbose=options.verbose)
        print(f"seed {result.seed}: {result.records} records in {result.virtual_s:.0f} virtual seconds, ", end="")
        print(f"trace {result.trace}, {time.monotonic() - began:.2f} s")
        print(dict(sorted(result.counts.items())))
        if not result.ok:
            print(result.report())
            if result.cause is not None:
                traceback.print_exception(result.cause)
        return not result.ok
    seeds = range(options.first, options.first + options.count) if options.count else itertools.count(options.first)
    failed = ran = 0
    for seed in seeds:
        if not options.count and time.monotonic() - began > options.seconds:
            break
        result = run(seed, guards=guards, shell_guards=shell_guards)
        ran += 1
        if not result.ok:
            failed += 1
            print(result.report(), flush=True)
    print(f"{ran} seeds, {failed} failed, {ran / (time.monotonic() - began):.2f} seeds/s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
