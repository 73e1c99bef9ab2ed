"""Many seeds, spread over the machine's cores: a worker process per core, which is told seeds and tells results."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from everfold.history.machine.step import Guards
from everfold.history.ports import ShellGuards
from simulation.run import Result, run


def guards_without(name: str) -> tuple[Guards, ShellGuards]:
    """All guards but the one of that name; the epoch check is in both machine and shell. Empty for all."""
    machine, shell = Guards.__dataclass_fields__, ShellGuards.__dataclass_fields__
    assert not name or name in machine or name in shell, f"no guard {name}"
    return (
        Guards(**({name: False} if name in machine else {})),
        ShellGuards(**({name: False} if name in shell else {})),
    )


def results(seeds: Iterable[int], *, without: str = "", until: float | None = None) -> Iterator[Result]:
    """The results of runs as they come, until `until` on the monotonic clock. Close the iterator to stop early."""
    left = iter(seeds)
    command = [sys.executable, "-m", "simulation.series", without]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = [
        subprocess.Popen(command, env=env, text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(os.cpu_count() or 1)
    ]
    busy = selectors.DefaultSelector()

    def tell(worker: subprocess.Popen[str]) -> None:
        seed = next(left, None) if until is None or time.monotonic() < until else None
        if seed is not None:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(f"{seed}\n")
            busy.register(worker.stdout, selectors.EVENT_READ, worker)

    try:
        for worker in workers:
            tell(worker)
        while busy.get_map():
            for key, _ in busy.select():
                worker = key.data
                busy.unregister(key.fileobj)
                line = worker.stdout.readline()
                if not line:
                    raise RuntimeError(f"a worker ended with {worker.wait()}")
                tell(worker)
                yield _result(json.loads(line))
    finally:
        busy.close()
        for worker in workers:
            worker.kill()
            worker.communicate()


def first_failure(seeds: Iterable[int], without: str) -> Result | None:
    """The first of the seeds that fails without a guard and not with all."""
    series = results(seeds, without=without)
    try:
        return next((result for result in series if not result.ok and run(result.seed).ok), None)
    finally:
        series.close()


def _result(told: dict[str, object]) -> Result:
    result = Result(**told)  # type: ignore[arg-type]
    result.counts = Counter(result.counts)
    return result


def _work(without: str) -> None:
    """A worker's life: a seed a line in, a result a line out."""
    guards, shell_guards = guards_without(without)
    for line in sys.stdin:
        result = run(int(line), guards=guards, shell_guards=shell_guards)
        told = {name: getattr(result, name) for name in ("seed", "records", "trace", "problems", "virtual_s", "counts")}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    _work(sys.argv[1])
