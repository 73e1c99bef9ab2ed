"""Returns once every shard and every task partition served a workflow: `python probe.py ADDRESS...`.

Sixteen workflows with random ids reach all four shards but for one time in a hundred, and eight task queues all task
partitions; each has one workflow task, answered by a scripted worker that keeps trying.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from differential.script import NAMESPACE, Script
from support.raw import RawClient, RpcError

WORKFLOWS, QUEUES, SECONDS_MAX = 24, 8, 60.0


def main(addresses: list[str]) -> int:
    """0 when all completed in time."""
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
            task = _keep_trying(deadline, lambda: _poll(client, queue))
            if task is None or not task.task_token:
                continue
            try:
                client.call(
                    "RespondWorkflowTaskCompleted",
                    namespace=NAMESPACE,
                    task_token=task.task_token,
                    commands=[Script.done()],
                    timeout=3,
                )
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
    print(f"{left[0]} of {WORKFLOWS} did not complete")
    return 1 if left[0] else 0


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


def _poll(client: RawClient, queue: str) -> object:
    return client.call("PollWorkflowTaskQueue", namespace=NAMESPACE, task_queue={"name": queue}, timeout=4)


def _keep_trying(deadline: float, call):  # type: ignore[no-untyped-def]
    while time.monotonic() < deadline:
        try:
            return call()
        except RpcError as error:
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN"):
                raise
            time.sleep(0.05)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
