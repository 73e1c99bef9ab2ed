"""What the shell itself reads of a shard record: whose it is, and the state hash that it may carry.

The fold reads the whole record; these few fields say nothing about any run, so they are no part of a step.
"""

from __future__ import annotations

from typing import NamedTuple

from everfold.schemas.codec import decode_shard_record


class Marks(NamedTuple):
    """Attributes:
    instance: of the proposer.
    sequence: the proposer's number for the record; 0 when nobody waits for it.
    sent: of an OutputsSent: (offset, leader epoch, state hash there).
    """

    instance: int
    sequence: int
    sent: tuple[int, int, bytes] | None


def read_marks(value: bytes) -> Marks:
    """The marks of a record that the fold has decoded already, so it decodes."""
    record = decode_shard_record(value)
    proposer = record["proposer"]
    sent = None
    if record["kind"] == "OUTPUTS_SENT":
        body = record["body"]
        sent = (body["offset"], body["epoch"], body["state_hash"])
    return Marks(proposer["instance"], proposer["sequence"], sent)
