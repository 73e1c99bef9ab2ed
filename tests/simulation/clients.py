"""Scripted clients: each drives one workflow id through the RPCs, or through the topic `commands`."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import event_type_pb2 as types
from temporalio.api.errordetails.v1 import message_pb2 as errordetails
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.ingress import PASSED_HEADER
from everfold.kernel.errors import Code, StatusError
from everfold.kernel.ids import record_key, shard_of
from everfold.schemas import codec
from everfold.schemas.topics import COMMANDS
from simulation.cluster import LATE_NAMESPACE, LATE_NAMESPACE_ID, NAMESPACE, NAMESPACE_ID
from simulation.program import CLOSES, is_rejected, payloads, value_of, write_program
from simulation.workers import QUEUE, Calls

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.ledger import Ledger

_ALREADY_STARTED = "temporal.api.errordetails.v1.WorkflowExecutionAlreadyStartedFailure"
_TERMINATE_EXISTING = 3
_USE_EXISTING = 2


class Client:
    """One user's program."""

    def __init__(self, cluster: Cluster, ledger: Ledger, name: str) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._calls = Calls(cluster)
        self._random: Random = cluster.random
        self.name = name
        #: signals to the latest run that were acknowledged
        self._sent: list[str] = []

    async def run(self) -> None:
        """One of the kinds of client, by chance."""
        await asyncio.sleep(self._random.random() * 20)
        kinds = (
            *(self._rpc, self._rpc, self._rpc, self._with_start, self._with_update),
            *(self._again_and_again, self._by_commands),
        )
        try:
            await self._random.choice(kinds)(f"{self.name}-w")
        except StatusError as error:
            if error.code in (Code.INTERNAL, Code.UNKNOWN, Code.INVALID_ARGUMENT):
                raise

    # ---- RPCs -------------------------------------------------------------------------------------------------------

    async def _rpc(self, workflow_id: str) -> None:
        run_id = await self._start(workflow_id, once=True)
        if self._random.random() < 0.3:
            await self._start_again(workflow_id)
        for _ in range(self._random.randint(0, 4)):
            await asyncio.sleep(self._random.random() * 4)
            how = self._random.random()
            if how < 0.3:
                await self._update(workflow_id, run_id)
            elif how < 0.38:
                await self._reset(workflow_id, run_id)
            elif how < 0.6:
                await self._query(workflow_id, run_id)
            else:
                await self._signal(workflow_id, run_id)
        await self._end(workflow_id, run_id)

    async def _start(self, workflow_id: str, *, once: bool, conflict: int = 0) -> str:
        request_id = self._ledger.token("start")
        self._sent.clear()
        request = ws.StartWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_id=workflow_id, request_id=request_id, identity=self.name
        )
        request.workflow_type.name = "program"
        request.task_queue.name = QUEUE
        program = write_program(self._random)
        request.workflow_id_conflict_policy = conflict  # type: ignore[assignment]
        how = self._random.random()
        if how < 0.08:
            request.cron_schedule = "@every 2s"
            request.workflow_execution_timeout.seconds = 20
        elif how < 0.2:
            program.append(["fail"])
            request.retry_policy.initial_interval.seconds = 1
            request.retry_policy.maximum_attempts = 3
        elif how < 0.26:
            request.workflow_start_delay.seconds = 2
        request.input.CopyFrom(payloads(program))
        if self._random.random() < 0.1:
            request.workflow_run_timeout.seconds = self._random.choice((5, 30))
        message = request.SerializeToString()
        # Of a chain of runs the latest alone is asked whether it was started by the request.
        chained = bool(request.cron_schedule) or any(step[0] in ("next", "fail") for step in program)
        self._ledger.starts[request_id] = (workflow_id, "", once and not chained)
        try:
            data = await self._calls.repeated("START_WORKFLOW", workflow_id, "", message)
            if self._random.random() < 0.3 and not chained:
                again = await self._calls.repeated("START_WORKFLOW", workflow_id, "", message)
                first, second = map(ws.StartWorkflowExecutionResponse.FromString, (data, again))
                if first.run_id != second.run_id and self._counts(workflow_id):
                    self._problem(f"start {request_id} was answered with {first.run_id}, then with {second.run_id}")
        except StatusError as error:
            self._check_not_own(error, request_id, workflow_id)
            raise
        run_id = ws.StartWorkflowExecutionResponse.FromString(data).run_id
        self._ledger.starts[request_id] = (workflow_id, run_id, once and not chained)
        await self._check_described(workflow_id, run_id)
        return run_id

    def _check_not_own(self, error: StatusError, request_id: str, workflow_id: str) -> None:
        for name, data in error.details:
            if name == _ALREADY_STARTED:
                failure = errordetails.WorkflowExecutionAlreadyStartedFailure.FromString(data)
                if failure.start_request_id == request_id and self._counts(workflow_id):
                    self._problem(f"start {request_id} was refused because of itself")

    async def _check_described(self, workflow_id: str, run_id: str) -> None:
        """What was answered is there for the next read, wherever it goes."""
        if self._random.random() < 0.6:
            return
        request = ws.DescribeWorkflowExecutionRequest()
        request.execution.workflow_id, request.execution.run_id = workflow_id, run_id
        try:
            await self._calls.read("describe", NAMESPACE_ID, workflow_id, request.SerializeToString(), 10.0)
            self._ledger.reads += 1
        except StatusError as error:
            if self._counts(workflow_id):
                self._problem(f"{workflow_id} {run_id} was started, and then not found: {error}")

    async def _start_again(self, workflow_id: str) -> None:
        """Somebody else uses the id, and gets what the policy says."""
        request = ws.StartWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_id=workflow_id, request_id=self._ledger.token("other")
        )
        request.workflow_type.name = "program"
        request.task_queue.name = QUEUE
        request.workflow_id_reuse_policy = 3  # type: ignore[assignment]  # reject duplicate
        request.workflow_id_conflict_policy = self._random.choice((1, _USE_EXISTING))  # type: ignore[assignment]
        try:
            await self._calls.repeated("START_WORKFLOW", workflow_id, "", request.SerializeToString())
        except StatusError as error:
            if error.code != Code.ALREADY_EXISTS:
                raise

    async def _signal(self, workflow_id: str, run_id: str) -> None:
        token = self._ledger.token("signal")
        request = ws.SignalWorkflowExecutionRequest(
            namespace=NAMESPACE, signal_name="go", request_id=token, input=payloads(token), identity=self.name
        )
        request.workflow_execution.workflow_id, request.workflow_execution.run_id = workflow_id, run_id
        self._ledger.signals[token] = (workflow_id, False)
        message = request.SerializeToString()
        try:
            await self._calls.repeated("SIGNAL_WORKFLOW", workflow_id, run_id, message)
        except StatusError as error:
            if error.code != Code.NOT_FOUND:
                raise
            return
        self._ledger.signals[token] = (workflow_id, True)
        self._sent.append(token)
        if self._random.random() < 0.3:
            await self._calls.repeated("SIGNAL_WORKFLOW", workflow_id, run_id, message)
        if self._random.random() < 0.5:
            await self._check_signal_read(workflow_id, run_id, token)

    async def _update(self, workflow_id: str, run_id: str) -> None:
        update_id = self._ledger.token("update")
        target = self._random.choice((run_id, ""))
        request = _update_request(workflow_id, target, update_id)
        try:
            response = await self._calls.update(workflow_id, request.SerializeToString())
        except StatusError as error:
            # The workflow is closed, or its task keeps failing, or nobody could say: no promise.
            if error.code not in (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.UNAVAILABLE):
                raise
            return
        if response.outcome.HasField("success"):
            self._ledger.updates[update_id] = (workflow_id, target, value_of(response.outcome.success))
        elif is_rejected(update_id) != (response.outcome.failure.message == "no"):
            self._problem(f"update {update_id} of {workflow_id} came to {response.outcome.failure.message!r}")

    async def _query(self, workflow_id: str, run_id: str) -> None:
        """Whoever answers has seen the signals that were acknowledged before it was asked."""
        request = ws.QueryWorkflowRequest(namespace=NAMESPACE)
        request.execution.workflow_id, request.execution.run_id = workflow_id, run_id
        request.query.query_type = "signals"
        try:
            seen = await self._calls.query(workflow_id, request.SerializeToString())
        except StatusError as error:
            if error.code in (Code.INTERNAL, Code.UNKNOWN, Code.INVALID_ARGUMENT):
                raise
            return  # nobody answered in time, or the run has nothing to tell yet
        self._cluster.watch.counts["queries answered"] += 1
        missing = [token for token in self._sent if token not in seen]
        if missing and self._counts(workflow_id):
            self._problem(f"{workflow_id} {run_id} was asked after signals {missing}, and has seen {seen}")

    async def _reset(self, workflow_id: str, run_id: str) -> None:
        """Back to one of the workflow tasks that the run has completed, if it has one."""
        events = await self._calls.events(workflow_id, run_id)
        points = [e.event_id for e in events if e.event_type == types.EVENT_TYPE_WORKFLOW_TASK_COMPLETED]
        if not points:
            return
        request = ws.ResetWorkflowExecutionRequest(
            namespace=NAMESPACE,
            reason="once more",
            workflow_task_finish_event_id=self._random.choice(points),
            request_id=self._ledger.token("reset"),
        )
        request.workflow_execution.workflow_id, request.workflow_execution.run_id = workflow_id, run_id
        if workflow_id in self._ledger.resets.values() or events[-1].event_type in CLOSES:
            self._cluster.watch.lost_children.add(workflow_id)
        self._ledger.resets[request.request_id] = workflow_id
        try:
            await self._calls.repeated("RESET_WORKFLOW", workflow_id, run_id, request.SerializeToString())
        except StatusError as error:
            if error.code != Code.NOT_FOUND and self._counts(workflow_id):
                raise
            return
        self._cluster.watch.counts["resets"] += 1

    async def _check_signal_read(self, workflow_id: str, run_id: str, token: str) -> None:
        """An acknowledged signal is counted by the next read: in the history, or buffered behind a workflow task."""
        request = ws.DescribeWorkflowExecutionRequest()
        request.execution.workflow_id, request.execution.run_id = workflow_id, run_id
        before = self._ledger.reads
        data = await self._calls.read("describe", NAMESPACE_ID, workflow_id, request.SerializeToString(), 10.0)
        info = ws.DescribeWorkflowExecutionResponse.FromString(data)
        events = await self._calls.events(workflow_id, run_id)
        self._ledger.reads = before + 1
        found = any(
            token.encode() in e.workflow_execution_signaled_event_attributes.input.SerializeToString()
            for e in events
            if e.event_type == 26
        )
        buffering = info.pending_workflow_task.state == 2  # started: events wait for its end
        if not found and not buffering and self._counts(workflow_id):
            self._problem(f"signal {token} was acknowledged, and then not in the history of {workflow_id}")

    async def _end(self, workflow_id: str, run_id: str) -> None:
        how = self._random.random()
        await asyncio.sleep(self._random.random() * 5)
        try:
            if how < 0.15:
                cancel = ws.RequestCancelWorkflowExecutionRequest(request_id=self._ledger.token("cancel"))
                cancel.workflow_execution.workflow_id, cancel.workflow_execution.run_id = workflow_id, run_id
                await self._calls.repeated("REQUEST_CANCEL_WORKFLOW", workflow_id, run_id, cancel.SerializeToString())
            elif how < 0.3:
                terminate = ws.TerminateWorkflowExecutionRequest(reason="enough")
                terminate.workflow_execution.workflow_id, terminate.workflow_execution.run_id = workflow_id, run_id
                await self._calls.repeated("TERMINATE_WORKFLOW", workflow_id, run_id, terminate.SerializeToString())
            elif how < 0.38:
                delete = ws.DeleteWorkflowExecutionRequest()
                delete.workflow_execution.workflow_id, delete.workflow_execution.run_id = workflow_id, run_id
                self._ledger.deleted.add(workflow_id)
                if workflow_id in self._ledger.resets.values():
                    self._cluster.watch.lost_children.add(workflow_id)
                await self._calls.repeated("DELETE_WORKFLOW", workflow_id, run_id, delete.SerializeToString())
                self._cluster.watch.counts["runs deleted"] += 1
        except StatusError as error:
            if error.code != Code.NOT_FOUND:
                raise

    async def _with_start(self, workflow_id: str) -> None:
        """Signal-with-start, several times on one id."""
        program = payloads(write_program(self._random))
        for _ in range(self._random.randint(2, 5)):
            token = self._ledger.token("sws")
            request = ws.SignalWithStartWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_id=workflow_id,
                request_id=token,
                signal_name="go",
                signal_input=payloads(token),
                input=program,
            )
            request.workflow_type.name = "program"
            request.task_queue.name = QUEUE
            request.workflow_id_reuse_policy = 3  # type: ignore[assignment]
            self._ledger.signals[token] = (workflow_id, False)
            message = request.SerializeToString()
            try:
                await self._calls.repeated("SIGNAL_WITH_START_WORKFLOW", workflow_id, "", message)
            except StatusError as error:
                if error.code == Code.ALREADY_EXISTS:
                    return
                raise
            self._ledger.signals[token] = (workflow_id, True)
            await asyncio.sleep(self._random.random() * 3)

    async def _with_update(self, workflow_id: str) -> None:
        """Update-with-start, several times on one id."""
        for _ in range(self._random.randint(1, 3)):
            update_id = self._ledger.token("uws")
            request = ws.ExecuteMultiOperationRequest(namespace=NAMESPACE)
            start = request.operations.add().start_workflow
            start.workflow_id = workflow_id
            start.request_id = self._ledger.token("start")
            start.workflow_type.name = "program"
            start.task_queue.name = QUEUE
            start.input.CopyFrom(payloads(write_program(self._random)))
            start.workflow_id_conflict_policy = _USE_EXISTING  # type: ignore[assignment]
            request.operations.add().update_workflow.CopyFrom(_update_request(workflow_id, "", update_id))
            try:
                response = await self._calls.update_with_start(workflow_id, request.SerializeToString())
            except StatusError as error:
                if error.code in (Code.INTERNAL, Code.UNKNOWN, Code.INVALID_ARGUMENT):
                    raise
                return
            if response.outcome.HasField("success"):
                self._ledger.updates[update_id] = (workflow_id, "", value_of(response.outcome.success))
            await asyncio.sleep(self._random.random() * 3)

    async def _again_and_again(self, workflow_id: str) -> None:
        """One id, one run after another."""
        for _ in range(self._random.randint(2, 3)):
            run_id = await self._start(workflow_id, once=False, conflict=_TERMINATE_EXISTING)
            await self._signal(workflow_id, run_id)
            await asyncio.sleep(1.5 + self._random.random() * 5)

    # ---- the topic `commands` ---------------------------------------------------------------------------------------

    async def _by_commands(self, workflow_id: str) -> None:
        request_id = self._ledger.token("start")
        self._ledger.starts[request_id] = (workflow_id, "", True)
        value = command(
            workflow_id,
            request_id,
            "StartWorkflow",
            {
                "workflow_type": "program",
                "task_queue": QUEUE,
                "input": [_avro(payloads(write_program(self._random)))],
                "id_reuse_policy": "REJECT_DUPLICATE",
            },
        )
        self._append(workflow_id, request_id, value)
        for _ in range(self._random.randint(1, 5)):
            await asyncio.sleep(self._random.random() * 2)
            await self._command(workflow_id)

    async def _command(self, workflow_id: str) -> None:
        kind = self._random.choice(("good", "good", "good", "bad", "misplaced", "late namespace", "forged"))
        token = self._ledger.token("csig")
        value = command(workflow_id, token, "SignalWorkflow", {"signal_name": "go", "input": [_avro(payloads(token))]})
        self._ledger.signals[token] = (workflow_id, False)
        if kind == "good":
            self._append(workflow_id, token, value)
            if self._random.random() < 0.3:
                self._append(workflow_id, token, value)
        elif kind == "bad":
            del self._ledger.signals[token]
            self._append_bad(workflow_id, value)
        elif kind == "misplaced":
            partition = self._random.randrange(self._cluster.shard_count)
            self._append(workflow_id, token, value, partition=partition)
        elif kind == "forged":
            # A copied header makes no second command of the same request; nonsense in it makes a rejected one.
            del self._ledger.signals[token]
            text = self._random.choice((b"0/0/0", b"nonsense", b"1/0/99999999999", b""))
            unsigned = command(workflow_id, "", "SignalWorkflow", {"signal_name": "go", "input": []})
            self._append(workflow_id, "", unsigned, headers=((PASSED_HEADER, text),))
        else:
            del self._ledger.signals[token]
            if self._random.random() < 0.5 and LATE_NAMESPACE_ID not in self._cluster.namespaces:
                self._cluster.add_namespace(LATE_NAMESPACE_ID, LATE_NAMESPACE)
            other = command(workflow_id, token, "SignalWorkflow", {"signal_name": "go"}, namespace=LATE_NAMESPACE)
            shard = shard_of(LATE_NAMESPACE, workflow_id, self._cluster.shard_count)
            record = self._cluster.broker.append((COMMANDS.name, shard), b"late", other)
            self._ledger.malformed.append((shard, record.offset))  # nobody runs there: rejected either way

    def _append_bad(self, workflow_id: str, good: bytes) -> None:
        value: bytes | None = self._random.choice(
            (
                b"",
                b"not avro",
                good[: len(good) // 2],
                good[:1] + b"\x00\x00\xff\xff" + good[5:],
                None,
                command("", "x", "SignalWorkflow", {"signal_name": "go"}),
                command(workflow_id, "x", "SignalWorkflow", {"signal_name": ""}),
                command(workflow_id, "x", "SignalWorkflow", {"signal_name": "go"}, namespace="nowhere"),
            )
        )
        partition = shard_of("nowhere", workflow_id, self._cluster.shard_count)
        record = self._cluster.broker.append((COMMANDS.name, partition), b"k", value)
        if value is None or value[5:] != good[5:]:
            self._ledger.malformed.append((partition, record.offset))

    def _append(
        self, workflow_id: str, token: str, value: bytes, *, partition: int | None = None, headers: Any = ()
    ) -> None:
        if partition is None:
            partition = shard_of(NAMESPACE, workflow_id, self._cluster.shard_count)
        record = self._cluster.broker.append(
            (COMMANDS.name, partition), record_key(NAMESPACE, workflow_id), value, headers
        )
        if token:
            self._ledger.commands.setdefault(token, []).append((partition, record.offset))

    # ---- judging ----------------------------------------------------------------------------------------------------

    def _counts(self, workflow_id: str) -> bool:
        """Kafka has not lost anything that was said about this workflow."""
        return workflow_id not in self._cluster.watch.tainted

    def _problem(self, text: str) -> None:
        self._cluster.watch.problem(text)


def _update_request(workflow_id: str, run_id: str, update_id: str) -> ws.UpdateWorkflowExecutionRequest:
    """An update whose outcome is waited for."""
    request = ws.UpdateWorkflowExecutionRequest(namespace=NAMESPACE)
    request.workflow_execution.workflow_id, request.workflow_execution.run_id = workflow_id, run_id
    request.wait_policy.lifecycle_stage = 3  # type: ignore[assignment]  # completed
    request.request.meta.update_id = update_id
    request.request.input.name = "change"
    return request


def command(workflow_id: str, request_id: str, kind: str, body: dict[str, Any], *, namespace: str = NAMESPACE) -> bytes:
    """A record for the topic `commands`, as any Avro producer writes it."""
    record = {
        "command_id": "",
        "namespace": namespace,
        "workflow_id": workflow_id,
        "run_id": "",
        "identity": "",
        "request_id": request_id,
        "trace": {},
        "body": (kind, {**_DEFAULTS[kind], **body}),
    }
    return codec.encode("Command", record)


def _avro(found: Any) -> dict[str, Any]:
    payload = found.payloads[0]
    return {"metadata": dict(payload.metadata), "data": payload.data}


_DEFAULTS: dict[str, dict[str, Any]] = {
    "SignalWorkflow": {"input": [], "header": {}},
    "StartWorkflow": {
        "input": [],
        "execution_timeout_ns": None,
        "run_timeout_ns": None,
        "task_timeout_ns": None,
        "id_reuse_policy": "UNSPECIFIED",
        "id_conflict_policy": "UNSPECIFIED",
        "retry_policy": None,
        "cron_schedule": "",
        "memo": {},
        "search_attributes": {},
        "header": {},
        "start_delay_ns": None,
        "user_metadata": None,
        "priority": None,
    },
}
