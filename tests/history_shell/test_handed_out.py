"""Workflow tasks that a worker has before their start is in the log: when it gets there, and when it never does."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.handed_out import HELD_NS
from everfold.history.machine import reads
from everfold.history.machine.step import Reply, RunKey
from everfold.history.ports import ShellLimits
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import SHARD_LOG
from history_shell.messages import signal, start
from history_shell.world import NAMESPACE_ID, WORKFLOW, Owner, World

REQUEST_ID = "the-start"


class Worker:
    """Has polled in the owner's process."""

    def __init__(self, world: World, owner: Owner) -> None:
        self.world = world
        self.owner = owner
        self.settled: list[bool] = []
        owner.propose("START_WORKFLOW", start())
        world.run_until(lambda: owner.offers)
        world.run(SECOND_NS)  # its task record is out

    def ask(self, queue: str = "", kind: int = 1) -> tuple[RunKey, dict[str, Any]]:
        """Whose task was offered last, and the body of its start."""
        offer = self.owner.offers[-1]
        poll = ws.PollWorkflowTaskQueueRequest(identity="worker")
        poll.task_queue.name = queue or offer.task_queue
        poll.task_queue.kind = kind  # type: ignore[assignment]
        return RunKey(NAMESPACE_ID, offer.workflow_id, offer.run_id), {
            "scheduled_event_id": offer.scheduled_event_id,
            "attempt": offer.attempt,
            "stamp": offer.stamp,
            "request_id": REQUEST_ID,
            "poll": poll.SerializeToString(),
            "task_id": offer.task_id,
        }

    def take(self, *, sticky_of: str = "") -> ws.PollWorkflowTaskQueueResponse | None:
        """The task that was offered last, at once."""
        run, body = self.ask(sticky_of, 2) if sticky_of else self.ask()
        fold = self.owner.fold
        response = self.owner.shard.hand_out(run, body, self.settled.append, lambda reply: reads.assemble(fold, reply))
        return None if response is None else ws.PollWorkflowTaskQueueResponse.FromString(response)

    def start(self) -> ws.PollWorkflowTaskQueueResponse:
        """The task that was offered last, through the log."""
        run, body = self.ask()
        verdicts: list[Reply | StatusError] = []
        self.owner.shard.propose("START_WORKFLOW_TASK", *run, body, verdicts.append)
        self.world.run_until(lambda: verdicts)
        assert isinstance(verdicts[0], Reply)
        return ws.PollWorkflowTaskQueueResponse.FromString(reads.assemble(self.owner.fold, verdicts[0]))

    def must_take(self) -> ws.PollWorkflowTaskQueueResponse:
        task = self.take()
        assert task is not None
        return task

    def complete(self, task: ws.PollWorkflowTaskQueueResponse, **fields: Any) -> Reply | StatusError:
        request = ws.RespondWorkflowTaskCompletedRequest(task_token=task.task_token, identity="worker", **fields)
        verdicts = self.owner.propose(
            "COMPLETE_WORKFLOW_TASK", request.SerializeToString(), run_id=task.workflow_execution.run_id
        )
        self.world.run_until(lambda: verdicts)
        verdict = verdicts[0]
        return verdict if isinstance(verdict, StatusError) or verdict.error is None else verdict.error

    def events(self) -> list[history_pb2.HistoryEvent]:
        run = self.owner.fold.run(NAMESPACE_ID, "default", "w", "")
        assert run is not None
        return list(reads.events_of(self.owner.fold, run))

    def kinds(self) -> list[str]:
        return [kind for kind in self.world.kinds() if "WORKFLOW" in kind]

    def types(self) -> list[int]:
        return [int(event.event_type) for event in self.events()]


SCHEDULED, STARTED, COMPLETED, FAILED, CANCEL_REQUESTED, SIGNALED = 5, 6, 7, 9, 20, 26


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def worker(world: World) -> Worker:
    return Worker(world, Owner(world).take())


def test_the_completion_brings_the_start_into_the_log(worker: Worker) -> None:
    task = worker.must_take()
    assert worker.types() == [1, SCHEDULED]
    worker.world.run(3 * MILLISECOND_NS)
    assert isinstance(worker.complete(task), Reply)
    assert worker.kinds() == ["START_WORKFLOW", "COMPLETE_WORKFLOW_TASK"]
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED]
    assert worker.settled == [True]


def test_the_history_says_of_the_start_what_the_worker_was_told(worker: Worker) -> None:
    task = worker.must_take()
    worker.world.run(3 * MILLISECOND_NS)
    worker.complete(task)
    told, written = list(task.history.events), worker.events()[:3]
    for event in told + written:
        event.task_id = 0
    assert told == written
    assert task.started_event_id == 3
    assert task.started_time == written[2].event_time


def test_a_repeated_completion_gets_the_first_answer(worker: Worker) -> None:
    task = worker.must_take()
    assert isinstance(worker.complete(task), Reply)
    assert isinstance(worker.complete(task), Reply)
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED]


