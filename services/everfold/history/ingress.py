"""From the public inbox `commands` into the shard's log: each record enters once.

The owner of shard p reads partition p of `commands` (committed records only) from the position that the shard's state
holds, and appends for each record exactly one record to its log, whose origin is the command's place:

    a good command                 a request of its kind, as the RPC would have made it
    one that cannot be understood  COMMAND_REJECTED: place, reason, hash, a sample of the bytes
    one that belongs elsewhere     COMMANDS_PASSED, after a copy was appended to the right partition of `commands`

So the position in the state moves with every record, and nothing bad stops it (architecture, law 9). The records form a
chain, each naming its predecessor, and `Chains` sends again after a failure: the fold drops what is not behind its
position as a repeat, and what does not follow it as a hole that will be filled. A former owner that still sends is
harmless for the same reason.

A copy that is passed on carries its first place in a header. The request id of a command that has none is made from
that first place, so a second copy (a crash between the copy and COMMANDS_PASSED) is the same request, and is dropped by
the request-id dedupe of its shard. A record that was passed on and is still in the wrong place is rejected, not sent
round.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog
from google.protobuf.message import Message

from everfold.history.chains import Chains, Entry
from everfold.history.machine.rejected_commands import COMMAND_BYTES, COMMAND_SHA256
from everfold.history.machine.step import Step
from everfold.history.ports import Cancellable, Headers, Metrics, Namespaces, NoMetrics, ProducerFull, ShardPorts
from everfold.history.shard import Shard
from everfold.kernel.errors import Code, StatusError
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
    """

    kind: str
    namespace: str
    workflow_id: str
    run_id: str
    request: Message
    trace: dict[str, str]


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
    """

    def __init__(self, reason: str, code: int = Code.INVALID_ARGUMENT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


Translate = Callable[[bytes, Place], Accepted]
"""Turns a command's bytes into a request; a command without request id gets one from the place. Raises BadCommand."""


def translate_command(value: bytes, place: Place) -> Accepted:
    """The request that an Avro `Command` asks for.

    Raises:
        BadCommand: it is not Avro, of an unknown schema, or asks for nothing that exists.
    """
    try:
        command = translate(decode_command(value), place)
    except Undecodable as error:
        raise BadCommand(error.reason) from None
    except StatusError as error:
        raise BadCommand(error.message, error.code) from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        # protobuf refuses what Avro allows, e.g. numbers beyond 32 bits: the record's fault, not the shard's
        raise BadCommand(f"the command cannot be expressed as a request: {error!r}") from None
    return Accepted(*command)


def command_facts(value: bytes) -> dict[str, str]:
    """What the shard's log tells of the bytes of a command, in case the fold refuses it."""
    return {COMMAND_SHA256: hashlib.sha256(value).hexdigest(), COMMAND_BYTES: str(len(value))}


class CommandsFlow(Protocol):
    """The consumer of this shard's partition of `commands`."""

    def pause(self) -> None:
        """Deliver nothing more for now; what was handed over still comes."""
        ...

    def resume(self) -> None:
        """Deliver again."""
        ...


