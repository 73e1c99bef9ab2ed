"""A history shard as a fold of its log: position, clock, dedupe, dispatch, and the rows of every step.

One `fold` call takes one record and either commits a whole step or leaves nothing behind. What can go wrong, and what
happens then (law 9):

    a decider says no            the reply is the error; nothing else changes
    a record is garbage          it is set aside: the position moves, a count too, nothing else (`garbage`)
    the pure step raises         the run is quarantined, the shard goes on
    the run is quarantined       the record waits for its release or its end, unless it ends the run itself
    the process is in trouble    raised to the shell, which gives the shard up: store, memory, depth of the stack
    a gap, an unknown level      `ShardLost`: given up too, another host may do better
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack
from google.protobuf.message import DecodeError

from everfold.history.machine import garbage, keys, quarantine
from everfold.history.machine.cache import RunCache
from everfold.history.machine.context import NamespaceInfo, StepContext, Waiting, run_row
from everfold.history.machine.decide import cross_run, namespace, purge, workflow_task
from everfold.history.machine.decide.ending import Termination, end_run
from everfold.history.machine.decide.hand_out import HandOut, prepare
from everfold.history.machine.decide.leftovers import LEFTOVERS, void_leftover
from everfold.history.machine.decide.offer_again import offer_tasks_again
from everfold.history.machine.decide.republish import decide_republish, republish
from everfold.history.machine.record_kinds import BY_NAMESPACE, BY_RUN, is_start
from everfold.history.machine.rejected_commands import emit_rejected, reject_command
from everfold.history.machine.rejections import invalid, namespace_not_found, workflow_completed, workflow_not_found
from everfold.history.machine.rows import Rows, RowStore
from everfold.history.machine.run_limits import RunTooLarge
from everfold.history.machine.salvage import UNREADABLE, load_run
from everfold.history.machine.shard_meta import ShardMeta
from everfold.history.machine.state import Run
from everfold.history.machine.step import DueTimer, Guards, OutboxRow, Reply, RunKey, Step, TaskOffer
from everfold.history.machine.turn import workflow_offer
from everfold.kernel.errors import (
    PROCESS_TROUBLE,
    Code,
    GarbageRecord,
    LogGap,
    LogTruncated,
    Quarantined,
    StatusError,
    UnknownFeatureLevel,
)
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.ids import SLOTS, Origin, slot_of
from everfold.kernel.limits import DEFAULTS, Limits
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas import codec

CLOCK_LEAD_MAX_NS: Final = SECOND_NS
"""How far a proposer's clock may stay behind the broker's stamp before the stamp is not believed."""


class LogRecord(NamedTuple):
    """One consumed record of the shard log, or what is at its place: a transaction's marker, or something that an
    operator has decided to skip, with the reason.
    """

    value: bytes
    offset: int
    epoch: int
    timestamp_ms: int
    marker: bool = False
    skipped: str = ""


Record = dict[str, Any]
Engine = Callable[["ShardFold", StepContext, Record], None]


class ShardFold:
    """The fold of one shard."""

    def __init__(
        self,
        shard: int,
        rows: RowStore,
        run_cache_bytes: int,
        *,
        guards: Guards | None = None,
        feature_level_known: int = FEATURE_LEVEL,
    ) -> None:
        """Reads the meta row of the store.

        Args:
            shard: the shard's number.
            rows: the durable rows.
            run_cache_bytes: bound of the decoded runs kept in memory.
            guards: checks to switch off, for the simulator.
            feature_level_known: the newest rules that this fold knows.

        Raises:
            UnknownFeatureLevel: the store was written by newer rules.
        """
        self.guards = guards or Guards()
        self.feature_level_known = feature_level_known
        self.meta = ShardMeta.decode(shard, rows.get(keys.META))
        self._check_feature_level(self.meta.feature_level)
        self.rows = Rows(rows, self.meta.state_hash)
        self.cache = RunCache(run_cache_bytes)
        self._namespaces: dict[str, NamespaceInfo] = {}
        self._touched = False

    # ---- folding ----------------------------------------------------------------------------------------------------

    def fold(self, record: LogRecord) -> Step:
        """Folds the next record of the log.

        Raises:
            ShardLost: the record does not follow, or needs a newer build.
        """
        self._check_position(record)
        self._touched = True
        if record.marker:
            self._advance(record, self.meta.clock_ns)
            return Step()
        ctx = self._context(record, self.meta.clock_ns)
        try:
            return self._step(ctx, record)
        except BaseException:
            ctx.abandon()
            raise

    def _step(self, ctx: StepContext, record: LogRecord) -> Step:
        try:
            if record.skipped:
                raise GarbageRecord(f"skipped by an operator: {record.skipped}")
            body = garbage.read_record(record.value, self.meta.feature_level)
        except GarbageRecord as found:
            # Its stamp counts for nothing: it says no proposer's clock, by which the broker's could be checked.
            garbage.set_aside(ctx, found)
            ctx.commit()
            self._advance(record, self.meta.clock_ns)
            return ctx.step
        now_ns = ctx.now_ns = self._shard_time(body, record)
        if not self._is_repeat(ctx, body):
            self._do(ctx, body, record)
        self._advance(record, now_ns)
        step = ctx.step
        proposer = body["proposer"]
        step.proposer = (proposer["instance"], proposer["sequence"])
        if body["kind"] == "OUTPUTS_SENT":
            sent = body["body"]
            step.outputs_sent = (sent["offset"], sent["epoch"], sent["state_hash"])
        return step

    def _context(self, record: LogRecord, now_ns: int) -> StepContext:
        return StepContext(
            self.meta, self.rows, self.cache, self.guards, self._namespaces, record.epoch, record.offset, now_ns
        )

    def _check_position(self, record: LogRecord) -> None:
        meta = self.meta
        if record.offset != meta.applied_offset + 1:
            raise LogGap(
                f"shard {meta.shard}: expected offset {meta.applied_offset + 1}, found {record.offset}; records of the "
                "shard log are missing. The shard is rebuilt from its log."
            )
        if self.guards.epoch_check and record.epoch < meta.applied_epoch:
            raise LogTruncated(
                f"shard {meta.shard}, offset {record.offset}: leader epoch {record.epoch} after {meta.applied_epoch}"
            )

    def _shard_time(self, body: Record, record: LogRecord) -> int:
        stamp_ns = record.timestamp_ms * MILLISECOND_NS
        if not self.guards.shard_clock:
            return stamp_ns
        proposed_ns = body["proposer"]["clock_ns"]
        if proposed_ns:
            # A message carries its sender's shard time, which has had its lead: shards must not push each other ahead.
            origin = body["origin"]
            lead_ns = 0 if origin is not None and origin["source"] == "SHARD_LOG" else CLOCK_LEAD_MAX_NS
            stamp_ns = min(stamp_ns, proposed_ns + lead_ns)
        return max(self.meta.clock_ns, stamp_ns)

    def _advance(self, record: LogRecord, now_ns: int) -> None:
        meta = self.meta
        meta.applied_offset = record.offset
        meta.applied_epoch = record.epoch
        meta.clock_ns = now_ns
        meta.state_hash = self.rows.state_hash

    def _is_repeat(self, ctx: StepContext, body: Record) -> bool:
        """Law 6: a message at or before the last taken from its source has been folded already."""
        origin = body["origin"]
        if origin is None:
            return False
        place = _place(origin)
        source = f"{origin['source']}/{origin['partition']}"
        last = self.meta.received.get(source)
        before = body["predecessor"]
        if self.guards.origin_chain:
            repeat = last is not None and place <= last
            gap = before is not None and (last is None or _place(before) > last)
            if gap and _is_lost(before, body["acknowledged"]):
                ctx.step.messages_lost = source
            elif repeat or gap:  # what is missing before a gap is sent again, and this after it
                ctx.step.ignored = True
                return True
        ctx.took = (source, place)
        return False

    def _do(self, ctx: StepContext, body: Record, record: LogRecord) -> None:
        kind = body["kind"]
        if not self.meta.cluster_id and kind != "GENESIS":
            self._too_early(ctx, kind, record)
            ctx.commit()
            return
        engine = _ENGINE.get(kind)
        if engine is not None:
            self._engine(ctx, engine, body)
            ctx.commit()
            return
        self._settle(ctx, body, Waiting(record.offset, record.value))
        self._settle_waiting(ctx)
        ctx.commit()

    def _engine(self, ctx: StepContext, engine: Engine, body: Record) -> None:
        try:
            engine(self, ctx, body)
        except PROCESS_TROUBLE:
            raise
        except Exception as defect:  # no owner writes what it cannot take itself, and no run is there to be set aside
            ctx.go_back()
            garbage.set_aside(ctx, defect)

    def _settle_waiting(self, ctx: StepContext) -> None:
        """Decides what waited for quarantined runs that the step has ended. The step's answer stays what it was."""
        reply, ignored = ctx.step.reply, ctx.step.ignored
        while ctx.waiting:
            self._settle_late(ctx, ctx.waiting.pop(0))
        ctx.step.reply, ctx.step.ignored = reply, ignored

    def _settle(self, ctx: StepContext, body: Record, record: Waiting) -> None:
        """Decides a record about a run. A refusal or a defect undoes what it did, and nothing before that."""
        kind = body["kind"]
        try:
            if body["facts"]:
                ctx.learn(body["facts"])
            ctx.step.reply = self._decide(ctx, kind, body)
        except StatusError as refusal:
            ctx.go_back()
            ctx.step.reply = Reply(error=refusal)
            reject_command(ctx, body, refusal)
            if refusal.code == Code.NOT_FOUND and kind in LEFTOVERS:
                void_leftover(ctx, self._run_of(ctx, body, quarantined=True), kind, body)
        except Quarantined as why:
            ctx.go_back()
            full = quarantine.park(ctx, why, record)
            if full is not None:
                reject_command(ctx, body, full)
        except (
            GarbageRecord,
            DecodeError,
            codec.Undecodable,
        ) as found:
            # What is in it is no request: the run is not at fault.
            ctx.go_back()
            reject_command(ctx, body, garbage.set_aside(ctx, found))
        except RunTooLarge as found:
            ctx.go_back()
            self._end_too_large(ctx, body, record, found)
        except PROCESS_TROUBLE:
            raise
        except Exception as defect:  # the pure step is the same on every host: so is its failure (law 9)
            turned = ctx.turned
            ctx.go_back()
            self._set_aside(ctx, body, turned, defect)

    def _end_too_large(self, ctx: StepContext, body: Record, record: Waiting, found: RunTooLarge) -> None:
        """The record would have grown a run beyond a limit: it is refused, and the run ends."""
        if body["start"] is not None:  # a worker has the task: that much did happen
            try:
                workflow_task.begin_handed_out(ctx, body["namespace_id"], body["workflow_id"], body["start"])
            except RunTooLarge:
                ctx.go_back()
        run = ctx.load(run_row(found.run))
        assert run is not None
        end_run(ctx, run, Termination(found.reason))
        refusal = workflow_completed() if body["kind"] in LEFTOVERS else invalid(found.reason)
        ctx.step.reply = Reply(error=refusal)
        reject_command(ctx, body, refusal)
        if body["kind"] == "CROSS_RUN":  # its sender may wait for an answer, and hears that of a closed run
            ctx.waiting.append(record)

    def _set_aside(self, ctx: StepContext, body: Record, turned: set[str], defect: Exception) -> None:
        """A step raised. Its run is quarantined, but not one that only stood in the way of a start."""
        run = self._run_of(ctx, body, quarantined=True)
        if run is not None and is_start(body) and run.run_id not in turned:
            run = None
        key = RunKey(body["namespace_id"], body["workflow_id"], body["run_id"] if run is None else run.run_id)
        quarantine.set_aside(ctx, key, run, body["kind"], defect)
        if run is None and body["kind"] == "CROSS_RUN":
            self._refuse_message(ctx, body["body"])
        reject_command(ctx, body, StatusError(Code.INTERNAL, "Everfold has met a defect; see the server's log"))

    def _refuse_message(self, ctx: StepContext, message: Record) -> None:
        """Tells the sender, if the message says who that is; it may be what was wrong with it."""
        mark = ctx.mark()
        try:
            cross_run.refuse(ctx, message["message_kind"], message["message"])
        except PROCESS_TROUBLE:
            raise
        except Exception:
            ctx.go_back(mark)

    def _decide(self, ctx: StepContext, kind: str, body: Record) -> Reply:
        by_run = BY_RUN.get(kind)
        payload, start = body["body"], body["start"]
        if kind == "FIRE_TIMER" and not body["workflow_id"]:
            if not body["namespace_id"]:
                return decide_republish(ctx, payload["due_at_ns"], _slots(ctx.facts))
            return purge.decide_sweep(ctx, body["namespace_id"], payload["due_at_ns"], _slots(ctx.facts))
        if kind == "COMPLETE_WORKFLOW_TASK":
            return workflow_task.decide_complete_task(ctx, self._run_of(ctx, body), payload["message"], start)
        if start is not None:
            workflow_task.begin_handed_out(ctx, body["namespace_id"], body["workflow_id"], start)
        if by_run is not None:
            return by_run(ctx, self._run_of(ctx, body, quarantined=kind == "FIRE_TIMER"), payload)
        if kind == "CROSS_RUN":
            known = self._told_namespace(ctx, body)
            return cross_run.decide_cross_run(
                ctx, known, body["workflow_id"], body["run_id"], payload["message_kind"], payload["message"]
            )
        registry = namespace.DECIDERS.get(kind)
        if registry is not None:
            return registry(ctx, payload["message"])
        by_namespace = BY_NAMESPACE.get(kind)
        if by_namespace is None:
            raise StatusError(Code.UNIMPLEMENTED, f"{kind} is not built in this version of Everfold")
        known = ctx.namespace(body["namespace_id"])
        if known is None or known.deleted:
            raise namespace_not_found(body["namespace_id"] if known is None else known.name)
        return by_namespace(ctx, known, payload["message"])

    def _told_namespace(self, ctx: StepContext, body: Record) -> NamespaceInfo | None:
        """The namespace of a message. A child's start brings its namespace along, as this shard may not know it yet."""
        payload = body["body"]
        if payload["message_kind"] == "StartChild":
            told = cross_run.message_of("StartChild", payload["message"])["namespace"]
            version = codec.decode(told)[1]["version"]
            if version > ctx.namespace_version(body["namespace_id"]):
                ctx.put_namespace(body["namespace_id"], version, told)
        known = ctx.namespace(body["namespace_id"])
        return None if known is None or known.deleted else known

    def _run_of(self, ctx: StepContext, body: Record, *, quarantined: bool = False) -> Run | None:
        known = ctx.namespace(body["namespace_id"])
        if known is None:
            return None
        return ctx.find(known.namespace_id, known.name, body["workflow_id"], body["run_id"], quarantined=quarantined)

    def _release(self, ctx: StepContext, body: Record) -> None:
        """Takes up a quarantined run, and what waits for it, in order, until something quarantines it anew."""
        run = self._run_of(ctx, body, quarantined=True)
        waiting = [] if run is None else quarantine.waiting_for(ctx, run)
        if run is None or not (run.quarantined or waiting):
            ctx.step.ignored = True
            fine = StatusError(Code.FAILED_PRECONDITION, f"workflow {body['workflow_id']} is not quarantined")
            missing = workflow_not_found(body["workflow_id"], body["run_id"])
            ctx.step.reply = Reply(error=missing if run is None else fine)
            return
        if run.quarantined == UNREADABLE:
            text = f"workflow {run.workflow_id}: {UNREADABLE}; terminate or delete it"
            ctx.step.reply = Reply(error=StatusError(Code.FAILED_PRECONDITION, text))
            return
        key = run_row(run)
        quarantine.take_up(ctx, run)
        for record in waiting:
            quarantine.take_one(ctx, run, record)
            self._settle_late(ctx, record)
            now = ctx.load(key, quarantined=True)
            if now is not None and now.quarantined:
                again = f"workflow {now.workflow_id} is quarantined again: {now.quarantined}"
                ctx.step.reply = Reply(error=StatusError(Code.FAILED_PRECONDITION, again))
                return
        ctx.step.reply = Reply()

    def _settle_late(self, ctx: StepContext, record: Waiting) -> None:
        """Decides a record that had to wait, within the step of another."""
        ctx.savepoint()
        self._settle(ctx, codec.decode_shard_record(record.value), record)

    # ---- engine records ---------------------------------------------------------------------------------------------

    def _genesis(self, ctx: StepContext, body: Record) -> None:
        genesis = body["body"]
        if ctx.facts.cluster_id:
            ctx.step.ignored = True
            return
        self._check_feature_level(genesis["feature_level"])
        if genesis["shard"] != ctx.facts.shard or genesis["shard_count"] < 1 or not genesis["cluster_id"]:
            raise GarbageRecord(f"a Genesis of shard {genesis['shard']} of {genesis['shard_count']}")
        ctx.change(
            cluster_id=genesis["cluster_id"],
            shard_count=genesis["shard_count"],
            feature_level=genesis["feature_level"],
            offered_epoch=ctx.epoch,
        )
        for key, value in list(self.rows.scan(keys.EARLY, keys.EARLY_END)):
            ctx.rows.delete(key)
            self._settle_late(ctx, Waiting(keys.parked_offset(key), value))

    def _feature_level_raised(self, ctx: StepContext, body: Record) -> None:
        level = body["body"]["feature_level"]
        self._check_feature_level(level)
        ctx.step.ignored = level <= ctx.facts.feature_level
        ctx.change(feature_level=max(ctx.facts.feature_level, level))

    def _check_feature_level(self, level: int) -> None:
        if self.guards.feature_level and level > self.feature_level_known:
            raise UnknownFeatureLevel(
                f"shard {self.meta.shard} is at feature level {level}, this build knows {self.feature_level_known}; "
                "run the newer version of Everfold"
            )

    def _too_early(self, ctx: StepContext, kind: str, record: LogRecord) -> None:
        """Before Genesis nothing can be decided. A message of another shard, whose owner was quicker, waits for it;
        what else comes was meant for a log that Kafka has lost.
        """
        if kind == "CROSS_RUN":
            ctx.rows.put(keys.early(record.offset), record.value)
            return
        ctx.step.ignored = True
        ctx.step.reply = Reply(error=StatusError(Code.UNAVAILABLE, f"shard {self.meta.shard} has no Genesis yet"))

    def _shard_taken(self, ctx: StepContext, body: Record) -> None:
        """Only its stamp matters: it carries the shard clock over the time in which nobody ran."""

    def _settings_changed(self, ctx: StepContext, body: Record) -> None:
        settings = {key: value for key, value in body["body"]["settings"].items() if key in DEFAULTS}
        ctx.change(limits=Limits(settings), settings=settings)

    def _namespace_changed(self, ctx: StepContext, body: Record) -> None:
        data = body["body"]["namespace"]
        changed = codec.decode(data)[1]
        namespace_id = changed["namespace_id"]
        if changed["version"] <= ctx.namespace_version(namespace_id):
            ctx.step.ignored = True
            return
        ctx.put_namespace(namespace_id, changed["version"], data)
        if changed["deleted"]:
            purge.begin_sweep(ctx, namespace_id)

    def _outputs_sent(self, ctx: StepContext, body: Record) -> None:
        place = _place(body["body"]["position"])
        sent = ctx.facts.outputs_sent
        if sent is not None and place <= sent:
            ctx.step.ignored = True
            return
        # Rows up to the last position are gone already: the scan does not walk over what is left of them.
        start = keys.OUTBOX if sent is None else keys.outbox(*sent)
        end = keys.outbox(place[0], place[1], place[2] + 1)
        for key, _ in list(self.rows.scan(start, end)):
            ctx.rows.delete(key)
        ctx.change(outputs_sent=place)

    def _command_rejected(self, ctx: StepContext, body: Record) -> None:
        rejected = body["body"]
        emit_rejected(ctx, body, rejected["reason"], rejected["code"], rejected["sample"])
        ctx.step.reply = Reply()

    def _commands_passed(self, ctx: StepContext, body: Record) -> None:
        passed = body["body"]
        place = (passed["epoch"], passed["offset"])
        if place > (ctx.facts.commands_epoch, ctx.facts.commands_offset):
            ctx.change(commands_epoch=place[0], commands_offset=place[1])

    def _republish(self, ctx: StepContext, body: Record) -> None:
        republish(ctx, _slots(ctx.facts))

    def _offer_tasks_again(self, ctx: StepContext, body: Record) -> None:
        facts = ctx.facts
        if facts.offered_epoch >= ctx.epoch:
            ctx.step.ignored = True
            return
        cursor = facts.offer_cursor if facts.offering_epoch == ctx.epoch else b""
        if self.guards.offer_again:
            cursor = offer_tasks_again(ctx, _slots(facts), cursor)
        offered = facts.offered_epoch if cursor else ctx.epoch
        ctx.change(offering_epoch=ctx.epoch, offer_cursor=cursor, offered_epoch=offered)

    # ---- for the shell ----------------------------------------------------------------------------------------------

    def run(self, namespace_id: str, namespace: str, workflow_id: str, run_id: str) -> Run | None:
        """The named run or, with an empty run id, the current one. For reading only."""
        slot = slot_of(namespace, workflow_id)
        if not run_id:
            pointer = self.rows.get(keys.current(slot, namespace_id, workflow_id))
            if pointer is None:
                return None
            run_id = pointer.decode()
        key = keys.run(slot, namespace_id, workflow_id, run_id)
        return load_run(self.rows, self.cache, key)

    def hand_out(self, run: RunKey, start: Record, now_ns: int) -> HandOut | None:
        """How a workflow task would start at shard time `now_ns`; None where only the log can tell."""
        found = self.run_by_key(run)
        return None if found is None else prepare(self.meta.limits, found, start, now_ns, self.meta.applied_epoch)

    def take_writes(self) -> dict[bytes, bytes | None]:
        """Rows written since `written`, the meta row included. Empty when nothing was folded."""
        if not self._touched:
            return {}
        writes = dict(self.rows.pending())
        writes[keys.META] = self.meta.encode()
        return writes

    def written(self) -> None:
        """The rows of `take_writes` are in the store."""
        self.rows.written()
        self._touched = False

    def next_timer(self) -> int | None:
        """Due time of the first timer row."""
        first = self.rows.first_timer()
        return keys.timer_parts(first)[0] if first else None

    def due_timers(self, now_ns: int, limit: int) -> list[DueTimer]:
        """The timer rows due at shard time `now_ns`, earliest first."""
        due: list[DueTimer] = []
        end = min(keys.timer(now_ns + 1, 0, b""), keys.TIMERS_END)
        first = self.rows.first_timer()
        if not first or first >= end:
            return due
        for key, _ in self.rows.scan(first, end):
            due_at_ns, _, part = keys.timer_parts(key)
            due.append(DueTimer(*keys.split_run(part), due_at_ns))
            if len(due) == limit:
                break
        return due

    def outbox(self, after: Origin | None, limit: int) -> list[OutboxRow]:
        """Outputs that are not known to be sent, in the order in which they were made."""
        if after is not None:
            start = keys.outbox(after.epoch, after.offset, after.index + 1)
        elif self.meta.outputs_sent is not None:
            start = keys.outbox(*self.meta.outputs_sent)
        else:
            start = keys.OUTBOX
        end = keys.OUTBOX[:-1] + bytes((keys.OUTBOX[-1] + 1,))
        found: list[OutboxRow] = []
        for key, row in self.rows.scan(start, end):
            topic, partition, record_key, value = msgpack.unpackb(row)
            origin = Origin("SHARD_LOG", self.meta.shard, *keys.outbox_place(key))
            found.append(OutboxRow(origin, topic, partition, record_key, value))
            if len(found) == limit:
                break
        return found

    def unrecorded_tasks(self) -> list[TaskOffer]:
        """Scheduled workflow tasks that live in matching's memory only: a new owner offers them again (law 11)."""
        ctx = self._reader()
        offers: list[TaskOffer] = []
        for slot in _slots(self.meta):
            for key, _ in self.rows.scan(*keys.kind_of_slot(slot, b"s")):
                run = self.run_by_part(key[3:], slot)
                if run is not None and run.running and not run.quarantined and run.workflow_task is not None:
                    offers.append(workflow_offer(ctx, run))
        return offers

    @property
    def tasks_to_offer(self) -> bool:
        """Whether tasks of earlier leader epochs may have lost their records: `OFFER_TASKS_AGAIN` is to be appended."""
        return self.meta.offered_epoch < self.meta.applied_epoch

    def run_by_key(self, key: RunKey) -> Run | None:
        """A run by its three ids; its slot follows from the namespace's name."""
        known = self.namespace(key.namespace_id)
        return None if known is None else self.run(key.namespace_id, known.name, key.workflow_id, key.run_id)

    def namespace(self, namespace_id: str) -> NamespaceInfo | None:
        """A namespace as this shard's log has told it; None when it has not: then the shard has no run of it."""
        return self._namespaces.get(namespace_id) or self._reader().namespace(namespace_id)

    def run_by_part(self, part: bytes, slot: int) -> Run | None:
        """The run of a <run> key part."""
        return load_run(self.rows, self.cache, keys.run(slot, *keys.split_run(part)))

    def _reader(self) -> StepContext:
        meta = self.meta
        return StepContext(
            meta,
            self.rows,
            self.cache,
            self.guards,
            self._namespaces,
            meta.applied_epoch,
            meta.applied_offset,
            meta.clock_ns,
        )


