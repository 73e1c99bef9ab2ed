"""Everfold beside a real Temporal dev server, under the same load, in one run.

    python benchmarks/run.py [--quick] [--check] [--json FILE] [--targets everfold,file,memory] [--rounds N]

Each server is started fresh with a user's defaults, loaded, and stopped before the next, so that they do not share
the machine. The load generator (`load/`, in Go) is worker and starter in one process, with the SDK's own defaults:
workflows of one activity each, at most so many at once. Everfold's figures include the embedded broker and the
processors.

A machine's speed, and a server's luck, change from minute to minute. So the step that the goals are about is taken in
three rounds, the servers in turns, and of each server's rounds the median counts; all of them are printed.

`--check` fails unless Everfold reaches what `GOALS` says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.raw import RawClient  # noqa: E402
from support.servers import LOOPBACK, Server, everfold_server, free_port, temporal_server  # noqa: E402
from support.toolchains import go_binary  # noqa: E402

CONCURRENCY: Final = (1, 16, 64, 256)
COMPARED: Final = 64
"""The step that the goals are about."""

ROUNDS: Final = 3
"""How often it is taken."""

WARM_UP: Final = 16
"""Concurrency of the step that a server started for a further round takes first, as it did in the first round."""

SECONDS_PER_STEP: Final = 20.0
"""Long enough for a steady state; how many workflows that is depends on the server."""

EXPECTED_RATE: Final[dict[str, dict[int, float]]] = {
    "everfold": {1: 30, 16: 90, 64: 150, 256: 150},
    "file": {1: 10, 16: 14, 64: 13, 256: 13},
    "memory": {1: 10, 16: 38, 64: 32, 256: 27},
}
"""Workflows/s to expect on two cores: only decides how many workflows a step runs, so that all take about as long."""

DRAIN_SECONDS_MAX: Final = 5.0


@dataclass
class Goal:
    """What `--check` demands.

    Attributes:
        text: as printed.
        value: the figure, from all results; None when it was not measured.
        holds: whether the figure is good enough.
    """

    text: str
    value: Callable[[dict[str, Any]], float | None]
    holds: Callable[[float], bool]


def _step(results: dict[str, Any], target: str, concurrent: int) -> dict[str, Any]:
    steps: dict[str, dict[str, Any]] = results.get(target, {}).get("steps", {})
    return steps.get(str(concurrent), {})


def _ratio(metric: str, against: str, concurrent: int = COMPARED) -> Callable[[dict[str, Any]], float | None]:
    def value(results: dict[str, Any]) -> float | None:
        ours, theirs = (_step(results, target, concurrent).get(metric) for target in ("everfold", against))
        return ours / theirs if ours and theirs else None

    return value


def _unloaded_ratio(results: dict[str, Any]) -> float | None:
    ours, theirs = (results.get(target, {}).get("unloaded_warm_ms", {}).get("p50") for target in ("everfold", "file"))
    return ours / theirs if ours and theirs else None


def _of_everfold(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda results: results.get("everfold", {}).get(name)


def _worst_drain(name: str) -> Callable[[dict[str, Any]], float | None]:
    def value(results: dict[str, Any]) -> float | None:
        steps = results.get("everfold", {}).get("steps", {})
        return max((step["drain"][name] for step in steps.values()), default=None)

    return value


GOALS: Final = (
    Goal("workflows/s at 64, times the file one's (>= 8)", _ratio("workflows_per_s", "file"), lambda x: x >= 8),
    Goal("workflows/s at 64, times the memory one's (>= 3)", _ratio("workflows_per_s", "memory"), lambda x: x >= 3),
    Goal(
        "CPU per workflow at 64, of the file one's (<= 0.2)",
        _ratio("server_cpu_ms_per_workflow", "file"),
        lambda x: x <= 0.2,
    ),
    Goal("unloaded p50, of the file one's (<= 0.3)", _unloaded_ratio, lambda x: x <= 0.3),
    Goal("RSS of a fresh server, MB (< 500)", _of_everfold("fresh_rss_mb"), lambda x: x < 500),
    Goal("start to the first workflow's result, s (< 10)", _of_everfold("first_workflow_s"), lambda x: x < 10),
    Goal(
        f"processors drained, s (<= {DRAIN_SECONDS_MAX:g})", _worst_drain("seconds"), lambda x: x <= DRAIN_SECONDS_MAX
    ),
)


@dataclass
class Target:
    """A server to load.

    Attributes:
        name: everfold, file or memory.
        server: not yet started.
        storage: what it keeps on disk; empty for nothing.
        topology_metrics: where Everfold's processors say how far they are.
    """

    name: str
    server: Server
    storage: str = ""
    topology_metrics: int = 0
    results: dict[str, Any] = field(default_factory=dict)


def make_target(name: str, directory: Path) -> Target:
    """One of the three, with its own directory."""
    folder = directory / name
    folder.mkdir()
    if name == "everfold":
        metrics = free_port()
        server = everfold_server(folder, "--topology-metrics-port", str(metrics))
        return Target(name, server, str(folder / "data"), metrics)
    database = folder / "temporal.db" if name == "file" else None
    return Target(name, temporal_server(folder, database=database, name=name), str(database or ""))


class Load:
    """The load generator."""

    def __init__(self) -> None:
        self._binary = go_binary(HERE / "load")

    def run(self, target: Target, **flags: object) -> dict[str, Any]:
        """One run; its JSON. Fails loudly when a workflow failed."""
        arguments = [f"-{name.replace('_', '-')}={value}" for name, value in flags.items()]
        command = [str(self._binary), "-address", target.server.address, "-pid", str(target.server.pid), *arguments]
        if target.storage:
            command += ["-storage", target.storage]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise SystemExit(f"load on {target.name} failed:\n{done.stdout}{done.stderr}\n{target.server.tail()}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result


def measure(target: Target, load: Load, concurrency: Sequence[int], seconds: float) -> dict[str, Any]:
    """Starts a target, loads it step by step, stops it."""
    results = target.results
    with target.server as server:
        results["start_s"] = round(time.monotonic() - server.started_at, 2)
        load.run(target, workflows=1, concurrency=1, warm=0, sequential=0)
        results["first_workflow_s"] = round(time.monotonic() - server.started_at, 2)
        results["fresh_rss_mb"] = round(server.rss_bytes() / 2**20, 1)
        say(f"{target.name}: up in {results['start_s']} s, {results['fresh_rss_mb']} MB")
        unloaded(target, load, "fresh")
        results["steps"] = {}
        for concurrent in concurrency:
            results["steps"][str(concurrent)] = take_step(target, load, concurrent, seconds)
        unloaded(target, load, "warm")
    return results


def take_step(target: Target, load: Load, concurrent: int, seconds: float) -> dict[str, Any]:
    """Loads a server that runs, with as many workflows as take it about so long."""
    count = max(int(EXPECTED_RATE[target.name][concurrent] * seconds), 4 * concurrent, 100)
    queue = f"bench-{target.name}-{concurrent}-{os.getpid()}"
    step = load.run(
        target, workflows=count, concurrency=concurrent, warm=20, sequential=0, task_queue=queue, settle="1s"
    )
    step["drain"] = drain(target, queue, count + 20)
    say(
        f"{target.name}: {concurrent} concurrent: {step['workflows_per_s']:.1f} workflows/s,"
        f" {step['server_cpu_ms_per_workflow']:.1f} ms CPU each"
    )
    return step


def another_round(target: Target, load: Load, seconds: float) -> dict[str, Any]:
    """The compared step on a server started anew, warmed up."""
    with target.server:
        take_step(target, load, WARM_UP, seconds / 2)
        return take_step(target, load, COMPARED, seconds)


def median_round(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round in the middle by workflows/s (of two, the slower), with all rounds' workflows/s and the worst drain."""
    middle = sorted(rounds, key=lambda step: step["workflows_per_s"])[(len(rounds) - 1) // 2]
    drains = [step["drain"] for step in rounds]
    worst = {name: max(one[name] for one in drains) for name in ("seconds", "lag_at_end")}
    return {**middle, "drain": worst, "rounds": [step["workflows_per_s"] for step in rounds]}


def unloaded(target: Target, load: Load, when: str) -> None:
    """One workflow at a time: on a server that has just started, and on one that has done the steps' work."""
    found = load.run(target, workflows=1, concurrency=1, warm=30, sequential=100)["unloaded_ms"]
    target.results[f"unloaded_{when}_ms"] = {"p50": found["p50"], "p99": found["p99"]}


def drain(target: Target, queue: str, workflows: int) -> dict[str, float]:
    """How far visibility and processors are behind after a load, and how long they take to catch up.

    A second has passed since the load's end (`settle`), which counts.
    """
    client = RawClient(target.server.address)
    query = f'TaskQueue = "{queue}" AND ExecutionStatus = "Completed"'
    lag_at_end = -1.0
    began = time.monotonic() - 1.0
    while True:
        counted = client.call("CountWorkflowExecutions", namespace="default", query=query).count
        behind = workflows - counted + projection_lag(target.topology_metrics)
        if lag_at_end < 0:
            lag_at_end = behind
        waited = time.monotonic() - began
        if behind <= 0 or waited > 60:
            client.close()
            return {"lag_at_end": lag_at_end, "seconds": round(waited, 2)}
        time.sleep(0.1)


def projection_lag(port: int) -> float:
    """Records that Everfold's processors have yet to apply; 0 for a server that has none."""
    if not port:
        return 0.0
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("everfold_projection_lag_records{"))


