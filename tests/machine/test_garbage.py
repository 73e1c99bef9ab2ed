"""What no Everfold wrote is set aside by every build alike, and costs neither a shard nor a run (law 9)."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_logs import Player, program_of
from shard_driver import NAMESPACE_ID, DictRows, ShardDriver, complete_workflow

from everfold.history.machine import keys
from everfold.history.machine.shard_fold import LogRecord, ShardFold
from everfold.kernel.errors import ShardLost, UnknownFeatureLevel
from everfold.kernel.features import FEATURE_LEVEL, SINCE
from everfold.schemas import codec

SHARD_RECORD = codec.head(0x45560001)


def record(kind: str, body: tuple[str, dict[str, Any]], **fields: Any) -> bytes:
    proposer = {"instance": 9, "sequence": 1, "clock_ns": 1}
    return codec.encode_shard_record({"kind": kind, "proposer": proposer, "body": body, **fields})


ABOUT_W = {"namespace_id": NAMESPACE_ID, "workflow_id": "w"}

UNREADABLE = {
    "nothing, or a tombstone": b"",
    "text": b"hello",
    "framing cut off": SHARD_RECORD[:4],
    "no record behind its framing": SHARD_RECORD,
    "bytes behind a record": record("SHARD_TAKEN", ("ShardTaken", {"owner": "o"})) + b"!",
    "the schema of a registry": b"\0" + struct.pack(">I", 7) + b"xyz",
    "a schema of our own to come": codec.head(0x4556FFFF) + b"xyz",
    "a record of another topic": codec.head(0x45560002) + b"\0\0",
    "a kind that is never written": record("UNKNOWN", ("Request", {"message": b""})),
    "another kind's body": record("FIRE_TIMER", ("Empty", {}), **ABOUT_W),
    "an engine record with a request": record("OUTPUTS_SENT", ("Request", {"message": b""})),
}

ABSURD = {
    "a request that is none": record("SIGNAL_WORKFLOW", ("Request", {"message": b"\xff\xff"}), **ABOUT_W),
    "a completion that is none": record("COMPLETE_WORKFLOW_TASK", ("Request", {"message": b"\xff\xff"}), **ABOUT_W),
    "a message that is none": record(
        "CROSS_RUN", ("CrossRun", {"message_kind": "Signal", "message": b"\xc1"}), **ABOUT_W
    ),
    "a message of one number": record(
        "CROSS_RUN", ("CrossRun", {"message_kind": "Signal", "message": b"\x07"}), **ABOUT_W
    ),
    "a child's start that is none": record(
        "CROSS_RUN", ("CrossRun", {"message_kind": "StartChild", "message": b"\x80"}), **ABOUT_W
    ),
    "a message of a kind that is none": record(
        "CROSS_RUN", ("CrossRun", {"message_kind": "Shout", "message": b"\x80"}), **ABOUT_W
    ),
    "a timer before all time": record("FIRE_TIMER", ("FireTimer", {"due_at_ns": -5}), **ABOUT_W),
    "a namespace that is none": record("NAMESPACE_CHANGED", ("NamespaceChanged", {"version": 9, "namespace": b"junk"})),
    "outputs before the first": record(
        "OUTPUTS_SENT",
        (
            "OutputsSent",
            {
                "position": {"source": "SHARD_LOG", "partition": 0, "epoch": -7, "offset": -7, "index": -7},
                "offset": 1,
                "epoch": 0,
                "state_hash": b"",
            },
        ),
    ),
}


def count_of(shard: ShardDriver) -> Any:
    return msgpack.unpackb(shard.store.rows.get(keys.GARBAGE, msgpack.packb([0, -1])))


@pytest.mark.parametrize("value", [*UNREADABLE.values(), *ABSURD.values()], ids=[*UNREADABLE, *ABSURD])
def test_it_is_set_aside_and_the_shard_and_its_runs_go_on(shard: ShardDriver, value: bytes) -> None:
    shard.start()
    task = shard.poll()
    before = dict(shard.store.rows)
    state_hash = shard.fold.meta.state_hash
    step = shard._fold(value)
    assert step.set_aside
    assert (step.outputs, step.offers, step.quarantined, step.changed) == ([], [], [], [])
    assert count_of(shard) == [1, len(shard.log) - 1]
    unlike = {key for key in before.keys() | shard.store.rows.keys() if before.get(key) != shard.store.rows.get(key)}
    assert unlike == {keys.GARBAGE, keys.META}
    assert shard.fold.meta.state_hash != state_hash, "builds that disagree about a record have to be found out"
    shard.signal()
    shard.complete(task)
    shard.complete(shard.poll(), complete_workflow())


def test_a_thousand_of_them_are_counted_in_one_row(shard: ShardDriver) -> None:
    shard.replay = False
    shard.start()
    rows = len(shard.store.rows)
    for number in range(1000):
        shard._fold(b"junk %d" % number)
    assert count_of(shard) == [1000, len(shard.log) - 1]
    assert len(shard.store.rows) == rows + 1
    shard.check_replay()


def test_garbage_before_genesis_is_set_aside_too() -> None:
    genesis = ShardDriver(replay=False).log[0]
    fold = ShardFold(0, DictRows(), 1)
    assert fold.fold(LogRecord(b"junk", 0, 0, 1)).set_aside
    assert fold.fold(LogRecord(record("GENESIS", ("Genesis", {"cluster_id": "c", "shard": 5, "shard_count": 8,
                                                              "feature_level": 1})), 1, 0, 1)).set_aside  # fmt: skip
    fold.fold(genesis._replace(offset=2))
    assert fold.meta.cluster_id == "test"


def test_it_does_not_move_the_clock(shard: ShardDriver) -> None:
    clock_ns = shard.fold.meta.clock_ns
    shard.now_ns += 10**15
    shard._fold(b"junk")
    assert shard.fold.meta.clock_ns == clock_ns


def test_what_a_later_level_knows_is_garbage_below_it_for_every_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer build, which can read it, must not: an old one beside it cannot."""
    newer = ShardDriver(replay=False)
    newer.fold.feature_level_known = FEATURE_LEVEL + 1
    monkeypatch.setitem(SINCE, "REPUBLISH_VISIBILITY", FEATURE_LEVEL + 1)
    assert newer.append("REPUBLISH_VISIBILITY", {}).set_aside
    newer.append("FEATURE_LEVEL_RAISED", {"feature_level": FEATURE_LEVEL + 1})
    assert not newer.append("REPUBLISH_VISIBILITY", {}).set_aside
    monkeypatch.delitem(SINCE, "REPUBLISH_VISIBILITY")
    monkeypatch.setitem(SINCE, codec.registry.current("ShardRecord").id, FEATURE_LEVEL + 2)
    assert newer.append("REPUBLISH_VISIBILITY", {}).set_aside


