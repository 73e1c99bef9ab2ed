"""From the public inbox `commands` into the shard's log: each record enters once.

The owner of shard p reads partition p of `commands` (committed records only) from the position that the shard's state
holds, and appends for each record exactly one record to its log, whose origin is the command's place:

    a good command                 a request of its kind, as the RPC would have made it
    one that cannot be understood  COMMAND_REJECTED: place, reason, hash, a sample of the bytes
    one that belongs elsewhere     COMMANDS_PASSED, after a copy was appended to the right partition of `commands`

So the position in the state moves with every record, and nothing bad stops it (architecture, law 9). The records form a
chain, each naming the one that was read before it, and `Chains` sends again after a failure: the fold drops what is not
behind its position as a repeat, and what does not follow it as a hole that will be filled. One that nobody fills gives
the shard up (`CommandSkipped`), and its next owner reads again from the position. A former owner that still sends is
harmless for the same reason.

A copy that is passed on carries its first place in a header. The request id of a command that has none is made from
that first place, so a second copy (a crash between the copy and COMMANDS_PASSED) is the same request, and is dropped by
the request-id dedupe of its shard. A record that was passed on and is still in the wrong place is rejected, not sent
round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog
from google.protobuf.message import Message

from everfold.history.chains import Chains, Entry
from everfold.history.command_source import NO_IDS, CommandIds, source_of
from everfold.history.machine.step import Step
from everfold.history.ports import Cancellable, Headers, Metrics, Namespaces, NoMetrics, ProducerFull
from everfold.history.shard import Shard
from everfold.kernel.errors import Code, ShardLost, StatusError
from everfold.kernel.ids import Origin, shard_of
from everfold.kernel.limits import Limits
from everfold.kernel.names import too_long
from everfold.kernel.time import MILLISECOND_NS
from everfold.runtime.requests import check_command, id_too_long
from everfold.schemas.codec import Undecodable, decode_command
from everfold.schemas.topics import COMMANDS, SHARD_LOG
from everfold.schemas.translate import Place, translate

log = structlog.get_logger("history.ingress")

PASSED_HEADER: Final = "everfold-first-place"
"""On a command that was passed on: `partition/epoch/offset` of the record that a producer wrote."""

SAMPLE_BYTES_MAX: Final = 64 * 1024
"""How much of a rejected record is kept."""

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest request, as gRPC's: what no RPC could have asked for is refused before it is in the log."""

_REASON_CHARS_MAX: Final = 2000
_RETRY_NS: Final = 500 * MILLISECOND_NS


Position = tuple[int, int]
"""(leader epoch, offset) of a record of `commands`; offset -1 before the first."""


class CommandRecord(NamedTuple):
    """One record of `commands`, as consumed."""

    key: bytes | None
    value: bytes | None
    offset: int
    epoch: int
    headers: Headers = ()


class Accepted(NamedTuple):
    """A command as a request of the Temporal API.

    Attributes:
        kind: of the shard record, e.g. SIGNAL_WORKFLOW.
        namespace: by name.
        request: the RPC's.
        trace: trace context.
        ids: what its producer called it.
    """

    kind: str
    namespace: str
    workflow_id: str
    run_id: str
    request: Message
    trace: dict[str, str]
    ids: CommandIds


class _Limits:
    """The shard's settings as the checks of requests ask for them."""

    def __init__(self, settings: Limits) -> None:
        self.id_bytes_max = settings["limit.maxIDLength"]
        self.blob_bytes_max = settings["limit.blobSize.error"]
        self.memo_bytes_max = settings["limit.memoSize.error"]


class BadCommand(Exception):
    """A record that is no acceptable command.

    Attributes:
        reason: in words for its producer.
        code: the gRPC status code that an RPC would have got.
        ids: what its producer called it, as far as it could be read.
    """

    def __init__(self, reason: str, code: int = Code.INVALID_ARGUMENT, ids: CommandIds = NO_IDS) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.ids = ids


Translate = Callable[[bytes, Place], Accepted]
"""Turns a command's bytes into a request; a command without request id gets one from the place. Raises BadCommand."""


def translate_command(value: bytes, place: Place) -> Accepted:
    """The request that an Avro `Command` asks for.

    Raises:
        BadCommand: it is not Avro, of an unknown schema, or asks for nothing that exists.
    """
    ids = NO_IDS
    try:
        decoded = decode_command(value)
        ids = CommandIds.of(decoded)
        command = translate(decoded, place)
    except Undecodable as error:
        raise BadCommand(error.reason) from None
    except StatusError as error:
        raise BadCommand(error.message, error.code, ids) from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        # protobuf refuses what Avro allows, e.g. numbers beyond 32 bits: the record's fault, not the shard's
        raise BadCommand(f"the command cannot be expressed as a request: {error!r}", ids=ids) from None
    return Accepted(*command, ids)


