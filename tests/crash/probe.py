"""Returns once every shard and every task partition served a workflow.

Sixteen workflows with random ids reach all four shards but for one time in a hundred, and eight task queues all task
partitions; each has one workflow task, answered by a scripted worker that keeps trying.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid

from differential.script import NAMESPACE, Script
from support.raw import RawClient, RpcError

WORKFLOWS, QUEUES, SECONDS_MAX = 24, 8, 60.0


def require_served(addresses: list[str], after: str, *, poll_s: float = 4.0) -> None:
    """Returns once everything serves through these frontends.

    Args:
        addresses: of the frontends.
        after: what happened before, for the error's text.
        poll_s: how long a poll may take. A task that meets a poll's end is lost, and comes again ten seconds later.
    """
    left = unserved(addresses, poll_s)
    assert not left, f"after {after}: {left} of {WORKFLOWS} workflows did not complete"


def unserved(addresses: list[str], poll_s: float) -> int:
    """How many workflows did not complete in time: usually none, as soon as all have."""
    deadline = time.monotonic() + SECONDS_MAX
    nonce = uuid.uuid4().hex[:8]
    turns = itertools.cycle(addresses)
    left = [WORKFLOWS]
    lock = threading.Lock()

    def serve(queue: str, count: int, address: str) -> None:
        client = RawClient(address)
        ids = [f"probe-{queue}-{number}" for number in range(count)]
        for workflow_id in ids:
            _keep_trying(deadline, lambda workflow_id=workflow_id: _start(client, workflow_id, queue))
        done: set[str] = set()
        while len(done) < count and time.monotonic() < deadline:
            task = _keep_trying(deadline, lambda: _poll(client, queue, poll_s))
            if task is None or not task.task_token:
                continue
            try:
                _keep_trying(deadline, lambda token=task.task_token: _complete(client, token))
            except RpcError:
                continue  # it comes again, when its time is up
            done.add(task.workflow_execution.workflow_id)
            with lock:
                left[0] -= 1
        client.close()

    threads = [
        threading.Thread(target=serve, args=(f"{nonce}-{n}", WORKFLOWS // QUEUES, next(turns))) for n in range(QUEUES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return left[0]


def _start(client: RawClient, workflow_id: str, queue: str) -> object:
    return client.call(
        "StartWorkflowExecution",
        namespace=NAMESPACE,
        workflow_id=workflow_id,
        workflow_type={"name": "probe"},
        task_queue={"name": queue},
        request_id=workflow_id,
        timeout=3,
    )


def _poll(client: RawClient, queue: str, seconds: float) -> object:
    return client.call("PollWorkflowTaskQueue", namespace=NAMESPACE, task_queue={"name": queue}, timeout=seconds)


def _complete(client: RawClient, token: bytes) -> object:
    commands = [Script.done()]
    return client.call(
        "RespondWorkflowTaskCompleted", namespace=NAMESPACE, task_token=token, commands=commands, timeout=3
    )


def _keep_trying(deadline: float, call):  # type: ignore[no-untyped-def]
    while time.monotonic() < deadline:
        try:
            return call()
        except RpcError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN"):
                raise
            time.sleep(0.05)
    return None
