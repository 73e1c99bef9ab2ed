"""Calls every method of a server, most of them with one field changed, and keeps what was answered."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf import message_factory

from mutations import corpus
from mutations.mutator import Mutation, mutate

AT_ONCE: Final = 16
ASK_SECONDS: Final = 0.6
"""How long to wait for what a worker or a workflow has to answer, which may never be; for work, too."""

CALL_SECONDS: Final = 10.0
POLL_SECONDS: Final = 1.5
"""Servers refuse polls that are to last less than a second."""

_ASKING: Final = frozenset(
    (
        *("QueryWorkflow", "UpdateWorkflowExecution", "PollWorkflowExecutionUpdate", "ExecuteMultiOperation"),
        "GetWorkflowExecutionHistory",
    )
)
_BUSY: Final = (
    *("StartWorkflowExecution", "RespondWorkflowTaskCompleted", "RespondWorkflowTaskCompleted"),
    *("RespondActivityTaskFailed", "RespondActivityTaskCompleted", "SignalWithStartWorkflowExecution"),
)
"""Methods that get more calls than others: they lead to the states in which others have something to do."""

_POLLS: Final = ("PollWorkflowTaskQueue", "PollActivityTaskQueue")

PARSED: Final = "grpc: error unmarshalling request"
"""How gRPC's own servers begin their INTERNAL when bytes are no such message; everybody's do."""


class Answer(NamedTuple):
    """What came of a call."""

    method: str
    mutation: Mutation | None
    data: bytes
    code: str
    text: str

    @property
    def is_fault(self) -> bool:
        """Whether the server says that it does not know what went wrong, or more than clients take."""
        if self.code == "RESOURCE_EXHAUSTED" and "metadata" in self.text:
            return True
        return self.code in ("INTERNAL", "UNKNOWN", "DATA_LOSS") and not self.text.startswith(PARSED)

    def __str__(self) -> str:
        return f"{self.method}: {self.mutation}: {self.code}: {self.text[:300]}"


class Caller:
    """A client that means harm, by a seed."""

    def __init__(self, address: str, seed: int) -> None:
        self.random = Random(seed)
        self.world = corpus.World(self.random)
        self.codes: Counter[tuple[str, str]] = Counter()
        self.faults: list[Answer] = []
        #: mutation -> the codes that such calls were answered with
        self.answers: defaultdict[str, set[str]] = defaultdict(set)
        self.mutated = 0
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._methods = [*corpus.METHODS, *sorted(corpus.MADE) * 5, *_BUSY * 10]

    async def close(self) -> None:
        await self._channel.close()

    async def run(self, count: int, each_hundred: Callable[[], Awaitable[None]]) -> None:
        """Makes `count` changed calls, and an unchanged one before each."""
        polls = [asyncio.create_task(self._poll(method)) for method in _POLLS for _ in range(3)]
        while self.mutated < count:
            queue = iter(range(min(100, count - self.mutated)))
            await asyncio.gather(*(self._work(queue) for _ in range(AT_ONCE)))
            await each_hundred()
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)

    async def _poll(self, method: str) -> None:
        """Takes tasks as a worker does, for others to answer."""
        while True:
            request = corpus.request(method, self.world)
            answer, message = await self.send(method, request.SerializeToString(), seconds=POLL_SECONDS)
            if message is not None:
                self.world.learn(method, request, message)
            if answer.is_fault:
                self.faults.append(answer)
            await asyncio.sleep(0 if answer.code == "OK" else 0.1)

    async def _work(self, queue: Any) -> None:
        for _ in queue:
            await self._one(self.random.choice(_BUSY), changed=False)
            await self._one(self.random.choice(self._methods), changed=True)

    async def _one(self, method: str, *, changed: bool) -> None:
        request = corpus.request(method, self.world)
        if changed:
            data, mutation = mutate(self.random, request)
            self.mutated += 1
        else:
            data, mutation = request.SerializeToString(), None
        answer, message = await self.send(method, data, mutation)
        if message is not None:
            self.world.learn(method, request, message)
        if mutation is not None:
            self.codes[method, answer.code] += 1
            self.answers[f"{method}: {mutation}"].add(answer.code)
        if answer.is_fault:
            self.faults.append(answer)

    async def send(
        self, method: str, data: bytes, mutation: Mutation | None = None, seconds: float = ASK_SECONDS
    ) -> tuple[Answer, Any]:
        """One call, and the message that it was answered with. One that waits is given up after so many seconds."""
        known = corpus.METHODS[method]
        path = f"/{known.containing_service.full_name}/{method}"
        call: Any = self._channel.unary_unary(path)
        waits = method in _ASKING or method in corpus.WAITING
        try:
            async with asyncio.timeout(seconds if waits else None):
                answered = await call(data, timeout=POLL_SECONDS if waits else CALL_SECONDS)
        except TimeoutError:
            return Answer(method, mutation, data, "CANCELLED", ""), None
        except grpc.aio.AioRpcError as error:
            return Answer(method, mutation, data, error.code().name, error.details() or ""), None
        message = message_factory.GetMessageClass(known.output_type).FromString(answered)
        return Answer(method, mutation, data, "OK", ""), message
