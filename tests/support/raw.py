"""Raw gRPC: any RPC of Temporal's two services with plain protobuf messages, and calls that run beside the test.

Where an SDK's worker decides by itself when to poll and what to answer, the scripted worker does exactly what the
scenario says, so that two servers see the same calls in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message
from google.rpc import status_pb2
from temporalio.api.errordetails.v1 import message_pb2 as _errordetails  # noqa: F401 - its types must be in the pool
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

_SERVICES: Final = (
    workflow_service.DESCRIPTOR.services_by_name["WorkflowService"],
    operator_service.DESCRIPTOR.services_by_name["OperatorService"],
)
_METHODS: Final = {method.name: method for service in _SERVICES for method in service.methods}


class RpcError(AssertionError):
    """An RPC that was refused: code, text and the detail messages of the status, each as (type name, bytes)."""

    def __init__(self, method: str, error: grpc.RpcError) -> None:
        self.method = method
        self.code: str = error.code().name
        self.text: str = error.details() or ""
        self.details = _details(error)
        super().__init__(f"{method}: {self.code}: {self.text}")


def _details(error: Any) -> list[tuple[str, bytes]]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            return [(any_.type_url.rsplit("/", 1)[-1], any_.value) for any_ in status.details]
    return []


class RawClient:
    """One connection to a server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._calls: dict[str, Callable[..., Any]] = {}

    def close(self) -> None:
        self._channel.close()

    def call(self, name: str, request_: Message | None = None, /, timeout: float = 20.0, **fields: Any) -> Any:
        """Calls an RPC by its name; the request is given, or made of the fields. Raises RpcError."""
        method = _METHODS[name]
        request_class = message_factory.GetMessageClass(method.input_type)
        if name not in self._calls:
            self._calls[name] = self._channel.unary_unary(
                f"/{method.containing_service.full_name}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
        try:
            return self._calls[name](request_ if request_ is not None else request_class(**fields), timeout=timeout)
        except grpc.RpcError as error:
            raise RpcError(name, error) from None

    def begin(self, name: str, /, timeout: float = 20.0, **fields: Any) -> Pending:
        """Calls an RPC on a thread of its own: for long polls and queries that others answer meanwhile."""
        return Pending(lambda: self.call(name, timeout=timeout, **fields), name)


class Pending:
    """A call under way."""

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self._outcome = work()
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout: float = 30.0) -> Any:
        """What the call returned, or its error raised."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise AssertionError(f"{self._thread.name} did not answer within {timeout:.0f} s")
        if self._error is not None:
            raise self._error
        return self._outcome
