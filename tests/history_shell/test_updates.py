"""Updates over a shard in memory: who is woken with what, and who hears that there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.enums.v1 import command_type_pb2 as command_types
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.step import RunKey, UpdateNews
from everfold.history.update_waiters import ACCEPTED, ADMITTED, COMPLETED, UpdateWaiters, WaitingUpdate
from everfold.kernel.errors import Code, StatusError
from history_shell.scene import Scene, over, until
from history_shell.world import NAMESPACE, NAMESPACE_ID

RUN = RunKey(NAMESPACE_ID, "w", "run-1")


# ---- a worker's part


def anything(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def accepted(update_id: str) -> protocol_pb2.Message:
    body = update_pb2.Acceptance(accepted_request_message_id=f"{update_id}/request")
    return protocol_pb2.Message(id=f"a/{update_id}", protocol_instance_id=update_id, body=anything(body))


def completed(update_id: str, text: bytes = b"done") -> protocol_pb2.Message:
    body = update_pb2.Response()
    body.meta.update_id = update_id
    body.outcome.success.payloads.add(data=text)
    return protocol_pb2.Message(id=f"c/{update_id}", protocol_instance_id=update_id, body=anything(body))


def rejected(update_id: str) -> protocol_pb2.Message:
    body = update_pb2.Rejection(rejected_request_message_id=f"{update_id}/request")
    body.failure.message = "no"
    return protocol_pb2.Message(id=f"r/{update_id}", protocol_instance_id=update_id, body=anything(body))


async def answer(
    scene: Scene,
    task: ws.PollWorkflowTaskQueueResponse,
    messages: Sequence[protocol_pb2.Message] = (),
    commands: Sequence[command_pb2.Command] = (),
) -> None:
    """Completes the task; acceptances and responses have a command that names them."""
    request = ws.RespondWorkflowTaskCompletedRequest(task_token=task.task_token, identity="worker", messages=messages)
    for message in messages:
        if not message.id.startswith("r/"):
            command = request.commands.add(command_type=command_types.COMMAND_TYPE_PROTOCOL_MESSAGE)
            command.protocol_message_command_attributes.message_id = message.id
    request.commands.extend(commands)
    run = task.workflow_execution
    await scene.service.execute(
        "COMPLETE_WORKFLOW_TASK", NAMESPACE_ID, run.workflow_id, run.run_id, request.SerializeToString(), 5
    )


async def run_of_the_workflow(scene: Scene) -> str:
    """Starts it and completes its first task."""
    run_id = await scene.start()
    await answer(scene, await scene.start_workflow_task())
    return run_id


async def next_task(scene: Scene, update_id: str) -> ws.PollWorkflowTaskQueueResponse:
    """The task that carries the update, once somebody waits for it."""
    await until(lambda: len(scene.owner.shard.updates))
    task = await scene.start_workflow_task()
    assert update_id in [message.protocol_instance_id for message in task.messages]
    return task


def terminate(workflow_id: str = "w") -> bytes:
    request = ws.TerminateWorkflowExecutionRequest(namespace=NAMESPACE)
    request.workflow_execution.workflow_id = workflow_id
    return request.SerializeToString()


# ---- a client's part


def update_request(update_id: str, stage: int = 0) -> ws.UpdateWorkflowExecutionRequest:
    request = ws.UpdateWorkflowExecutionRequest(namespace=NAMESPACE)
    request.workflow_execution.workflow_id = "w"
    request.request.meta.update_id = update_id
    request.request.input.name = "change"
    request.wait_policy.lifecycle_stage = stage  # type: ignore[assignment]
    return request


async def update(
    scene: Scene, update_id: str = "u", stage: int = COMPLETED, timeout: float = 30
) -> ws.UpdateWorkflowExecutionResponse:
    message = update_request(update_id, stage).SerializeToString()
    return ws.UpdateWorkflowExecutionResponse.FromString(
        await scene.service.update(NAMESPACE_ID, "w", message, timeout)
    )


async def poll(
    scene: Scene, update_id: str = "u", stage: int = COMPLETED, timeout: float = 30
) -> ws.PollWorkflowExecutionUpdateResponse:
    request = ws.PollWorkflowExecutionUpdateRequest(namespace=NAMESPACE)
    request.update_ref.workflow_execution.workflow_id = "w"
    request.update_ref.update_id = update_id
    request.wait_policy.lifecycle_stage = stage  # type: ignore[assignment]
    found = await scene.service.poll_update(NAMESPACE_ID, "w", request.SerializeToString(), timeout)
    return ws.PollWorkflowExecutionUpdateResponse.FromString(found)


async def update_with_start(
    scene: Scene, update_id: str = "u", *, request_id: str = "r", conflict: int = 1, timeout: float = 30
) -> ws.ExecuteMultiOperationResponse:
    request = ws.ExecuteMultiOperationRequest(namespace=NAMESPACE)
    start = request.operations.add().start_workflow
    start.namespace, start.workflow_id, start.request_id = NAMESPACE, "w", request_id
    start.workflow_type.name, start.task_queue.name = "greet", "queue"
    start.workflow_id_conflict_policy = conflict  # type: ignore[assignment]
    request.operations.add().update_workflow.CopyFrom(update_request(update_id, ACCEPTED))
    found = await scene.service.multi_operation(NAMESPACE_ID, "w", request.SerializeToString(), timeout)
    return ws.ExecuteMultiOperationResponse.FromString(found)


def statuses(error: StatusError) -> list[tuple[int, str]]:
    ((name, data),) = error.details
    assert name == errordetails.MultiOperationExecutionFailure.DESCRIPTOR.full_name
    return [(one.code, one.message) for one in errordetails.MultiOperationExecutionFailure.FromString(data).statuses]


# ---- update


@over
async def test_an_update_waits_for_its_outcome_by_default(scene: Scene) -> None:
    run_id = await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene, stage=0))
    await answer(scene, await next_task(scene, "u"), [accepted("u")])
    assert not asked.done()
    await scene.signal()
    await answer(scene, await scene.start_workflow_task(), [completed("u")])
    response = await asked
    assert response.stage == COMPLETED
    assert response.outcome.success.payloads[0].data == b"done"
    assert response.update_ref.workflow_execution.run_id == run_id
    assert response.link.workflow_event.request_id_ref.event_type == 41  # update accepted
    assert len(scene.owner.shard.updates) == 0


@over
async def test_an_update_that_is_to_be_accepted_is_answered_at_its_acceptance(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene, stage=ACCEPTED))
    await answer(scene, await next_task(scene, "u"), [accepted("u")])
    response = await asked
    assert response.stage == ACCEPTED
    assert not response.HasField("outcome")


@over
async def test_an_outcome_that_came_with_the_acceptance_is_told_with_it(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene, stage=ACCEPTED))
    await answer(scene, await next_task(scene, "u"), [accepted("u"), completed("u")])
    response = await asked
    assert response.stage == COMPLETED
    assert response.outcome.success.payloads[0].data == b"done"


@over
async def test_a_rejection_reaches_its_caller_and_leaves_nothing_to_ask_for(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene))
    await answer(scene, await next_task(scene, "u"), [rejected("u")])
    response = await asked
    assert response.stage == COMPLETED
    assert response.outcome.failure.message == "no"
    assert response.link.workflow.reason == "Update rejected"
    with pytest.raises(StatusError, match='update "u" not found') as caught:
        await poll(scene)
    assert caught.value.code == Code.NOT_FOUND


@over
async def test_callers_of_one_update_id_get_one_outcome(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = [asyncio.create_task(update(scene)) for _ in range(3)]
    asked.append(asyncio.create_task(update(scene, stage=ACCEPTED)))
    await until(lambda: len(scene.owner.shard.updates) == 4)
    await answer(scene, await next_task(scene, "u"), [accepted("u"), completed("u")])
    found = await asyncio.gather(*asked)
    assert {response.outcome.SerializeToString() for response in found} == {found[0].outcome.SerializeToString()}
    assert await update(scene) == found[0]  # and long afterwards


@over
async def test_when_time_is_up_the_stage_reached_is_told_without_an_outcome(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    response = await update(scene)  # the scene's long polls end after 0.2 s
    assert response.stage == ADMITTED
    await answer(scene, await scene.start_workflow_task(), [accepted("u")])
    response = await update(scene)
    assert response.stage == ACCEPTED
    assert not response.HasField("outcome")
    assert len(scene.owner.shard.updates) == 0


@over
async def test_a_caller_with_less_time_than_that_exceeds_its_deadline(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    for call in (update, poll):
        with pytest.raises(StatusError) as caught:
            await call(scene, timeout=0.1)
        assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert len(scene.owner.shard.updates) == 0


@over
async def test_an_update_of_a_workflow_that_is_not_there_or_closed_is_refused(scene: Scene) -> None:
    with pytest.raises(StatusError, match="workflow not found for ID: w"):
        await update(scene)
    await run_of_the_workflow(scene)
    await scene.service.execute("TERMINATE_WORKFLOW", NAMESPACE_ID, "w", "", terminate(), 5)
    with pytest.raises(StatusError, match="workflow execution already completed") as caught:
        await update(scene)
    assert caught.value.code == Code.NOT_FOUND


@over
async def test_a_run_that_closes_aborts_what_it_has_not_accepted_and_fails_what_it_has(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    first = asyncio.create_task(update(scene, "first"))
    await answer(scene, await next_task(scene, "first"), [accepted("first")])
    second = asyncio.create_task(update(scene, "second"))
    await until(lambda: len(scene.owner.shard.updates) == 2)
    await scene.service.execute("TERMINATE_WORKFLOW", NAMESPACE_ID, "w", "", terminate(), 5)
    assert (await first).outcome.failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"
    with pytest.raises(StatusError, match="workflow update was aborted by closing workflow") as caught:
        await second
    assert caught.value.code == Code.NOT_FOUND
    assert (await poll(scene, "first")).outcome.failure.source == "Server"


@over
async def test_an_update_goes_on_in_the_next_run_and_its_caller_with_it(scene: Scene) -> None:
    run_id = await run_of_the_workflow(scene)
    await scene.signal()
    task = await scene.start_workflow_task()
    asked = asyncio.create_task(update(scene))
    await until(lambda: len(scene.owner.shard.updates))
    command = command_pb2.Command(command_type=command_types.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    command.continue_as_new_workflow_execution_command_attributes.workflow_type.name = "greet"
    command.continue_as_new_workflow_execution_command_attributes.task_queue.name = "queue"
    await answer(scene, task, commands=[command])
    offers = scene.owner.offers
    # The next run's first task waits until the run before it has lived for a second.
    while offers[-1].run_id == run_id:
        scene.world.now_ns += 1_000_000
        await asyncio.sleep(0)
    next_run = offers[-1].run_id
    await answer(scene, await next_task(scene, "u"), [accepted("u"), completed("u")])
    response = await asked
    assert response.outcome.success.payloads[0].data == b"done"
    assert response.update_ref.workflow_execution.run_id == next_run


@over
async def test_at_revocation_those_who_wait_for_updates_get_unavailable(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene))
    await until(lambda: len(scene.owner.shard.updates) == 1)
    polled = asyncio.create_task(poll(scene))
    await until(lambda: len(scene.owner.shard.updates) == 2)
    scene.owner.shard.close()
    for task in (asked, polled):
        with pytest.raises(StatusError) as caught:
            await task
        assert caught.value.code == Code.UNAVAILABLE


@over
async def test_a_caller_that_goes_away_is_forgotten(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene))
    await until(lambda: len(scene.owner.shard.updates))
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert len(scene.owner.shard.updates) == 0
    scene.owner.reader.pause()
    early = asyncio.create_task(update(scene, "early"))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    scene.owner.reader.resume()
    assert (await poll(scene, "early", stage=0)).stage == ADMITTED  # its record is folded all the same
    assert len(scene.owner.shard.updates) == 0


# ---- poll


@over
async def test_a_poll_that_names_no_stage_is_answered_at_once(scene: Scene) -> None:
    run_id = await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene))
    await until(lambda: len(scene.owner.shard.updates))
    found = await poll(scene, stage=0)
    assert found.stage == ADMITTED
    assert found.update_ref.workflow_execution.run_id == run_id
    await answer(scene, await next_task(scene, "u"), [accepted("u"), completed("u")])
    await asked
    assert (await poll(scene, stage=0)).outcome.success.payloads[0].data == b"done"


@over
async def test_a_poll_waits_for_the_outcome(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    asked = asyncio.create_task(update(scene, stage=ACCEPTED))
    await answer(scene, await next_task(scene, "u"), [accepted("u")])
    await asked
    waiting = asyncio.create_task(poll(scene))
    await until(lambda: len(scene.owner.shard.updates))
    await scene.signal()
    await answer(scene, await scene.start_workflow_task(), [completed("u")])
    assert (await waiting).outcome.success.payloads[0].data == b"done"


# ---- update with start


@over
async def test_an_update_with_start_starts_the_workflow_and_waits_for_the_update(scene: Scene) -> None:
    asked = asyncio.create_task(update_with_start(scene))
    await answer(scene, await next_task(scene, "u"), [accepted("u")])
    start, updated = (await asked).responses
    assert start.start_workflow.started
    assert updated.update_workflow.stage == ACCEPTED
    assert updated.update_workflow.update_ref.workflow_execution.run_id == start.start_workflow.run_id
    again = await update_with_start(scene)  # the same request
    assert again.responses[0].start_workflow.run_id == start.start_workflow.run_id
    assert again.responses[1].update_workflow.stage == ACCEPTED


@over
async def test_an_update_with_start_that_may_not_use_the_running_workflow_names_the_culprit(scene: Scene) -> None:
    await run_of_the_workflow(scene)
    with pytest.raises(StatusError) as caught:
        await update_with_start(scene)
    assert caught.value.code == Code.ALREADY_EXISTS
    assert caught.value.message == "Update-with-Start could not be executed."
    (start, _), (updated, text) = statuses(caught.value)
    assert (start, updated, text) == (Code.ALREADY_EXISTS, Code.ABORTED, "Operation was aborted.")


@over
async def test_an_update_with_start_whose_own_workflow_closes_says_that_the_start_was_done(scene: Scene) -> None:
    asked = asyncio.create_task(update_with_start(scene))
    await until(lambda: len(scene.owner.shard.updates))
    await scene.service.execute("TERMINATE_WORKFLOW", NAMESPACE_ID, "w", "", terminate(), 5)
    with pytest.raises(StatusError) as caught:
        await asked
    assert caught.value.code == Code.NOT_FOUND
    assert statuses(caught.value) == [
        (Code.OK, ""),
        (Code.NOT_FOUND, "workflow update was aborted by closing workflow"),
    ]


@over
async def test_an_update_with_start_whose_running_workflow_closes_starts_it_anew(scene: Scene) -> None:
    run_id = await run_of_the_workflow(scene)
    asked = asyncio.create_task(update_with_start(scene, conflict=2))
    await until(lambda: len(scene.owner.shard.updates))
    scene.world.now_ns += 2_000_000_000  # a workflow id may be used again a second after its last start
    await scene.service.execute("TERMINATE_WORKFLOW", NAMESPACE_ID, "w", "", terminate(), 5)
    await until(lambda: scene.owner.offers[-1].run_id != run_id)
    await answer(scene, await next_task(scene, "u"), [accepted("u")])
    start, updated = (await asked).responses
    assert start.start_workflow.started
    assert updated.update_workflow.stage == ACCEPTED


# ---- the registry


def told(waiters: UpdateWaiters, *news: UpdateNews) -> None:
    waiters.told(news)


def test_a_caller_hears_nothing_of_what_came_before_it() -> None:
    waiters, woken = UpdateWaiters(), list[str]()
    told(waiters, UpdateNews(RUN, "u", "rejected", b"old"))
    waiting = WaitingUpdate(waiters, "u", COMPLETED, lambda: woken.append("u"))
    waiting.begin(RUN, ADMITTED, b"")
    told(waiters, UpdateNews(RUN, "other", "completed", b"x"), UpdateNews(RUN, "u", "accepted"))
    assert (waiting.stage, woken) == (ACCEPTED, [])
    told(waiters, UpdateNews(RUN, "u", "completed", b"new"))
    assert (waiting.stage, waiting.outcome, woken) == (COMPLETED, b"new", ["u"])
    waiting.cancel()
    assert len(waiters) == 0


def test_a_caller_that_was_gone_before_its_record_was_folded_is_not_kept() -> None:
    waiters = UpdateWaiters()
    waiting = WaitingUpdate(waiters, "u", COMPLETED, lambda: None)
    waiting.cancel()
    waiting.begin(RUN, ADMITTED, b"")
    assert len(waiters) == 0


def test_a_moved_update_is_waited_for_at_its_new_run() -> None:
    waiters, woken = UpdateWaiters(), list[str]()
    waiting = WaitingUpdate(waiters, "u", ACCEPTED, lambda: woken.append("u"))
    waiting.begin(RUN, ADMITTED, b"")
    told(waiters, UpdateNews(RUN, "u", "moved", run_id="run-2"), UpdateNews(RUN, "u", "aborted"))
    assert waiting.run == RUN._replace(run_id="run-2")
    assert (waiting.error, woken) == (None, [])
    told(waiters, UpdateNews(RUN._replace(run_id="run-2"), "u", "accepted"))
    assert woken == ["u"]
    waiting.cancel()
    assert len(waiters) == 0
