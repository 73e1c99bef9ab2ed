"""A client that starts a workflow by RPC now and then, while the shards are busy with commands."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from support.raw import RawClient, RpcError

EVERY_SECONDS = 0.25
ANSWER_SECONDS = 20.0
PASSING = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
"""What a server may answer, or not answer, that is busy or has just been killed."""


class Pulse:
    """Starts workflows one after the other, each until it is acknowledged, as an SDK does.

    Attributes:
        acknowledged: workflow ids.
        slowest_s: the longest that a call took which was answered.
        refused: answers that no busy server may give.
    """

    def __init__(self, address: str, name: str) -> None:
        self.acknowledged: list[str] = []
        self.slowest_s = 0.0
        self.refused: list[str] = []
        self._address = address
        self._name = name
        self._over = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[Pulse]:
        """Runs on a thread of its own within the block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(2 * ANSWER_SECONDS)

    def _run(self) -> None:
        client = RawClient(self._address)
        try:
            while not self._over.is_set():
                self._start(client, f"{self._name}-rpc-{len(self.acknowledged)}")
                self._over.wait(EVERY_SECONDS)
        finally:
            client.close()

    def _start(self, client: RawClient, workflow_id: str) -> None:
        request_id = str(uuid.uuid4())
        while not self._over.is_set():
            began = time.monotonic()
            try:
                client.call(
                    "StartWorkflowExecution",
                    timeout=ANSWER_SECONDS,
                    namespace="default",
                    workflow_id=workflow_id,
                    workflow_type={"name": "burst"},
                    task_queue={"name": "nobody"},
                    request_id=request_id,
                )
            except RpcError as error:
                if error.code not in PASSING:
                    self.refused.append(str(error))
                    return
                self._over.wait(EVERY_SECONDS)
            else:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.acknowledged.append(workflow_id)
                return
