"""The contract of a shard's rows, over a dictionary and RocksDB, and what RocksDB adds: files that may be wrong."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everfold.history.giving_up import StoreCorrupt, StoreRefused, StoreTrouble
from everfold.history.ports import BatchStore
from everfold.history.store import (
    RocksStore,
    StoreMemory,
    damaged,
    open_store,
    set_aside,
    set_aside_bytes,
    shard_directory,
)
from history_shell.world import DictStore

Make = Callable[[], BatchStore]


@pytest.fixture(scope="module")
def memory() -> StoreMemory:
    return StoreMemory(8 << 20, 4 << 20)


@pytest.fixture(params=["dictionary", "rocksdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path, memory: StoreMemory) -> Iterator[BatchStore]:
    if request.param == "dictionary":
        yield DictStore()
        return
    rocks = open_store(tmp_path, 0, "cluster", memory)
    yield rocks
    rocks.close()


def test_a_row_that_is_not_there_is_none(store: BatchStore) -> None:
    assert store.get(b"a") is None


def test_a_batch_puts_and_deletes(store: BatchStore) -> None:
    store.write({b"a": b"1", b"b": b"2", b"c": b""})
    store.write({b"a": None, b"b": b"3", b"never": None})
    assert [store.get(key) for key in (b"a", b"b", b"c")] == [None, b"3", b""]


def test_a_scan_is_ordered_and_ends_before_its_end(store: BatchStore) -> None:
    store.write({b"\x00b": b"2", b"\x00a": b"1", b"\x01": b"3", b"\xff\xff": b"4"})
    assert list(store.scan(b"\x00", b"\x01")) == [(b"\x00a", b"1"), (b"\x00b", b"2")]
    assert list(store.scan(b"\x00a\x00", b"\xff\xff\xff")) == [(b"\x00b", b"2"), (b"\x01", b"3"), (b"\xff\xff", b"4")]
    assert list(store.scan(b"\x02", b"\x03")) == []


def test_a_reverse_scan_has_the_same_rows_the_other_way_round(store: BatchStore) -> None:
    store.write({bytes((n,)): b"v" for n in range(10)})
    assert list(store.scan(b"\x02", b"\x05", reverse=True)) == list(store.scan(b"\x02", b"\x05"))[::-1]


def test_a_scan_may_be_left_early_and_rows_written_meanwhile(store: BatchStore) -> None:
    store.write({bytes((n,)): b"v" for n in range(10)})
    for key, _ in store.scan(b"\x00", b"\xff"):
        if key == b"\x03":
            break
    store.write({b"\x04": None})
    assert len(list(store.scan(b"\x00", b"\xff"))) == 9


operations = st.lists(
    st.dictionaries(st.binary(min_size=1, max_size=3), st.one_of(st.none(), st.binary(max_size=4)), max_size=6),
    max_size=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=operations, start=st.binary(max_size=3), end=st.binary(max_size=3), reverse=st.booleans())
def test_rocksdb_and_the_dictionary_agree(
    tmp_path: Path,
    memory: StoreMemory,
    batches: list[dict[bytes, bytes | None]],
    start: bytes,
    end: bytes,
    reverse: bool,
) -> None:
    set_aside(tmp_path, 7, "test")
    rocks, plain = open_store(tmp_path, 7, "cluster", memory), DictStore()
    try:
        for batch in batches:
            rocks.write(batch)
            plain.write(batch)
        assert list(rocks.scan(start, end, reverse=reverse)) == list(plain.scan(start, end, reverse=reverse))
        for key in {key for batch in batches for key in batch}:
            assert rocks.get(key) == plain.get(key)
    finally:
        rocks.close()


# ---- files


def reopened(tmp_path: Path, memory: StoreMemory) -> RocksStore:
    return open_store(tmp_path, 0, "cluster", memory)


def test_rows_are_there_after_a_clean_close(tmp_path: Path, memory: StoreMemory) -> None:
    first = reopened(tmp_path, memory)
    first.write({b"a": b"1"})
    first.close()
    first.close()
    again = reopened(tmp_path, memory)
    assert again.get(b"a") == b"1"
    again.close()


def test_a_crash_loses_whole_batches_from_the_end_only(tmp_path: Path) -> None:
    """Without a WAL everything since the last flush is gone, and nothing before it."""
    program = f"""
