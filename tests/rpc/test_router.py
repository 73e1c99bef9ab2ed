"""Calls find the owner of a partition, here or elsewhere, also while it moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop
from temporalio.api.enums.v1 import task_queue_pb2 as enums
from temporalio.api.taskqueue.v1 import message_pb2 as tq
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.matching.machine.task import ACTIVITY, WORKFLOW
from everfold.matching.service import MatchingService
from everfold.runtime.clients import MatchingClient
from everfold.runtime.membership import ClusterMembership, LocalMembership, Member
from everfold.runtime.router import Router
from everfold.runtime.rpc import NotOwner, RpcPool, RpcServer
from matching.fake_history import FakeHistory
from matching.machine_table import task


class Counter:
    """Counts the calls for partitions it holds."""

    METHODS = frozenset({"add", "left"})

    def __init__(self, *held: int) -> None:
        self.held = set(held)
        self.calls = 0

    async def add(self, partition: int) -> int:
        if partition not in self.held:
            raise NotOwner(partition)
        self.calls += 1
        return self.calls

    async def left(self, partition: int, timeout: float) -> float:
        if partition not in self.held:
            raise NotOwner(partition)
        return timeout


class Process:
    """One process of a cluster without Kafka: what it publishes reaches the others at once."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.membership = ClusterMembership(Member(name), self._publish)
        self.router = Router(self.membership, RpcPool())
        self.server: RpcServer | None = None

    async def serve(self, role: str, service: object, *partitions: int) -> None:
        self.server = RpcServer({role: service})
        await self.server.start()
        self.router.add_local(role, service)
        self.membership.set_addresses(self.server.address, "")
        self.membership.set_partitions(role, partitions)
        await self.membership.start()

    async def stop(self) -> None:
        assert self.router._pool is not None
        await self.router._pool.stop()
        if self.server is not None:
            await self.server.stop()
        for timer in (self.membership._beat, self.membership._review):
            if timer is not None:
                timer.cancel()

    def _publish(self, member_id: str, member: Member | None) -> None:
        for process in self.cluster.processes:
            process.membership.received(member_id, member, 1000)


class Cluster:
    """Its processes."""

    def __init__(self) -> None:
        self.processes: list[Process] = []

    def process(self) -> Process:
        self.processes.append(Process(self, f"p{len(self.processes)}"))
        return self.processes[-1]


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        for process in made.processes:
            await process.stop()


def test_a_partition_in_this_process_is_called_plainly() -> None:
    async def main() -> None:
        router = Router(LocalMembership())
        counter = Counter(0)
        router.add_local("counter", counter)
        router.membership.set_partitions("counter", [0])
        call = router.call("counter", 0, "add", [0], 5)
        with pytest.raises(StopIteration) as done:  # finished without a turn of the loop
            call.send(None)
        assert done.value.value == 1
        assert await router.call("counter", 0, "left", [0], 5) == 5
        assert await router.call("counter", 0, "left", [0, 3.0], 5) == 3.0

    uvloop.run(main())


def test_a_partition_elsewhere_is_called_over_its_connection() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, there = made.process(), made.process()
            await there.serve("counter", Counter(0), 0)
            assert await here.router.call("counter", 0, "add", [0], 5) == 1
            assert 4 < await here.router.call("counter", 0, "left", [0], 5) <= 5

    uvloop.run(main())


def test_a_call_waits_for_an_owner_and_fails_unavailable_without_one() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, there = made.process(), made.process()
            with pytest.raises(StatusError) as error:
                await here.router.call("counter", 0, "add", [0], 0.05)
            assert error.value.code is Code.UNAVAILABLE
            call = asyncio.ensure_future(here.router.call("counter", 0, "add", [0], 5))
            await asyncio.sleep(0)
            await there.serve("counter", Counter(0), 0)
            assert await call == 1

    uvloop.run(main())


def test_a_call_follows_a_partition_that_moves() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, old, new = made.process(), made.process(), made.process()
            old_counter, new_counter = Counter(), Counter(0)
            await old.serve("counter", old_counter, 0)  # claims it, but has lost it: says NotOwner
            call = asyncio.ensure_future(here.router.call("counter", 0, "add", [0], 5))
            await asyncio.sleep(0.03)
            assert not call.done()
            await new.serve("counter", new_counter, 0)
            assert await call == 1
            assert new_counter.calls == 1
            # A process that lost its own partition asks the new owner too.
            assert await old.router.call("counter", 0, "add", [0], 5) == 2

    uvloop.run(main())


