"""The errors that cross a boundary, and the fates of trouble.

    StatusError            a rejection: the caller gets a gRPC status, nothing else happens
    InvariantViolation     the machine met a state that cannot be: the run is quarantined
    Quarantined            a record is for such a run: it waits
    GarbageRecord          what is on the shard log was not written by an Everfold: it is set aside
    ShardLost              this process must give the shard up (another host may do better)
      LogGap               the next record is not the one after the last applied
      LogDamaged           Kafka has the next offset, and cannot give it, or has it no more
      LogTruncated         the log no longer holds what the store says was applied
      UnknownFeatureLevel  the log was raised to a level that this build does not know

gRPC status codes are plain integers here (google/rpc/code.proto), so that the machine needs no gRPC library.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Code(IntEnum):
    """gRPC status codes, as in google/rpc/code.proto."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """What an RPC answers instead of a response.

    Attributes:
        code: the gRPC status code.
        message: the text for the caller.
        details: (full protobuf message name, serialized message) pairs, which become `google.rpc.Status.details`.
    """

    def __init__(self, code: int, message: str, details: tuple[tuple[str, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.code = Code(code)
        self.message = message
        self.details = details

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.details)
        return f"StatusError({self.code.name}, {self.message!r}{', ' + names if names else ''})"


class InvariantViolation(Exception):
    """The machine met a state that its rules exclude. The run is quarantined, the shard goes on."""


class Quarantined(Exception):
    """A decider asks for a run that is quarantined. What asks waits for the run (architecture, law 9).

    Attributes:
        run_row: key of the run's row.
        reason: why the run was set aside; the same on every host.
    """

    def __init__(self, run_row: bytes, reason: str) -> None:
        super().__init__(reason)
        self.run_row = run_row
        self.reason = reason


class GarbageRecord(Exception):
    """A record of the shard log that no build writes at the log's feature level. It is set aside, the shard goes on."""


OWNER_MOVES: Final = "the owner of this workflow or task queue is moving, please retry"
"""What a caller is told, as UNAVAILABLE, whose call met a shard's or a broker's trouble."""


class ShardLost(Exception):
    """The shard cannot be folded further by this process; it is given up, loudly, and rebuilt or taken by another."""


PROCESS_TROUBLE: Final = (MemoryError, RecursionError, ShardLost)
"""What says nothing of a record, only of the process that folds it: another one may have more memory, a deeper stack or
a better store. It gives the shard up, and is no verdict on a run."""


class LogGap(ShardLost):
    """A record arrived whose offset is not the one after the last applied."""


class LogDamaged(ShardLost):
    """What the log has next cannot be read: a checksum is broken, or offsets are missing."""


class LogTruncated(ShardLost):
    """The log ends before, or was rewritten at, the position that the store has applied."""


class UnknownFeatureLevel(ShardLost):
    """The log was raised to a feature level that this build does not know."""
