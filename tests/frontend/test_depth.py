"""Chains of causes as deep as a client likes: what comes behind the door can be read by every parser, in any event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from temporalio.api.failure.v1 import message_pb2 as failure_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.frontend.depth import TAGS, bounded, shape_of
from everfold.kernel.depth import DEPTH_MAX, shallow
from everfold.schemas import codec, events

DEPTHS = [1, DEPTH_MAX - 10, DEPTH_MAX, 99, 100, 300, 9_000]
CONTEXT = events.EventContext("ns-id", "default", "order-1", "run-1", "Order", None)


def chain(failure: failure_pb2.Failure, causes: int) -> None:
    failure.message = "failed"
    failure.application_failure_info.details.payloads.add(data=b'"' * 100)
    for number in range(causes):
        failure = failure.cause
        failure.message = f"cause {number}"
        failure.application_failure_info.type = "Bad"


def causes_of(failure: failure_pb2.Failure) -> list[str]:
    found = []
    while failure.HasField("cause"):
        failure = failure.cause
        found.append(failure.message)
    return found


def behind_the_door(message: Any) -> Any:
    data = message.SerializeToString()
    return type(message).FromString(shallow(data, shape_of(message.DESCRIPTOR), TAGS))


async def _awaited(answer: Awaitable[bytes]) -> bytes:
    return await answer


def is_cut(found: list[str], causes: int) -> bool:
    kept = [f"cause {number}" for number in range(causes)]
    if found == kept:
        return causes <= DEPTH_MAX
    return (
        DEPTH_MAX - 10 < len(found) <= DEPTH_MAX + 1
        and "left out" in found[-1]
        and found[:-1] == kept[: len(found) - 1]
    )


@pytest.mark.parametrize("causes", DEPTHS)
def test_a_failure_of_an_activity_is_cut_and_its_event_can_be_read(causes: int) -> None:
    request = ws.RespondActivityTaskFailedRequest(task_token=b"token", identity="me")
    chain(request.failure, causes)
    found = behind_the_door(request)
    assert is_cut(causes_of(found.failure), causes)
    assert (found.task_token, found.identity) == (b"token", "me")
    event = history_pb2.HistoryEvent(event_id=1, event_type=12)
    event.activity_task_failed_event_attributes.failure.cause.CopyFrom(found.failure)
    poll = ws.PollWorkflowTaskQueueResponse(history={"events": [event]})
    assert ws.PollWorkflowTaskQueueResponse.FromString(poll.SerializeToString()) == poll
    record = codec.decode(events.encode_event(events.prefix(CONTEXT), event))[1]
    assert events.to_protobuf(record) == event


@pytest.mark.parametrize("causes", DEPTHS)
def test_failures_in_commands_and_messages_are_cut(causes: int) -> None:
    request = ws.RespondWorkflowTaskCompletedRequest(task_token=b"token")
    chain(request.commands.add(command_type=5).fail_workflow_execution_command_attributes.failure, causes)
    chain(request.commands.add(command_type=9).record_marker_command_attributes.failure, causes)
    response = update_pb2.Response()
    chain(response.outcome.failure, causes)
    request.messages.add(id="m").body.Pack(response)
    chain(request.query_results["q"].failure, causes)
    found = behind_the_door(request)
    answered = update_pb2.Response()
    assert found.messages[0].body.Unpack(answered)
    for failure in (
        found.commands[0].fail_workflow_execution_command_attributes.failure,
        found.commands[1].record_marker_command_attributes.failure,
        answered.outcome.failure,
        found.query_results["q"].failure,
    ):
        assert is_cut(causes_of(failure), causes)


@pytest.mark.parametrize(
    "message",
    [
        ws.RespondWorkflowTaskFailedRequest(),
        ws.RespondActivityTaskFailedByIdRequest(),
        ws.RespondQueryTaskCompletedRequest(),
    ],
)
def test_every_request_with_a_failure_has_the_door(message: Any) -> None:
    chain(message.failure, 300)
    assert is_cut(causes_of(behind_the_door(message).failure), 300)


def test_starts_that_go_on_from_a_failure_have_it() -> None:
    request = ws.ExecuteMultiOperationRequest()
    chain(request.operations.add().start_workflow.continued_failure, 300)
    found = behind_the_door(request)
    assert is_cut(causes_of(found.operations[0].start_workflow.continued_failure), 300)


def test_the_frontends_handlers_are_behind_the_door() -> None:
    async def handle(context: Any, data: bytes) -> bytes:
        return data

    request = ws.RespondActivityTaskFailedRequest()
    chain(request.failure, 300)
    context: Any = None
    behind = bounded(handle, "RespondActivityTaskFailed")
    data = asyncio.run(_awaited(behind(context, request.SerializeToString())))
    assert is_cut(causes_of(ws.RespondActivityTaskFailedRequest.FromString(data).failure), 300)
    assert bounded(handle, "DescribeWorkflowExecution") is handle


def test_what_is_shallow_is_not_copied() -> None:
    request = ws.RespondActivityTaskFailedRequest(task_token=b'"' * 10_000)
    chain(request.failure, 3)
    data = request.SerializeToString()
    assert shallow(data, shape_of(request.DESCRIPTOR), TAGS) is data


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.data())
def test_bytes_of_strangers_never_raise(causes: int, data: st.DataObject) -> None:
    request = ws.RespondActivityTaskFailedRequest(task_token=b"token")
    chain(request.failure, causes)
    whole = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = shallow(bytes(whole), shape_of(request.DESCRIPTOR), TAGS)
    try:
        found = ws.RespondActivityTaskFailedRequest.FromString(cut)
    except DecodeError:
        return
    assert len(causes_of(found.failure)) <= DEPTH_MAX + 1
