"""History's calls over shards in memory: answers, reads, long polls, queries, and where a call belongs."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.enums.v1 import query_pb2 as query_enums
from temporalio.api.query.v1 import message_pb2 as query_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine_reads import MachineReads
from everfold.history.service import HeldShard, HistoryService
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.ids import shard_of
from everfold.runtime.rpc import NotOwner
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import signal, start
from history_shell.scene import Scene, over, until
from history_shell.world import NAMESPACE, NAMESPACE_ID, Owner


def answered(text: bytes) -> ws.RespondQueryTaskCompletedRequest:
    answer = ws.RespondQueryTaskCompletedRequest(completed_type=query_enums.QUERY_RESULT_TYPE_ANSWERED)
    answer.query_result.payloads.add(data=text)
    return answer


def result(text: bytes) -> query_pb2.WorkflowQueryResult:
    found = query_pb2.WorkflowQueryResult(result_type=query_enums.QUERY_RESULT_TYPE_ANSWERED)
    found.answer.payloads.add(data=text)
    return found


@over
async def test_a_request_is_answered_and_a_rejection_raised(scene: Scene) -> None:
    run_id = await scene.start()
    assert await scene.start() == run_id  # the same request id
    with pytest.raises(StatusError) as caught:
        await scene.service.execute("START_WORKFLOW", NAMESPACE_ID, "w", "", start("w", "another"), 5)
    assert caught.value.code == Code.ALREADY_EXISTS


@over
async def test_a_shard_that_is_not_here_is_somebody_elses(scene: Scene) -> None:
    held = scene.shards.pop(0)
    with pytest.raises(NotOwner) as caught:
        await scene.start()
    assert caught.value.partition == 0
    scene.shards[0] = held


@over
async def test_a_shard_that_is_being_taken_is_waited_for(scene: Scene) -> None:
    scene.owner.crash()
    again = Owner(scene.world).take(wait=False)
    scene.shards[0] = HeldShard(again.shard, MachineReads())
    assert await scene.start()


def test_the_shard_is_that_of_the_namespaces_name() -> None:
    scene = Scene()
    service = HistoryService({}, 8, scene.owner.namespaces, MachineReads(), scene.matching)
    for number in range(50):
        assert service.shard_number(NAMESPACE_ID, f"w{number}") == shard_of(NAMESPACE, f"w{number}", 8)
    with pytest.raises(StatusError, match="not found"):
        service.shard_number("nowhere", "w")


@over
async def test_a_caller_whose_time_is_over_gets_unavailable(scene: Scene) -> None:
    await scene.start()
    scene.owner.reader.pause()
    with pytest.raises(StatusError) as caught:
        await scene.service.execute("SIGNAL_WORKFLOW", NAMESPACE_ID, "w", "", signal(), 0.05)
    assert caught.value.code == Code.UNAVAILABLE
    scene.owner.reader.resume()


@over
async def test_at_revocation_everybody_gets_unavailable(scene: Scene) -> None:
    await scene.start()
    poll = asyncio.create_task(scene.history(wait=True, token=(await scene.history(wait=True)).next_page_token))
    query = asyncio.create_task(scene.query())
    await until(lambda: len(scene.owner.shard.waiters) and len(scene.shards[0].queries))
    scene.owner.reader.pause()
    request = asyncio.create_task(scene.signal())
    await asyncio.sleep(0)
    scene.owner.shard.close()
    for task in (poll, query, request):
        with pytest.raises(StatusError) as caught:
            await task
        assert caught.value.code == Code.UNAVAILABLE


# ---- reads


@over
async def test_a_read_sees_what_was_acknowledged(scene: Scene) -> None:
    run_id = await scene.start()
    request = ws.DescribeWorkflowExecutionRequest(namespace=NAMESPACE)
    request.execution.workflow_id = "w"
    described = ws.DescribeWorkflowExecutionResponse.FromString(
        await scene.service.describe(NAMESPACE_ID, request.SerializeToString())
    )
    assert described.workflow_execution_info.execution.run_id == run_id
    history = await scene.history(wait=False)
    assert [event.event_id for event in history.history.events] == [1, 2]


@over
async def test_a_workflow_that_nobody_started_is_not_found(scene: Scene) -> None:
    request = ws.DescribeWorkflowExecutionRequest(namespace=NAMESPACE)
    request.execution.workflow_id = "w"
    with pytest.raises(StatusError, match="workflow not found") as caught:
        await scene.service.describe(NAMESPACE_ID, request.SerializeToString())
    assert caught.value.code == Code.NOT_FOUND


@over
async def test_a_long_poll_wakes_for_new_events(scene: Scene) -> None:
    await scene.start()
    first = await scene.history(wait=True)
    assert first.next_page_token
    poll = asyncio.create_task(scene.history(wait=True, token=first.next_page_token))
    await until(lambda: len(scene.owner.shard.waiters))
    await scene.signal()
    assert [event.event_id for event in (await poll).history.events] == [3]


@over
async def test_a_long_poll_without_news_ends_with_a_token(scene: Scene) -> None:
    await scene.start()
    first = await scene.history(wait=True)
    second = await scene.history(wait=True, token=first.next_page_token)
    assert list(second.history.events) == []
    assert second.next_page_token
    assert len(scene.owner.shard.waiters) == 0


# ---- queries


@over
async def test_a_query_travels_with_the_pending_workflow_task(scene: Scene) -> None:
    await scene.start()
    query = asyncio.create_task(scene.query())
    await until(lambda: len(scene.shards[0].queries))
    task = await scene.start_workflow_task()
    ((query_id, asked),) = task.queries.items()
    assert asked.query_type == "state"
    assert [event.event_id for event in task.history.events] == [1, 2, 3]
    await scene.complete(task, results={query_id: result(b"42")})
    assert (await query).query_result.payloads[0].data == b"42"
    assert scene.matching.asked == []
    logged = [r for r in scene.world.records(SHARD_LOG.name) if r["kind"] == "COMPLETE_WORKFLOW_TASK"]
    request = ws.RespondWorkflowTaskCompletedRequest.FromString(logged[0]["body"]["message"])
    assert not request.query_results


@over
async def test_a_query_that_the_task_did_not_answer_is_asked_directly(scene: Scene) -> None:
    await scene.start()
    task = await scene.start_workflow_task()
    scene.matching.answers = [answered(b"7")]
    query = asyncio.create_task(scene.query())
    await until(lambda: len(scene.shards[0].queries))
    await scene.complete(task)
    assert (await query).query_result.payloads[0].data == b"7"
    ((queue, sticky, asked),) = scene.matching.asked
    assert (queue, sticky) == ("queue", "")
    assert asked.query.query_type == "state"
    assert [event.event_id for event in asked.history.events] == [1, 2, 3, 4]
    assert asked.workflow_execution.run_id == task.workflow_execution.run_id
    assert asked.workflow_type.name == "greet"


@over
async def test_a_sticky_worker_is_asked_first_and_dropped_when_it_is_gone(scene: Scene) -> None:
    await scene.start()
    await scene.complete(await scene.start_workflow_task(), sticky=True)
    scene.matching.answers = [StatusError(Code.FAILED_PRECONDITION, "no poller"), answered(b"1")]
    assert (await scene.query()).query_result.payloads[0].data == b"1"
    (_, first, with_cache), (_, second, with_history) = scene.matching.asked
    assert (first, second) == ("sticky", "")
    assert with_cache.HasField("history")
    assert list(with_cache.history.events) == []
    assert len(with_history.history.events) == 4
    await until(lambda: "RESET_STICKY" in scene.world.kinds())


@over
async def test_an_answer_that_is_a_failure_is_the_callers(scene: Scene) -> None:
    await scene.start()
    await scene.complete(await scene.start_workflow_task())
    failed = ws.RespondQueryTaskCompletedRequest(
        completed_type=query_enums.QUERY_RESULT_TYPE_FAILED, error_message="no such query"
    )
    failed.failure.message = "no such query"
    scene.matching.answers = [failed]
    with pytest.raises(StatusError, match="no such query") as caught:
        await scene.query()
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.details[0][0].endswith("QueryFailedFailure")


@over
async def test_a_closed_run_rejects_by_condition_and_else_answers(scene: Scene) -> None:
    await scene.start()
    await scene.complete(await scene.start_workflow_task())
    request = ws.TerminateWorkflowExecutionRequest(namespace=NAMESPACE)
    request.workflow_execution.workflow_id = "w"
    await scene.service.execute("TERMINATE_WORKFLOW", NAMESPACE_ID, "w", "", request.SerializeToString(), 5)
    for condition in (
        query_enums.QUERY_REJECT_CONDITION_NOT_OPEN,
        query_enums.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY,
    ):
        rejected = await scene.query(condition)
        assert rejected.query_rejected.status == 5  # terminated
    scene.matching.answers = [answered(b"end")]
    assert (await scene.query()).query_result.payloads[0].data == b"end"


@over
async def test_queries_of_one_run_are_bounded(scene: Scene) -> None:
    await scene.start()
    bound = scene.owner.shard.limits.queries_per_run_max
    waiting = [asyncio.create_task(scene.query()) for _ in range(bound)]
    await until(lambda: len(scene.shards[0].queries) == bound)
    with pytest.raises(StatusError) as caught:
        await scene.query()
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(scene.shards[0].queries) == 0


@over
async def test_a_query_out_of_time_is_deadline_exceeded(scene: Scene) -> None:
    await scene.start()
    with pytest.raises(StatusError) as caught:
        await scene.query(timeout=0.05)
    assert caught.value.code == Code.DEADLINE_EXCEEDED


@over
async def test_a_run_whose_task_keeps_failing_is_not_ready_for_queries(scene: Scene) -> None:
    await scene.start()
    query = asyncio.create_task(scene.query())
    await until(lambda: len(scene.shards[0].queries))
    for _ in range(2):
        task = await scene.start_workflow_task()
        request = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity="worker")
        await scene.service.execute(
            "FAIL_WORKFLOW_TASK", NAMESPACE_ID, "w", task.workflow_execution.run_id, request.SerializeToString(), 5
        )
    for waiting in (query, asyncio.create_task(scene.query())):
        with pytest.raises(StatusError) as caught:
            await waiting
        assert caught.value.code == Code.FAILED_PRECONDITION
        assert caught.value.details[0][0].endswith("WorkflowNotReadyFailure")
