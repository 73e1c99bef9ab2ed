"""The rows of a shard's store.

    meta               ffff m                                              -> ShardMeta
    namespace          ffff n <namespace id>                               -> Namespace, as its Avro bytes
    outbox             ffff o <epoch 4> <offset 8> <index 4>               -> OutboxRow
    early message      ffff e <offset 8>                                   -> a message that came before Genesis
    garbage            ffff g                                              -> number of records set aside, last one
    zone               ffff z <name>                                       -> Zone, as text
    timer              ffff t <due 8> <slot 2> <run>                       -> empty; of a deleted namespace: a cursor
    current run        <slot 2> c <namespace id> 00 <workflow id>          -> run id
    mutable state      <slot 2> r <namespace id> 00 <workflow id> 00 <run id>  -> Run
    history            <slot 2> h <run id> <first event id 8>              -> History, protobuf bytes
    sticky task        <slot 2> s <run>                                    -> empty: scheduled, without task record
    parked             <slot 2> p <run> <offset 8>                         -> a record that waits for a quarantined run
    parked count       <slot 2> P <run>                                    -> how many do

<run> is `namespace id 00 workflow id 00 run id`. Numbers are big-endian, so that rows sort by them. All of a workflow
id begins with its slot (0..4095), so that a slot can move to another shard; timers and the outbox sort by time and
place instead, because they are read that way, and name the slot inside. A history row, for example:
`0a3f h 018bcfe5-687b-7cea-951b-8d37a3f0a3e2 0000000000000007`.
"""

from __future__ import annotations

import struct
from typing import Final

_SHARD: Final = b"\xff\xff"
META: Final = _SHARD + b"m"
NAMESPACES: Final = _SHARD + b"n"
OUTBOX: Final = _SHARD + b"o"
TIMERS: Final = _SHARD + b"t"
TIMERS_END: Final = _SHARD + b"u"
ZONES: Final = _SHARD + b"z"
GARBAGE: Final = _SHARD + b"g"
EARLY: Final = _SHARD + b"e"
EARLY_END: Final = _SHARD + b"f"

LAST_EVENT: Final = (1 << 64) - 1
"""No event has this id."""

_slot = struct.Struct(">H").pack
_u64 = struct.Struct(">Q")
_outbox = struct.Struct(">IQI")


def namespace(namespace_id: str) -> bytes:
    """Row of a namespace as the shard knows it."""
    return NAMESPACES + namespace_id.encode()


def zone(name: str) -> bytes:
    """Row of a time zone as the shard knows it."""
    return ZONES + name.encode()


def early(offset: int) -> bytes:
    """Row of a message that came before Genesis."""
    return EARLY + _u64.pack(offset)


def outbox(epoch: int, offset: int, index: int) -> bytes:
    """Row of an output, by origin."""
    return OUTBOX + _outbox.pack(epoch, offset, index)


def outbox_place(key: bytes) -> tuple[int, int, int]:
    """(epoch, offset, index) of an outbox row."""
    epoch, offset, index = _outbox.unpack(key[len(OUTBOX) :])
    return epoch, offset, index


def run_part(namespace_id: str, workflow_id: str, run_id: str) -> bytes:
    """The <run> part of keys."""
    return f"{namespace_id}\0{workflow_id}\0{run_id}".encode()


def split_run(part: bytes) -> tuple[str, str, str]:
    """Namespace id, workflow id and run id of a <run> part."""
    namespace_id, rest = part.split(b"\0", 1)
    workflow_id, run_id = rest.rsplit(b"\0", 1)
    return namespace_id.decode(), workflow_id.decode(), run_id.decode()


def current(slot: int, namespace_id: str, workflow_id: str) -> bytes:
    """Row of the current-run pointer."""
    return _slot(slot) + b"c" + f"{namespace_id}\0{workflow_id}".encode()


def run(slot: int, namespace_id: str, workflow_id: str, run_id: str) -> bytes:
    """Row of a run's mutable state."""
    return _slot(slot) + b"r" + run_part(namespace_id, workflow_id, run_id)


def slot_of_row(run_row: bytes) -> int:
    """The slot of a run's row."""
    return int.from_bytes(run_row[:2], "big")


def part_of_row(run_row: bytes) -> bytes:
    """The <run> part of a run's row."""
    return run_row[3:]


def history(slot: int, run_id: str, first_event_id: int) -> bytes:
    """Row of a batch of events."""
    return _slot(slot) + b"h" + run_id.encode() + _u64.pack(first_event_id)


def is_history(key: bytes) -> bool:
    """Whether this is the key of a history row."""
    return key[2:3] == b"h"  # no row of the whole shard has this letter


def first_event_id(history_key: bytes) -> int:
    """First event id of a history row."""
    (event_id,) = _u64.unpack(history_key[-8:])
    return int(event_id)


def sticky(slot: int, run: bytes) -> bytes:
    """Row that says: this run has a scheduled workflow task without a task record."""
    return _slot(slot) + b"s" + run


def timer(due_at_ns: int, slot: int, run: bytes) -> bytes:
    """Row of a run's earliest deadline."""
    return TIMERS + _u64.pack(due_at_ns) + _slot(slot) + run


def timer_parts(key: bytes) -> tuple[int, int, bytes]:
    """(due time ns, slot, <run>) of a timer row."""
    at = len(TIMERS)
    (due,) = _u64.unpack(key[at : at + 8])
    return int(due), int.from_bytes(key[at + 8 : at + 10], "big"), key[at + 10 :]


def parked(slot: int, run: bytes, offset: int) -> bytes:
    """Row of a record that waits for a quarantined run."""
    return _slot(slot) + b"p" + run + _u64.pack(offset)


def parked_count(slot: int, run: bytes) -> bytes:
    """Row with the number of records that wait for a quarantined run."""
    return _slot(slot) + b"P" + run


def parked_offset(key: bytes) -> int:
    """Offset of a parked record."""
    (offset,) = _u64.unpack(key[-8:])
    return int(offset)


def parked_range(slot: int, run: bytes) -> tuple[bytes, bytes]:
    """Start and end of the records that wait for a run."""
    start = _slot(slot) + b"p" + run
    return start, start + b"\xff" * 9


def kind_of_slot(slot: int, kind: bytes) -> tuple[bytes, bytes]:
    """Start and end of a slot's rows of one kind."""
    return _slot(slot) + kind, _slot(slot) + bytes((kind[0] + 1,))


def runs_of(slot: int, namespace_id: str) -> tuple[bytes, bytes]:
    """Start and end of the mutable states of a namespace's runs in a slot."""
    start = _slot(slot) + b"r" + namespace_id.encode()
    return start + b"\0", start + b"\1"


def history_range(slot: int, run_id: str, first: int, end: int) -> tuple[bytes, bytes]:
    """Start and end of a run's history rows whose first event id is in [first, end)."""
    return history(slot, run_id, first), history(slot, run_id, end)