def _slots(meta: ShardMeta) -> range:
    """The slots of a shard."""
    return range(meta.shard, SLOTS, meta.shard_count or SLOTS)


def _is_lost(before: Record, acknowledged: Record | None) -> bool:
    """Whether what is missing up to `before` was in this log once: its sender knew, and will not send it again."""
    return acknowledged is not None and _place(before) <= _place(acknowledged)


def _place(origin: Record) -> tuple[int, int, int]:
    return origin["epoch"], origin["offset"], origin["index"]


_ENGINE: Final[dict[str, Engine]] = {
    "GENESIS": ShardFold._genesis,
    "SHARD_TAKEN": ShardFold._shard_taken,
    "SETTINGS_CHANGED": ShardFold._settings_changed,
    "NAMESPACE_CHANGED": ShardFold._namespace_changed,
    "OUTPUTS_SENT": ShardFold._outputs_sent,
    "COMMAND_REJECTED": ShardFold._command_rejected,
    "COMMANDS_PASSED": ShardFold._commands_passed,
    "RELEASE_WORKFLOW": ShardFold._release,
    "REPUBLISH_VISIBILITY": ShardFold._republish,
    "OFFER_TASKS_AGAIN": ShardFold._offer_tasks_again,
    "FEATURE_LEVEL_RAISED": ShardFold._feature_level_raised,
}