class Ingress:
    """Moves one partition of `commands` into its shard's log. Made when the shard serves; driven on its thread."""

    def __init__(
        self,
        shard: Shard,
        ports: ShardPorts,
        flow: CommandsFlow,
        namespaces: Namespaces,
        shard_count: int,
        metrics: Metrics | None = None,
        *,
        translate: Translate = translate_command,
        resend: bool = True,
    ) -> None:
        self._shard = shard
        self._ports = ports
        self._flow = flow
        self._translate = translate
        self._namespaces = namespaces
        self._shard_count = shard_count
        self._metrics = metrics or NoMetrics()
        self._bound = shard.limits.ingress_in_flight_max
        self._chains = Chains(ports, self._pump, metrics=metrics, resend=resend)
        self._queue: deque[CommandRecord] = deque()
        #: places appended and not folded yet
        self._in_flight: deque[tuple[int, int]] = deque()
        meta = shard.fold.meta
        #: the place of the last command that was appended, or folded
        self._last: tuple[int, int] = (meta.commands_epoch, meta.commands_offset)
        self._busy = False
        self._paused = False
        self._timer: Cancellable | None = None
        self._closed = False
        shard.after_batch.append(self._folded)
        shard.on_close.append(lambda _status: self.close())

    def resume_position(self) -> tuple[int, int]:
        """(offset, leader epoch of the record before it or -1) from which `commands` is to be read."""
        epoch, offset = self._last
        return offset + 1, epoch if offset >= 0 else -1

    def on_commands(self, records: Sequence[CommandRecord]) -> None:
        """Records of the partition, in order."""
        if self._closed:
            return
        self._queue.extend(records)
        self._pump()

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

    def _folded(self, _steps: Sequence[Step]) -> None:
        meta = self._shard.fold.meta
        reached = (meta.commands_epoch, meta.commands_offset)
        while self._in_flight and self._in_flight[0] <= reached:
            self._in_flight.popleft()
        self._pump()

    def _pump(self) -> None:
        while self._queue and not self._busy and not self._closed and len(self._in_flight) < self._bound:
            record = self._queue.popleft()
            if (record.epoch, record.offset) > self._last:
                self._take(record, looked_up=False)
        if not self._paused and len(self._queue) >= self._bound:
            self._paused = True
            self._flow.pause()
        elif self._paused and len(self._queue) < self._bound // 2:
            self._paused = False
            self._flow.resume()

    def _take(self, record: CommandRecord, *, looked_up: bool) -> None:
        """Append one command, or set `_busy` while something has to be waited for."""
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
                self._pass_on(record, right)
                return
            namespace_id = self._namespaces.id_of(command.namespace)
            if namespace_id is None:
                if looked_up:
                    raise BadCommand(f"Namespace {command.namespace} is not found.", Code.NOT_FOUND)
                self._busy = True
                self._namespaces.refresh(lambda read: self._looked_up(record, read))
                return
        except BadCommand as bad:
            self._reject(record, bad)
            return
        self._busy = True
        self._shard.tell_namespace(namespace_id, lambda error: self._accept(record, namespace_id, command, error))

    def _accept(self, record: CommandRecord, namespace_id: str, command: Accepted, error: StatusError | None) -> None:
        if error is not None:
            self._after_pause(lambda: self._again(record, looked_up=False))
            return
        if self._closed:
            return
        was_waiting, self._busy = self._busy, False
        try:
            message = self._check(command, namespace_id)
        except BadCommand as bad:
            self._reject(record, bad)
        else:
            self._append(
                record,
                command.kind,
                {"message": message},
                namespace_id,
                command.workflow_id,
                command.run_id,
                command.trace,
            )
        if was_waiting and not self._shard.folding:
            self._pump()

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

    def _looked_up(self, record: CommandRecord, read: bool) -> None:
        if read:
            self._again(record, looked_up=True)
        else:
            # Kafka is away: that says nothing about the namespace, so the command must not be rejected for it.
            self._after_pause(lambda: self._again(record, looked_up=False))

    def _again(self, record: CommandRecord, *, looked_up: bool) -> None:
        if self._closed:
            return
        self._busy = False
        self._take(record, looked_up=looked_up)
        self._pump()

    def _reject(self, record: CommandRecord, bad: BadCommand) -> None:
        value = record.value or b""
        log.warning(
            "command rejected",
            partition=self._shard.shard,
            offset=record.offset,
            reason=bad.reason[:200],
            bytes=len(value),
        )
        body = {
            "topic": COMMANDS.name,
            "partition": self._shard.shard,
            "offset": record.offset,
            "epoch": record.epoch,
            "reason": bad.reason[:_REASON_CHARS_MAX],
            "code": int(bad.code),
            "sha256": hashlib.sha256(value).digest(),
            "sample": value[:SAMPLE_BYTES_MAX],
            "size_bytes": len(value),
            "key": (record.key or b"")[:SAMPLE_BYTES_MAX],
        }
        self._append(record, "COMMAND_REJECTED", body)

    def _pass_on(self, record: CommandRecord, right: int) -> None:
        """Copy the record to the right partition, then move the position."""
        self._busy = True
        place = "/".join(map(str, self._place(record)))
        headers = [*record.headers, (PASSED_HEADER, place.encode())]

        def delivered(error: BaseException | None, _offset: int) -> None:
            if self._closed:
                return
            if error is not None:
                # The copy may be there or not; a second one is the same request.
                self._after_pause(lambda: self._pass_on(record, right))
                return
            self._busy = False
            self._append(record, "COMMANDS_PASSED", {"epoch": record.epoch, "offset": record.offset})
            self._pump()

        try:
            self._ports.produce(COMMANDS.name, right, record.key or b"", record.value, headers, delivered)
        except ProducerFull:
            self._after_pause(lambda: self._pass_on(record, right))

    def _append(
        self,
        record: CommandRecord,
        kind: str,
        body: dict[str, object],
        namespace_id: str = "",
        workflow_id: str = "",
        run_id: str = "",
        trace: dict[str, str] | None = None,
    ) -> None:
        shard = self._shard.shard
        epoch, offset = self._last
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
            facts=None if kind in ("COMMAND_REJECTED", "COMMANDS_PASSED") else command_facts(record.value or b""),
        )
        self._last = (record.epoch, record.offset)
        self._in_flight.append(self._last)
        self._chains.send(Entry(origin, SHARD_LOG.name, shard, key, value))

    def _after_pause(self, action: Callable[[], None]) -> None:
        def run() -> None:
            self._timer = None
            if not self._closed:
                action()

        self._timer = self._ports.call_later(_RETRY_NS, run)

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
