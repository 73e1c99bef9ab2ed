"""The messages that a workflow task carries to its worker: the updates that wait for it.

Temporal: service/history/workflow/update/registry.go, Send.
"""

from __future__ import annotations

from temporalio.api.protocol.v1 import message_pb2 as protocol_pb2
from temporalio.api.update.v1 import message_pb2 as update_pb2

from everfold.history.machine.state import Run, UpdateStage


def messages_for(run: Run) -> list[protocol_pb2.Message]:
    """The updates that the started workflow task carries, as messages; their place is just before its start."""
    task = run.workflow_task
    if task is None:
        return []
    out: list[protocol_pb2.Message] = []
    for update in run.updates.values():
        if update.stage == UpdateStage.ADMITTED and update.sent and update.request:
            message = protocol_pb2.Message(
                id=f"{update.update_id}/request",
                protocol_instance_id=update.update_id,
                event_id=task.started_event_id - 1,
            )
            message.body.Pack(update_pb2.Request.FromString(update.request))
            out.append(message)
    return out


def send_updates(run: Run) -> None:
    """The task that starts now carries every admitted update."""
    for update in run.updates.values():
        if update.stage == UpdateStage.ADMITTED and update.request:
            update.sent = True
