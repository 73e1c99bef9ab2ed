"""What every family of handlers stands on: parsing, the namespace of a request, its deadline, and admission."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from temporalio.api.errordetails.v1 import message_pb2 as errordetails

from everfold.frontend.backend import Backend
from everfold.frontend.calls import CallContext
from everfold.frontend.limits import Admission, FrontendLimits
from everfold.kernel.errors import Code, StatusError
from everfold.runtime.namespaces import Namespace, NamespaceRegistry
from everfold.runtime.requests import USABLE, invalid, invalid_state
from everfold.runtime.tracebacks import let_go

_log = logging.getLogger(__name__)

_M = TypeVar("_M", bound=Message)

BACKGROUND_MAX: Final = 10_000
"""Pieces of work that no caller waits for: each is a poll whose client has left, for 10 s at most."""

REPLY_MARGIN_SECONDS: Final = 1.0
"""A long poll ends this long before the client's deadline, so that the empty answer still arrives."""


def namespace_not_found(name: str) -> StatusError:
    """NOT_FOUND with the detail from which SDKs make their exception."""
    detail = errordetails.NamespaceNotFoundFailure(namespace=name)
    details = ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),)
    return StatusError(Code.NOT_FOUND, f"Namespace {name} is not found.", details)


def parse(message_type: type[_M], request: bytes) -> _M:
    """The request's message.

    Raises:
        StatusError: INTERNAL, in the words of gRPC's own servers, when the bytes are no such message.
    """
    try:
        message = message_type()
        message.ParseFromString(request)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from None
    return message


class Core:
    """The frontend's shared parts."""

    def __init__(self, namespaces: NamespaceRegistry, backend: Backend, limits: FrontendLimits) -> None:
        self.namespaces = namespaces
        self.backend = backend
        self.limits = limits
        self.admission = Admission(limits, lambda: asyncio.get_running_loop().time())
        self._background: set[asyncio.Task[Any]] = set()

    def seconds_left(self, context: CallContext) -> float:
        """How long the client still waits; `call_seconds` when it named no deadline.

        Raises:
            StatusError: DEADLINE_EXCEEDED, when it does not any more.
        """
        if context.deadline is None:
            return self.limits.call_seconds
        left = context.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise StatusError(Code.DEADLINE_EXCEEDED, "the deadline passed before the request was served")
        return left

    async def execute(
        self, context: CallContext, kind: str, namespace: Namespace, workflow_id: str, run_id: str, request: bytes
    ) -> bytes:
        """The fold's answer to a request on a workflow, within the caller's deadline."""
        left = self.seconds_left(context)
        return await self.backend.execute(kind, namespace, workflow_id, run_id, request, left)

    async def namespace(self, name: str, api_class: str = "call", allowed: tuple[int, ...] = USABLE) -> Namespace:
        """The namespace of a request, once its rate allows the call.

        An unknown name is looked up again behind the end of the topic, as it may have been registered a moment ago.

        Raises:
            StatusError: no name, an unknown one, one whose state forbids the call, or a rate that is exceeded.
        """
        if not name:
            raise invalid("Namespace not set on request.")
        namespace = self.namespaces.by_name(name)
        if namespace is None:
            if len(name.encode()) > self.limits.id_bytes_max:
                raise invalid("Namespace length exceeds limit.")
            await self.namespaces.refresh()
            namespace = self.namespaces.by_name(name)
            if namespace is None:
                raise namespace_not_found(name)
        if namespace.state not in allowed:
            raise invalid_state(namespace, allowed)
        self.admission.admit(namespace.namespace_id, api_class)
        return namespace

    async def namespace_by_id(self, namespace_id: str, api_class: str = "call") -> Namespace:
        """As `namespace`, by the id that a task token carries."""
        namespace = self.namespaces.by_id(namespace_id)
        if namespace is None:
            await self.namespaces.refresh()
            namespace = self.namespaces.by_id(namespace_id)
            if namespace is None:
                raise namespace_not_found(namespace_id)
        if namespace.state not in USABLE:
            raise invalid_state(namespace, USABLE)
        self.admission.admit(namespace.namespace_id, api_class)
        return namespace

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs work that no caller waits for, unless there is too much of it already. What it raises is logged: its
        purpose is served by timeouts otherwise.
        """
        if len(self._background) >= BACKGROUND_MAX:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("background call failed: %r", error)
            let_go(error)

    async def stop(self, grace: float) -> None:
        """Lets background work finish for `grace` seconds."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=grace)
            for task in late:
                task.cancel()
