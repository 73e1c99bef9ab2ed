"""What a gateway hands to a handler, and the table of every method that clients can name.

A handler takes the request's bytes and returns the response's bytes; it raises `StatusError` for anything else. A
stream handler yields the bytes of each message. Which library carries them is the gateway's business (`gateway.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Final

from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from everfold.kernel.errors import Code, StatusError

Metadata = tuple[tuple[str, str | bytes], ...]

WORKFLOW_SERVICE: Final = "temporal.api.workflowservice.v1.WorkflowService"
OPERATOR_SERVICE: Final = "temporal.api.operatorservice.v1.OperatorService"
EVERFOLD_SERVICE: Final = "everfold.api.v1.OperatorService"
"""What Temporal has no method for. Requests and responses are messages of Temporal's all the same."""

HEALTH_SERVICE: Final = "grpc.health.v1.Health"


class CallContext:
    """One call, as its handler sees it.

    Attributes:
        method: the full path, `/package.Service/Method`.
        metadata: the request's headers; values of `-bin` keys are bytes.
        peer: the client's address, for logs only.
        deadline: when the client stops waiting, in the time of the loop's clock; None when it waits for ever.
        undelivered: set by a handler whose response must not be lost: called with the response if the client was gone
            before the gateway could hand it over. It must not block or raise.
    """

    __slots__ = ("deadline", "metadata", "method", "peer", "undelivered")

    def __init__(self, method: str, metadata: Metadata, peer: str, deadline: float | None) -> None:
        self.method = method
        self.metadata = metadata
        self.peer = peer
        self.deadline = deadline
        self.undelivered: Callable[[bytes], None] | None = None

    def header(self, key: str) -> str:
        """The first value of a text header, or the empty string."""
        for name, value in self.metadata:
            if name == key and isinstance(value, str):
                return value
        return ""


Handler = Callable[[CallContext, bytes], Awaitable[bytes]]

StreamHandler = Callable[[CallContext, bytes], AsyncGenerator[bytes, None]]
"""Answers with any number of messages: of all that clients can name, the health service's Watch alone does."""

CallObserver = Callable[[str, int, float], None]
"""Told of every finished call: method path, gRPC status code, seconds. For metrics; must not raise."""


def method_path(service: str, method: str) -> str:
    """The path by which gRPC names a method."""
    return f"/{service}/{method}"


def known_methods() -> list[str]:
    """The path of every method of Temporal's two services, of Everfold's own and of the health service, in the order of
    their definition.
    """
    services = (
        workflow_service.DESCRIPTOR.services_by_name["WorkflowService"],
        operator_service.DESCRIPTOR.services_by_name["OperatorService"],
    )
    paths = [method_path(service.full_name, method.name) for service in services for method in service.methods]
    own = method_path(EVERFOLD_SERVICE, "ReleaseWorkflow")
    return [*paths, own, method_path(HEALTH_SERVICE, "Check"), method_path(HEALTH_SERVICE, "Watch")]


def unknown_method(path: str) -> StatusError:
    """What Temporal's servers answer to a method that they do not have. Go and Java clients match on this text."""
    service, _, method = path.lstrip("/").rpartition("/")
    return StatusError(Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


def unknown_path(path: str, services: Iterable[str]) -> StatusError:
    """What answers to a path outside the table: as `unknown_method` in a service that exists, else Go's other text."""
    service = path.lstrip("/").rpartition("/")[0]
    if service in services:
        return unknown_method(path)
    return StatusError(Code.UNIMPLEMENTED, f"unknown service {service}")


async def refuse_unbuilt_method(context: CallContext, request: bytes) -> bytes:
    """Serves every method that is not built (`unbuilt`)."""
    raise unknown_method(context.method)


def complete_table(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """Adds a refusal for every known method without a handler.

    Raises:
        ValueError: a handler's path is no known method.
    """
    paths = known_methods()
    if strangers := set(handlers).difference(paths):
        raise ValueError(f"expected handlers of known methods only, found {sorted(strangers)}")
    return {path: handlers.get(path, refuse_unbuilt_method) for path in paths}
