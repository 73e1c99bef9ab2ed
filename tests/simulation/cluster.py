"""The cluster: hosts, who holds what, and the network between processes and to clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import Any

from everfold.history.machine.step import Guards
from everfold.history.ports import ShellGuards, ShellLimits
from everfold.kernel.errors import Code, ShardLost, StatusError
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.positions import Positions
from everfold.kernel.time import DAY_NS, MILLISECOND_NS, SECOND_NS
from everfold.runtime.rpc import ConnectionLost, NotOwner
from everfold.schemas import codec
from simulation.broker import Broker, ProducerFaults
from simulation.clock import VirtualLoop
from simulation.operator import Operator
from simulation.process import Host, Process
from simulation.store import DiskTrouble
from simulation.watch import NEWER_FEATURE_LEVEL, Watch

NAMESPACE = "default"
NAMESPACE_ID = "5d9c1a06-0000-4000-8000-000000000001"
LATE_NAMESPACE = "late"
LATE_NAMESPACE_ID = "5d9c1a06-0000-4000-8000-000000000002"


@dataclass
class Faults:
    """What goes wrong by chance, in parts of 1. All off when the cluster is to come to rest."""

    end_offsets_fail: float = 0.0
    handoffs_lost: float = 0.0
    calls_lost: float = 0.0
    stale_routes: float = 0.0


@dataclass
class Shape:
    """What is fixed for a run."""

    hosts: int = 3
    newer_hosts: int = 0
    shard_count: int = 2
    task_partitions: int = 2
    fetch_batch: int = 50
    run_cache_bytes: int = 1 << 18
    limits: ShellLimits = field(default_factory=ShellLimits)
    guards: Guards = field(default_factory=Guards)
    shell_guards: ShellGuards = field(default_factory=ShellGuards)
    at_once: float = 0.0


class Cluster:
    """See the module."""

    def __init__(self, loop: VirtualLoop, random: Random, shape: Shape, *, verbose: bool = False) -> None:
        self.loop = loop
        self.random = random
        self.verbose = verbose
        self.broker = Broker(loop, random)
        self.cluster_id = "simulated"
        self.shard_count = shape.shard_count
        self.task_partitions = shape.task_partitions
        self.fetch_batch = shape.fetch_batch
        self.run_cache_bytes = shape.run_cache_bytes
        self.limits = shape.limits
        self.shell_guards = shape.shell_guards
        self.settings = {"matching.partitions": shape.task_partitions}
        self.long_poll_s = 15.0
        self._at_once = shape.at_once
        #: draws apart, so that a seed without such answers is what it was before there were any
        self._at_once_random = Random(shape.hosts)
        self.producer_faults = ProducerFaults()
        self.faults = Faults()
        self.healed = False
        self.namespace_names = {NAMESPACE_ID: NAMESPACE}
        self.namespaces: dict[str, tuple[int, bytes]] = {}
        self.watch = Watch(self, shape.guards)
        #: what owners have said on the topic `cluster`, which loses nothing here
        self.positions = Positions()
        self.operator = Operator(self)
        self.add_namespace(NAMESPACE_ID, NAMESPACE)
        self.hosts = [
            Host(
                f"h{number}",
                random.randrange(-400, 400) * MILLISECOND_NS,
                NEWER_FEATURE_LEVEL if number < shape.newer_hosts else FEATURE_LEVEL,
            )
            for number in range(shape.hosts)
        ]
        #: what an operator has asked processes to raise shards to, as far as they know it
        self.feature_level_wanted = 0
        self._number = 0
        #: (role, partition) -> the process that the group gave it to
        self.owners: dict[tuple[str, int], Process] = {}
        #: every process that lives
        self.processes: list[Process] = []

    def note(self, text: str) -> None:
        """A line of the run's story, for `--verbose`."""
        if self.verbose:
            print(f"{self.loop.now_ns / SECOND_NS:10.4f}  {text}")

    def answers_at_once(self) -> bool:
        """Whether what is asked now is answered inside of the call that asks."""
        return self._at_once > 0.0 and self._at_once_random.random() < self._at_once

    def next_number(self) -> int:
        """A number that no other process has."""
        self._number += 1
        return self._number

    @property
    def partitions(self) -> list[tuple[str, int]]:
        """All that a group gives out."""
        return [("history", n) for n in range(self.shard_count)] + [
            ("matching", n) for n in range(self.task_partitions)
        ]

    # ---- namespaces -------------------------------------------------------------------------------------------------

    def add_namespace(self, namespace_id: str, name: str) -> None:
        """A namespace, or its next version."""
        version = self.namespaces[namespace_id][0] + 1 if namespace_id in self.namespaces else 1
        self.namespace_names[namespace_id] = name
        record = {
            "namespace_id": namespace_id,
            "name": name,
            "version": version,
            "state": 1,
            "description": f"version {version}",
            "owner_email": "",
            "data": {},
            "retention_ns": DAY_NS * (1 + version),
            "search_attributes": {},
            "created_at_ns": 0,
            "deleted": False,
            "config": b"",
            "origin": None,
            "predecessor": None,
        }
        self.namespaces[namespace_id] = (version, codec.encode_namespace(record))

    # ---- who holds what ---------------------------------------------------------------------------------------------

    def boot(self, host: Host) -> Process:
        """Start a process on a host that has none, and give it its share."""
        assert host.process is None
        process = Process(self, host)
        host.process = process
        self.processes.append(process)
        self.note(f"{process.name} starts")
        for place in self.partitions:
            if place not in self.owners:
                self.assign(place, process)
        return process

    def assign(self, place: tuple[str, int], process: Process, tell_old_after_ns: int = 0) -> None:
        """The group gives a partition to a process; the former owner hears of it later, if it still can."""
        old = self.owners.get(place)
        self.owners[place] = process
        role, number = place
        if old is process:
            return
        self.note(f"{role} {number}: {old.name if old else 'nobody'} -> {process.name}")

        def tell() -> None:
            assert old is not None
            if self.owners.get(place) is not old:
                (old.lose_shard if role == "history" else old.lose_tasks)(number)

        if old is not None and old.alive:
            self.loop.after(tell_old_after_ns, old.run, tell)
        (process.take_shard if role == "history" else process.take_tasks)(number)

    def process_gone(self, process: Process) -> None:
        """Its session times out; then others have what it held."""
        self.processes.remove(process)
        after = self.random.randrange(50, 3000) * MILLISECOND_NS

        def reassign() -> None:
            for place in self.partitions:
                if self.owners.get(place) is process:
                    living = [p for p in self.processes if not p.frozen] or self.processes
                    if living:
                        self.assign(place, self.random.choice(living))
                    else:
                        del self.owners[place]

        self.loop.after(after, reassign)

    # ---- the network ------------------------------------------------------------------------------------------------

    def router(self, caller: Process | None) -> Router:
        """The way of a process, or of a client (None), to the others."""
        return Router(self, caller)