def test_a_call_outlives_the_death_of_the_owner() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, old, new = made.process(), made.process(), made.process()
            await old.serve("counter", Counter(0), 0)
            assert await here.router.call("counter", 0, "add", [0], 5) == 1
            await old.stop()
            call = asyncio.ensure_future(here.router.call("counter", 0, "add", [0], 5))
            await asyncio.sleep(0.03)
            await new.serve("counter", Counter(0), 0)
            assert await call == 1

    uvloop.run(main())


def poll_request(queue: str, *, sticky: bool) -> bytes:
    kind = enums.TASK_QUEUE_KIND_STICKY if sticky else enums.TASK_QUEUE_KIND_NORMAL
    return ws.PollWorkflowTaskQueueRequest(task_queue=tq.TaskQueue(name=queue, kind=kind)).SerializeToString()


def matching(history: FakeHistory) -> MatchingService:
    service = MatchingService(history, 1)
    held = service.take(0)
    held.read_to_end(WORKFLOW)
    held.read_to_end(ACTIVITY)
    return service


async def parked(service: MatchingService, count: int) -> None:
    while service.gauges()["parked_polls", WORKFLOW] != count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_a_sticky_task_travels_to_the_poll_in_another_process() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, there = made.process(), made.process()
            service = matching(FakeHistory())
            await there.serve("matching", service, 0)
            poll = asyncio.ensure_future(
                here.router.call(
                    "matching", 0, "poll_workflow_task", ["ns", poll_request("h:1", sticky=True), 60, "p"], 61
                )
            )
            await parked(service, 1)
            client = MatchingClient(here.router, 1)
            client.offer(task("w", type=WORKFLOW, queue="h:1", sticky=True))
            assert ws.PollWorkflowTaskQueueResponse.FromString(await poll).task_token == b"w"
            client.offer(task("recorded", type=WORKFLOW))  # does not travel: it has its record
            await client.stop()
            await service.stop()

    uvloop.run(main())


@pytest.mark.parametrize("how", ["cancel", "connection"])
def test_a_client_that_goes_away_leaves_no_poll_behind_in_another_process(how: str) -> None:
    async def main() -> None:
        async with cluster() as made:
            here, there = made.process(), made.process()
            history = FakeHistory()
            service = matching(history)
            await there.serve("matching", service, 0)
            gate = asyncio.Event()
            history.script["w"].append(gate)
            args = ["ns", poll_request("q", sticky=False), 60, "p1"]
            waiting = asyncio.ensure_future(here.router.call("matching", 0, "poll_workflow_task", args, 61))
            await parked(service, 1)
            service.offer(task("w", type=WORKFLOW, queue="q"))
            await history.until(1, history.starts)  # the start is under way for that poll
            if how == "cancel":
                waiting.cancel()
                await asyncio.wait([waiting])
            else:
                assert there.server is not None
                there.membership.set_partitions("matching", [])  # so that the call is not repeated here
                for one in list(there.server.connections):
                    one.abort()
            await parked(service, 0)
            gate.set()
            await history.until(1, history.returned)
            waiting.cancel()
            await service.stop()

    uvloop.run(main())


def test_a_query_finds_its_worker_in_another_process_and_the_answer_its_caller() -> None:
    async def main() -> None:
        async with cluster() as made:
            here, there = made.process(), made.process()
            service = matching(FakeHistory())
            await there.serve("matching", service, 0)
            client = MatchingClient(here.router, 1)
            query = asyncio.ensure_future(client.query("ns", "q", "", b"", 10))
            args = ["ns", poll_request("q", sticky=False), 60, "p"]
            response = await here.router.call("matching", 0, "poll_workflow_task", args, 61)
            token = ws.PollWorkflowTaskQueueResponse.FromString(response).task_token
            await here.router.call("matching", 0, "respond_query", [token, b"answer"], 5)
            assert await query == b"answer"
            await service.stop()

    uvloop.run(main())