def test_the_start_of_a_slow_worker_is_appended_alone(worker: Worker) -> None:
    task = worker.must_take()
    worker.world.run(2 * HELD_NS)
    assert worker.kinds() == ["START_WORKFLOW", "START_WORKFLOW_TASK"]
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert worker.settled == [True]
    assert isinstance(worker.complete(task), Reply)


def test_a_signal_that_comes_meanwhile_brings_the_start_along_and_waits_behind_the_task(worker: Worker) -> None:
    task = worker.must_take()
    worker.owner.propose("SIGNAL_WORKFLOW", signal())
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.kinds() == ["START_WORKFLOW", "SIGNAL_WORKFLOW"]
    assert worker.settled == [True]
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert isinstance(worker.complete(task), Reply)
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED, SIGNALED, SCHEDULED]


def test_of_two_records_that_come_meanwhile_either_may_be_the_first_in_the_log(worker: Worker) -> None:
    task = worker.must_take()
    worker.world.held_up = ["SIGNAL_WORKFLOW"]
    worker.owner.propose("SIGNAL_WORKFLOW", signal())
    cancel = ws.RequestCancelWorkflowExecutionRequest(workflow_execution={"workflow_id": "w"})
    worker.owner.propose("REQUEST_CANCEL_WORKFLOW", cancel.SerializeToString())
    worker.world.run(100 * MILLISECOND_NS)
    assert worker.kinds() == ["START_WORKFLOW", "REQUEST_CANCEL_WORKFLOW", "SIGNAL_WORKFLOW"]
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert isinstance(worker.complete(task), Reply)
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED, CANCEL_REQUESTED, SIGNALED, SCHEDULED]


def test_what_is_refused_brings_no_start(worker: Worker) -> None:
    task = worker.must_take()
    other = ws.SignalWorkflowExecutionRequest(workflow_execution={"workflow_id": "w", "run_id": str(uuid.UUID(int=7))})
    verdicts = worker.owner.propose("SIGNAL_WORKFLOW", other.SerializeToString())
    worker.world.run(2 * MILLISECOND_NS)
    assert [verdict.error.code for verdict in verdicts if isinstance(verdict, Reply) and verdict.error] == [
        Code.NOT_FOUND
    ]
    assert worker.types() == [1, SCHEDULED]
    worker.world.run(2 * MILLISECOND_NS)
    assert worker.kinds() == ["START_WORKFLOW", "SIGNAL_WORKFLOW", "START_WORKFLOW_TASK"]
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert isinstance(worker.complete(task), Reply)


def test_a_late_completion_of_an_earlier_task_brings_the_start_of_the_present_one(worker: Worker) -> None:
    first = worker.must_take()
    worker.complete(first)
    worker.owner.propose("SIGNAL_WORKFLOW", signal())
    worker.world.run(10 * MILLISECOND_NS)
    second = worker.must_take()
    worker.complete(first, commands=[{"command_type": 5}])  # another one than before: no repetition
    worker.world.run(10 * MILLISECOND_NS)
    assert isinstance(worker.complete(second), Reply)
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED, SIGNALED, SCHEDULED, STARTED, COMPLETED]


def test_a_read_sees_the_task_started(worker: Worker) -> None:
    worker.must_take()
    worker.world.held_up = ["START_WORKFLOW_TASK"]
    done: list[list[int]] = []
    worker.owner.shard.read(WORKFLOW, lambda error: done.append([] if error else worker.types()))
    worker.world.run_until(lambda: done)
    assert done == [[1, SCHEDULED, STARTED]]


def test_a_read_that_waits_for_the_start_ends_with_the_shard(worker: Worker) -> None:
    worker.must_take()
    worker.world.fates[SHARD_LOG.name] = ["lost"]
    done: list[StatusError | None] = []
    worker.owner.shard.read(WORKFLOW, done.append)
    worker.owner.shard.read(WORKFLOW, done.append).cancel()
    worker.owner.crash()
    assert [error.code for error in done if error] == [Code.UNAVAILABLE]


def test_a_task_is_not_handed_out_while_something_about_its_workflow_is_under_way(worker: Worker) -> None:
    again = start(request_id="r1")
    worker.owner.propose("START_WORKFLOW", again)
    assert worker.take() is None
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.take() is not None


def test_a_task_is_handed_out_once(worker: Worker) -> None:
    worker.must_take()
    assert worker.take() is None


def test_a_sticky_poll_does_not_get_a_task_of_the_normal_queue(worker: Worker) -> None:
    assert worker.take(sticky_of="of-somebody") is None


def test_a_retry_is_not_handed_out(worker: Worker) -> None:
    task = worker.must_take()
    failed = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity="worker")
    worker.owner.propose("FAIL_WORKFLOW_TASK", failed.SerializeToString(), run_id=task.workflow_execution.run_id)
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED, FAILED]
    assert worker.owner.offers[-1].attempt == 2
    assert worker.take() is None


def test_a_failure_of_the_task_brings_the_start_along(worker: Worker) -> None:
    task = worker.must_take()
    failed = ws.RespondWorkflowTaskFailedRequest(task_token=task.task_token, identity="worker")
    verdicts = worker.owner.propose(
        "FAIL_WORKFLOW_TASK", failed.SerializeToString(), run_id=task.workflow_execution.run_id
    )
    worker.world.run_until(lambda: verdicts)
    assert worker.types() == [1, SCHEDULED, STARTED, FAILED]


