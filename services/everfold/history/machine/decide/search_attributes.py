"""Search attributes of starts and commands: the shared checks, with what the shard's log has told of the namespace."""

from __future__ import annotations

from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.history.machine.context import NamespaceInfo
from everfold.history.machine.decide.failures import CommandFailed
from everfold.kernel.errors import StatusError
from everfold.kernel.limits import Limits
from everfold.kernel.search_attributes import check_names, check_sizes, check_values, kind_of, unsets


def check_search_attributes(namespace: NamespaceInfo, attributes: common_pb2.SearchAttributes, limits: Limits) -> None:
    """Refuses attributes that are unknown, reserved, of the wrong type, too many or too large.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    fields, known = attributes.indexed_fields, namespace.search_attributes
    check_names(fields, namespace.name, known)
    check_values(fields, known, limits["limit.numberOfSearchAttributeKeys"])
    _check_sizes(attributes, limits)


def check_command_attributes(
    namespace: NamespaceInfo | None,
    attributes: common_pb2.SearchAttributes,
    limits: Limits,
    what: str = "",
    about: str = "",
) -> None:
    """The same for a command, its sizes left to `check_command_sizes`.

    Args:
        namespace: None checks nothing.
        attributes: of the command.
        limits: of the shard.
        what: begins the text of a wrong value, if anything does; an unknown name stands alone.
        about: ends it.

    Raises:
        CommandFailed: BAD_SEARCH_ATTRIBUTES.
    """
    if namespace is None:
        return
    fields, known = attributes.indexed_fields, namespace.search_attributes
    try:
        check_names(fields, namespace.name, known)
    except StatusError as error:
        raise CommandFailed("BAD_SEARCH_ATTRIBUTES", error.message) from None
    try:
        check_values(fields, known, limits["limit.numberOfSearchAttributeKeys"])
    except StatusError as error:
        text = f"{what}: {error.message}. {about}" if what else error.message
        raise CommandFailed("BAD_SEARCH_ATTRIBUTES", text) from None


def check_command_sizes(attributes: common_pb2.SearchAttributes, limits: Limits, cause: str) -> None:
    """Ends the run over search attributes that are too large (workflow_size_checker.go).

    Raises:
        CommandFailed: with that cause.
    """
    try:
        _check_sizes(attributes, limits)
    except StatusError as error:
        raise CommandFailed(cause, error.message, terminates=True) from None


def merged(held: dict[str, bytes], upserted: common_pb2.SearchAttributes) -> common_pb2.SearchAttributes:
    """The attributes that a run has after an upsert, which is what its size counts."""
    result = common_pb2.SearchAttributes()
    for name, data in held.items():
        result.indexed_fields[name].ParseFromString(data)
    for name, payload in upserted.indexed_fields.items():
        if unsets(payload):
            result.indexed_fields.pop(name, None)
        else:
            result.indexed_fields[name].CopyFrom(payload)
    return result


def set_types(attributes: common_pb2.SearchAttributes, namespace: NamespaceInfo, *, anew: bool = False) -> None:
    """Adds each attribute's type to its payload's metadata: SDKs and the Web UI decode by it.

    A type that a client gave stays, even another than the registered one, as the client's SDK will look for it
    (common/searchattribute/encode.go, ApplyTypeMap). With `anew` it does not: the index goes by what is registered.
    """
    for name in sorted(attributes.indexed_fields):
        metadata = attributes.indexed_fields[name].metadata
        kind = kind_of(name, namespace.search_attributes)
        if kind is not None and (anew or "type" not in metadata):
            metadata["type"] = kind.encode()


def _check_sizes(attributes: common_pb2.SearchAttributes, limits: Limits) -> None:
    check_sizes(
        attributes.indexed_fields,
        attributes.ByteSize(),
        limits["limit.searchAttributeSizeOfValue"],
        limits["limit.searchAttributeTotalSize"],
    )
