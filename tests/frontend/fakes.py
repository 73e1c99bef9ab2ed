"""History and matching as the frontend's tests need them: calls are kept, answers are told beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from everfold.frontend.calls import OPERATOR_SERVICE, WORKFLOW_SERVICE, CallContext, method_path
from everfold.frontend.cluster import ClusterFacts
from everfold.frontend.limits import FrontendLimits
from everfold.frontend.server import FrontendServer
from everfold.frontend.visibility import VisibilityIndex
from everfold.kernel.errors import StatusError
from everfold.runtime.namespaces import InMemoryNamespaces, Namespace

M = TypeVar("M", bound=Message)

SHARDS = 4
TASK_PARTITIONS = 2

DEFAULT = Namespace(
    namespace_id="7b4f1d6e-0000-4000-8000-000000000001",
    name="default",
    retention_ns=86_400 * 10**9,
    search_attributes={"CustomKeyword": "Keyword", "CustomInt": "Int", "CustomTime": "Datetime"},
)


class Call(NamedTuple):
    """One call that reached the router."""

    role: str
    partition: int
    method: str
    args: list[Any]
    timeout: float


class FakeRouter:
    """Answers with what `answers` has for (role, method): bytes, an exception, or a function of the arguments."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[tuple[str, str], Any] = {}

    async def call(self, role: str, partition: int, method: str, args: list[Any], timeout: float) -> Any:
        self.calls.append(Call(role, partition, method, args, timeout))
        answer = self.answers.get((role, method), b"")
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = answer(*args)
            if isinstance(answer, Awaitable):
                return await answer
        return answer

    def only(self) -> Call:
        """The one call there was."""
        (call,) = self.calls
        return call


class Frontend:
    """A frontend without a port, over fakes."""

    def __init__(
        self,
        *namespaces: Namespace,
        limits: FrontendLimits | None = None,
        visibility: VisibilityIndex | None = None,
    ) -> None:
        self.router = FakeRouter()
        self.namespaces = InMemoryNamespaces(*(namespaces or (DEFAULT,)))
        self.server = FrontendServer(
            host="127.0.0.1",
            port=0,
            namespaces=self.namespaces,
            router=self.router,
            shard_count=SHARDS,
            task_partitions=TASK_PARTITIONS,
            cluster=ClusterFacts(cluster_id="cluster-1", shard_count=SHARDS, address="127.0.0.1:7233"),
            visibility=visibility,
            limits=limits,
        )

    def context(self, method: str, timeout: float | None = 10.0, service: str = WORKFLOW_SERVICE) -> CallContext:
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        return CallContext(method_path(service, method), (), "test", deadline)

    async def call(self, method: str, request: Message, response: type[M], timeout: float | None = 10.0) -> M:
        """Calls a method of WorkflowService, or else of OperatorService."""
        service = WORKFLOW_SERVICE
        if method_path(service, method) not in self.server.handlers:
            service = OPERATOR_SERVICE
        context = self.context(method, timeout, service)
        data = await self.server.handlers[context.method](context, request.SerializeToString())
        return response.FromString(data)

    async def error(self, method: str, request: Message, timeout: float | None = 10.0) -> StatusError:
        """The error that a call must end with."""
        try:
            await self.call(method, request, type(request), timeout)
        except StatusError as error:
            return error
        raise AssertionError(f"expected {method} to fail")


def run(scenario: Callable[[Frontend], Awaitable[None]], *namespaces: Namespace, **options: Any) -> None:
    """Runs a scenario over a fresh frontend, bounded in time."""

    async def body() -> None:
        frontend = Frontend(*namespaces, **options)
        await asyncio.wait_for(scenario(frontend), 10)
        await frontend.server.stop()

    asyncio.run(body())


def fields(**values: Any) -> Mapping[str, Any]:
    """Keyword arguments of a message."""
    return values