def table(results: dict[str, Any]) -> str:
    """All figures, as a Markdown table."""
    head = (
        "| server | concurrent | workflows/s | p50 ms | p99 ms | CPU ms / workflow | peak RSS MB | bytes / workflow |"
    )
    rows = [head, "|---|---|---|---|---|---|---|---|"]
    for target, found in results.items():
        for when in ("fresh", "warm"):
            latency = found[f"unloaded_{when}_ms"]
            rss = f"{found['fresh_rss_mb']:.0f}" if when == "fresh" else ""
            rows.append(f"| {target} | unloaded, {when} | | {latency['p50']:.1f} | {latency['p99']:.1f} | | {rss} | |")
        for concurrent, step in found["steps"].items():
            latency = step["latency_ms"]
            rows.append(
                f"| {target} | {concurrent} | {step['workflows_per_s']:.1f} | {latency['p50']:.0f} |"
                f" {latency['p99']:.0f} | {step['server_cpu_ms_per_workflow']:.1f} | {step['server_rss_max_mb']:.0f} |"
                f" {step.get('storage_bytes_per_workflow', 0):.0f} |"
            )
    return "\n".join(rows)


def ratios(results: dict[str, Any]) -> str:
    """Everfold's figures in times of the others', step by step."""
    rows = [
        "| concurrent | workflows/s, times file | times memory | CPU, of file | of memory | p50, of file | of memory |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for concurrent in results.get("everfold", {}).get("steps", {}):
        cells = [
            _ratio(metric, against, int(concurrent))(results)
            for metric in ("workflows_per_s", "server_cpu_ms_per_workflow")
            for against in ("file", "memory")
        ]
        ours = _step(results, "everfold", int(concurrent))["latency_ms"]["p50"]
        for against in ("file", "memory"):
            theirs = _step(results, against, int(concurrent)).get("latency_ms", {}).get("p50")
            cells.append(ours / theirs if theirs else None)
        rows.append(f"| {concurrent} | " + " | ".join("" if x is None else f"{x:.2f}" for x in cells) + " |")
    return "\n".join(rows)


def verdicts(results: dict[str, Any]) -> tuple[list[str], bool]:
    """Each goal with its figure, and whether all of those that were measured are reached."""
    lines, good = [], True
    for goal in GOALS:
        value = goal.value(results)
        if value is None:
            lines.append(f"not measured  {goal.text}")
            continue
        reached = goal.holds(value)
        good = good and reached
        lines.append(f"{'reached' if reached else 'MISSED':13} {goal.text}: {value:.2f}")
    return lines, good


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """The whole run."""
    parser = argparse.ArgumentParser(description="Everfold beside a real Temporal dev server, under the same load.")
    parser.add_argument("--quick", action="store_true", help="only 64 concurrent, and for a third of the time")
    parser.add_argument("--check", action="store_true", help="fail unless every goal is reached")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    parser.add_argument("--targets", default="everfold,file,memory", help="which servers, in this order")
    parser.add_argument("--rounds", type=int, help=f"of the step at {COMPARED} (default: {ROUNDS}; quick: 1)")
    parser.add_argument("--concurrency", default="", help="comma separated, instead of 1,16,64,256")
    arguments = parser.parse_args()
    concurrency: Sequence[int] = (COMPARED,) if arguments.quick else CONCURRENCY
    if arguments.concurrency:
        concurrency = [int(part) for part in arguments.concurrency.split(",")]
    load = Load()
    names = arguments.targets.split(",")
    rounds_wanted = arguments.rounds or (1 if arguments.quick else ROUNDS)
    seconds = SECONDS_PER_STEP / 3 if arguments.quick else SECONDS_PER_STEP
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="everfold-bench-") as directory:
        for name in names:
            results[name] = measure(make_target(name, Path(directory)), load, concurrency, seconds)
        rounds = {name: [_step(results, name, COMPARED)] for name in names if COMPARED in concurrency}
        for number in range(2, rounds_wanted + 1):
            for name in rounds:
                folder = Path(directory, f"round-{number}")
                folder.mkdir(exist_ok=True)
                rounds[name].append(another_round(make_target(name, folder), load, seconds))
        for name, taken in rounds.items():
            results[name]["steps"][str(COMPARED)] = median_round(taken)
    lines, good = verdicts(results)
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end\n")
    print(table(results), ratios(results), "\n".join(lines), sep="\n\n")
    for name in rounds:
        rates = ", ".join(f"{rate:.1f}" for rate in _step(results, name, COMPARED)["rounds"])
        print(f"\n{name}, rounds at {COMPARED}: {rates} workflows/s", end="")
    lag = _worst_drain("lag_at_end")(results)
    if lag is not None:
        print(f"\nlag of the processors at the end of a load: {lag:.0f} records or fewer")
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "goals": lines}, indent=2) + "\n")
    return 0 if good or not arguments.check else 1


if __name__ == "__main__":
    sys.exit(main())