def test_a_log_of_a_newer_level_still_stops_a_build_that_is_too_old(shard: ShardDriver) -> None:
    with pytest.raises(UnknownFeatureLevel):
        shard.append("FEATURE_LEVEL_RAISED", {"feature_level": FEATURE_LEVEL + 1})


def test_trouble_of_the_host_is_not_garbage(shard: ShardDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may have memory and a disk, and would fold the record: setting it aside would part the two."""
    for trouble in (MemoryError(), ShardLost()):

        def fail(*_: object, trouble: BaseException = trouble) -> None:
            raise trouble

        monkeypatch.setattr(ShardFold, "_settings_changed", fail)
        monkeypatch.setattr("everfold.history.machine.shard_fold._ENGINE", {"SETTINGS_CHANGED": fail})
        with pytest.raises(type(trouble)):
            shard.append("SETTINGS_CHANGED", {"settings": {}})
        shard.log.pop()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 7), data=st.data())
def test_bytes_that_were_damaged_on_their_way_never_stop_a_shard(seed: int, data: st.DataObject) -> None:
    """Copies of real records with bytes flipped or cut off, between the real ones."""
    player = Player()
    player.play(program_of(seed, 40))
    rows = DictRows()
    fold = ShardFold(0, rows, 1 << 20)
    at = 0
    for real in player.log:
        values = [real.value]
        if at and data.draw(st.integers(0, 9)) == 0:
            damaged = bytearray(real.value)
            for _ in range(data.draw(st.integers(1, 3))):
                damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            values.insert(0, bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))]))
        for value in values:
            try:
                fold.fold(LogRecord(value, at, real.epoch, real.timestamp_ms))
            except UnknownFeatureLevel:
                return
            at += 1
    rows.write(fold.take_writes())
