"""Which requests can nest without a bound, by Temporal's descriptors: their handlers get them bounded."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import cache
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor
from temporalio.api.failure.v1 import message_pb2 as failure
from temporalio.api.update.v1 import message_pb2 as update
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from everfold.frontend.calls import CallContext, Handler
from everfold.kernel.depth import DEPTH_MAX, Shape, shallow

_STUB: Final = failure.Failure(
    message=f"what else caused it is left out: it was nested deeper than {DEPTH_MAX} messages", source="Server"
).SerializeToString()
_IN_ANY: Final = (update.Acceptance, update.Rejection, update.Response)
"""What travels in a google.protobuf.Any: the messages about updates."""

TAGS: Final = (bytes([failure.Failure.DESCRIPTOR.fields_by_name["cause"].number << 3 | 2]),)


_METHODS: Final = workflow_service.DESCRIPTOR.services_by_name["WorkflowService"].methods_by_name


def bounded(handler: Handler, method: str) -> Handler:
    """The handler of a method of the workflow service, for requests that are nested as deep as one likes."""
    shape = shape_of(_METHODS[method].input_type)
    if not shape.fields:
        return handler

    def handle(context: CallContext, data: bytes) -> Awaitable[bytes]:
        return handler(context, shallow(data, shape, TAGS))

    return handle


@cache
def shape_of(message: Descriptor) -> Shape:
    """The shape of a message type. It is empty when nothing in it can hold itself."""
    return _Shapes().of(message)


class _Shapes:
    """Shapes under construction: a type that holds itself meets its own."""

    def __init__(self) -> None:
        self._made: dict[str, Shape] = {}

    def of(self, message: Descriptor) -> Shape:
        if message.full_name in self._made:
            return self._made[message.full_name]
        shape = self._made[message.full_name] = Shape(_STUB)
        if message is AnyMessage.DESCRIPTOR:
            shape.by_name = {kind.DESCRIPTOR.full_name: self.of(kind.DESCRIPTOR) for kind in _IN_ANY}
            return shape
        for field in message.fields:
            if field.message_type is not None and _leads_to_failures(field.message_type):
                shape.fields[field.number] = self.of(field.message_type)
        return shape


@cache
def _leads_to_failures(message: Descriptor) -> bool:
    seen: set[str] = set()
    todo = [message]
    while todo:
        one = todo.pop()
        if one in (failure.Failure.DESCRIPTOR, AnyMessage.DESCRIPTOR):
            return True
        if one.full_name not in seen:
            seen.add(one.full_name)
            todo += [field.message_type for field in one.fields if field.message_type is not None]
    return False
