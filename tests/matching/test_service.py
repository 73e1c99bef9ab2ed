"""Matching's calls over a fake history: what a worker gets, and that no task is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from temporalio.api.enums.v1 import task_queue_pb2 as enums
from temporalio.api.taskqueue.v1 import message_pb2 as tq
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.step import TaskOffer
from everfold.kernel.errors import Code, StatusError
from everfold.matching.machine.task import ACTIVITY, WORKFLOW, Task
from everfold.matching.service import NO_POLLER, MatchingService
from everfold.runtime.rpc import NotOwner
from matching.fake_history import EXHAUSTED, NOT_FOUND, UNAVAILABLE, FakeHistory
from matching.machine_table import task

Body = Callable[[MatchingService, FakeHistory], Awaitable[None]]


def over(body: Body) -> Callable[[], None]:
    """Runs a test against a service that holds its one partition, on a loop of its own."""

    def run() -> None:
        async def main() -> None:
            async with serving() as (service, history):
                async with asyncio.timeout(20):
                    await body(service, history)

        uvloop.run(main())

    run.__name__ = body.__name__  # type: ignore[attr-defined]
    run.__doc__ = body.__doc__
    return run


@asynccontextmanager
async def serving(*, loaded: bool = True) -> AsyncIterator[tuple[MatchingService, FakeHistory]]:
    history = FakeHistory()
    service = MatchingService(history, 1, instance="m")
    held = service.take(0)
    if loaded:
        held.read_to_end(WORKFLOW)
        held.read_to_end(ACTIVITY)
    try:
        yield service, history
    finally:
        await service.stop()


def poll_request(queue: str = "orders", *, sticky: bool = False, identity: str = "worker") -> bytes:
    kind = enums.TASK_QUEUE_KIND_STICKY if sticky else enums.TASK_QUEUE_KIND_NORMAL
    normal = "orders" if sticky else ""
    return ws.PollWorkflowTaskQueueRequest(
        task_queue=tq.TaskQueue(name=queue, kind=kind, normal_name=normal), identity=identity
    ).SerializeToString()


def token_of(response: bytes) -> str:
    return ws.PollWorkflowTaskQueueResponse.FromString(response).task_token.decode()


def polling(
    service: MatchingService, poll_id: str = "", *, queue: str = "orders", sticky: bool = False, timeout: float = 70
) -> asyncio.Task[bytes]:
    return asyncio.ensure_future(service.poll_workflow_task("ns", poll_request(queue, sticky=sticky), timeout, poll_id))


async def parked(service: MatchingService, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while service.gauges()["parked_polls", WORKFLOW] < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


def workflow(name: str, **more: object) -> Task:
    return task(name, type=WORKFLOW, **more)  # type: ignore[arg-type]


def test_a_task_has_the_fields_of_an_offer() -> None:
    assert Task._fields == TaskOffer._fields


@over
async def test_a_poll_gets_the_task_that_is_offered(service: MatchingService, history: FakeHistory) -> None:
    poll = polling(service)
    await parked(service)
    assert service.offer(TaskOffer(*workflow("w")))  # type: ignore[arg-type]
    assert token_of(await poll) == "w"
    assert [name for name, _ in history.starts] == ["w"]


@over
async def test_a_poll_is_answered_two_turns_of_the_loop_after_the_offer(
    service: MatchingService, history: FakeHistory
) -> None:
    poll = polling(service)
    await parked(service)
    service.offer(workflow("w"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert poll.done()


@over
async def test_a_poll_ends_empty_a_second_before_its_deadline(service: MatchingService, history: FakeHistory) -> None:
    began = asyncio.get_running_loop().time()
    assert await polling(service, timeout=1.2) == b""
    assert 0.15 < asyncio.get_running_loop().time() - began < 0.6
    assert await polling(service, timeout=0.9) == b""


@over
async def test_a_start_without_answer_is_repeated_with_the_same_request_id(
    service: MatchingService, history: FakeHistory
) -> None:
    history.script["w"] += [UNAVAILABLE, UNAVAILABLE]
    service.offer(workflow("w"))
    assert token_of(await polling(service)) == "w"
    assert len(history.starts) == 3
    assert len(set(history.starts)) == 1


@over
async def test_a_task_that_history_does_not_know_is_dropped_and_the_poll_waits_on(
    service: MatchingService, history: FakeHistory
) -> None:
    history.script["stale"] += [NOT_FOUND]
    service.offer(workflow("stale"))
    poll = polling(service)
    await history.until(1, history.starts)
    service.offer(workflow("good"))
    assert token_of(await poll) == "good"


@over
async def test_a_task_that_is_handed_out_is_kept_until_its_start_is_known(
    service: MatchingService, history: FakeHistory
) -> None:
    history.hands_out.add("w1")
    service.offer(workflow("w1"))
    assert token_of(await polling(service)) == "w1"
    again = polling(service)
    await parked(service)
    service.offer(workflow("w1"))  # its record comes, or comes again
    ((_, settled),) = history.handed_out
    settled(False)  # the shard is given up: nobody knows of the start
    assert token_of(await again) == "w1"
    history.handed_out[1][1](True)
    service.offer(workflow("w1"))
    service.offer(workflow("w2"))
    assert token_of(await polling(service)) == "w2"
    assert history.starts == [("w2", "m-3")]


@over
async def test_a_task_whose_hand_out_breaks_is_started_through_the_log(
    service: MatchingService, history: FakeHistory
) -> None:
    history.breaks_at.add("w1")
    service.offer(workflow("w1"))
    assert token_of(await polling(service)) == "w1"
    assert history.starts == [("w1", "m-1")]


@over
async def test_a_task_of_an_overloaded_shard_comes_again(service: MatchingService, history: FakeHistory) -> None:
    history.script["w"] += [EXHAUSTED, EXHAUSTED]
    service.offer(workflow("w"))
    assert token_of(await polling(service)) == "w"
    assert len({request_id for _, request_id in history.starts}) == 3


@over
async def test_a_poll_whose_client_disconnects_while_waiting_takes_no_task(
    service: MatchingService, history: FakeHistory
) -> None:
    by_id, by_task = polling(service, "gone"), polling(service)
    await parked(service, 2)
    service.cancel_poll("gone")
    by_task.cancel()
    service.offer(workflow("w"))
    assert await by_id == b""
    assert token_of(await polling(service)) == "w"
    assert by_task.cancelled()
    assert history.returned == []


@over
async def test_a_task_given_to_a_poll_that_is_cancelled_in_the_same_turn_goes_to_the_next(
    service: MatchingService, history: FakeHistory
) -> None:
    poll = polling(service)
    await parked(service)
    service.offer(workflow("w"))
    poll.cancel()
    assert token_of(await polling(service)) == "w"
    assert len(history.starts) == 1


@pytest.mark.parametrize("how", ["cancel_poll", "task cancel"])
def test_a_task_started_for_a_client_that_is_gone_is_returned(how: str) -> None:
    async def body(service: MatchingService, history: FakeHistory) -> None:
        gate = asyncio.Event()
        history.script["w"] += [gate]
        poll = polling(service, "p")
        await parked(service)
        service.offer(workflow("w"))
        await history.until(1, history.starts)
        if how == "cancel_poll":
            service.cancel_poll("p")
        else:
            poll.cancel()
        gate.set()
        await history.until(1, history.returned)
        assert history.returned == [history.starts[0]]
        assert len(set(history.starts)) == 1
        if how == "cancel_poll":
            assert await poll == b""

    over(body)()


@over
async def test_a_client_found_gone_after_the_answer_returns_the_task(
    service: MatchingService, history: FakeHistory
) -> None:
    service.offer(workflow("w"))
    assert await polling(service, "p")
    service.cancel_poll("p")
    service.cancel_poll("p")
    await history.until(1, history.returned)
    assert history.returned == [history.starts[0]]


@over
async def test_the_same_poll_asked_again_gets_the_same_task(service: MatchingService, history: FakeHistory) -> None:
    service.offer(workflow("w"))
    service.offer(workflow("other"))
    first = await polling(service, "p")
    assert await polling(service, "p") == first
    assert len(set(history.starts)) == 1


@over
async def test_a_poll_whose_time_is_up_during_a_start_ends_empty_and_returns_the_task(
    service: MatchingService, history: FakeHistory
) -> None:
    history.script["w"] += [asyncio.Event(), UNAVAILABLE]
    service.offer(workflow("w"))
    assert await polling(service, timeout=1.3) == b""
    await history.until(1, history.returned)
    assert len(set(history.starts)) == 1


def test_a_poll_waits_while_its_partition_is_loading() -> None:
    async def main() -> None:
        async with serving(loaded=False) as (service, _):
            held = service._held[0]
            poll = polling(service)
            await parked(service)
            held.record("void", workflow("void"))
            held.record("w", workflow("w"))
            held.record("void", None)
            await asyncio.sleep(0.01)
            assert not poll.done()
            held.read_to_end(WORKFLOW)
            await asyncio.sleep(0.01)
            assert not poll.done()
            held.read_to_end(ACTIVITY)
            assert token_of(await poll) == "w"

    uvloop.run(main())


@over
async def test_whoever_waits_in_a_partition_that_moves_is_sent_to_its_owner(
    service: MatchingService, history: FakeHistory
) -> None:
    poll = polling(service)
    query = asyncio.ensure_future(service.query("ns", "nobody", "", b"", 10))
    await parked(service)
    service.lose(0)
    for waiter in (poll, query):
        with pytest.raises(NotOwner):
            await waiter
    with pytest.raises(NotOwner):
        await polling(service)
    assert not service.offer(workflow("w"))


@over
async def test_the_worker_of_a_sticky_queue_that_shuts_down_is_reported_gone(
    service: MatchingService, history: FakeHistory
) -> None:
    assert await polling(service, queue="host:1", sticky=True, timeout=1.01) == b""
    service.offer(workflow("w", queue="host:1", sticky=True))
    assert not history.gone
    request = ws.ShutdownWorkerRequest(sticky_task_queue="host:1").SerializeToString()
    await service.shutdown_worker("ns", request)
    await history.until(1, history.gone)
    poll = polling(service, queue="host:1", sticky=True)
    await parked(service)
    await service.shutdown_worker("ns", request)
    assert await poll == b""


@over
async def test_a_query_is_answered_by_the_worker_that_got_it(service: MatchingService, history: FakeHistory) -> None:
    task_bytes = ws.PollWorkflowTaskQueueResponse(attempt=1).SerializeToString()
    query = asyncio.ensure_future(service.query("ns", "orders", "", task_bytes, 10))
    response = ws.PollWorkflowTaskQueueResponse.FromString(await polling(service))
    assert response.attempt == 1
    await service.respond_query(response.task_token, b"answer")
    assert await query == b"answer"
    with pytest.raises(StatusError) as error:
        await service.respond_query(response.task_token, b"late")
    assert error.value.code == Code.NOT_FOUND


@over
async def test_a_query_goes_to_another_poll_when_its_first_client_is_gone(
    service: MatchingService, history: FakeHistory
) -> None:
    query = asyncio.ensure_future(service.query("ns", "orders", "", b"", 10))
    assert await polling(service, "p")
    service.cancel_poll("p")
    response = ws.PollWorkflowTaskQueueResponse.FromString(await polling(service))
    await service.respond_query(response.task_token, b"answer")
    assert await query == b"answer"


@over
async def test_queries_fail_as_temporals_do(service: MatchingService, history: FakeHistory) -> None:
    with pytest.raises(StatusError, match=NO_POLLER) as nobody:
        await service.query("ns", "orders", "", b"", 0.05)
    assert nobody.value.code == Code.FAILED_PRECONDITION

    unanswered = asyncio.ensure_future(service.query("ns", "orders", "", b"", 0.1))
    await polling(service)
    with pytest.raises(StatusError) as late:
        await unanswered
    assert late.value.code == Code.DEADLINE_EXCEEDED

    await service.shutdown_worker("ns", ws.ShutdownWorkerRequest(sticky_task_queue="host:1").SerializeToString())
    poll = polling(service, queue="host:1", sticky=True)
    await parked(service)
    await service.shutdown_worker("ns", ws.ShutdownWorkerRequest(sticky_task_queue="host:1").SerializeToString())
    assert await poll == b""
    with pytest.raises(StatusError) as gone:  # at once, so that the caller can ask the normal queue
        await service.query("ns", "orders", "host:1", b"", 30)
    assert gone.value.code == Code.FAILED_PRECONDITION


@over
async def test_describe_shows_pollers_and_backlog_in_both_forms(service: MatchingService, history: FakeHistory) -> None:
    await polling(service, timeout=1.01)
    service.offer(workflow("w1", age_s=5))
    service.offer(workflow("w2"))
    queue = tq.TaskQueue(name="orders")
    plain = ws.DescribeTaskQueueResponse.FromString(
        await service.describe_task_queue(
            "ns",
            ws.DescribeTaskQueueRequest(
                task_queue=queue, task_queue_type=1, include_task_queue_status=True, report_stats=True
            ).SerializeToString(),
        )
    )
    assert [p.identity for p in plain.pollers] == ["worker"]
    assert plain.pollers[0].last_access_time.seconds > 1_700_000_000
    assert plain.task_queue_status.backlog_count_hint == 2
    assert plain.stats.approximate_backlog_count == 2
    assert plain.stats_by_priority_key[3].approximate_backlog_count == 2
    assert plain.stats.approximate_backlog_age.seconds > 5

    enhanced = ws.DescribeTaskQueueResponse.FromString(
        await service.describe_task_queue(
            "ns",
            ws.DescribeTaskQueueRequest(
                task_queue=queue,
                api_mode=enums.DESCRIBE_TASK_QUEUE_MODE_ENHANCED,
                report_stats=True,
                report_pollers=True,
            ).SerializeToString(),
        )
    )
    types = enhanced.versions_info[""].types_info
    assert types[1].stats.approximate_backlog_count == 2
    assert [p.identity for p in types[1].pollers] == ["worker"]
    assert types[2].stats.approximate_backlog_count == 0

    for unknown in (1, 2, 3):
        request = ws.DescribeTaskQueueRequest(task_queue=tq.TaskQueue(name="new"), task_queue_type=unknown)  # type: ignore[arg-type]
        answer = await service.describe_task_queue("ns", request.SerializeToString())
        assert not ws.DescribeTaskQueueResponse.FromString(answer).pollers


def test_parked_polls_are_bounded() -> None:
    async def main() -> None:
        service = MatchingService(FakeHistory(), 1, polls_max=1)
        service.take(0)
        first = polling(service)
        await parked(service)
        with pytest.raises(StatusError) as error:
            await polling(service)
        assert error.value.code == Code.RESOURCE_EXHAUSTED
        assert error.value.details
        first.cancel()
        await service.stop()

    uvloop.run(main())


def test_polls_that_left_while_history_was_away_count_until_it_is_known_what_became_of_their_tasks() -> None:
    async def main() -> None:
        history = FakeHistory()
        service = MatchingService(history, 1, polls_max=1)
        held = service.take(0)
        held.read_to_end(WORKFLOW)
        held.read_to_end(ACTIVITY)
        away = asyncio.Event()
        history.script["w"] += [away, away]
        service.offer(workflow("w"))
        assert await polling(service, timeout=1.3) == b""
        with pytest.raises(StatusError) as error:
            await polling(service, timeout=1.3)
        assert error.value.code == Code.RESOURCE_EXHAUSTED
        away.set()
        await history.until(1, history.returned)
        await asyncio.sleep(0)
        assert await polling(service, timeout=1.3) == b""
        await service.stop()

    uvloop.run(main())
