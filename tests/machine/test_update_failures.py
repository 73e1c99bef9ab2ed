"""Updates whose workflow task comes to a bad end: nothing that the dropped completion said about them is true."""

from __future__ import annotations

import pytest
from shard_driver import ShardDriver, complete_workflow, continue_as_new, schedule_activity, sticky
from test_updates_reset import acceptance, idle, news, point, rejection, response, update_request

from everfold.kernel.errors import Code, StatusError

BAD = schedule_activity("")


def ask(shard: ShardDriver, update_id: str = "u") -> None:
    shard.request("UPDATE_WORKFLOW", update_request(update_id), workflow_id="w")


def test_a_refused_completion_tells_nobody_of_the_outcome_that_it_had(shard: ShardDriver) -> None:
    idle(shard)
    ask(shard)
    accept, done = acceptance(), response()
    with pytest.raises(StatusError, match="BadScheduleActivityAttributes"):
        shard.complete(shard.poll(), point(accept), point(done), BAD, messages=[accept, done])
    (told,) = news(shard)
    assert told.stage == "failed"
    assert told.error is not None
    assert told.error.code == Code.FAILED_PRECONDITION
    assert shard.history().splitlines()[5:] == [
        "6 WorkflowTaskScheduled",
        "7 WorkflowTaskStarted",
        "8 WorkflowTaskFailed cause=BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
        "9 WorkflowTaskScheduled",
    ]
    assert not shard.poll().messages, "the worker stumbled over it: it does not come again"


def test_the_same_update_asked_for_again_is_a_new_one(shard: ShardDriver) -> None:
    idle(shard)
    ask(shard)
    with pytest.raises(StatusError):
        shard.complete(shard.poll(), BAD)
    ask(shard)
    task = shard.poll()
    accept, done = acceptance(), response()
    shard.complete(task, point(accept), point(done), messages=[accept, done])
    assert [item.stage for item in news(shard)] == ["failed", "accepted", "completed"]
    run = shard.fold.run(shard.steps[-1].changed[0].namespace_id, "default", "w", "")
    assert run is not None
    assert run.updates_total == 1


def test_an_update_that_came_meanwhile_goes_with_the_next_task(shard: ShardDriver) -> None:
    idle(shard)
    shard.signal()
    task = shard.poll()
    ask(shard)
    with pytest.raises(StatusError):
        shard.complete(task, BAD)
    assert not news(shard)
    assert [m.id for m in shard.poll().messages] == ["u/request"]


def test_an_accepted_update_stays_accepted(shard: ShardDriver) -> None:
    idle(shard)
    ask(shard)
    accept, done = acceptance(), response()
    shard.complete(shard.poll(), point(accept), messages=[accept], **sticky())
    shard.signal()
    with pytest.raises(StatusError):
        shard.complete(shard.poll(), point(done), BAD, messages=[done])
    assert [item.stage for item in news(shard)] == ["accepted"]
    shard.complete(shard.poll(), point(done), messages=[done])
    assert [item.stage for item in news(shard)] == ["accepted", "completed"]


def test_a_completion_refused_behind_continue_as_new_leaves_no_run_behind(shard: ShardDriver) -> None:
    run_id = shard.start()
    with pytest.raises(StatusError, match="BadUpdateWorkflowExecutionMessage"):
        shard.complete(shard.poll(), continue_as_new(), messages=[rejection("nobody's")])
    description = shard.describe().workflow_execution_info
    assert description.execution.run_id == run_id
    assert shard.history().splitlines()[-1] == "4 WorkflowTaskFailed cause=BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE"
    assert {offer.run_id for offer in shard.offers} == {run_id}
    assert not [row for row in shard.steps[-1].outputs if row.topic == "visibility"]
    shard.complete(shard.poll(), complete_workflow())


def test_the_rejection_of_an_unknown_update_fails_the_task_and_no_more(shard: ShardDriver) -> None:
    idle(shard)
    ask(shard)
    with pytest.raises(StatusError, match="wasn't found") as refused:
        shard.complete(shard.poll(), messages=[rejection("nobody's")])
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert not shard.steps[-1].quarantined


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ((response,), "received \\*update.Response message while in state Sent"),
        ((acceptance, acceptance), "received \\*update.Acceptance message while in state Accepted"),
        ((acceptance, rejection), "received \\*update.Rejection message while in state Accepted"),
        ((acceptance, response, response), "received \\*update.Response message while in state Completed"),
    ],
)
def test_a_message_that_does_not_fit_the_stage_is_refused_by_name(
    shard: ShardDriver, messages: tuple[object, ...], text: str
) -> None:
    idle(shard)
    ask(shard)
    sent = []
    for number, make in enumerate(messages):
        one = make()  # type: ignore[operator]
        one.id = f"{one.id}/{number}"
        sent.append(one)
    with pytest.raises(StatusError, match=text):
        shard.complete(shard.poll(), *map(point, sent), messages=sent)
    assert [item.stage for item in news(shard)] == ["failed"]
