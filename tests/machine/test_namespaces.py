"""Namespaces as shard 0 decides them, and what becomes of the runs of one that is deleted."""

from __future__ import annotations

from typing import Any

import pytest
from shard_driver import NAMESPACE_ID, ShardDriver, complete_workflow, schedule_activity
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine import keys
from everfold.history.machine.decide import namespace
from everfold.history.machine.decide.purge import SWEPT_MAX
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import DAY_NS
from everfold.schemas import codec
from everfold.schemas.topics import NAMESPACES

DAY_S = 86_400
TASKS = ("workflow-tasks", "activity-tasks")


def register(shard: ShardDriver, name: str = "team") -> str:
    request = ws.RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.seconds = DAY_S
    reply = shard.request("REGISTER_NAMESPACE", request)
    namespace_id: str = codec.decode(reply.response)[1]["namespace_id"]
    return namespace_id


def test_a_deleted_namespace_frees_its_name(shard: ShardDriver) -> None:
    first = register(shard)
    with pytest.raises(StatusError) as taken:
        register(shard)
    assert taken.value.code == Code.ALREADY_EXISTS
    reply = shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(namespace_id=first))
    record = codec.decode(reply.response)[1]
    assert (record["deleted"], record["state"], record["version"]) == (True, 3, 2)
    assert register(shard) != first


def test_the_name_of_the_system_namespace_is_taken(shard: ShardDriver) -> None:
    with pytest.raises(StatusError, match='Namespace "temporal-system" already exists') as taken:
        register(shard, "temporal-system")
    assert taken.value.code == Code.ALREADY_EXISTS
    register(shard, "temporal-system-two")


@pytest.mark.parametrize("asked", [{"namespace": "nobody"}, {"namespace_id": "nobody"}])
def test_what_does_not_exist_cannot_be_deleted(shard: ShardDriver, asked: dict[str, str]) -> None:
    with pytest.raises(StatusError) as missing:
        shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(**asked))
    assert missing.value.code == Code.NOT_FOUND


def test_a_namespace_is_deleted_once(shard: ShardDriver) -> None:
    register(shard)
    by_name = operator.DeleteNamespaceRequest(namespace="team")
    shard.request("DELETE_NAMESPACE", by_name)
    with pytest.raises(StatusError):
        shard.request("DELETE_NAMESPACE", by_name)


def test_the_retention_is_that_of_the_namespace_when_the_run_closes(shard: ShardDriver) -> None:
    run_id = shard.start()
    shard.know_namespace({}, version=2, retention_ns=3 * DAY_NS)
    shard.complete(shard.poll(), complete_workflow())
    shard.sleep(2 * DAY_S)
    assert shard.fold.run(NAMESPACE_ID, "default", "w", run_id) is not None
    shard.sleep(1 * DAY_S + 1)
    assert shard.fold.run(NAMESPACE_ID, "default", "w", run_id) is None


def rows_of_runs(shard: ShardDriver) -> list[bytes]:
    """Keys of rows that belong to runs: those of the whole shard begin with ffff, and timers name their run."""
    return [
        key
        for key in shard.store.rows
        if not key.startswith(b"\xff\xff") or (key.startswith(b"\xff\xfft") and not key.endswith(b"\0\0"))
    ]


def test_the_runs_of_a_deleted_namespace_are_removed() -> None:
    shard = ShardDriver(replay=False)
    for number in range(2 * SWEPT_MAX):
        shard.start(f"open{number}")
    shard.complete(shard.poll(), schedule_activity())
    shard.start("closed")
    shard.complete(shard.poll(), complete_workflow())
    kept = register(shard)
    shard.know_namespace({}, version=2, deleted=True)
    assert len(rows_of_runs(shard)) > 6 * SWEPT_MAX
    with pytest.raises(StatusError, match="Namespace default is not found"):
        shard.start("late")
    before = len(shard.log)
    shard.sleep(1)
    assert rows_of_runs(shard) == []
    assert shard.fold.next_timer() is None
    assert len(shard.log) - before > 2, "one record must not remove everything"
    gone = [record["workflow_id"] for record in visibility(shard) if record["deleted"]]
    assert len(gone) == len(set(gone)) == 2 * SWEPT_MAX + 1
    assert tombstones(shard) == tasks(shard)
    assert shard.fold.namespace(kept) is not None
    shard.check_replay()


def test_a_quarantined_run_goes_with_its_namespace(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = shard.start()
    shard.replay = False  # a second fold would not fail where the first one did
    with monkeypatch.context() as broken:
        broken.setattr("everfold.history.machine.decide.signal.check_signal", None)
        with pytest.raises(StatusError, match="quarantined"):
            shard.signal()
    with pytest.raises(StatusError, match="quarantined"):
        shard.signal()  # is parked
    shard.know_namespace({}, version=2, deleted=True)
    shard.sleep(1)
    assert shard.fold.run(NAMESPACE_ID, "default", "w", run_id) is None
    assert rows_of_runs(shard) == []


def visibility(shard: ShardDriver) -> list[dict[str, Any]]:
    """What the index has been told."""
    values = [row.value for step in shard.steps for row in step.outputs if row.topic == "visibility"]
    return [codec.decode(value)[1] for value in values if value is not None]


def tombstones(shard: ShardDriver) -> set[bytes]:
    """Keys of the task records that have lost their meaning."""
    return {row.key for step in shard.steps for row in step.outputs if row.topic in TASKS and row.value is None}


def tasks(shard: ShardDriver) -> set[bytes]:
    """Keys of all task records."""
    return {row.key for step in shard.steps for row in step.outputs if row.topic in TASKS and row.value is not None}


def test_the_row_is_what_the_topic_tells(shard: ShardDriver) -> None:
    namespace_id = register(shard)
    (told,) = [row.value for row in shard.steps[-1].outputs if row.topic == NAMESPACES.name]
    assert shard.fold.rows.get(keys.namespace(namespace_id)) == told


def test_a_cluster_has_a_bounded_number_of_namespaces(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "NAMESPACES_MAX", 3)  # the driver's own is the first
    shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(namespace_id=register(shard, "a")))
    register(shard, "b")
    with pytest.raises(StatusError, match="the cluster has 3 namespaces, deleted ones included") as full:
        register(shard, "c")
    assert full.value.code == Code.RESOURCE_EXHAUSTED


def test_a_namespaces_record_is_bounded_however_small_the_steps_in_which_it_grows(shard: ShardDriver) -> None:
    register(shard)
    update = ws.UpdateNamespaceRequest(namespace="team")
    for number in range(3):
        update.update_info.data.clear()
        update.update_info.data[f"k{number}"] = "x" * 20_000
        shard.request("UPDATE_NAMESPACE", update)
    update.update_info.data["k3"] = "x" * 20_000
    with pytest.raises(StatusError, match="expected at most 65536") as large:
        shard.request("UPDATE_NAMESPACE", update)
    assert large.value.code == Code.INVALID_ARGUMENT
    attributes = operator.AddSearchAttributesRequest(namespace="team")
    for number in range(2_000):
        attributes.search_attributes[f"Attribute{number}"] = 2  # type: ignore[assignment]
    with pytest.raises(StatusError, match="expected at most 65536"):
        shard.request("ADD_SEARCH_ATTRIBUTES", attributes)
    shard.request("DELETE_NAMESPACE", operator.DeleteNamespaceRequest(namespace="team"))
