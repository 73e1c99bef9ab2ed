"""Why a shard is given up, and what becomes of its store then.

The log is the truth, but a store may be the only good copy of what a damaged log has lost. So no store is ever deleted:
at worst it is *set aside*, renamed and kept (`store.set_aside`), and the log is folded anew.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from everfold.kernel.errors import LogTruncated, ShardLost


class StoreRefused(Exception):
    """The directory is not ours to open: another cluster's, a later version's, or in use. Nothing was changed."""


class StoreTrouble(ShardLost):
    """The disk, or a limit of the process, keeps the store from being used. Its rows are not to blame; try again."""


class StoreCorrupt(ShardLost):
    """RocksDB, or the marker beside it, says that what is there is damaged. The log has the rows."""


class HashMismatch(ShardLost):
    """The state hash that was written for an offset is not the one that this fold had there."""


class StoreOfLostTail(ShardLost):
    """The store has applied what Kafka lost and an operator has let go."""


class Aftermath(Enum):
    """What follows when a shard was given up."""

    AGAIN = "taken again"
    SET_ASIDE = "store set aside, log folded anew"
    STOPPED = "not served until an operator decides, store untouched"


_SPOILT: Final = (HashMismatch, StoreCorrupt, StoreOfLostTail)


def decisive(reason: BaseException) -> BaseException:
    """The reason itself, or what led to it if that says something about the store."""
    cause: BaseException | None = reason
    while cause is not None:
        if isinstance(cause, (LogTruncated, *_SPOILT)):
            return cause
        cause = cause.__cause__
    return reason


def aftermath(reason: BaseException) -> Aftermath:
    """What follows on a reason."""
    found = decisive(reason)
    if isinstance(found, LogTruncated):
        return Aftermath.STOPPED
    return Aftermath.SET_ASIDE if isinstance(found, _SPOILT) else Aftermath.AGAIN
