"""One record being folded: its place, its time, and where what it makes goes.

The context is the only way from a decider to rows, ids and outputs. Everything in it comes from the record, its place
in the log, or the rows (law 2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgpack

from everfold.history.machine import keys
from everfold.history.machine.rows import Rows
from everfold.history.machine.salvage import Runs, load_run
from everfold.history.machine.shard_meta import ShardMeta
from everfold.history.machine.state import Run, encode_run
from everfold.history.machine.step import Guards, OutboxRow, Step
from everfold.kernel.cron import UTC, ZONE_FACT, Zone
from everfold.kernel.errors import Quarantined
from everfold.kernel.ids import Origin, derived_uuid, slot_of, task_partition
from everfold.kernel.limits import Limits
from everfold.schemas import codec
from everfold.schemas.topics import Topic

COMMANDS_SOURCE: Final = "COMMANDS/"
"""Of messages that come from the topic `commands`; the partition's number follows."""


class NamespaceInfo(NamedTuple):
    """What the machine knows of a namespace."""

    namespace_id: str
    name: str
    version: int
    state: int
    retention_ns: int
    search_attributes: dict[str, str]
    deleted: bool


class Waiting(NamedTuple):
    """A record that waited for a quarantined run, and the offset at which it came."""

    offset: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a step to go back to."""

    writes: dict[bytes, bytes | None]
    step: Step
    ids: int
    index: int
    links: dict[str, tuple[int, int, int]]
    versions: dict[str, int]
    waiting: list[Waiting]
    facts: ShardMeta


class StepContext:
    """Context of one fold step."""

    __slots__ = (
        "_changed",
        "_ids",
        "_index",
        "_links",
        "_meta",
        "_namespaces",
        "_saved",
        "_versions",
        "cache",
        "epoch",
        "facts",
        "guards",
        "loaded",
        "now_ns",
        "offset",
        "rows",
        "step",
        "took",
        "turned",
        "waiting",
    )

    def __init__(
        self,
        meta: ShardMeta,
        rows: Rows,
        cache: Runs,
        guards: Guards,
        namespaces: dict[str, NamespaceInfo],
        epoch: int,
        offset: int,
        now_ns: int,
    ) -> None:
        self._meta = meta
        #: the shard's meta row as this step leaves it: what is changed of it is a copy until the step succeeds
        self.facts = meta
        self.rows = rows
        self.cache = cache
        self.guards = guards
        self.epoch = epoch
        self.offset = offset
        self.now_ns = now_ns
        self.step = Step()
        #: row keys of the runs this step has taken from the cache; dropped from it if the step fails
        self.loaded: set[bytes] = set()
        #: ids of the runs whose state this step has begun to change
        self.turned: set[str] = set()
        #: records that waited for runs which this step has ended: they are decided after it
        self.waiting: list[Waiting] = []
        self._namespaces = namespaces
        #: versions of namespaces that this step has learnt
        self._versions: dict[str, int] = {}
        self._ids = 0
        self._index = 0
        #: chain positions moved by this step
        self._links: dict[str, tuple[int, int, int]] = {}
        #: of the shard's meta row, by `change`
        self._changed: set[str] = set()
        #: (source, place) of the message that this record is; taken whatever becomes of it
        self.took: tuple[str, tuple[int, int, int]] | None = None
        #: the beginning, or the last savepoint
        self._saved = Mark({}, Step(), 0, 0, {}, {}, [], meta)

    # ---- ids and settings -------------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The settings in force."""
        return self.facts.limits

    def new_id(self) -> str:
        """A UUID that every fold of this record makes alike."""
        self._ids += 1
        facts = self.facts
        return derived_uuid(facts.cluster_id, facts.shard, self.epoch, self.offset, self._ids, self.now_ns)

    def namespace(self, namespace_id: str) -> NamespaceInfo | None:
        """A namespace as `NamespaceChanged` records have told it to this shard."""
        known = self._namespaces.get(namespace_id)
        if known is None:
            row = self.rows.get(keys.namespace(namespace_id))
            if row is None:
                return None
            known = self._namespaces[namespace_id] = namespace_from_record(codec.decode(row)[1])
        return known

    def change(self, **values: Any) -> None:
        """Changes fields of the shard's meta row."""
        self.facts = replace(self.facts, **values)
        self._changed.update(values)

    def namespace_version(self, namespace_id: str) -> int:
        """The version of a namespace that this shard knows; -1 for none."""
        known = self._versions.get(namespace_id)
        return self._meta.namespaces.get(namespace_id, -1) if known is None else known

    def put_namespace(self, namespace_id: str, version: int, row: bytes) -> None:
        """The shard learns of a namespace, or of its new version."""
        self.rows.put(keys.namespace(namespace_id), row)
        self._versions[namespace_id] = version
        self._namespaces.pop(namespace_id, None)

    # ---- time zones -------------------------------------------------------------------------------------------------

    def zone(self, name: str) -> Zone | None:
        """A time zone as the facts of records have told it to this shard; "" is UTC."""
        if not name:
            return UTC
        row = self.rows.get(keys.zone(name))
        return None if row is None else Zone.decode(row.decode())

    def zone_facts(self, name: str) -> dict[str, str]:
        """The facts by which a message tells another shard of a zone."""
        row = self.rows.get(keys.zone(name)) if name else None
        return {} if row is None else {ZONE_FACT + name: row.decode()}

    def learn(self, facts: dict[str, str]) -> None:
        """Takes what the proposer of the record has looked up."""
        for name, value in facts.items():
            if name.startswith(ZONE_FACT):
                key, row = keys.zone(name.removeprefix(ZONE_FACT)), value.encode()
                if self.rows.get(key) != row:
                    self.rows.put(key, row)

    # ---- runs -------------------------------------------------------------------------------------------------------

    def load(self, key: bytes, *, quarantined: bool = False) -> Run | None:
        """The run under a row key, or None.

        Args:
            key: of the row.
            quarantined: the caller can do with a quarantined run: it reads its core, or ends it. One whose row cannot
                be read is put together from its history then, as far as that goes.

        Raises:
            Quarantined: the run is, and the caller cannot.
        """
        run = load_run(self.rows, self.cache, key)
        if run is None:
            return None
        self.loaded.add(key)
        return run if quarantined else self.sound(run)

    def sound(self, run: Run) -> Run:
        """The run, which is not quarantined.

        Raises:
            Quarantined: it is.
        """
        if run.quarantined:
            raise Quarantined(run_row(run), run.quarantined)
        return run

    def savepoint(self) -> None:
        """What the step did until here stays if the step does, whatever becomes of the rest."""
        self.rows.savepoint()
        self._saved = self.mark()

    def mark(self) -> Mark:
        """Where the step is now."""
        return Mark(
            self.rows.step_writes(),
            self.step.copy(),
            self._ids,
            self._index,
            dict(self._links),
            dict(self._versions),
            list(self.waiting),
            self.facts,
        )

    def go_back(self, mark: Mark | None = None) -> None:
        """Undoes all that the step did since the mark: rows, outputs, news, runs. Without one, since its beginning or
        its last savepoint.
        """
        mark = mark or self._saved
        self.rows.drop_step(mark.writes)
        for key in self.loaded:
            self.cache.drop(key)
        for namespace_id in self._versions:
            self._namespaces.pop(namespace_id, None)
        self.step, self._ids, self._index = mark.step.copy(), mark.ids, mark.index
        self._links, self._versions = dict(mark.links), dict(mark.versions)
        self.waiting = list(mark.waiting)
        self.facts = mark.facts
        self.turned = set()

    def abandon(self) -> None:
        """The record is not folded after all: nothing of the step is left."""
        self.rows.abandon_step()
        for key in self.loaded:
            self.cache.drop(key)
        for namespace_id in self._versions:
            self._namespaces.pop(namespace_id, None)

    def start_over(self, run: Run) -> Run:
        """Goes back, and returns the run as it was then."""
        self.go_back()
        again = self.load(run_row(run))
        if again is None:
            raise AssertionError(f"a run that this step made cannot be reloaded: {run.workflow_id} {run.run_id}")
        return again

    def put_run(self, run: Run) -> bytes:
        """Writes the run's row, and returns its key."""
        key, row = run_row(run), encode_run(run)
        self.rows.put(key, row)
        run.row_bytes = len(row)
        return key

    def find(
        self, namespace_id: str, namespace: str, workflow_id: str, run_id: str, *, quarantined: bool = False
    ) -> Run | None:
        """The named run, or the current one of the workflow id when `run_id` is empty.

        Raises:
            Quarantined: as of `load`.
        """
        slot = slot_of(namespace, workflow_id)
        if not run_id:
            pointer = self.rows.get(keys.current(slot, namespace_id, workflow_id))
            if pointer is None:
                return None
            run_id = pointer.decode()
        return self.load(keys.run(slot, namespace_id, workflow_id, run_id), quarantined=quarantined)

    # ---- outputs ----------------------------------------------------------------------------------------------------

    def emit(self, topic: Topic, partition: int, key: bytes, schema: str, record: dict[str, Any]) -> Origin:
        """Adds a record to the outbox, with its origin and that of its predecessor on the same partition."""
        origin, predecessor = self._link(topic, partition)
        record["origin"] = origin._asdict()
        record["predecessor"] = None if predecessor is None else predecessor._asdict()
        self._put(origin, topic, partition, key, codec.encode(schema, record))
        return origin

    def emit_tombstone(self, topic: Topic, partition: int, key: bytes) -> None:
        """Adds a tombstone to the outbox. It has no envelope, so it takes no place in the chain (law 10)."""
        origin = Origin("SHARD_LOG", self.facts.shard, self.epoch, self.offset, self._index)
        self._index += 1
        self._put(origin, topic, partition, key, None)

    def next_output(self) -> Origin:
        """The origin that the next output of this step will have."""
        return Origin("SHARD_LOG", self.facts.shard, self.epoch, self.offset, self._index)

    def task_partition(self, namespace_id: str, task_queue: str) -> int:
        """The task partition of a queue."""
        return task_partition(namespace_id, task_queue, self.limits["matching.partitions"])

    def commit(self) -> None:
        """The step succeeded: its rows stay, the shard's own too, and its outputs are the last of their chains."""
        meta = self._meta
        for name in self._changed:
            setattr(meta, name, getattr(self.facts, name))
        if self.took is not None:
            source, place = self.took
            meta.received[source] = place
            if source.startswith(COMMANDS_SOURCE):
                meta.commands_epoch, meta.commands_offset = place[:2]
        meta.chains.update(self._links)
        meta.namespaces.update(self._versions)
        self.rows.commit_step()

    def _link(self, topic: Topic, partition: int) -> tuple[Origin, Origin | None]:
        chain = f"{topic.name}/{partition}"
        shard = self.facts.shard
        last = self._links.get(chain) or self._meta.chains.get(chain)
        origin = Origin("SHARD_LOG", shard, self.epoch, self.offset, self._index)
        self._index += 1
        self._links[chain] = origin.place
        return origin, None if last is None else Origin("SHARD_LOG", shard, *last)

    def _put(self, origin: Origin, topic: Topic, partition: int, key: bytes, value: bytes | None) -> None:
        self.rows.put(
            keys.outbox(origin.epoch, origin.offset, origin.index), msgpack.packb((topic.name, partition, key, value))
        )
        self.step.outputs.append(OutboxRow(origin, topic.name, partition, key, value))


def run_row(run: Run) -> bytes:
    """Row key of a run's mutable state."""
    return keys.run(run.slot, run.namespace_id, run.workflow_id, run.run_id)


def namespace_from_record(record: dict[str, Any]) -> NamespaceInfo:
    """The machine's view of a `Namespace` record."""
    return NamespaceInfo(
        record["namespace_id"],
        record["name"],
        record["version"],
        record["state"],
        record["retention_ns"],
        dict(record["search_attributes"]),
        record["deleted"],
    )
