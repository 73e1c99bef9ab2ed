"""Garbage on the shard log: what it is, and that every build sets it aside alike (law 9).

A schema id or a record kind is written only after the log was raised to its feature level, and who does not know that
level leaves the log alone. So what the log's own level does not know was written by somebody else, whatever build looks
at it: the position moves over it, a row counts it, and nothing else happens. The row keeps the state hash honest:
builds that disagreed about a record would be found out.

What can be read and asks for what cannot be, such as a request that is not one, is garbage too. A run is never blamed
for a record.
"""

from __future__ import annotations

from typing import Any

import msgpack

from everfold.history.machine import keys
from everfold.history.machine.context import StepContext
from everfold.history.machine.quarantine import more_of
from everfold.history.machine.step import Reply
from everfold.kernel.errors import Code, GarbageRecord, StatusError
from everfold.kernel.features import SINCE
from everfold.schemas import codec


def read_record(value: bytes, level: int) -> dict[str, Any]:
    """The record of a log of that feature level (0: before its Genesis).

    Raises:
        GarbageRecord: no build writes that at this level.
    """
    try:
        record = codec.decode_shard_record(value)
    except codec.Undecodable as error:
        raise GarbageRecord(error.reason) from error
    if SINCE:
        since = max(SINCE.get(record["kind"], 1), SINCE.get(int.from_bytes(value[1:5], "big"), 1))
        if since > max(level, 1):
            raise GarbageRecord(f"a {record['kind']} of feature level {since} in a log of level {level}")
    return record


def set_aside(ctx: StepContext, found: Exception) -> StatusError:
    """Counts the record. Returns what its proposer is told, if there is one."""
    row = ctx.rows.get(keys.GARBAGE)
    count = 0 if row is None else msgpack.unpackb(row)[0]
    ctx.rows.put(keys.GARBAGE, msgpack.packb((count + 1, ctx.offset)))
    ctx.step.set_aside = str(found) if isinstance(found, GarbageRecord) else f"{type(found).__name__}{more_of(found)}"
    refused = StatusError(Code.INTERNAL, "the record cannot be read and is set aside; see the server's log")
    ctx.step.reply = Reply(error=refused)
    return refused
