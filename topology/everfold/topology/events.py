"""Typed events: every history event as an Avro record of its own on `events`, for everybody.

Each HistoryBatch on `history` becomes one `HistoryEvent` record per event on the same partition of `events`, under the
same key. The headers make the topic a chain of its own (law 6):

    everfold-origin        epoch:offset:index:event_id   the batch's origin and the event; later ones compare greater
    everfold-predecessor   the origin of the event before on this partition; absent on the very first
    everfold-source        partition:offset on `history`, from which the event was made

So a consumer has every event exactly once if it drops what is not after the last origin that it took. Repeats are rare:
on taking a partition the processor reads the last record of `events` there and goes on behind it; only what a former
owner still had in flight can come twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from everfold.kernel.ids import record_key
from everfold.runtime.kafka import KafkaSettings
from everfold.schemas.codec import decode_history_batch
from everfold.schemas.events import encode_batch
from everfold.schemas.topics import EVENTS, HISTORY, RECORD_BYTES_MAX, Topic
from everfold.topology.projection import Projection, Taken, Watermarks
from everfold.topology.publisher import Headers, Output, Publisher, Tail, read_tails
from everfold.topology.state import DeadLetter, Position, ProcessorState

ORIGIN: Final = "everfold-origin"
PREDECESSOR: Final = "everfold-predecessor"
SOURCE: Final = "everfold-source"

EventPlace = tuple[int, int, int, int]
"""(epoch, offset, index, event id): where an event is in its partition's chain."""

EVENT_BYTES_MAX: Final = RECORD_BYTES_MAX - 64 * 1024
"""What the topic takes, less the room for key, headers and framing."""

_LAST_ROW: Final = b"last"


def place_header(place: EventPlace) -> bytes:
    """The place as the headers have it."""
    return b"%d:%d:%d:%d" % place


def parse_place(header: bytes) -> EventPlace:
    """The place in a header."""
    epoch, offset, index, event_id = header.split(b":")
    return int(epoch), int(offset), int(index), int(event_id)


def _is_ours(headers: Mapping[str, bytes]) -> bool:
    """Whether a record on `events` is one that this processor wrote."""
    try:
        parse_place(headers[ORIGIN])
        int(headers[SOURCE].split(b":")[1])
    except (KeyError, ValueError, IndexError):
        return False
    return True


class TypedEvents(Projection):
    """`history` to `events`."""

    name: ClassVar[str] = "events"
    source: ClassVar[Topic] = HISTORY

    def __init__(self, state: ProcessorState, publisher: Publisher, kafka: KafkaSettings) -> None:
        super().__init__()
        self._state = state
        self._publisher = publisher
        self._kafka = kafka
        self._topic = kafka.topic(EVENTS)
        #: partition -> the last event known to be on `events`; None while there is none
        self._last: dict[int, EventPlace | None] = {}
        self._tails: dict[int, Tail] = {}

    def decode(self, value: bytes) -> Mapping[str, Any]:
        """A HistoryBatch."""
        return decode_history_batch(value)

    async def open(self, marks: Mapping[int, Watermarks]) -> dict[int, int]:
        """Takes partitions, and looks up how far their outputs reach."""
        loop = asyncio.get_running_loop()
        self._tails = await loop.run_in_executor(None, read_tails, self._kafka, self._topic, [*marks], _is_ours)
        return await super().open(marks)

    async def load(self, partition: int) -> Position | None:
        """The stored position, or that of the last record on `events` when that is further (or all there is)."""
        stored = self._state.position(partition)
        row = self._state.get(partition, _LAST_ROW)
        last: EventPlace | None = None
        if row is not None:
            last = parse_place(row)
        tail = self._tails.get(partition)
        if tail is not None:
            sent = parse_place(tail.headers[ORIGIN])
            source_offset = int(tail.headers[SOURCE].split(b":")[1])
            if last is None or sent > last:
                last = sent
            if stored is None or source_offset >= stored.next_offset:
                # That very batch again: only some of its events may have got there.
                stored = Position(source_offset, None)
        self._last[partition] = last
        return stored

    async def apply(
        self,
        partition: int,
        expected: Position | None,
        reached: Position,
        taken: Sequence[Taken],
        dead_letters: Sequence[DeadLetter],
    ) -> None:
        """Produces the events, waits for the acknowledgements, then moves the position."""
        last = self._last[partition]
        outputs: list[Output] = []
        for source_offset, origin, batch in taken:
            if last is not None and origin < last[:3]:
                continue
            key = record_key(batch["namespace"], batch["workflow_id"])
            source = b"%d:%d" % (partition, source_offset)
            for event_id, value in encode_batch(batch):
                place = (*origin, event_id)
                if last is not None and place <= last:
                    continue
                if len(value) > EVENT_BYTES_MAX:
                    # Said before the first is sent: half a batch on `events` could not be taken back.
                    raise ValueError(f"event {event_id} takes {len(value)} bytes as a record, over {EVENT_BYTES_MAX}")
                headers: Headers = [(ORIGIN, place_header(place)), (SOURCE, source)]
                if last is not None:
                    headers.append((PREDECESSOR, place_header(last)))
                outputs.append(Output(key, value, headers))
                last = place
        if outputs:
            await self._publisher.publish(self._topic, partition, outputs)
        rows = {_LAST_ROW: place_header(last)} if last is not None and outputs else None
        self._state.commit(partition, reached, rows, dead_letters)
        self._last[partition] = last

    async def stop(self) -> None:
        """Closes the state."""
        self._state.close()