def test_a_completion_with_the_start_of_another_leaders_time_is_refused(worker: Worker) -> None:
    task = worker.must_take()
    worker.world.epoch += 1
    answer = worker.complete(task)
    assert isinstance(answer, StatusError)
    assert answer.code == Code.NOT_FOUND
    worker.world.run(10 * MILLISECOND_NS)
    assert STARTED not in worker.types()
    assert worker.settled == [True]


def test_a_malformed_completion_changes_nothing_before_it_is_refused(worker: Worker) -> None:
    task = worker.must_take()
    commands = [{"command_type": 4, "complete_workflow_execution_command_attributes": {}}] * 2
    answer = worker.complete(task, commands=commands)
    assert isinstance(answer, StatusError)
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert isinstance(worker.complete(task), Reply)


def test_when_another_owner_was_quicker_the_start_is_refused_and_the_task_offered_again(worker: Worker) -> None:
    other = Owner(worker.world).take()
    worker.world.run(10 * MILLISECOND_NS)
    task = worker.must_take()
    other.propose("SIGNAL_WORKFLOW", signal())
    worker.world.run(10 * MILLISECOND_NS)
    offered = len(worker.owner.offers)
    answer = worker.complete(task)
    assert isinstance(answer, StatusError)
    assert answer.code == Code.NOT_FOUND
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.types() == [1, SCHEDULED, SIGNALED]
    assert worker.settled == [True]
    assert len(worker.owner.offers) == offered + 1
    assert worker.take() is None, "a start in the log is what gets a run on that others keep sending to"
    again = worker.start()
    assert again.started_event_id == 4
    assert isinstance(worker.complete(again), Reply)


def test_a_completion_that_is_refused_leaves_the_task_failed(worker: Worker) -> None:
    task = worker.must_take()
    command: dict[str, Any] = {"command_type": 1, "schedule_activity_task_command_attributes": {"activity_id": ""}}
    answer = worker.complete(task, commands=[command])
    assert isinstance(answer, StatusError)
    worker.world.run(10 * MILLISECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED, FAILED]
    assert worker.settled == [True]


@pytest.mark.parametrize("fate", ["lost", "unknown"])
def test_a_completion_whose_outcome_is_unknown_may_be_repeated(worker: Worker, fate: str) -> None:
    task = worker.must_take()
    worker.world.fates[SHARD_LOG.name] = [fate]
    assert isinstance(worker.complete(task), StatusError) or fate == "unknown"
    assert isinstance(worker.complete(task), Reply)
    worker.world.run(SECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED, COMPLETED]
    assert worker.settled == [True]


def test_a_start_that_is_lost_is_appended_again(worker: Worker) -> None:
    worker.must_take()
    worker.world.fates[SHARD_LOG.name] = ["lost", "lost"]
    worker.world.run(SECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert worker.settled == [True]


def test_a_task_whose_poller_is_gone_has_never_been_started(worker: Worker) -> None:
    worker.must_take()
    assert not worker.owner.shard.take_back(WORKFLOW, "another start")
    assert worker.owner.shard.take_back(WORKFLOW, REQUEST_ID)
    assert worker.settled == [False]
    worker.world.run(SECOND_NS)
    assert worker.types() == [1, SCHEDULED]
    assert worker.take() is not None


@pytest.mark.parametrize("fate", ["lost", "unknown"])
def test_a_start_that_may_be_in_the_log_is_not_taken_back(worker: Worker, fate: str) -> None:
    worker.must_take()
    worker.world.fates[SHARD_LOG.name] = [fate]
    worker.world.run(HELD_NS + 5 * MILLISECOND_NS)
    assert not worker.owner.shard.take_back(WORKFLOW, REQUEST_ID) or worker.settled == [True]
    worker.world.run(SECOND_NS)
    assert worker.types() == [1, SCHEDULED, STARTED]
    assert worker.settled == [True]


def test_a_shard_that_is_given_up_leaves_its_tasks_to_matching(worker: Worker) -> None:
    task = worker.must_take()
    worker.owner.crash()
    assert worker.settled == [False]
    worker.owner = Owner(worker.world).take()
    answer = worker.complete(task)
    assert isinstance(answer, StatusError)
    assert answer.code == Code.NOT_FOUND
    assert worker.types() == [1, SCHEDULED]


def test_reads_that_wait_for_a_handed_out_task_count_as_waiters(world: World) -> None:
    owner = Owner(world, limits=ShellLimits(waiters_max=3)).take()
    Worker(world, owner).must_take()
    outcomes: list[StatusError | None] = []
    for _ in range(5):
        owner.shard.read(WORKFLOW, outcomes.append)
    assert [error.code for error in outcomes if error is not None] == [Code.RESOURCE_EXHAUSTED] * 2
    world.run(SECOND_NS)
    assert outcomes.count(None) == 3
    owner.shard.read(WORKFLOW, outcomes.append)
    world.run(SECOND_NS)
    assert outcomes.count(None) == 4
