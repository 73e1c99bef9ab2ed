"""A scripted client and worker: a scenario calls RPC after RPC, and what matters of the answers goes into a transcript.

The transcript ends with the history of every run that the scenario named. Two servers behave alike when their
transcripts are equal line by line.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from temporalio.api.command.v1 import message_pb2 as command_v1
from temporalio.api.common.v1 import message_pb2 as common_v1
from temporalio.api.enums.v1 import command_type_pb2, event_type_pb2, task_queue_pb2
from temporalio.api.errordetails.v1 import message_pb2 as errordetails_v1
from temporalio.api.failure.v1 import message_pb2 as failure_v1

from support.normal import OURS, Normaliser, history_lines
from support.raw import Pending, RawClient, RpcError

NAMESPACE: Final = "default"
PATIENCE: Final = 25.0
"""Seconds that a scenario waits for what must happen."""

CLIENT: Final = f"{OURS}client"
WORKER: Final = f"{OURS}worker"


def seconds(value: float) -> Duration:
    """A protobuf duration."""
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


def payload(text: str) -> common_v1.Payload:
    """A payload as the SDKs' JSON converter makes it."""
    return common_v1.Payload(metadata={"encoding": b"json/plain"}, data=f'"{text}"'.encode())


def payloads(*texts: str) -> common_v1.Payloads:
    """Arguments or results."""
    return common_v1.Payloads(payloads=[payload(text) for text in texts])


def failure(
    text: str, *, non_retryable: bool = False, type_: str = "ScriptError", next_retry_delay: float | None = None
) -> failure_v1.Failure:
    """An application failure."""
    info = failure_v1.ApplicationFailureInfo(type=type_, non_retryable=non_retryable)
    if next_retry_delay is not None:
        info.next_retry_delay.CopyFrom(seconds(next_retry_delay))
    return failure_v1.Failure(message=text, source="script", application_failure_info=info)


def command(kind: str, **attributes: Any) -> command_v1.Command:
    """A command of a workflow task's completion: `command("START_TIMER", timer_id="t", …)`."""
    name = {
        "REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION": "request_cancel_external_workflow_execution",
        "PROTOCOL_MESSAGE": "protocol_message",
        "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES": "upsert_workflow_search_attributes",
        "MODIFY_WORKFLOW_PROPERTIES": "modify_workflow_properties",
    }.get(kind, kind.lower())
    return command_v1.Command(
        command_type=command_type_pb2.CommandType.Value(f"COMMAND_TYPE_{kind}"),
        **{f"{name}_command_attributes": attributes},  # type: ignore[arg-type]
    )


