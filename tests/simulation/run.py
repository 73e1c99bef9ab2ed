"""One run of the simulator: a seed in, a result out."""

from __future__ import annotations

import asyncio
import logging
import random as global_random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import structlog

from everfold.history.machine.state import decode_run
from everfold.history.machine.step import Guards
from everfold.history.ports import ShellGuards, ShellLimits
from everfold.schemas.topics import COMMANDS, SHARD_LOG
from simulation.checks import check, tasks_left
from simulation.clients import Client
from simulation.clock import NothingLeft, VirtualLoop
from simulation.cluster import Cluster, Shape
from simulation.faults import Nemesis
from simulation.ledger import Ledger
from simulation.process import Crashed
from simulation.workers import Worker

RECORDS_MIN = 200
"""Shard records that a run has at least: clients go on until then."""

_FINISH_S = 600
"""Virtual time within which everything is to be closed once nothing is broken any more."""


@dataclass
class Result:
    """What a run came to."""

    seed: int
    records: int = 0
    trace: str = ""
    problems: list[str] = field(default_factory=list)
    cause: BaseException | None = None
    virtual_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether all laws held."""
        return not self.problems

    def report(self) -> str:
        """What to print of a failure."""
        again = f"PYTHONPATH=tests .venv/bin/python -m simulation --seed {self.seed} --verbose"
        lines = [f"seed {self.seed} fails; run it again with: {again}"]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems[:5]])


def run(
    seed: int, *, guards: Guards | None = None, shell_guards: ShellGuards | None = None, verbose: bool = False
) -> Result:
    """Runs one seed."""
    result = Result(seed)
    random = Random(seed)
    state = global_random.getstate()
    global_random.seed(seed)  # the services draw their jitter from it
    loop = VirtualLoop()
    shape = Shape(
        hosts=random.choice((2, 3)),
        newer_hosts=random.choice((0, 0, 1, 2)),
        shard_count=random.choice((1, 2, 2)),
        task_partitions=random.choice((1, 2)),
        fetch_batch=random.choice((1, 5, 50)),
        run_cache_bytes=random.choice((1, 1 << 13, 1 << 20)),
        limits=ShellLimits(
            outbox_entries_max=random.choice((8, 4096)),
            hash_ring=random.choice((64, 4096)),
            timers_in_flight_max=random.choice((2, 256)),
            ingress_in_flight_max=random.choice((2, 256)),
        ),
        guards=guards or Guards(),
        shell_guards=shell_guards or ShellGuards(),
        at_once=0.3 if seed % 4 == 3 else 0.0,
    )
    cluster = Cluster(loop, random, shape, verbose=verbose)
    loop.set_exception_handler(lambda _, context: _unhandled(cluster, context))
    with _quiet(verbose):
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_scenario(cluster))
        except NothingLeft:
            cluster.watch.problem("everybody waits and nothing will happen any more")
        finally:
            _end(loop)
            asyncio.set_event_loop(None)
            global_random.setstate(state)
    result.records = sum(len(cluster.broker.logs[SHARD_LOG.name, s].records) for s in range(cluster.shard_count))
    result.trace = cluster.broker.trace
    result.problems = cluster.watch.problems
    result.cause = cluster.watch.cause
    result.virtual_s = loop.now_ns / 1e9
    result.counts = cluster.watch.counts
    return result


async def _scenario(cluster: Cluster) -> None:
    watch, random = cluster.watch, cluster.random
    ledger = Ledger(cluster)
    names = iter(range(1_000_000))

    def new_worker() -> Worker:
        worker = Worker(cluster, ledger, f"worker-{next(names)}", sticky=random.random() < 0.7)
        worker.start()
        return worker

    nemesis = Nemesis(cluster, ledger, new_worker)
    for host in cluster.hosts:
        cluster.boot(host)
    nemesis.workers.extend(new_worker() for _ in range(random.randint(1, 2)))
    nemesis.begin()
    breaking = asyncio.ensure_future(nemesis.run())
    breaking.add_done_callback(lambda task: _done(cluster, "the nemesis", task))
    clients = 0
    while not watch.problems:
        tasks = []
        for _ in range(6):
            clients += 1
            task = asyncio.ensure_future(Client(cluster, ledger, f"client-{clients}").run())
            task.add_done_callback(lambda task: _done(cluster, "a client", task))
            tasks.append(task)
        await _until(cluster, lambda tasks=tasks: all(task.done() for task in tasks), 40)
        if _records(cluster) >= RECORDS_MIN:
            break
    await nemesis.heal()
    breaking.cancel()
    if not nemesis.workers:
        nemesis.workers.append(new_worker())
    finished = await _until(cluster, lambda: _at_rest(cluster), _FINISH_S)
    if not finished and not watch.problems:
        watch.problem(f"not everything ended: {_open_runs(cluster)[:5]}, phases {_phases(cluster)}")
    await _until(cluster, lambda: _drained(cluster), 60)
    for worker in nemesis.workers:
        worker.stop()
    if not watch.problems:
        check(cluster, ledger, finished=finished)


async def _until(cluster: Cluster, condition: Any, within_s: float) -> bool:
    """Wait for a condition in virtual time; also ends at the first problem."""
    ends_at = cluster.loop.time() + within_s
    while not condition():
        if cluster.loop.time() > ends_at or cluster.watch.problems:
            return False
        await asyncio.sleep(0.25)
    return True


def _records(cluster: Cluster) -> int:
    return sum(cluster.broker.logs[SHARD_LOG.name, shard].end for shard in range(cluster.shard_count))


def _held(cluster: Cluster) -> list[tuple[int, Any, Any]]:
    found = []
    for shard in range(cluster.shard_count):
        owner = cluster.owners.get(("history", shard))
        held = owner.shards.get(shard) if owner is not None and owner.alive else None
        found.append((shard, owner, held))
    return found


def _folded(cluster: Cluster) -> bool:
    """Every shard is served and has folded its log to the end, and nobody else holds on to one."""
    for shard, _, held in _held(cluster):
        if held is None or not held.shard.serving:
            return False
        if held.shard.fold.meta.applied_offset + 1 != cluster.broker.logs[SHARD_LOG.name, shard].end:
            return False
        if sum(process.holds("history", shard) for process in cluster.processes) > 1:
            return False
    return True


def _drained(cluster: Cluster) -> bool:
    """Folded to the end, the log says that all outputs were acknowledged, and no task is left on its topic."""
    if not _folded(cluster) or any(held.shard.fold.outbox(None, 1) for _, _, held in _held(cluster)):
        return False
    return not tasks_left(cluster)


def _at_rest(cluster: Cluster) -> bool:
    if not _folded(cluster):
        return False
    for _, _, held in _held(cluster):
        if held.shard.outbox.depth or held.shard.in_flight:
            return False
    for shard, _, held in _held(cluster):
        visible = [r for r in cluster.broker.logs[COMMANDS.name, shard].records if not r.hidden]
        if visible and held.shard.fold.meta.commands_offset < visible[-1].offset:
            return False
    return not _open_runs(cluster)


def _open_runs(cluster: Cluster) -> list[str]:
    found = []
    for _, _, held in _held(cluster):
        if held is None:
            found.append("nobody holds the shard")
            continue
        for key, row in held.shard._store._store.rows.items():
            if key[2:3] == b"r" and not key.startswith(b"\xff"):
                state = decode_run(row)
                # Kafka may have lost what other shards have told, and were told was taken.
                waits = (state.children or state.externals) and cluster.watch.cut_shards
                alone = state.children and state.workflow_id in cluster.watch.lost_children
                if state.running and not waits and not alone:
                    task = state.workflow_task
                    found.append(
                        f"{state.workflow_id} next event {state.next_event_id} workflow task "
                        f"{None if task is None else (task.scheduled_event_id, task.started_event_id, task.queue)} "
                        f"deadline {state.deadline_ns}"
                    )
    return found


def _phases(cluster: Cluster) -> list[str]:
    return [held.shard.phase.value if held is not None else "nobody" for _, _, held in _held(cluster)]


def _done(cluster: Cluster, who: str, task: asyncio.Future[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Crashed):
        cluster.watch.problem(f"{who} ended with {error!r}", error)


def _unhandled(cluster: Cluster, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, Crashed) or error is None:
        return
    if isinstance(error, Exception):
        cluster.watch.problem(f"unhandled: {context.get('message')} {error!r}", error)


def _end(loop: VirtualLoop) -> None:
    """Cancel what is left; whoever starts something new while being cancelled is cancelled, too."""
    loop.set_exception_handler(lambda *_: None)
    for _ in range(5):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.01))
        except BaseException:
            break
    loop.close()


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    before = structlog.get_config()
    level = logging.WARNING if verbose else logging.CRITICAL
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    try:
        yield
    finally:
        structlog.configure(**before)
