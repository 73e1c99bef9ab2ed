"""A history shard as its owner runs it: the fold, and around it log, store, outbox, timers and readers.

The shell performs what the fold returns as values, and feeds it what it needs as records. It has no thread, no sleep
and no clock of its own (`ports`), so the simulator runs this very code.

It is taken in phases (`taking`), and nothing leaves before the last, SERVING (architecture, law 5).

One batch of records is one turn: each record is folded and its proposer answered; then all rows, the applied offset and
the outbox go to the store in one write; then outputs are sent, tasks handed on, timers set. An exception that is not a
verdict of the fold gives the shard up with nothing written: the log refolds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from everfold.history.barrier import Barrier
from everfold.history.gates import NamespaceGate
from everfold.history.giving_up import HashMismatch, aftermath
from everfold.history.guarded import GuardedPorts, P, guarded
from everfold.history.handed_out import HandedOut, Settled
from everfold.history.hashes import HashRing
from everfold.history.machine.step import DueTimer, Reply, RunKey, Step, TaskOffer
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
from everfold.history.proposals import OnVerdict, Proposals, Verdict, WorkflowKey, overloaded, unavailable
from everfold.history.skew import ClockSkew
from everfold.history.tail import LogFacts, Tail
from everfold.history.taking import Phase, Taking
from everfold.history.timers import ShardClock, Timers
from everfold.history.update_waiters import UpdateWaiters
from everfold.history.waiters import Waiters
from everfold.kernel.errors import Code, ShardLost, StatusError
from everfold.kernel.ids import Origin, record_key
from everfold.kernel.time import SECOND_NS
from everfold.runtime.zones import zone_facts
from everfold.schemas.codec import encode_shard_record
from everfold.schemas.topics import SHARD_LOG

if TYPE_CHECKING:
    from everfold.history.machine.shard_fold import LogRecord, ShardFold

log = structlog.get_logger("history")

OFFER_AGAIN_RETRY_NS: Final = SECOND_NS
"""Pause before OFFER_TASKS_AGAIN is appended again when its outcome is unknown."""


class Shard:
    """One shard, owned. Everything is called on one thread.

    Args:
        fold: the fold over `store`, opened at the store's position.
        settings: settings that change outcomes, as this owner is configured; those that differ go into the log.
        listener: told when the shard serves, when it gives itself up, and of tasks for the direct hand-off.
        skew: the process's bound of its clock against the brokers', fed by own records.
        log_facts: what else is known of the log.
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
        log_facts: LogFacts | None = None,
    ) -> None:
        self.shard = shard
        self.fold = fold
        self._store = store
        #: the only way from here to `ports`, so that every callback is guarded
        self.ports = ports = GuardedPorts(ports, self.guarded)
        self._namespaces = namespaces
        self._listener = listener
        self.limits = limits or ShellLimits()
        self._guards = guards or ShellGuards()
        self._metrics = metrics or NoMetrics()
        self._skew = skew
        self._label = str(shard)
        self._proposals = Proposals(identity.instance)
        self.waiters = Waiters(self.limits.waiters_max)
        self.updates = UpdateWaiters()
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
        self._handed_out = HandedOut(ports, self._append_start)
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
        facts = log_facts or LogFacts()
        if not self._guards.position_check:
            facts = facts._replace(known=None)
        self._tail = Tail(fold.meta, facts, enabled=self._guards.epoch_check)
        self._taking = Taking(
            shard,
            fold,
            ports,
            identity,
            settings,
            self._propose_internal,
            self._taken,
            self._lose,
            self._tail,
            epoch_check=self._guards.epoch_check,
        )
        self._hashes = HashRing(self.limits.hash_ring)
        self._refolded_from_start = fold.meta.applied_offset < 0
        #: called after each batch that was written, e.g. by ingress and queries
        self.after_batch: list[Callable[[Sequence[Step]], None]] = []
        #: called once when the shard is closed, with the status for those who wait in the hook's owner
        self.on_close: list[Callable[[StatusError], None]] = []
        self._gate = NamespaceGate(namespaces, lambda key: fold.meta.namespaces.get(key, -1), self._append_namespace)
        #: called when the shard serves or is closed, then dropped
        self._on_settled: list[Callable[[], None]] = []
        self._timer_was_early = False
        self._paused = False
        self._folding = False
        self.closed_because: BaseException | None = None

    # ---- taking -----------------------------------------------------------------------------------------------------

    def resume_position(self) -> tuple[int, int]:
        """(offset, leader epoch of the record before it, or -1): where the consumer of the log has to start."""
        return self._taking.resume_position()

    def start(self) -> None:
        """Begin to take the shard, once the consumer was started. It may be given up in this very call."""
        self._taking.start()

    @property
    def phase(self) -> Phase:
        """How far the shard is."""
        return self._taking.phase

    @property
    def caught_up_at_ns(self) -> int:
        """When the log was folded to its end; see `Taking`."""
        return self._taking.caught_up_at_ns

    def _taken(self) -> None:
        """Everything is folded. In the middle of a batch its rows are not written yet: then `_after_write` goes on."""
        if not self._folding:
            self._finish_taking()

    def _finish_taking(self) -> None:
        """Everything is folded and written: let outputs, hand-offs and timers leave."""
        self._taking.phase = Phase.SERVING
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
        self._offer_tasks_again()

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

    @property
    def waits_for(self) -> str:
        """Why its log is not folded, if it is not; for people."""
        if self._paused:
            return f"paused, as {self.outbox.depth} outputs and more wait for Kafka to take them"
        if self.phase is not Phase.SERVING:
            return f"the shard is {self.phase.value}"
        return "Kafka delivers nothing of the shard's log"

    # ---- the turn ---------------------------------------------------------------------------------------------------

    def on_records(self, records: Sequence[LogRecord]) -> None:
        """Records of the shard's log, in order. One call is one batch: one write to the store."""
        if self.phase is Phase.CLOSED:
            return
        serving = self.phase is Phase.SERVING
        began_ns = self.ports.boottime_ns()
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
        self._tell_set_aside(records, steps)
        self._metrics.observe("fold_batch_seconds", (self.ports.boottime_ns() - began_ns) / SECOND_NS)
        try:
            self._after_write(steps, serving)
        except Exception as trouble:
            self._lose(trouble)

    def _folded(self, record: LogRecord, step: Step) -> None:
        state_hash = self.fold.meta.state_hash
        self._hashes.remember(record.offset, record.epoch, state_hash)
        if (
            self.phase is not Phase.SERVING
            and (wrong := self._tail.folded(record.offset, record.epoch, state_hash)) is not None
        ):
            self._differs(wrong)
        if step.updates:
            self.updates.told(step.updates)
        own: int | None = None
        instance, sequence = step.proposer
        if instance == self._proposals.instance:
            own = sequence
            sent_at_ns = self._proposals.folded(own, step.reply)
            if sent_at_ns is not None and self._skew is not None:
                self._skew.measured(sent_at_ns, record.timestamp_ms, self.ports.now_ns())
        self._proposals.passed(record.offset, own)
        if step.outputs_sent is not None and not self._hashes.agrees(*step.outputs_sent):
            offset, epoch, state_hash = step.outputs_sent
            self._differs(
                HashMismatch(
                    f"shard {self.shard}: OutputsSent gives state hash {state_hash.hex()} at offset {offset} (epoch "
                    f"{epoch}), this fold had {self._hashes.describe(offset)}"
                )
            )
        if step.changed:
            self.waiters.changed(step.changed, step.closed)
        self.barrier.folded(record.offset + 1, own)
        if step.messages_lost:
            log.error("messages lost by Kafka", shard=self.shard, source=step.messages_lost, offset=record.offset)
        if step.rejected is not None and self.phase is Phase.SERVING:
            self._metrics.count("records_rejected", reason=Code(step.rejected).name)
        for run, reason in step.quarantined:
            self._metrics.count("runs_quarantined")
            log.error("run quarantined", shard=self.shard, run=tuple(run), offset=record.offset, reason=reason)

    def _tell_set_aside(self, records: Sequence[LogRecord], steps: list[Step]) -> None:
        found = [(record.offset, step) for record, step in zip(records, steps, strict=True) if step.set_aside]
        if found:
            self._metrics.count("records_set_aside", len(found), shard=self._label)
            log.error(
                "records of the shard log are set aside",
                shard=self.shard,
                records=len(found),
                first_offset=found[0][0],
                last_offset=found[-1][0],
                reason=found[0][1].set_aside,
            )

    def _after_write(self, steps: list[Step], serving: bool) -> None:
        if not steps:
            return
        if self._timer_was_early:
            self._timer_was_early = False
            self.clock.reset(self.fold.meta.clock_ns)
        else:
            self.clock.folded(self.fold.meta.clock_ns)
        self._count(steps, serving)
        if self.phase is not Phase.SERVING:
            self._taking.advance()
            if self._taking.ready:
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

    def _count(self, steps: list[Step], serving: bool) -> None:
        new = len(steps)
        if not serving:
            # What this owner has appended while taking the shard is new; the rest was there before it came.
            new = sum(step.proposer[0] == self._proposals.instance for step in steps)
            self._metrics.count("records_refolded", len(steps) - new, shard=self._label)
        self._metrics.count("records_folded", new, shard=self._label)

    def _differs(self, wrong: ShardLost) -> None:
        """This fold is not what an owner says that it had."""
        if isinstance(wrong, HashMismatch):
            self._metrics.count("hash_mismatches", shard=self._label)
            if self._refolded_from_start:
                # This state was folded from the first record, so it is the definition; whoever wrote the hash was
                # wrong. Giving up again would only meet the same record again.
                log.error("state hash differs from a former owner's", shard=self.shard, text=str(wrong))
                return
        raise wrong

    def on_log_lost(self, text: str) -> None:
        """The consumer cannot go on: the log was truncated, rewritten or trimmed. Gives the shard up."""
        self._lose(self._tail.of_consumer(text))

    def fail(self, trouble: BaseException) -> None:
        """Something around the shard broke, e.g. its store cannot be flushed. Gives the shard up."""
        self._lose(trouble)

    def guarded(self, callback: Callable[P, None]) -> Callable[P, None]:
        """The callback, whose exceptions give the shard up. For all that is called from outside of it (`guarded`)."""
        return guarded(callback, self._lose)

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
        limits, proposals = self.limits, self._proposals
        if bounded and (
            len(proposals) + self._gate.held_back >= limits.in_flight_max
            or proposals.bytes + self._gate.held_back_bytes >= limits.in_flight_bytes_max
        ):
            on_verdict(self.overloaded())
            return

        def append(error: StatusError | None) -> None:
            if error is not None:
                on_verdict(error)
                return
            self._append(kind, namespace_id, workflow_id, run_id, body, on_verdict, trace)

        if not gated or not namespace_id or self._gate.open_for(namespace_id):
            append(None)
        else:
            self._gate.pass_through(namespace_id, append, len(body.get("message", b"")))

    def overloaded(self) -> StatusError:
        """The status for an RPC that comes when too much is in flight."""
        proposals = self._proposals
        return overloaded(f"shard {self.shard} has {len(proposals)} records of {proposals.bytes} bytes in flight")

    def knows_namespace(self, namespace_id: str) -> bool:
        """Whether there is nothing to tell: the shard knows the namespace as this process does, or nobody knows it."""
        return self._gate.open_for(namespace_id)

    def tell_namespace(self, namespace_id: str, then: Callable[[StatusError | None], None]) -> None:
        """Call `then(None)` once the shard knows the namespace at the version that this process knows."""
        self._gate.pass_through(namespace_id, then)

    def _append_namespace(
        self, namespace_id: str, version: int, row: bytes, told: Callable[[StatusError | None], None]
    ) -> None:
        def verdict(result: Verdict) -> None:
            told(result if isinstance(result, StatusError) else result.error)

        self._append("NAMESPACE_CHANGED", namespace_id, "", "", {"version": version, "namespace": row}, verdict, None)

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
        workflow = (namespace_id, workflow_id)
        start = None
        held = self._handed_out.of(workflow)
        if held is not None and body is not held.start:
            start, on_verdict = held.start, self._handed_out.carried_by(held, on_verdict)
        sequence = self._proposals.add(on_verdict, self.ports.now_ns(), workflow, len(body.get("message", b"")))

        def delivered(error: BaseException | None, offset: int) -> None:
            if error is not None:
                self._proposals.failed(sequence, error)
            elif offset > self.fold.meta.applied_offset:
                self._proposals.acknowledged(sequence, offset)

        try:
            key, value = self.encode(kind, namespace_id, workflow_id, run_id, body, sequence, start=start, trace=trace)
            self.ports.propose(self.shard, key, value, delivered)
        except ProducerFull:
            self._proposals.withdraw(sequence)
            on_verdict(self.overloaded())
        except Exception:  # it is the caller's, who hears of it; nothing is on its way
            self._proposals.withdraw(sequence)
            raise

    def _append_start(self, run: RunKey, start: dict[str, Any], on_verdict: OnVerdict) -> None:
        self._append("START_WORKFLOW_TASK", *run, start, on_verdict, None)

    def hand_out(
        self, run: RunKey, start: dict[str, Any], settled: Settled, respond: Callable[[Reply], bytes]
    ) -> bytes | None:
        """Start a workflow task for a poller of this process before the log has it: the poll's response.

        None where it is not known what the start would look like, or nobody serves here: then it is to be proposed.

        Args:
            run: whose task it is.
            start: body of the START_WORKFLOW_TASK record.
            settled: called once it is known what became of the start, or never will be.
            respond: makes the response, from the rows as they are now.
        """
        workflow = (run.namespace_id, run.workflow_id)
        if (
            self.phase is not Phase.SERVING
            or self._folding
            or self._proposals.any_about(workflow)
            or not self._handed_out.room_for(workflow)
        ):
            return None
        # The estimate runs ahead while the brokers' stamps are behind the shard's clock; a host's clock may be wrong.
        now_ns = max(min(self.clock.now_ns(), self.ports.now_ns()), self.fold.meta.clock_ns)
        found = self.fold.hand_out(run, start, now_ns)
        if found is None:
            return None
        response = respond(found.reply)
        self._handed_out.add(run, found.start, settled)
        return response

    def take_back(self, workflow: WorkflowKey, request_id: str) -> bool:
        """A poller that was handed a task is gone. True when nothing of its start is, or will be, in the log."""
        return self._handed_out.take_back(workflow, request_id)

    def start_handed_out(self, workflow: WorkflowKey) -> dict[str, Any] | None:
        """The start of the workflow's task that is handed out, for a record about the workflow that goes to the log
        another way than `propose`.
        """
        held = self._handed_out.of(workflow)
        if held is None:
            return None
        held.appended = True
        return held.start

    def encode(
        self,
        kind: str,
        namespace_id: str,
        workflow_id: str,
        run_id: str,
        body: dict[str, Any],
        sequence: int,
        *,
        start: dict[str, Any] | None = None,
        origin: Origin | None = None,
        predecessor: Origin | None = None,
        trace: dict[str, str] | None = None,
        command: dict[str, Any] | None = None,
    ) -> tuple[bytes, bytes]:
        """Key and value of a shard record of this owner. `start`: of the workflow's task that is handed out; `command`:
        the CommandSource of what came from `commands`.
        """
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
                    "clock_ns": self.ports.now_ns(),
                },
                "trace": trace or {},
                "facts": zone_facts(body.get("message"), self.ports.now_ns()),
                "body": body,
                "start": start,
                "command": command,
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

    def _offer_tasks_again(self) -> None:
        """Append OFFER_TASKS_AGAIN until every run has been looked at, one record at a time."""
        if self.phase is not Phase.SERVING or not self.fold.tasks_to_offer:
            return

        def verdict(result: Verdict) -> None:
            if isinstance(result, Reply) and result.error is None:
                self._offer_tasks_again()
            elif self.phase is Phase.SERVING:
                self.ports.call_later(OFFER_AGAIN_RETRY_NS, self._offer_tasks_again)

        self._propose_internal("OFFER_TASKS_AGAIN", {}, verdict)

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

    def read(self, workflow: WorkflowKey, done: Callable[[StatusError | None], None]) -> Cancellable:
        """Call `done(None)` when a read of the workflow may look at the fold (law 7), or with a status when it may
        not.
        """
        if self.phase is not Phase.SERVING:
            done(self._not_serving())
            return _Nothing()
        if len(self.barrier) + self._handed_out.waiting >= self.limits.waiters_max:
            done(self.overloaded())
            return _Nothing()
        reading = _Reading()

        def look() -> None:
            if reading.cancelled:
                return
            if self.phase is not Phase.SERVING:
                done(self._not_serving())
            else:
                reading.waiting = self.barrier.wait(self._proposals.last_sequence, done)

        if not self._handed_out.when_settled(workflow, look):
            look()
        return reading

    def _ask_end(self, done: Callable[[int | None], None]) -> None:
        self.ports.request_end_offset(SHARD_LOG.name, self.shard, done)

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
            self.ports.pause()
        elif self._paused and self.outbox.relieved:
            self._paused = False
            self.ports.resume()

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _not_serving(self) -> StatusError:
        if self.closed_because is not None:
            return unavailable(f"shard {self.shard} was given up")
        return unavailable(f"shard {self.shard} is being taken ({self.phase.value})")

    def _lose(self, reason: BaseException) -> None:
        if self.phase is Phase.CLOSED:
            return
        log.error(
            "shard given up",
            shard=self.shard,
            phase=self.phase.value,
            applied_offset=self.fold.meta.applied_offset,
            reason=str(reason),
            error=type(reason).__name__,
            then=aftermath(reason).value,
            exc_info=None if isinstance(reason, ShardLost) else reason,
        )
        self._metrics.count("shards_lost", reason=type(reason).__name__)
        self.close(reason)
        self._listener.on_lost(reason)

    def close(self, reason: BaseException | None = None) -> None:
        """Stop: everybody who waits gets UNAVAILABLE, nothing is sent or written any more. Idempotent."""
        if self.phase is Phase.CLOSED:
            return
        self._taking.close()
        self.closed_because = reason or ShardLost("the shard was handed over")
        status = self._not_serving()
        ends: list[Callable[[], None]] = [
            self._timers.close,
            self._announcer.close,
            self.outbox.close,
            self._handed_out.close,
            partial(self.barrier.close, status),
            partial(self._gate.close, status),
            partial(self._proposals.close, status),
            self.waiters.close,
            partial(self.updates.close, status),
            *(partial(hook, status) for hook in self.on_close),
            self._settle,
        ]
        for end in ends:
            try:
                end()
            except Exception:  # the shard is given up already: the others must hear of it all the same
                log.exception("trouble at the end of a shard", shard=self.shard)


class _Reading:
    """A read that waits: first for the start of a task that is handed out, if there is one, then at the barrier."""

    def __init__(self) -> None:
        self.cancelled = False
        self.waiting: Cancellable | None = None

    def cancel(self) -> None:
        """The reader is gone."""
        self.cancelled = True
        if self.waiting is not None:
            self.waiting.cancel()


class _Nothing:
    def cancel(self) -> None:
        """Nothing to forget."""
