"""Routing and derived ids: fixed for ever, so held by values and not by the code that makes them."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.kernel.ids import SLOTS, derived_uuid, murmur2, record_key, shard_of, slot_of


@pytest.mark.parametrize(
    ("data", "java"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_what_kafkas_own_tests_expect(data: bytes, java: int) -> None:
    assert murmur2(data) == java & 0xFFFFFFFF


@given(st.text(min_size=1, max_size=40), st.text(max_size=200), st.integers(0, 12))
def test_a_shard_is_what_the_default_partitioner_makes_of_the_key(namespace: str, workflow_id: str, power: int) -> None:
    shards = 2**power
    partition = (murmur2(record_key(namespace, workflow_id)) & 0x7FFFFFFF) % shards
    assert shard_of(namespace, workflow_id, shards) == partition
    assert slot_of(namespace, workflow_id) % shards == partition
    assert SLOTS % shards == 0


def test_a_slot_is_kept_for_ever() -> None:
    assert slot_of("default", "order-1") == 573


def test_a_derived_id_is_kept_for_ever_and_looks_like_a_real_server_s() -> None:
    derived = derived_uuid("a-cluster", 3, 7, 1234, 0, 1_700_000_000_123_456_789)
    assert derived == "018bcfe5-687b-7cea-951b-8d37a3f0a3e2"
    assert uuid.UUID(derived).version == 7
    assert uuid.UUID(derived).variant == uuid.RFC_4122


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 99), st.integers(0, 2**40), st.integers(0, 99))))
def test_places_that_differ_have_ids_that_differ(places: list[tuple[int, int, int, int]]) -> None:
    assert len({derived_uuid("a-cluster", *place, 0) for place in places}) == len(set(places))