class CommandsFlow(Protocol):
    """The consumer of this shard's partition of `commands`."""

    def pause(self) -> None:
        """Deliver nothing more for now; what was handed over still comes."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...


class CommandSkipped(ShardLost):
    """The fold does not take a command that is in its log: one that was read before it never came there."""


class _Read:
    """A record that was read and is not in the shard's log yet.

    Attributes:
        predecessor: the place of the record that was read before it. It is fixed when the record is read and not when
            it is appended, so that the fold sees a hole whatever becomes of the records between.
        looked_up: its namespace was looked up, so that it does not exist if it is still unknown.
        copied: its copy is in the right partition.
    """

    __slots__ = ("copied", "looked_up", "predecessor", "record")

    def __init__(self, record: CommandRecord, predecessor: Position) -> None:
        self.record = record
        self.predecessor = predecessor
        self.looked_up = self.copied = False


class Ingress:
    """Moves one partition of `commands` into its shard's log. Made when the shard serves; driven on its thread.

    All that is read waits in one queue, and one loop, `_pump`, appends its head as long as it may. What the head has to
    wait for is registered once, and the answer starts the loop again. An answer that comes inside of the call that asks
    for it finds the loop running, and leaves the work to it: the stack does not grow with the number of commands.
    """

    def __init__(
        self,
        shard: Shard,
        flow: CommandsFlow,
        namespaces: Namespaces,
        shard_count: int,
        metrics: Metrics | None = None,
        *,
        topic: str = COMMANDS.name,
        translate: Translate = translate_command,
        resend: bool = True,
    ) -> None:
        """Appends nothing yet.

        Args:
            shard: the shard.
            flow: of its partition of `commands`.
            namespaces: of the process.
            shard_count: of the cluster.
            metrics: of the process.
            topic: the topic's full name, for those who read of a rejection.
            translate: from a record's bytes to a request.
            resend: off only in the simulator (`Chains`).
        """
        self._shard = shard
        self._topic = topic
        self._ports = shard.ports
        self._flow = flow
        self._translate = translate
        self._namespaces = namespaces
        self._shard_count = shard_count
        self._metrics = metrics or NoMetrics()
        self._bound = shard.limits.ingress_in_flight_max
        self._chains = Chains(shard.ports, self._acknowledged, metrics=metrics, resend=resend)
        self._queue: deque[_Read] = deque()
        #: appended and not folded yet, with their places
        self._in_flight: deque[tuple[Position, Entry]] = deque()
        #: the place of the last record that was read
        self._read = self._position
        #: the offset up to which Kafka had nothing more to read
        self._end = 0
        #: what the head of the queue waits for, in words
        self._waits_for: str | None = None
        self._pumping = False
        self._paused = False
        self._timer: Cancellable | None = None
        self._closed = False
        self.on_commands = shard.guarded(self._on_commands)
        shard.after_batch.append(self._folded)
        shard.on_close.append(lambda _status: self.close())

    def resume_position(self) -> tuple[int, int]:
        """(offset, leader epoch of the record before it or -1) from which `commands` is to be read."""
        epoch, offset = self._read
        return offset + 1, epoch if offset >= 0 else -1

    def close(self) -> None:
        """Append nothing more."""
        self._closed = True
        self._chains.close()
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()

    @property
    def waiting(self) -> int:
        """Commands read and not folded."""
        return len(self._queue) + len(self._in_flight)

    def reached_end(self, offset: int) -> None:
        """There is nothing more to read before this offset, only marks of transactions and what they aborted."""
        self._end = offset

    @property
    def next_offset(self) -> int:
        """The first offset that may hold a command which is not folded."""
        position = self._position[1] + 1
        return position if self.waiting else max(position, self._end)

    @property
    def waits_for(self) -> str:
        """Why nothing moves, if nothing moves; for people."""
        if self._waits_for is not None:
            return self._waits_for
        if self._in_flight:
            return f"{len(self._in_flight)} commands are in the shard's log or on the way, and are not folded: " + (
                self._shard.waits_for
            )
        return f"Kafka delivers nothing behind offset {self._read[1]}; a transaction may be open"

    @property
    def _position(self) -> Position:
        """The place of the last command that was folded."""
        meta = self._shard.fold.meta
        return meta.commands_epoch, meta.commands_offset

    def _on_commands(self, records: Iterable[CommandRecord]) -> None:
        """Records of the partition, in order."""
        if self._closed:
            return
        for record in records:
            place = (record.epoch, record.offset)
            if place > self._read:
                self._queue.append(_Read(record, self._read))
                self._read = place
        self._pump()

    def _acknowledged(self) -> None:
        self._look_for_holes()
        self._pump()

    def _folded(self, _steps: Sequence[Step]) -> None:
        reached = self._position
        while self._in_flight and self._in_flight[0][0] <= reached:
            self._in_flight.popleft()
        self._look_for_holes()
        self._pump()

    def _look_for_holes(self) -> None:
        """Give the shard up if the fold has met the oldest command under way and has not taken it.

        What was read before it is missing from the log, and nobody will send it: all that follows would be ignored.
        """
        if not self._in_flight:
            return
        place, entry = self._in_flight[0]
        if entry.acknowledged and 0 <= entry.offset <= self._shard.fold.meta.applied_offset:
            self._shard.fail(
                CommandSkipped(
                    f"shard {self._shard.shard}: the command at offset {place[1]} (epoch {place[0]}) is at offset "
                    f"{entry.offset} of the shard's log and was not taken there: one before it is missing. All behind "
                    f"offset {self._position[1]} (epoch {self._position[0]}) of {COMMANDS.name} is read again"
                )
            )

    def _pump(self) -> None:
        """Append what may be appended. The only loop: what calls back from inside of it starts no other."""
        if self._pumping or self._shard.folding:  # the hook after the batch comes here again
            return
        if self._closed:
            return
        self._pumping = True
        try:
            while self._queue and self._waits_for is None and len(self._in_flight) < self._bound:
                self._take(self._queue[0])
        finally:
            self._pumping = False
        if not self._paused and len(self._queue) >= self._bound:
            self._paused = True
            self._flow.pause()
        elif self._paused and len(self._queue) < self._bound // 2:
            self._paused = False
            self._flow.resume()

    def _take(self, read: _Read) -> None:
        """Append the head of the queue, or say what it waits for."""
        record = read.record
        if (record.epoch, record.offset) <= self._position:  # a former owner has brought it there
            self._queue.popleft()
            return
        if read.copied:
            self._append(read, "COMMANDS_PASSED", {"epoch": record.epoch, "offset": record.offset})
            return
        command: Accepted | None = None
        try:
            first_place = self._first_place(record)
            if record.value is None:
                raise BadCommand("the record has no value")
            command = self._translate(record.value, Place(COMMANDS.name, *(first_place or self._place(record))))
            if (size := command.request.ByteSize()) > MESSAGE_BYTES_MAX:
                raise BadCommand(f"the request has {size} bytes, expected at most {MESSAGE_BYTES_MAX}")
            longest = self._shard.fold.meta.limits["limit.maxIDLength"]
            if too_long(command.workflow_id, longest):
                raise BadCommand(id_too_long(command.workflow_id, longest).message)
            right = shard_of(command.namespace, command.workflow_id, self._shard_count)
            if right != self._shard.shard:
                if first_place is not None:
                    raise BadCommand(f"passed on from partition {first_place[0]}, but belongs to partition {right}")
                self._pass_on(read, right)
                return
            namespace_id = self._namespaces.id_of(command.namespace)
            if namespace_id is None:
                if read.looked_up:
                    raise BadCommand(f"Namespace {command.namespace} is not found.", Code.NOT_FOUND)
                self._look_up(read, command.namespace)
                return
            if not self._shard.knows_namespace(namespace_id):
                self._tell_namespace(namespace_id, command.namespace)
                return
            message = self._check(command, namespace_id)
        except BadCommand as bad:
            self._reject(read, bad, bad.ids if command is None else command.ids)
            return
        self._append(
            read,
            command.kind,
            {"message": message},
            namespace_id,
            command.workflow_id,
            command.run_id,
            command.trace,
            command.ids,
        )

    # ---- what the head waits for ------------------------------------------------------------------------------------

    def _look_up(self, read: _Read, namespace: str) -> None:
        def done(known: bool) -> None:
            if not known:
                # Kafka is away: that says nothing about the namespace, so the command must not be rejected for it.
                self._pause_for(f"the topic of namespaces cannot be read, and namespace {namespace} is unknown here")
                return
            read.looked_up = True
            self._go_on()

        self._waits_for = f"namespace {namespace} is unknown here and is looked up"
        self._namespaces.refresh(self._shard.guarded(done))

    def _tell_namespace(self, namespace_id: str, namespace: str) -> None:
        def told(error: StatusError | None) -> None:
            if error is not None:
                self._pause_for(f"the shard's log does not take namespace {namespace}: {error.message}")
                return
            self._go_on()

        self._waits_for = f"namespace {namespace} is on its way to the shard's log"
        self._shard.tell_namespace(namespace_id, told)

    def _pass_on(self, read: _Read, right: int) -> None:
        """Copy the record to the right partition; then its own may move the position."""

        def delivered(error: BaseException | None, _offset: int) -> None:
            if error is not None:
                # The copy may be there or not; a second one is the same request.
                self._pause_for(f"Kafka does not take the copy for partition {right}: {error}")
                return
            read.copied = True
            self._go_on()

        record = read.record
        place = "/".join(map(str, self._place(record)))
        headers = [*record.headers, (PASSED_HEADER, place.encode())]
        self._waits_for = f"it belongs to partition {right}, and its copy is on its way there"
        try:
            self._ports.produce(COMMANDS.name, right, record.key or b"", record.value, headers, delivered)
        except ProducerFull as full:
            self._pause_for(f"Kafka does not take the copy for partition {right}: {full}")

    def _pause_for(self, reason: str) -> None:
        """Try the head again after a while."""
        if not self._closed:
            self._waits_for = reason
            self._timer = self._ports.call_later(_RETRY_NS, self._go_on)

    def _go_on(self) -> None:
        self._waits_for = None
        self._pump()

    # ---- into the log -----------------------------------------------------------------------------------------------

    def _check(self, command: Accepted, namespace_id: str) -> bytes:
        """The request as it goes into the log. Raises BadCommand for what the RPC would refuse."""
        fold = self._shard.fold
        namespace = fold.namespace(namespace_id)
        if namespace is None:
            raise BadCommand(f"Namespace {command.namespace} is not found.", Code.NOT_FOUND)
        try:
            check_command(command.request, namespace, _Limits(fold.meta.limits), fold.meta.clock_ns)
        except StatusError as refusal:
            raise BadCommand(refusal.message, refusal.code) from None
        return command.request.SerializeToString(deterministic=True)

    def _reject(self, read: _Read, bad: BadCommand, ids: CommandIds) -> None:
        record = read.record
        value = record.value or b""
        log.warning(
            "command rejected",
            partition=self._shard.shard,
            offset=record.offset,
            reason=bad.reason[:200],
            bytes=len(value),
        )
        body = {
            "reason": bad.reason[:_REASON_CHARS_MAX],
            "code": int(bad.code),
            "sample": value[:SAMPLE_BYTES_MAX],
        }
        self._append(read, "COMMAND_REJECTED", body, ids=ids)

    def _append(
        self,
        read: _Read,
        kind: str,
        body: dict[str, object],
        namespace_id: str = "",
        workflow_id: str = "",
        run_id: str = "",
        trace: dict[str, str] | None = None,
        ids: CommandIds = NO_IDS,
    ) -> None:
        """Append the head of the queue to the shard's log: it is on its way then, and the next one is the head."""
        shard, record = self._shard.shard, read.record
        epoch, offset = read.predecessor
        origin = Origin("COMMANDS", shard, record.epoch, record.offset, 0)
        predecessor = Origin("COMMANDS", shard, epoch, offset, 0) if offset >= 0 else None
        # Sequence 0: nobody waits for it, and it releases no reader.
        key, value = self._shard.encode(
            kind,
            namespace_id,
            workflow_id,
            run_id,
            body,
            0,
            start=self._shard.start_handed_out((namespace_id, workflow_id)),
            origin=origin,
            predecessor=predecessor,
            trace=trace,
            command=None
            if kind == "COMMANDS_PASSED"
            else source_of(self._topic, record.key, record.value, record.headers, ids),
        )
        entry = Entry(origin, SHARD_LOG.name, shard, key, value)
        self._in_flight.append(((record.epoch, record.offset), entry))
        self._queue.popleft()
        self._chains.send(entry)

    def _place(self, record: CommandRecord) -> tuple[int, int, int]:
        return self._shard.shard, record.epoch, record.offset

    def _first_place(self, record: CommandRecord) -> tuple[int, int, int] | None:
        for name, value in record.headers:
            if name == PASSED_HEADER:
                try:
                    partition, epoch, offset = map(int, value.split(b"/"))
                except ValueError:
                    raise BadCommand(f"the header {PASSED_HEADER} is not partition/epoch/offset") from None
                return partition, epoch, offset
        return None
