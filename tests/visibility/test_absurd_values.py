"""Values at the edge in the index: whatever a client could set is folded in, found, and stops nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.api.common.v1 import message_pb2 as common

from everfold.visibility.store import VisibilityStore, open_visibility
from visibility.records import NAMESPACE_ID, TYPES, attributes, record


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VisibilityStore]:
    opened = open_visibility(f"sqlite:///{tmp_path}/index.db")
    yield opened
    opened.close()


def ids(store: VisibilityStore, query: str = "") -> list[str]:
    infos, _ = store.list(NAMESPACE_ID, query, 0, b"", TYPES)
    return sorted(info.execution.workflow_id for info in infos)


def payload(kind: bytes, data: bytes, encoding: bytes = b"json/plain") -> bytes:
    message = common.SearchAttributes()
    message.indexed_fields["Customer"].metadata["encoding"] = encoding
    message.indexed_fields["Customer"].metadata["type"] = kind
    message.indexed_fields["Customer"].data = data
    return message.SerializeToString()


INSTANTS = {
    "the first": "0001-01-01T00:00:00Z",
    "1600": "1600-01-01T00:00:00Z",
    "1677": "1677-09-21T00:12:43Z",
    "1970": "1970-01-01T00:00:00Z",
    "2262": "2262-04-11T23:47:17Z",
    "2300": "2300-01-01T00:00:00.123456789Z",
    "the last": "9999-12-31T23:59:59Z",
}


def test_instants_beyond_64_bits_of_nanoseconds_are_found(store: VisibilityStore) -> None:
    """They stopped the index, for all namespaces. As a real server finds them."""
    store.upsert([record(name, searched=attributes(Due=instant)) for name, instant in INSTANTS.items()])
    assert ids(store, "Due > '1500-01-01T00:00:00Z'") == sorted(set(INSTANTS) - {"the first"})
    assert ids(store, "Due < '1700-01-01T00:00:00Z'") == ["1600", "1677", "the first"]
    assert ids(store, "Due > '2262-04-12T00:00:00Z'") == ["2300", "the last"]
    assert ids(store, "Due BETWEEN '1600-01-01T00:00:00Z' AND '2300-01-01T00:00:00.123456789Z'") == [
        "1600",
        "1677",
        "1970",
        "2262",
        "2300",
    ]
    for name, instant in INSTANTS.items():
        assert ids(store, f"Due = '{instant}'") == [name]


def test_instants_in_queries_may_be_any(store: VisibilityStore) -> None:
    store.upsert([record("w", started=1, closed=2, status="Completed")])
    assert ids(store, "StartTime > '0001-01-01T00:00:00Z' AND StartTime < '9999-12-31T23:59:59Z'") == ["w"]
    assert ids(store, "ExecutionDuration < '99999999999999999999h'") == ["w"]
    assert ids(store, "ExecutionDuration < '99999999999999999999999999'") == ["w"]


def test_half_a_surrogate_pair_is_found_as_the_replacement_character(store: VisibilityStore) -> None:
    """It stopped the index, for all namespaces."""
    store.upsert(
        [
            record("keyword", searched=attributes(Customer="a\ud800")),
            record("list", searched=attributes(Tags=["\udfff", "x"])),
            record("text", searched=attributes(Notes="one \ud800 two")),
        ]
    )
    assert ids(store, "Customer = 'a\ufffd'") == ["keyword"]
    assert ids(store, "Tags = '\ufffd'") == ["list"]
    assert ids(store, "Notes = 'two'") == ["text"]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"\xff\xfe", b'"x"'),
        (b"Quaternion", b'"x"'),
        (b"Double", b"1" * 400),
        (b"Double", b"NaN"),
        (b"Double", b"-Infinity"),
        (b"Int", b"1" * 30),
        (b"Keyword", b"[" * 100_000),
        (b"KeywordList", b'["a\xff"]'),
        (b"Bool", b"2"),
        (b"Text", b'"a\\u0000b"'),
    ],
)
def test_a_value_that_nobody_could_mean_is_listed_all_the_same(
    store: VisibilityStore, kind: bytes, data: bytes
) -> None:
    store.upsert([record("w", searched=payload(kind, data)), record("other")])
    assert ids(store) == ["other", "w"]
    assert ids(store, "Customer IS NULL") in (["other"], ["other", "w"])