class Router:
    """`everfold.runtime.router.Router` over a network that breaks, with a membership that is behind."""

    def __init__(self, cluster: Cluster, caller: Process | None) -> None:
        self._cluster = cluster
        self._caller = caller

    async def call(self, role: str, partition: int, method: str, args: list[Any], timeout: float) -> Any:
        """See `Router.call`."""
        cluster, caller, loop = self._cluster, self._caller, self._cluster.loop
        ends_at = loop.time() + timeout
        attempt = 0
        while True:
            if caller is not None:
                await caller.awake()
                if caller.holds(role, partition):
                    try:
                        return await self._invoke(caller, role, method, args)
                    except NotOwner:
                        pass
            left = ends_at - loop.time()
            if left <= 0:
                raise StatusError(Code.UNAVAILABLE, f"no owner of {role} {partition} answered in time")
            process = self._find(role, partition)
            if process is not None:
                try:
                    return await self._remote(process, role, method, args, left)
                except (NotOwner, ConnectionLost):
                    pass
            attempt += 1
            await asyncio.sleep(min(0.01 * 2 ** min(attempt, 6), 0.5) * (0.5 + cluster.random.random() / 2))

    def _find(self, role: str, partition: int) -> Process | None:
        cluster = self._cluster
        if cluster.random.random() < cluster.faults.stale_routes:
            believers = [p for p in cluster.processes if p.holds(role, partition)]
            if believers:
                return cluster.random.choice(believers)
        return cluster.owners.get((role, partition))

    async def _remote(self, process: Process, role: str, method: str, args: list[Any], left: float) -> Any:
        cluster, loop, random = self._cluster, self._cluster.loop, self._cluster.random
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def broken() -> None:
            loop.after(random.randrange(1, 100) * MILLISECOND_NS, settle, None, ConnectionLost(process.name))

        async def serve() -> None:
            result, error = None, None
            try:
                result = await self._invoke(process, role, method, args)
            except (StatusError, NotOwner) as refused:
                error = refused
            except (DiskTrouble, ShardLost) as trouble:
                error = StatusError(Code.UNAVAILABLE, str(trouble))  # a client tries it again
            process.effect()
            if random.random() < cluster.faults.calls_lost:
                if role == "matching":
                    process.matching.undelivered(method, args)
                broken()
                return
            delay = random.randrange(50, 800) * 1000
            loop.after(delay, settle, result, error)

        def arrive() -> None:
            if not process.alive:
                broken()
                return
            process.spawn(serve()).add_done_callback(_unexpected(cluster))

        if not process.alive:
            await asyncio.sleep(0.01)
            raise ConnectionLost(process.name)
        loop.after(random.randrange(50, 800) * 1000, lambda: process.run(arrive) if process.alive else broken())
        process.on_crash.append(broken)
        timer = loop.call_later(left, settle, None, StatusError(Code.UNAVAILABLE, "the owner did not answer in time"))
        try:
            return await future
        finally:
            timer.cancel()
            if process.alive:
                process.on_crash.remove(broken)

    async def _invoke(self, process: Process, role: str, method: str, args: list[Any]) -> Any:
        service = process.history if role == "history" else process.matching
        assert method in service.METHODS, method
        result = getattr(service, method)(*args)
        return await result if asyncio.iscoroutine(result) else result


def _unexpected(cluster: Cluster) -> Any:
    def done(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and isinstance(error, Exception):
            cluster.watch.problem(f"a call ended with {error!r}", error)

    return done
