"""What a run remembers of the workers that completed its tasks: their builds, and the points that it can be reset to.

All of it comes from WorkflowTaskCompleted, so that a run that a reset rebuilds remembers the same. The next run of a
chain begins without, but for the reset points.
Temporal: service/history/workflow/mutable_state_impl.go, trackBuildIdFromCompletion, addResetPointFromCompletion,
saveBuildIds.
"""

from __future__ import annotations

from typing import Final

from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.history.v1 import message_pb2 as history_pb2
from temporalio.api.workflow.v1 import message_pb2 as workflow_pb2

from everfold.history.machine.attribute_values import as_json, keyword, keyword_list
from everfold.history.machine.events import serialize, serialize_field
from everfold.history.machine.state import Run
from everfold.kernel.search_attributes import Undecodable, decode

RESET_POINTS_MAX: Final = 20
"""As Temporal's history.maxAutoResetPoints."""

LIST_BYTES_MAX: Final = 2048
"""As Temporal's limit.searchAttributesSizeOfValue: an older build makes room for a newer one."""

_BUILD_IDS: Final = "BuildIds"
_CHECKSUMS: Final = "BinaryChecksums"
_DEPLOYMENT: Final = "TemporalWorkerDeployment"
_UNVERSIONED: Final = "unversioned"


def remember_worker(run: Run, event: history_pb2.HistoryEvent) -> None:
    """Takes from WorkflowTaskCompleted who completed the task."""
    a = event.workflow_task_completed_event_attributes
    before, run.worker_version_stamp = run.worker_version_stamp, serialize_field(a, "worker_version")
    run.worker_deployment = a.worker_deployment_name
    if a.worker_deployment_name:
        run.search_attributes[_DEPLOYMENT] = keyword(a.worker_deployment_name)
    else:
        run.search_attributes.pop(_DEPLOYMENT, None)
    same = before == run.worker_version_stamp and _BUILD_IDS in run.search_attributes
    if not same and not a.HasField("deployment_version"):  # those are called otherwise, and are not built
        _add_build_ids(run, a.worker_version)
    _add_reset_point(run, event)


def shown_of_workers(run: Run) -> tuple[bytes | None, ...]:
    """What the index is told of them."""
    return tuple(run.search_attributes.get(name) for name in (_BUILD_IDS, _CHECKSUMS, _DEPLOYMENT))


def _add_build_ids(run: Run, stamp: common_pb2.WorkerVersionStamp) -> None:
    new = [] if stamp.use_versioning else [_UNVERSIONED]
    if stamp.build_id:
        new.append(f"{'versioned' if stamp.use_versioning else _UNVERSIONED}:{stamp.build_id}")
    known = _listed(run)
    if added := [build_id for build_id in new if build_id not in known]:
        _set_list(run, _BUILD_IDS, [*known, *added])


def _listed(run: Run) -> list[str]:
    """The builds so far; where a client has set the attribute, the texts in it."""
    try:
        value = decode(common_pb2.Payload.FromString(run.search_attributes.get(_BUILD_IDS, b"")))
    except Undecodable:
        return []
    return [build_id for build_id in value if isinstance(build_id, str)] if isinstance(value, list) else []


def _set_list(run: Run, name: str, values: list[str]) -> None:
    """Sets an attribute to the newest of the values, as many as fit. That the run was unversioned stays."""
    while len(as_json(values)) > LIST_BYTES_MAX:
        del values[1 if values[0] == _UNVERSIONED and len(values) > 1 else 0]
    if values:
        run.search_attributes[name] = keyword_list(values)


def _add_reset_point(run: Run, event: history_pb2.HistoryEvent) -> None:
    """Remembers the first task that a build of the worker completed."""
    a = event.workflow_task_completed_event_attributes
    checksum, build_id = a.binary_checksum, a.worker_version.build_id
    points = [workflow_pb2.ResetPointInfo.FromString(data) for data in run.reset_points]
    if any((known.build_id, known.binary_checksum) == (build_id, checksum) for known in points):
        return
    point = workflow_pb2.ResetPointInfo(
        binary_checksum=checksum,
        build_id=build_id,
        run_id=run.run_id,
        first_workflow_task_completed_id=event.event_id,
        create_time=event.event_time,
        resettable=not run.externals,
    )
    run.reset_points = [*run.reset_points, serialize(point)][-RESET_POINTS_MAX:]
    if checksum:
        _set_list(run, _CHECKSUMS, [known.binary_checksum for known in (*points, point) if known.binary_checksum])
