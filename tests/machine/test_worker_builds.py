"""What a run remembers of its workers: their builds, for lists and descriptions, through chains of runs and resets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from shard_driver import NAMESPACE_ID, ShardDriver, complete_workflow, continue_as_new, fail_workflow, start_timer
from temporalio.api.command.v1 import message_pb2 as command_pb2
from temporalio.api.common.v1 import message_pb2 as common
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import reads
from everfold.history.machine.worker_builds import LIST_BYTES_MAX
from everfold.schemas import codec


def build(build_id: str) -> dict[str, Any]:
    return {"worker_version_stamp": common.WorkerVersionStamp(build_id=build_id)}


def attribute(shard: ShardDriver, name: str = "BuildIds", run_id: str = "") -> Any:
    fields = shard.describe(run_id=run_id).workflow_execution_info.search_attributes.indexed_fields
    return json.loads(fields[name].data) if name in fields else None


def stamp(shard: ShardDriver) -> str | None:
    info = shard.describe().workflow_execution_info
    return info.most_recent_worker_version_stamp.build_id if info.HasField("most_recent_worker_version_stamp") else None


def another_task(shard: ShardDriver) -> ws.PollWorkflowTaskQueueResponse:
    shard.signal()
    return shard.poll()


def indexed(shard: ShardDriver) -> list[Any]:
    """What the index was told of BuildIds, record by record."""
    told = []
    for step in shard.steps:
        for output in step.outputs:
            if output.topic == "visibility" and output.value is not None:
                fields = common.SearchAttributes.FromString(codec.decode(output.value)[1]["search_attributes"])
                told.append(json.loads(fields.indexed_fields["BuildIds"].data or b"null"))
    return told


def test_every_build_that_completed_a_task_is_listed(shard: ShardDriver) -> None:
    shard.start()
    assert attribute(shard) is None
    shard.complete(shard.poll(), start_timer("t", 60), **build("b1"))
    assert attribute(shard) == ["unversioned", "unversioned:b1"]
    assert stamp(shard) == "b1"
    shard.complete(another_task(shard), **build("b1"))
    shard.complete(another_task(shard), **build("b2"))
    assert attribute(shard) == ["unversioned", "unversioned:b1", "unversioned:b2"]
    shard.complete(another_task(shard))
    assert attribute(shard) == ["unversioned", "unversioned:b1", "unversioned:b2"]
    assert stamp(shard) is None
    # The start, the first build and the second: a build that is known is no news.
    assert indexed(shard) == [
        None,
        ["unversioned", "unversioned:b1"],
        ["unversioned", "unversioned:b1", "unversioned:b2"],
    ]


def started_builds(shard: ShardDriver) -> list[str]:
    """Of the worker that each WorkflowTaskStarted names; "" for none."""
    run = shard.fold.run(NAMESPACE_ID, "default", "w", "")
    assert run is not None
    all_ = (event.workflow_task_started_event_attributes for event in reads.events_of(shard.fold, run))
    return [a.worker_version.build_id for a in all_ if a.scheduled_event_id]


def test_a_task_is_started_by_the_build_that_polls_and_one_that_is_not_written_by_that_which_completes_it(
    shard: ShardDriver,
) -> None:
    able = {"worker_version_capabilities": {"build_id": "polls"}}
    shard.start()
    task = shard.poll(**able)
    answer = shard.complete(
        task, force_create_new_workflow_task=True, return_new_workflow_task=True, **build("goes on")
    )
    shard.fail_task(answer.workflow_task)
    shard.complete(shard.poll(**able), **build("completes"))
    shard.complete(another_task(shard), complete_workflow())
    assert started_builds(shard) == ["polls", "goes on", "completes", ""]


def test_a_worker_without_a_build_is_unversioned(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), complete_workflow())
    assert attribute(shard) == ["unversioned"]


@pytest.mark.parametrize(
    ("close", "options"),
    [
        (continue_as_new(), {}),
        (fail_workflow(), {"retry_policy": {"initial_interval": {"seconds": 1}}}),
        (complete_workflow(), {"cron_schedule": "@every 1s"}),
    ],
    ids=["continue-as-new", "retry", "cron"],
)
def test_the_next_run_of_a_chain_lists_its_own_builds(
    shard: ShardDriver, close: command_pb2.Command, options: dict[str, Any]
) -> None:
    first = shard.start(**options)
    shard.sleep(2)
    shard.complete(shard.poll(), close, **build("b1"), binary_checksum="c1")
    shard.sleep(2)
    assert (attribute(shard), attribute(shard, "BinaryChecksums"), stamp(shard)) == (None, None, None)
    shard.complete(shard.poll(), start_timer("t", 60), **build("b2"), binary_checksum="c2")
    assert attribute(shard) == ["unversioned", "unversioned:b2"]
    assert attribute(shard, "BinaryChecksums") == ["c1", "c2"]  # of the points that it can be reset to
    assert attribute(shard, run_id=first) == ["unversioned", "unversioned:b1"]


def test_a_run_that_a_reset_made_lists_the_builds_up_to_its_point(shard: ShardDriver) -> None:
    shard.start()
    shard.complete(shard.poll(), start_timer("t", 60), **build("b1"))
    shard.complete(another_task(shard), **build("b2"))
    reset = ws.ResetWorkflowExecutionRequest(request_id="reset", workflow_task_finish_event_id=8)
    reset.workflow_execution.workflow_id = "w"
    shard.request("RESET_WORKFLOW", reset, workflow_id="w")
    assert (attribute(shard), stamp(shard)) == (["unversioned", "unversioned:b1"], "b1")
    shard.complete(shard.poll(), **build("b3"))
    assert attribute(shard) == ["unversioned", "unversioned:b1", "unversioned:b3"]


def test_older_builds_make_room_for_newer_ones(shard: ShardDriver) -> None:
    shard.start()
    task = shard.poll()
    for number in range(12):
        shard.complete(task, **build(f"{number:03}" + "x" * 237))
        task = another_task(shard)
    names = [name.removeprefix("unversioned:")[:3] for name in attribute(shard)]
    assert names == ["unv", "005", "006", "007", "008", "009", "010", "011"]
    assert len(json.dumps(attribute(shard), separators=(",", ":"))) <= LIST_BYTES_MAX


@pytest.mark.parametrize(
    ("given", "kept"),
    [(b'["mine",null]', ["mine"]), (b"null", []), (b"[[]]", []), (b'["' + b"x" * 2000 + b'","y"]', ["y"])],
    ids=["list", "null", "nested", "long"],
)
def test_what_a_client_has_set_as_builds_hinders_nobody(shard: ShardDriver, given: bytes, kept: list[str]) -> None:
    payload = common.Payload(metadata={"encoding": b"json/plain"}, data=given)
    shard.start(search_attributes={"indexed_fields": {"BuildIds": payload}})
    shard.complete(shard.poll(), complete_workflow(), **build("b" * 255))
    assert attribute(shard) == [*kept, "unversioned", "unversioned:" + "b" * 255]


def test_the_deployment_of_an_unversioned_worker_is_that_of_the_latest(shard: ShardDriver) -> None:
    shard.start()
    options = ws.RespondWorkflowTaskCompletedRequest().deployment_options
    options.deployment_name = "shop"
    shard.complete(shard.poll(), start_timer("t", 60), deployment_options=options)
    assert attribute(shard, "TemporalWorkerDeployment") == "shop"
    assert shard.describe().workflow_execution_info.worker_deployment_name == "shop"
    shard.complete(another_task(shard))
    assert attribute(shard, "TemporalWorkerDeployment") is None
    assert shard.describe().workflow_execution_info.worker_deployment_name == ""