class Script:
    """One scenario against one server.

    Attributes:
        client: for RPCs that have no method here.
        transcript: what is compared.
    """

    def __init__(self, address: str) -> None:
        self.client = RawClient(address)
        self.nonce = uuid.uuid4().hex[:12]
        self.transcript: list[str] = []
        self._normaliser = Normaliser(self.nonce)
        self._runs: list[tuple[str, str, str]] = []

    # ---- names ------------------------------------------------------------------

    def id(self, name: str = "wf") -> str:
        """A workflow id, the scenario's own."""
        return f"{name}-{self.nonce}"

    @property
    def queue(self) -> str:
        """The task queue of this scenario."""
        return f"queue-{self.nonce}"

    @property
    def sticky_queue(self) -> str:
        """The sticky queue of the scripted worker."""
        return f"sticky-{self.nonce}"

    @staticmethod
    def request(name: str) -> str:
        """A request id that is compared."""
        return f"{OURS}{name}"

    def execution(self, name: str = "wf", run_id: str = "") -> common_v1.WorkflowExecution:
        """A reference to a run; the current one without a run id."""
        return common_v1.WorkflowExecution(workflow_id=self.id(name), run_id=run_id)

    # ---- transcript -------------------------------------------------------------

    def note(self, label: str, value: Message | str | int | bool) -> None:
        """Adds something to what is compared."""
        if not isinstance(value, Message):
            self.transcript.append(f"{label}: {self._normaliser.text(str(value))}")
            return
        self.transcript.append(f"{label}:")
        shown = type(value)()
        shown.CopyFrom(value)
        if "history" in shown.DESCRIPTOR.fields_by_name:
            self.transcript.append("  history: " + " | ".join(_headings(shown.history.events)))  # type: ignore[attr-defined]
            shown.ClearField("history")
        self.transcript += [f"  {line}" for line in self._normaliser.lines(shown)]

    def refused(self, label: str, method: str, **fields: Any) -> RpcError:
        """Calls an RPC that must be refused, and notes code, text and details."""
        try:
            self.client.call(method, **fields)
        except RpcError as error:
            self.note_error(label, error)
            return error
        raise AssertionError(f"{method} was not refused")

    def note_error(self, label: str, error: RpcError) -> None:
        """Notes a refusal."""
        self.note(label, f"{error.code}: {error.text}")
        for type_name, value in error.details:
            message_class = getattr(errordetails_v1, type_name.rsplit(".", 1)[-1])
            self.note(f"  {type_name}", message_class.FromString(value))

    def track(self, name: str = "wf", run_id: str = "", label: str = "") -> None:
        """The run's history joins the transcript at the end."""
        self._runs.append((label or name, self.id(name), run_id))

    def finish(self) -> list[str]:
        """The whole transcript, with the histories."""
        for label, workflow_id, run_id in self._runs:
            self.transcript.append(f"history of {label}:")
            self.transcript += history_lines(self._normaliser, self._history(workflow_id, run_id))
        self.client.close()
        return self.transcript

    # ---- client -----------------------------------------------------------------

    def start(self, name: str = "wf", *, track: bool = True, **fields: Any) -> str:
        """Starts a workflow and returns its run id."""
        response = self.client.call("StartWorkflowExecution", **self.start_fields(name, **fields))
        if track:
            self.track(name, response.run_id)
        run_id: str = response.run_id
        return run_id

    def start_fields(self, name: str = "wf", **fields: Any) -> dict[str, Any]:
        """The fields of a start request, as the SDKs fill them."""
        return {
            "namespace": NAMESPACE,
            "workflow_id": self.id(name),
            "workflow_type": {"name": "scripted"},
            "task_queue": {"name": self.queue},
            "identity": CLIENT,
            "request_id": self.request(f"start-{name}-{uuid.uuid4()}"),
            "workflow_task_timeout": seconds(10),
            **fields,
        }

    def signal(self, signal_name: str, name: str = "wf", **fields: Any) -> None:
        """Signals a workflow."""
        self.client.call(
            "SignalWorkflowExecution",
            **{
                "namespace": NAMESPACE,
                "workflow_execution": self.execution(name),
                "signal_name": signal_name,
                "input": payloads(f"of {signal_name}"),
                "identity": CLIENT,
                "request_id": self.request(f"signal-{signal_name}"),
                **fields,
            },
        )

    def cancel(self, name: str = "wf", reason: str = "no longer needed", request: str = "cancel") -> None:
        """Asks a workflow to cancel itself."""
        self.client.call(
            "RequestCancelWorkflowExecution",
            namespace=NAMESPACE,
            workflow_execution=self.execution(name),
            identity=CLIENT,
            request_id=self.request(request),
            reason=reason,
        )

    def terminate(self, name: str = "wf", reason: str = "enough") -> None:
        """Ends a workflow at once."""
        self.client.call(
            "TerminateWorkflowExecution",
            namespace=NAMESPACE,
            workflow_execution=self.execution(name),
            identity=CLIENT,
            reason=reason,
            details=payloads("of the termination"),
        )

    def begin_query(self, kind: str = "state", name: str = "wf", **fields: Any) -> Pending:
        """Begins a query that the scripted worker must answer."""
        return self.client.begin(
            "QueryWorkflow",
            namespace=NAMESPACE,
            execution=self.execution(name),
            query={"query_type": kind, "query_args": payloads("asked")},
            **fields,
        )

    def describe(self, name: str = "wf", run_id: str = "") -> Any:
        """DescribeWorkflowExecution."""
        return self.client.call(
            "DescribeWorkflowExecution", namespace=NAMESPACE, execution=self.execution(name, run_id)
        )

    def note_description(self, label: str, name: str = "wf") -> None:
        """Notes a description, but for counters, which count a server's own steps, and the time that a run took."""
        description = self.describe(name)
        info = description.workflow_execution_info
        for field in ("state_transition_count", "history_size_bytes", "execution_duration"):
            info.ClearField(field)
        self.note(label, description)

    # ---- histories --------------------------------------------------------------

    def _history(self, workflow_id: str, run_id: str) -> list[Any]:
        events: list[Any] = []
        token = b""
        while True:
            page = self.client.call(
                "GetWorkflowExecutionHistory",
                namespace=NAMESPACE,
                execution={"workflow_id": workflow_id, "run_id": run_id},
                next_page_token=token,
            )
            events += page.history.events
            token = page.next_page_token
            if not token:
                return events

    def headings(self, name: str = "wf", run_id: str = "") -> list[str]:
        """Numbers and types of the events of a run."""
        return _headings(self._history(self.id(name), run_id))

    def wait(self, kind: str, name: str = "wf", *, count: int = 1, run_id: str = "") -> Any:
        """Waits until the history holds an event of that type, and returns the newest of them."""
        number = event_type_pb2.EventType.Value(f"EVENT_TYPE_{kind}")
        deadline = time.monotonic() + PATIENCE
        while True:
            events = self._history(self.id(name), run_id)
            found = [event for event in events if event.event_type == number]
            if len(found) >= count:
                return found[-1]
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {PATIENCE:.0f} s for {kind} x{count}; there is {_headings(events)}")
            time.sleep(0.05)

    def wait_pending_activity(self, holds: Any, name: str = "wf") -> Any:
        """Waits until a pending activity is as `holds` says, and returns it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            pending = list(self.describe(name).pending_activities)
            for activity in pending:
                if holds(activity):
                    return activity
            if time.monotonic() > deadline:
                raise AssertionError(f"no pending activity became as expected: {pending}")
            time.sleep(0.05)

    # ---- workflow tasks ---------------------------------------------------------

    def poll(self, label: str = "", *, sticky: bool = False, patience: float = PATIENCE, **fields: Any) -> Any:
        """Polls until there is a workflow task; notes it when it has a label."""
        task = self.poll_once(sticky=sticky, timeout=patience, **fields)
        if not task.task_token:
            raise AssertionError(f"no workflow task within {patience:.0f} s ({label or 'unlabelled'})")
        if label:
            self.note(label, task)
        return task

    def poll_once(self, *, sticky: bool = False, timeout: float = 3.0, **fields: Any) -> Any:
        """One long poll; the answer may be empty."""
        queue: dict[str, Any] = {"name": self.queue}
        if sticky:
            queue = {
                "name": self.sticky_queue,
                "kind": task_queue_pb2.TASK_QUEUE_KIND_STICKY,
                "normal_name": self.queue,
            }
        return self.client.call(
            "PollWorkflowTaskQueue", namespace=NAMESPACE, task_queue=queue, identity=WORKER, timeout=timeout, **fields
        )

    def complete(self, task: Any, *commands: command_v1.Command, sticky: float | None = None, **fields: Any) -> Any:
        """Completes a workflow task; `sticky` offers the sticky queue with that schedule-to-start timeout."""
        if sticky is not None:
            fields["sticky_attributes"] = {
                "worker_task_queue": {
                    "name": self.sticky_queue,
                    "kind": task_queue_pb2.TASK_QUEUE_KIND_STICKY,
                    "normal_name": self.queue,
                },
                "schedule_to_start_timeout": seconds(sticky),
            }
        return self.client.call(
            "RespondWorkflowTaskCompleted",
            namespace=NAMESPACE,
            task_token=task.task_token,
            commands=commands,
            identity=WORKER,
            **fields,
        )

    def completion_refused(self, label: str, task: Any, *commands: command_v1.Command, **fields: Any) -> None:
        """Completes a workflow task in a way that must be refused, and notes how."""
        try:
            self.complete(task, *commands, **fields)
        except RpcError as error:
            self.note_error(label, error)
            return
        raise AssertionError("the completion was not refused")

    def fail(self, task: Any, text: str = "non-determinism", cause: int = 0) -> None:
        """Fails a workflow task, as a worker does whose code does not fit the history."""
        self.client.call(
            "RespondWorkflowTaskFailed",
            namespace=NAMESPACE,
            task_token=task.task_token,
            cause=cause,
            failure=failure(text),
            identity=WORKER,
        )

    # ---- activity tasks ---------------------------------------------------------

    def poll_activity(self, label: str = "", *, patience: float = PATIENCE) -> Any:
        """Polls until there is an activity task; notes it when it has a label."""
        task = self.client.call(
            "PollActivityTaskQueue",
            namespace=NAMESPACE,
            task_queue={"name": self.queue},
            identity=WORKER,
            timeout=patience,
        )
        if not task.task_token:
            raise AssertionError(f"no activity task within {patience:.0f} s ({label or 'unlabelled'})")
        if label:
            self.note(label, task)
        return task

    def complete_activity(self, task: Any, result: str = "done") -> None:
        """Completes an activity."""
        self.client.call(
            "RespondActivityTaskCompleted",
            namespace=NAMESPACE,
            task_token=task.task_token,
            result=payloads(result),
            identity=WORKER,
        )

    def fail_activity(self, task: Any, error: failure_v1.Failure, **fields: Any) -> None:
        """Fails an attempt of an activity."""
        self.client.call(
            "RespondActivityTaskFailed",
            namespace=NAMESPACE,
            task_token=task.task_token,
            failure=error,
            identity=WORKER,
            **fields,
        )

    def cancel_activity(self, task: Any, details: str = "stopped") -> None:
        """Says that an activity heeded its cancellation."""
        self.client.call(
            "RespondActivityTaskCanceled",
            namespace=NAMESPACE,
            task_token=task.task_token,
            details=payloads(details),
            identity=WORKER,
        )

    def heartbeat(self, task: Any, details: str = "so far") -> Any:
        """A heartbeat; its answer says whether the activity is to stop."""
        return self.client.call(
            "RecordActivityTaskHeartbeat",
            namespace=NAMESPACE,
            task_token=task.task_token,
            details=payloads(details),
            identity=WORKER,
        )

    # ---- commands ---------------------------------------------------------------

    def activity(self, activity_id: str = "a1", **attributes: Any) -> command_v1.Command:
        """SCHEDULE_ACTIVITY_TASK on this scenario's queue, never asking for eager execution unless told to."""
        return command(
            "SCHEDULE_ACTIVITY_TASK",
            **{
                "activity_id": activity_id,
                "activity_type": {"name": "step"},
                "task_queue": {"name": self.queue},
                "input": payloads(f"of {activity_id}"),
                "start_to_close_timeout": seconds(10),
                **attributes,
            },
        )

    @staticmethod
    def timer(timer_id: str = "t1", after: float = 1.0) -> command_v1.Command:
        """START_TIMER."""
        return command("START_TIMER", timer_id=timer_id, start_to_fire_timeout=seconds(after))

    @staticmethod
    def done(result: str = "result") -> command_v1.Command:
        """COMPLETE_WORKFLOW_EXECUTION."""
        return command("COMPLETE_WORKFLOW_EXECUTION", result=payloads(result))


def _headings(events: Any) -> list[str]:
    names = event_type_pb2.EventType.DESCRIPTOR.values_by_number
    return [f"{event.event_id} {names[event.event_type].name.removeprefix('EVENT_TYPE_')}" for event in events]