import os
from pathlib import Path
from everfold.history.store import StoreMemory, open_store
store = open_store(Path({str(tmp_path)!r}), 0, "cluster", StoreMemory(1 << 20, 1 << 20))
for n in range(10):
    store.write({{b"meta": b"%d" % n, b"row%d" % n: b"x"}})
store.flush()
for n in range(10, 20):
    store.write({{b"meta": b"%d" % n, b"row%d" % n: b"x"}})
os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 9
    store = open_store(tmp_path, 0, "cluster", StoreMemory(1 << 20, 1 << 20))
    applied = int(store.get(b"meta") or b"-1")
    assert applied >= 9
    assert [store.get(b"row%d" % n) for n in range(applied + 1)] == [b"x"] * (applied + 1)
    assert store.get(b"row%d" % (applied + 1)) is None
    store.close()


def test_rows_are_written_and_read_while_another_thread_flushes_and_closes(tmp_path: Path, memory: StoreMemory) -> None:
    store = reopened(tmp_path, memory)

    def flush_often() -> None:
        for _ in range(20):
            store.flush()

    flushing = [threading.Thread(target=flush_often) for _ in range(2)]
    for thread in flushing:
        thread.start()
    for number in range(300):
        store.write({b"%d" % number: b"x" * 100})
        assert store.get(b"%d" % number) is not None
    closing = threading.Thread(target=store.close)
    closing.start()
    for thread in (*flushing, closing):
        thread.join()
    again = reopened(tmp_path, memory)
    assert sum(1 for _ in again.scan(b"0", b":")) == 300
    again.close()


def test_a_store_of_another_cluster_is_refused(tmp_path: Path, memory: StoreMemory) -> None:
    reopened(tmp_path, memory).close()
    with pytest.raises(StoreRefused, match="belongs to cluster cluster, this is cluster other"):
        open_store(tmp_path, 0, "other", memory)


def test_a_store_of_a_later_version_is_refused(tmp_path: Path, memory: StoreMemory) -> None:
    reopened(tmp_path, memory).close()
    marker = shard_directory(tmp_path, 0) / "everfold.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": 99}))
    with pytest.raises(StoreRefused, match="format 99"):
        reopened(tmp_path, memory)


def test_a_directory_renamed_to_another_shard_is_refused(tmp_path: Path, memory: StoreMemory) -> None:
    reopened(tmp_path, memory).close()
    shard_directory(tmp_path, 0).rename(shard_directory(tmp_path, 1))
    with pytest.raises(StoreRefused, match="holds shard 0, expected 1"):
        open_store(tmp_path, 1, "cluster", memory)


