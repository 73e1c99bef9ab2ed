"""A history shard as its owner runs it: the fold, and around it log, store, outbox, timers and readers.

The shell performs what the fold returns as values, and feeds it what it needs as records. It has no thread, no sleep
and no clock of its own (`ports`), so the simulator runs this very code.

Taking a shard goes through phases, in this order, and nothing leaves before the last (architecture, law 5):

    OPENING      asks for the end of the log; the consumer starts behind the applied offset, with its leader epoch
    CATCHING_UP  folds up to that end; effects are dropped: their first owner had them, or the store still has them
    GENESIS      the log is empty: Genesis is appended and folded
    TAKING       ShardTaken is appended and folded: it carries the shard's clock over the time in which nobody ran
    SETTING      settings differ from those in the log: SettingsChanged is appended and folded
    SERVING      outputs, hand-offs, timers, ingress, RPCs
    CLOSED       given up, by whoever asked or for trouble; everybody who waited has been answered

One batch of records is one turn: each record is folded and its proposer answered; then all rows, the applied offset and
the outbox go to the store in one write; then outputs are sent, tasks handed on, timers set. An exception that is not a
verdict of the fold gives the shard up with nothing written: the log refolds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import structlog
from temporalio.api.enums.v1 import failed_cause_pb2 as failed_cause
from temporalio.api.errordetails.v1 import message_pb2 as errordetails

from everfold.history.barrier import Barrier
from everfold.history.hashes import HashRing
from everfold.history.machine.step import DueTimer, Reply, Step, TaskOffer
from everfold.history.marks import read_marks
from everfold.history.outbox import Outbox, SentAnnouncer
from everfold.history.ports import (
    BatchStore,
    Cancellable,
    Identity,
    Metrics,
    Namespaces,
    NoMetrics,
    ProducerFull,
    ShardListener,
    ShardPorts,
    ShellGuards,
    ShellLimits,
)
from everfold.history.proposals import OnVerdict, Proposals, Verdict, unavailable
from everfold.history.skew import ClockSkew
from everfold.history.timers import ShardClock, Timers
from everfold.history.waiters import Waiters
from everfold.kernel.errors import Code, LogTruncated, ShardLost, StatusError
from everfold.kernel.ids import Origin, record_key
from everfold.kernel.limits import DEFAULTS
from everfold.kernel.time import MILLISECOND_NS
from everfold.schemas.codec import encode_shard_record
from everfold.schemas.topics import SHARD_LOG

if TYPE_CHECKING:
    from everfold.history.machine.shard_fold import LogRecord, ShardFold

log = structlog.get_logger("history")

_RETRY_NS: Final = 500 * MILLISECOND_NS
"""Pause before a step of taking the shard is tried again."""


class Phase(Enum):
    """Where the shard is on its way to serving; see the module's text."""

    OPENING = "opening"
    CATCHING_UP = "catching up"
    GENESIS = "genesis"
    TAKING = "taking"
    SETTING = "setting"
    SERVING = "serving"
    CLOSED = "closed"


class HashMismatch(ShardLost):
    """The state hash that the log holds for an offset is not the one that this fold had there."""


class WrongCluster(ShardLost):
    """The log belongs to another cluster, or was made for another number of shards."""


