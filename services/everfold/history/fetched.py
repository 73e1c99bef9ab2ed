"""What a consumer fetched, as the shell takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everfold.history.ingress import CommandRecord
from everfold.history.machine.shard_fold import LogRecord

if TYPE_CHECKING:
    from confluent_kafka import Message


def by_partition(messages: list[Message]) -> dict[int, list[Message]]:
    """Messages by their partitions, each partition's in order."""
    found: dict[int, list[Message]] = {}
    for message in messages:
        number = message.partition()
        assert number is not None
        if number in found:
            found[number].append(message)
        else:
            found[number] = [message]
    return found


def log_record(message: Message) -> LogRecord:
    """A message of `shard-log`."""
    epoch = message.leader_epoch()
    return LogRecord(
        message.value() or b"", message.offset() or 0, -1 if epoch is None else epoch, message.timestamp()[1]
    )


def command_record(message: Message) -> CommandRecord:
    """A message of `commands`."""
    epoch = message.leader_epoch()
    pairs: Any = message.headers() or ()
    headers = [(name, value) for name, value in pairs if isinstance(value, bytes)]
    return CommandRecord(message.key(), message.value(), message.offset() or 0, -1 if epoch is None else epoch, headers)