def test_a_store_that_another_process_has_open_is_refused(tmp_path: Path, memory: StoreMemory) -> None:
    first = reopened(tmp_path, memory)
    program = f"""
from pathlib import Path
from everfold.history.giving_up import StoreRefused
from everfold.history.store import StoreMemory, open_store
try:
    open_store(Path({str(tmp_path)!r}), 0, "cluster", StoreMemory(1 << 20, 1 << 20))
except StoreRefused as refused:
    print(refused)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "in use by another process" in done.stdout
    first.close()


def test_a_store_that_this_process_has_open_is_tried_again(tmp_path: Path, memory: StoreMemory) -> None:
    """The process must not end for it, as a store that is "in use" makes it do."""
    first = reopened(tmp_path, memory)
    with pytest.raises(StoreTrouble, match="still held by this very process"):
        reopened(tmp_path, memory)
    first.close()
    reopened(tmp_path, memory).close()


@pytest.mark.parametrize("pattern", ["MANIFEST-*", "CURRENT", "*.sst"])
@pytest.mark.parametrize("how", ["overwritten", "missing"])
def test_damaged_files_are_named_and_the_store_is_kept(
    tmp_path: Path, memory: StoreMemory, pattern: str, how: str
) -> None:
    first = reopened(tmp_path, memory)
    first.write({b"a": b"1"})
    first.close()
    (damaged,) = (shard_directory(tmp_path, 0) / "rows").glob(pattern)
    if how == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(b"\0" * 40)
    with pytest.raises(StoreCorrupt):
        reopened(tmp_path, memory)
    kept = set_aside(tmp_path, 0, "test").path
    assert kept is not None
    assert (kept / "everfold.json").exists()
    again = reopened(tmp_path, memory)
    assert again.get(b"a") is None
    again.close()


def flip_a_bit(tmp_path: Path) -> None:
    """In the middle of the first block of rows."""
    (file,) = (shard_directory(tmp_path, 0) / "rows").glob("*.sst")
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


def full_store(tmp_path: Path, memory: StoreMemory) -> None:
    store = reopened(tmp_path, memory)
    store.write({b"%05d" % number: os.urandom(100) for number in range(1000)})
    store.close()


def test_a_flipped_bit_is_named_wherever_it_is_met_and_the_store_can_be_closed_and_opened_again(
    tmp_path: Path, memory: StoreMemory
) -> None:
    full_store(tmp_path, memory)
    flip_a_bit(tmp_path)
    told: list[StoreCorrupt] = []
    store = open_store(tmp_path, 0, "cluster", memory, told.append)
    with pytest.raises(StoreCorrupt, match="checksum mismatch") as from_get:
        store.get(b"00000")
    with pytest.raises(StoreCorrupt, match="checksum mismatch") as from_scan:
        list(store.scan(b"", b"9", reverse=True))
    assert told == [from_get.value, from_scan.value]
    left_early = store.scan(b"005", b"009")
    assert next(left_early)
    store.close()
    # The errors' tracebacks and the scan are still held; none of them may hold the database's lock.
    reopened(tmp_path, memory).close()
    assert next(left_early, None) is None


def test_a_store_that_was_set_aside_keeps_every_byte(tmp_path: Path, memory: StoreMemory) -> None:
    assert set_aside(tmp_path, 0, "nothing") == (None, 0)
    sizes = []
    for _ in range(3):  # within a second, as a rule: the names must differ all the same
        full_store(tmp_path, memory)
        size = sum(file.stat().st_size for file in shard_directory(tmp_path, 0).rglob("*") if file.is_file())
        kept = set_aside(tmp_path, 0, "test")
        assert kept.path is not None
        assert kept.path.name.startswith("shard-0000.set-aside-")
        assert kept.size_bytes == size
        assert not shard_directory(tmp_path, 0).exists()
        sizes.append(size)
    assert set_aside_bytes(tmp_path) == sum(sizes)


@pytest.mark.parametrize("free", range(7))
def test_too_few_file_descriptors_are_no_damage(tmp_path: Path, memory: StoreMemory, free: int) -> None:
    full_store(tmp_path, memory)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(used - len(os.listdir("/proc/self/fd")) + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + free, before[1]))
    try:
        with contextlib.suppress(StoreTrouble, OSError):
            reopened(tmp_path, memory).close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)
    again = reopened(tmp_path, memory)
    assert again.get(b"00000") is not None
    again.close()


@pytest.mark.parametrize(
    ("text", "is_damage"),
    [
        ("Corruption: block checksum mismatch: stored = 1, computed = 2", True),
        ("IO error: No such file or directory: While open a file for random read: 000008.sst", True),
        ("Corruption: IO error: While open a file for random read: 000008.sst: Too many open files", False),
        ("IO error: While open a file for appending: 000018.dbtmp: Permission denied", False),
        ("IO error: No space left on device: While appending to file: 000009.sst", False),
        ("IO error: While pread offset 0 len 4096: 000008.sst: Input/output error", False),
        ("IO error: While open a file for random read: 000008.sst: Cannot allocate memory", False),
        ("Invalid argument: Column family not found", False),
    ],
)
def test_only_what_the_files_hold_is_damage(text: str, is_damage: bool) -> None:
    assert damaged(text) is is_damage


def test_rows_without_a_marker_are_not_believed(tmp_path: Path, memory: StoreMemory) -> None:
    reopened(tmp_path, memory).close()
    (shard_directory(tmp_path, 0) / "everfold.json").unlink()
    with pytest.raises(StoreCorrupt):
        reopened(tmp_path, memory)