class Shard:
    """One shard, owned. Everything is called on one thread.

    Args:
        fold: the fold over `store`, opened at the store's position.
        settings: settings that change outcomes, as this owner is configured; those that differ go into the log.
        listener: told when the shard serves, when it gives itself up, and of tasks for the direct hand-off.
        skew: the process's bound of its clock against the brokers', fed by own records.
    """

    def __init__(
        self,
        shard: int,
        fold: ShardFold,
        store: BatchStore,
        ports: ShardPorts,
        identity: Identity,
        settings: Mapping[str, int],
        namespaces: Namespaces,
        listener: ShardListener,
        *,
        limits: ShellLimits | None = None,
        guards: ShellGuards | None = None,
        metrics: Metrics | None = None,
        skew: ClockSkew | None = None,
    ) -> None:
        self.shard = shard
        self.fold = fold
        self.phase = Phase.OPENING
        self._store = store
        self._ports = ports
        self._identity = identity
        self._settings = dict(settings)
        self._namespaces = namespaces
        self._listener = listener
        self.limits = limits or ShellLimits()
        self._guards = guards or ShellGuards()
        self._metrics = metrics or NoMetrics()
        self._skew = skew
        self._label = str(shard)
        self._proposals = Proposals(identity.instance)
        self.waiters = Waiters(self.limits.waiters_max)
        self.barrier = Barrier(ports, self._ask_end, enabled=self._guards.read_barrier)
        self.clock = ShardClock(ports.boottime_ns)
        self.outbox = Outbox(
            ports,
            fold.outbox,
            self._outbox_moved,
            self.limits,
            metrics=self._metrics,
            resend=self._guards.outbox_resend,
        )
        self._announcer = SentAnnouncer(ports, self.limits.outputs_sent_every_ns, self._announce_sent)
        self._timers = Timers(
            ports,
            self.clock,
            fold.next_timer,
            fold.due_timers,
            self._fire_timer,
            self.limits.timers_in_flight_max,
            self._metrics,
        )
        self._hashes = HashRing(self.limits.hash_ring)
        self._refolded_from_start = fold.meta.applied_offset < 0
        #: called after each batch that was written, e.g. by ingress and queries
        self.after_batch: list[Callable[[Sequence[Step]], None]] = []
        #: called once when the shard is closed, with the status for those who wait in the hook's owner
        self.on_close: list[Callable[[StatusError], None]] = []
        #: namespace id -> those who wait for the fold of its NamespaceChanged
        self._namespace_gates: dict[str, list[Callable[[StatusError | None], None]]] = {}
        #: called when the shard serves or is closed, then dropped
        self._on_settled: list[Callable[[], None]] = []
        self._resumed_at = fold.meta.applied_offset + 1
        self._end_at_take: int | None = None
        self._to_finish = False
        self._timer_was_early = False
        self._paused = False
        self._folding = False
        self._retry: Cancellable | None = None
        self.closed_because: BaseException | None = None

    # ---- taking -----------------------------------------------------------------------------------------------------

    def resume_position(self) -> tuple[int, int]:
        """(offset, leader epoch of the record before it, or -1): where the consumer of the log has to start."""
        meta = self.fold.meta
        epoch = meta.applied_epoch if self._guards.epoch_check and meta.applied_offset >= 0 else -1
        return meta.applied_offset + 1, epoch

    def start(self) -> None:
        """Begin to take the shard. The consumer may be started before or after."""
        self._ports.request_end_offset(SHARD_LOG.name, self.shard, self._end_known)

    def _end_known(self, end: int | None) -> None:
        if self.phase is not Phase.OPENING:
            return
        if end is None:
            self._later(self.start)
            return
        # Records may have been folded since the question, so the end is compared with where the store resumed. (A tail
        # that was lost and written anew is found by the consumer, which resumes with the leader epoch.)
        applied = self._resumed_at - 1
        if end <= applied and self._guards.epoch_check:
            lost = applied + 1 - end
            self.on_log_error(
                LogTruncated(
                    f"shard {self.shard}: the log ends at offset {end}, the store has applied offset {applied}: "
                    f"{lost} acknowledged record{'s' if lost > 1 else ''} lost by Kafka; "
                    "the store is wiped and refolded from what is left"
                )
            )
            return
        self._end_at_take = end
        self.phase = Phase.CATCHING_UP
        self._advance()

    def _advance(self) -> None:
        """Go on with taking the shard, as far as what has been folded allows."""
        meta = self.fold.meta
        if self.phase in (Phase.OPENING, Phase.CATCHING_UP):
            if self._end_at_take is None or meta.applied_offset + 1 < self._end_at_take:
                return
            if meta.applied_offset < 0:
                self._enter(Phase.GENESIS)
            elif self._check_identity():
                self._enter(Phase.TAKING)
        elif self.phase is Phase.GENESIS and meta.applied_offset >= 0 and self._check_identity():
            # Another owner's Genesis may have been first; the fold has ignored ours then.
            self._enter(Phase.TAKING)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        me = self._identity
        if phase is Phase.GENESIS:
            body: dict[str, Any] = {
                "cluster_id": me.cluster_id,
                "shard": self.shard,
                "shard_count": me.shard_count,
                "feature_level": me.feature_level,
            }
            self._append_step("GENESIS", body, phase, None)
        elif phase is Phase.TAKING:
            self._append_step("SHARD_TAKEN", {"owner": me.owner}, phase, Phase.SETTING)
        elif phase is Phase.SETTING:
            # The record replaces what the shard knew: a setting that it does not name has its default again.
            wanted = {n: v for n, v in self._settings.items() if n in DEFAULTS and v != DEFAULTS[n]}
            if wanted != {n: v for n, v in self.fold.meta.settings.items() if v != DEFAULTS.get(n)}:
                self._append_step("SETTINGS_CHANGED", {"settings": wanted}, phase, Phase.SERVING)
            else:
                self._to_finish = True
                if not self._folding:
                    self._finish_taking()

    def _append_step(self, kind: str, body: dict[str, Any], phase: Phase, following: Phase | None) -> None:
        def verdict(result: Verdict) -> None:
            if self.phase is not phase:
                return
            if isinstance(result, StatusError) or result.error is not None:
                error = result if isinstance(result, StatusError) else result.error
                log.warning("could not take the shard yet", shard=self.shard, record=kind, error=str(error))
                self._later(lambda: self._enter(phase))
            elif following is Phase.SERVING:
                self._to_finish = True
            elif following is not None:
                self._enter(following)

        self._propose_internal(kind, body, verdict)

    def _later(self, action: Callable[[], None]) -> None:
        def run() -> None:
            self._retry = None
            if self.phase is not Phase.CLOSED:
                action()

        self._retry = self._ports.call_later(_RETRY_NS, run)

    def _check_identity(self) -> bool:
        meta, me = self.fold.meta, self._identity
        if (meta.cluster_id, meta.shard_count) == (me.cluster_id, me.shard_count):
            return True
        self.on_log_error(
            WrongCluster(
                f"shard {self.shard}: its log says cluster {meta.cluster_id} with {meta.shard_count} shards, "
                f"this owner is of cluster {me.cluster_id} with {me.shard_count}; "
                "check the bootstrap servers, the topic prefix and the number of shards"
            )
        )
        return False

    def _finish_taking(self) -> None:
        """Everything is folded and written: let outputs, hand-offs and timers leave."""
        self._to_finish = False
        self.phase = Phase.SERVING
        meta = self.fold.meta
        self.clock.folded(meta.clock_ns)
        sent = None if meta.outputs_sent is None else Origin("SHARD_LOG", self.shard, *meta.outputs_sent)
        self._announcer.open(sent)
        self.outbox.open(sent)
        self._timers.open()
        offers = self.fold.unrecorded_tasks()
        if offers:
            self._listener.on_offers(offers)
        self._listener.on_serving()
        self._settle()

    def when_settled(self, done: Callable[[], None]) -> None:
        """Call back when the shard serves or is closed; at once if it is so already."""
        if self.phase in (Phase.SERVING, Phase.CLOSED):
            done()
        else:
            self._on_settled.append(done)

    def _settle(self) -> None:
        settled, self._on_settled = self._on_settled, []
        for done in settled:
            done()

    @property
    def closed(self) -> bool:
        """Whether the shard was given up."""
        return self.phase is Phase.CLOSED

    @property
    def serving(self) -> bool:
        """Whether RPCs are answered here."""
        return self.phase is Phase.SERVING

    # ---- the turn ---------------------------------------------------------------------------------------------------

    def on_records(self, records: Sequence[LogRecord]) -> None:
        """Records of the shard's log, in order. One call is one batch: one write to the store."""
        if self.phase is Phase.CLOSED:
            return
        serving = self.phase is Phase.SERVING
        steps: list[Step] = []
        self._folding = True
        try:
            for record in records:
                step = self.fold.fold(record)
                steps.append(step)
                self._folded(record, step)
                if self.closed:
                    return
            writes = self.fold.take_writes()
            if writes:
                self._store.write(writes)
            self.fold.written()
        except ShardLost as lost:
            self._lose(lost)
            return
        except Exception as trouble:  # MemoryError, the store, or a defect of the shell: the next host may do better
            self._lose(trouble)
            return
        finally:
            self._folding = False
        try:
            self._after_write(steps, serving)
        except Exception as trouble:
            self._lose(trouble)

    def _folded(self, record: LogRecord, step: Step) -> None:
        self._hashes.remember(record.offset, record.epoch, self.fold.meta.state_hash)
        marks = read_marks(record.value)
        own: int | None = None
        if marks.instance == self._proposals.instance:
            own = marks.sequence
            sent_at_ns = self._proposals.folded(own, step.reply)
            if sent_at_ns is not None and self._skew is not None:
                self._skew.measured(sent_at_ns, record.timestamp_ms, self._ports.now_ns())
        if marks.sent is not None and not self._hashes.agrees(*marks.sent):
            self._hash_mismatch(*marks.sent)
        if step.changed:
            self.waiters.changed(step.changed)
        self.barrier.folded(record.offset + 1, own)
        for run, reason in step.quarantined:
            self._metrics.count("runs_quarantined")
            log.error("run quarantined", shard=self.shard, run=tuple(run), offset=record.offset, reason=reason)

    def _after_write(self, steps: list[Step], serving: bool) -> None:
        if not steps:
            return
        if self._timer_was_early:
            self._timer_was_early = False
            self.clock.reset(self.fold.meta.clock_ns)
        else:
            self.clock.folded(self.fold.meta.clock_ns)
        self._metrics.count("records_folded" if serving else "records_refolded", len(steps), shard=self._label)
        if self.phase is not Phase.SERVING:
            self._advance()
            if self._to_finish:
                self._finish_taking()
            return
        outputs = [row for step in steps for row in step.outputs]
        if outputs:
            self.outbox.add(outputs)
        offers: list[TaskOffer] = [offer for step in steps for offer in step.offers]
        if offers:
            self._listener.on_offers(offers)
        self._timers.look()
        for hook in self.after_batch:
            hook(steps)
        self._back_pressure()

    def _hash_mismatch(self, offset: int, epoch: int, state_hash: bytes) -> None:
        text = (
            f"shard {self.shard}: OutputsSent gives state hash {state_hash.hex()} at offset {offset} (epoch {epoch}), "
            f"this fold had {self._hashes.describe(offset)}"
        )
        if self._refolded_from_start:
            # This state was folded from the first record, so it is the definition; whoever wrote the hash was wrong.
            # Giving up again would only meet the same record again.
            self._metrics.count("hash_mismatches", shard=self._label)
            log.error("state hash differs from a former owner's", shard=self.shard, text=text)
            return
        raise HashMismatch(text + "; the store is wiped and refolded")

    def on_log_error(self, reason: ShardLost) -> None:
        """The consumer cannot go on: the log was truncated, rewritten or trimmed. Gives the shard up."""
        self._lose(reason)

    def fail(self, trouble: BaseException) -> None:
        """Something around the shard broke, e.g. its store cannot be flushed. Gives the shard up."""
        self._lose(trouble)

    # ---- proposing --------------------------------------------------------------------------------------------------

    def propose(
        self,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        on_verdict: OnVerdict,
        *,
        bounded: bool = True,
        gated: bool = True,
        trace: dict[str, str] | None = None,
    ) -> None:
        """Append a record and answer with the fold's verdict on it.

        A namespace that the shard does not know at the process's version is told to it first. `on_verdict` is called
        once: with the reply, or with UNAVAILABLE when the outcome is unknown, or RESOURCE_EXHAUSTED when nothing was
        appended. Never from inside this call, except for a refusal.

        Args:
            kind: of the record.
            namespace_id: empty for records about the shard itself.
            workflow_id: empty for records about a namespace.
            run_id: empty for the current run.
            body: the record's body.
            on_verdict: gets the reply or the status.
            trace: trace context.
            bounded: refuse when too many records are in flight. Off for what must not be refused (task starts).
            gated: tell the shard the namespace first. Off for requests that are about the namespace itself.
        """
        if self.phase is not Phase.SERVING:
            on_verdict(self._not_serving())
            return
        if bounded and len(self._proposals) >= self.limits.in_flight_max:
            on_verdict(self.overloaded())
            return

        def append(error: StatusError | None) -> None:
            if error is not None:
                on_verdict(error)
                return
            self._append(kind, namespace_id, workflow_id, run_id, body, on_verdict, trace)

        if not gated or not namespace_id or self._knows(namespace_id):
            append(None)
        else:
            self.tell_namespace(namespace_id, append)

    def overloaded(self) -> StatusError:
        """The status for an RPC that comes when too much is in flight."""
        detail = errordetails.ResourceExhaustedFailure(
            cause=failed_cause.RESOURCE_EXHAUSTED_CAUSE_SYSTEM_OVERLOADED,
            scope=failed_cause.RESOURCE_EXHAUSTED_SCOPE_SYSTEM,
        )
        return StatusError(
            Code.RESOURCE_EXHAUSTED,
            f"shard {self.shard} has {len(self._proposals)} records in flight",
            ((detail.DESCRIPTOR.full_name, detail.SerializeToString(deterministic=True)),),
        )

    def tell_namespace(self, namespace_id: str, then: Callable[[StatusError | None], None]) -> None:
        """Call `then(None)` once the shard knows the namespace at the version that this process knows.

        The record is folded before anything that needs it is appended: were both on their way, the first could fail and
        the second be folded without it.
        """
        if self._knows(namespace_id):
            then(None)
            return
        waiting = self._namespace_gates.get(namespace_id)
        if waiting is not None:
            waiting.append(then)
            return
        self._namespace_gates[namespace_id] = [then]
        known = self._namespaces.get(namespace_id)
        assert known is not None  # _knows is true for what nobody knows: the fold refuses it
        version, row = known

        def verdict(result: Verdict) -> None:
            error = result if isinstance(result, StatusError) else result.error
            for waiter in self._namespace_gates.pop(namespace_id, []):
                waiter(error)

        self._append("NAMESPACE_CHANGED", namespace_id, "", "", {"version": version, "namespace": row}, verdict, None)

    def _knows(self, namespace_id: str) -> bool:
        known = self._namespaces.get(namespace_id)
        return known is None or self.fold.meta.namespaces.get(namespace_id, -1) >= known[0]

    def _propose_internal(self, kind: str, body: dict[str, Any], on_verdict: OnVerdict) -> None:
        self._append(kind, "", "", "", body, on_verdict, None)

    def _append(
        self,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        on_verdict: OnVerdict,
        trace: dict[str, str] | None,
    ) -> None:
        if self.phase is Phase.CLOSED:
            on_verdict(self._not_serving())
            return
        sequence = self._proposals.add(on_verdict, self._ports.now_ns())
        key, value = self.encode(kind, namespace_id, workflow_id, run_id, body, sequence, trace=trace)

        def delivered(error: BaseException | None, _offset: int) -> None:
            if error is not None:
                self._proposals.failed(sequence, error)

        try:
            self._ports.produce(SHARD_LOG.name, self.shard, key, value, (), delivered)
        except ProducerFull:
            self._proposals.withdraw(sequence)
            on_verdict(self.overloaded())

    def encode(
        self,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        sequence: int,
        *,
        origin: Origin | None = None,
        predecessor: Origin | None = None,
        trace: dict[str, str] | None = None,
    ) -> tuple[bytes, bytes]:
        """Key and value of a shard record of this owner."""
        value = encode_shard_record(
            {
                "kind": kind,
                "namespace_id": namespace_id,
                "workflow_id": workflow_id,
                "run_id": run_id,
                "origin": None if origin is None else origin._asdict(),
                "predecessor": None if predecessor is None else predecessor._asdict(),
                "proposer": {
                    "instance": self._proposals.instance,
                    "sequence": sequence,
                    "clock_ns": self._ports.now_ns(),
                },
                "trace": trace or {},
                "body": body,
            }
        )
        if not workflow_id:
            return b"", value
        return record_key(self._namespaces.name_of(namespace_id) or namespace_id, workflow_id), value

    @property
    def folding(self) -> bool:
        """Whether a batch is being folded right now, with rows that are not written yet."""
        return self._folding

    @property
    def in_flight(self) -> int:
        """Own records produced and not folded."""
        return len(self._proposals)

    def _fire_timer(self, timer: DueTimer, done: Callable[[bool], None]) -> None:
        def verdict(result: Verdict) -> None:
            folded = isinstance(result, Reply)
            if folded and self.fold.meta.clock_ns < timer.due_at_ns:
                # The estimate ran ahead of the log's clock: the row is still there, and is armed again by its distance.
                self._timer_was_early = True
            done(folded)

        self._append(
            "FIRE_TIMER",
            timer.namespace_id,
            timer.workflow_id,
            timer.run_id,
            {"due_at_ns": timer.due_at_ns},
            verdict,
            None,
        )

    def _announce_sent(self, position: Origin, done: Callable[[bool], None]) -> None:
        meta = self.fold.meta
        body = {
            "position": position._asdict(),
            "offset": meta.applied_offset,
            "epoch": meta.applied_epoch,
            "state_hash": meta.state_hash,
        }
        self._propose_internal("OUTPUTS_SENT", body, lambda verdict: done(isinstance(verdict, Reply)))

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read(self, done: Callable[[StatusError | None], None]) -> Cancellable:
        """Call `done(None)` when a read may look at the fold (law 7), or with a status when it may not."""
        if self.phase is not Phase.SERVING:
            done(self._not_serving())
            return _Nothing()
        if len(self.barrier) >= self.limits.waiters_max:
            done(self.overloaded())
            return _Nothing()
        return self.barrier.wait(self._proposals.last_sequence, done)

    def _ask_end(self, done: Callable[[int | None], None]) -> None:
        self._ports.request_end_offset(SHARD_LOG.name, self.shard, done)

    # ---- outputs ----------------------------------------------------------------------------------------------------

    def _outbox_moved(self) -> None:
        if not self._folding:
            self.outbox.fill()
        self._announcer.moved(self.outbox.position)
        self._back_pressure()

    def _back_pressure(self) -> None:
        """Stop folding while Kafka does not take what the fold makes."""
        if not self._paused and self.outbox.congested:
            self._paused = True
            log.warning("shard paused: its outputs are not taken", shard=self.shard, waiting=self.outbox.depth)
            self._ports.pause()
        elif self._paused and self.outbox.relieved:
            self._paused = False
            self._ports.resume()

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _not_serving(self) -> StatusError:
        if self.closed_because is not None:
            return unavailable(f"shard {self.shard} was given up")
        return unavailable(f"shard {self.shard} is being taken ({self.phase.value})")

    def _lose(self, reason: BaseException) -> None:
        if self.phase is Phase.CLOSED:
            return
        wipe = isinstance(reason, (LogTruncated, HashMismatch))
        log.error(
            "shard given up",
            shard=self.shard,
            phase=self.phase.value,
            applied_offset=self.fold.meta.applied_offset,
            reason=str(reason),
            error=type(reason).__name__,
            wipe=wipe,
            exc_info=None if isinstance(reason, ShardLost) else reason,
        )
        self._metrics.count("shards_lost", reason=type(reason).__name__)
        self.close(reason)
        self._listener.on_lost(reason, wipe)

    def close(self, reason: BaseException | None = None) -> None:
        """Stop: everybody who waits gets UNAVAILABLE, nothing is sent or written any more. Idempotent."""
        if self.phase is Phase.CLOSED:
            return
        self.phase = Phase.CLOSED
        self.closed_because = reason or ShardLost("the shard was handed over")
        if self._retry is not None:
            self._retry.cancel()
        self._timers.close()
        self._announcer.close()
        self.outbox.close()
        status = self._not_serving()
        self.barrier.close(status)
        for waiting in list(self._namespace_gates.values()):
            for waiter in waiting:
                waiter(status)
        self._namespace_gates.clear()
        self._proposals.close(status)
        self.waiters.close()
        for hook in self.on_close:
            hook(status)
        self._settle()


class _Nothing:
    def cancel(self) -> None:
        """Nothing to forget."""
