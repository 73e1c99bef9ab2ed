from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.api.common.v1 import message_pb2 as common

from everfold.kernel.errors import Code, StatusError
from everfold.visibility.store import (
    IndexUnusable,
    Position,
    PositionMoved,
    VisibilityStore,
    open_visibility,
)
from visibility.records import NAMESPACE_ID, SECOND, TYPES, attributes, record


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VisibilityStore]:
    opened = open_visibility(f"sqlite:///{tmp_path}/index.db")
    yield opened
    opened.close()


def ids(store: VisibilityStore, query: str = "") -> list[str]:
    infos, _ = store.list(NAMESPACE_ID, query, 0, b"", TYPES)
    return [info.execution.workflow_id for info in infos]


def refusal_of(question: Callable[[], object]) -> StatusError | None:
    try:
        question()
    except StatusError as refusal:
        return refusal
    return None


def test_open_runs_come_first_then_the_last_closed_then_the_last_started(store: VisibilityStore) -> None:
    store.upsert(
        [
            record("closed-early", started=1, closed=10, status="Completed"),
            record("open-old", started=2),
            record("closed-late", started=1, closed=20, status="Failed"),
            record("open-new", started=3),
        ]
    )
    assert ids(store) == ["open-new", "open-old", "closed-late", "closed-early"]


def test_pages_join_without_repeats_or_holes_while_runs_close(store: VisibilityStore) -> None:
    runs = [record(f"w{n:02}", started=n // 3, closed=None if n % 2 else 100 + n // 4, offset=n) for n in range(40)]
    store.upsert(runs)
    whole = ids(store)
    assert len(whole) == 40
    paged: list[str] = []
    token = b""
    while True:
        infos, token = store.list(NAMESPACE_ID, "", 7, token, TYPES)
        paged += [info.execution.workflow_id for info in infos]
        if not token:
            break
    assert paged == whole


def test_a_page_token_of_another_make_is_refused(store: VisibilityStore) -> None:
    store.upsert([record("w")])
    for token in (b"junk", b"[]", b'{"a": 1}', b'["x", 1, 2]', b"\xff"):
        with pytest.raises(StatusError) as refused:
            store.list(NAMESPACE_ID, "", 10, token, TYPES)
        assert refused.value.code is Code.INVALID_ARGUMENT


def test_an_earlier_record_never_overwrites_a_later_one(store: VisibilityStore) -> None:
    store.upsert([record("w", offset=5, closed=9, status="Completed")])
    assert store.upsert([record("w", offset=4)]) == 0
    assert ids(store, "ExecutionStatus = 'Completed'") == ["w"]
    store.upsert([record("w", offset=2, epoch=1, status="Failed", closed=9)])
    assert ids(store, "ExecutionStatus = 'Failed'") == ["w"], "a later epoch is later, whatever its offset"


def test_a_deleted_run_is_gone_with_its_attributes(store: VisibilityStore) -> None:
    store.upsert([record("w", offset=1, searched=attributes(Customer="c", Tags=["a"], Notes="hello"))])
    store.upsert([record("w", offset=2, deleted=True)])
    assert ids(store) == []
    assert ids(store, "Customer = 'c' OR Tags = 'a' OR Notes = 'hello'") == []
    with sqlite3.connect(store.path) as raw:
        for table in ("executions", "keywords", "texts", "text_words"):
            assert raw.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    raw.close()


RUNS: list[dict[str, Any]] = [
    record(
        "a",
        started=10,
        searched=attributes(
            Customer="ann",
            Amount=5,
            Weight=1.5,
            Paid=True,
            Due="2024-05-01T00:00:00Z",
            Tags=["x", "y"],
            Notes="the quick brown fox",
        ),
    ),
    record("b", started=20, closed=25, status="Completed", searched=attributes(Customer="bob", Amount=7, Tags=["y"])),
    record("c", started=30, closed=90, status="Failed", workflow_type="Refund", parent_workflow_id="a"),
    record("d'%", started=40, searched=attributes(TemporalNamespaceDivision="TemporalScheduler")),
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "abc"),
        ("WorkflowId = 'a'", "a"),
        ("WorkflowId != 'a'", "bc"),
        ("WorkflowId STARTS_WITH 'a'", "a"),
        ("WorkflowId NOT STARTS_WITH 'a'", "bc"),
        ("WorkflowId IN ('a', 'c')", "ac"),
        ("WorkflowId NOT IN ('a', 'c')", "b"),
        ("WorkflowId BETWEEN 'a' AND 'b'", "ab"),
        ("NOT (WorkflowId = 'a' OR WorkflowId = 'b')", "c"),
        ("ExecutionStatus = 'Running'", "a"),
        ("ExecutionStatus IN ('Completed', 3)", "bc"),
        ("WorkflowType = 'Order' AND ExecutionStatus != 'Running'", "b"),
        ("StartTime >= '1970-01-01T00:00:20Z'", "bc"),
        ("CloseTime > 0", "bc"),
        ("CloseTime IS NULL", "a"),
        ("CloseTime IS NOT NULL", "bc"),
        ("ExecutionDuration > '30s'", "c"),
        ("ParentWorkflowId = 'a'", "c"),
        ("ParentWorkflowId IS NULL", "ab"),
        ("Customer = 'ann'", "a"),
        ("Customer != 'ann'", "b"),
        ("Customer > 'ann'", "b"),
        ("Customer IS NULL", "c"),
        ("Customer STARTS_WITH 'b'", "b"),
        ("Amount > 5", "b"),
        ("Amount IN (5, 7)", "ab"),
        ("Weight < 2", "a"),
        ("Paid = true", "a"),
        ("Paid = false", ""),
        ("Due < '2024-06-01T00:00:00+02:00'", "a"),
        ("Tags = 'y'", "ab"),
        ("Tags != 'x'", "bc"),
        ("Tags IN ('x', 'z')", "a"),
        ("Tags NOT IN ('x', 'z')", "bc"),
        ("Notes = 'QUICK'", "a"),
        ("Notes = 'slow fox'", "a"),
        ("Notes = 'qui'", ""),
        ("Notes != 'fox'", "bc"),
        ("Notes = '\"NEAR('", ""),
        ("Customer = 'ann' AND Amount = 5 AND (Paid = false OR Tags = 'x')", "a"),
        ("WorkflowId = 'x'' OR 1=1 --'", ""),
    ],
)
def test_each_condition_selects_these_runs(store: VisibilityStore, query: str, expected: str) -> None:
    store.upsert(RUNS)
    assert "".join(sorted(ids(store, query))) == expected
    assert store.count(NAMESPACE_ID, query, TYPES).count == len(expected)


def test_runs_of_a_division_are_hidden_unless_asked_for(store: VisibilityStore) -> None:
    store.upsert(RUNS)
    assert "d'%" not in ids(store)
    assert ids(store, "TemporalNamespaceDivision = 'TemporalScheduler'") == ["d'%"]
    assert ids(store, "TemporalNamespaceDivision = 'TemporalScheduler' AND WorkflowId = 'd''%'") == ["d'%"]


def test_counts_group_by_status(store: VisibilityStore) -> None:
    store.upsert(RUNS)
    counted = store.count(NAMESPACE_ID, "GROUP BY ExecutionStatus", TYPES)
    assert counted.count == 3
    groups = {json.loads(group.group_values[0].data): group.count for group in counted.groups}
    assert groups == {"Running": 1, "Completed": 1, "Failed": 1}
    assert dict(counted.groups[0].group_values[0].metadata) == {"encoding": b"json/plain", "type": b"Keyword"}


def test_attributes_follow_the_run_as_it_changes(store: VisibilityStore) -> None:
    store.upsert([record("w", offset=1, searched=attributes(Customer="old", Notes="red apple"))])
    store.upsert([record("w", offset=2, searched=attributes(Customer="new", Notes="green pear"))])
    assert ids(store, "Customer = 'old' OR Notes = 'red'") == []
    assert ids(store, "Customer = 'new' AND Notes = 'pear'") == ["w"]
    store.upsert([record("w", offset=3, closed=5, status="Completed")])
    assert ids(store, "Customer IS NULL AND Notes IS NULL") == ["w"]


def test_what_is_listed_carries_memo_attributes_with_their_types_and_times(store: VisibilityStore) -> None:
    memo = common.Memo()
    memo.fields["note"].data = b'"hello"'
    untyped = common.SearchAttributes()
    untyped.indexed_fields["Customer"].data = b'"ann"'
    store.upsert(
        [
            record(
                "w",
                started=3,
                closed=8,
                status="Completed",
                memo=memo.SerializeToString(),
                searched=untyped.SerializeToString(),
                parent_workflow_id="p",
                parent_run_id="pr",
            )
        ]
    )
    ((info,), token) = store.list(NAMESPACE_ID, "", 10, b"", TYPES)
    assert token == b""
    assert info.type.name == "Order"
    assert info.task_queue == "orders"
    assert info.status == 2
    assert (info.start_time.seconds, info.close_time.seconds, info.execution_duration.seconds) == (3, 8, 5)
    assert (info.history_length, info.history_size_bytes, info.state_transition_count) == (5, 500, 3)
    assert info.memo == memo
    assert info.search_attributes.indexed_fields["Customer"].metadata["type"] == b"Keyword"
    assert (info.parent_execution.workflow_id, info.parent_execution.run_id) == ("p", "pr")
    assert info.root_execution.workflow_id == "w"


def test_another_namespace_sees_nothing_of_it(store: VisibilityStore) -> None:
    store.upsert([record("w"), record("v", namespace_id="other")])
    assert ids(store) == ["w"]
    assert store.list("unknown", "", 10, b"", {}) == ([], b"")
    assert store.count("unknown", "", {}).count == 0


def test_rows_and_position_move_together_or_not_at_all(store: VisibilityStore) -> None:
    first = Position(10, (0, 9, 0))
    store.fold("visibility", 0, None, first, [record("a", offset=9)])
    assert store.position("visibility", 0) == first
    with pytest.raises(PositionMoved):
        store.fold("visibility", 0, None, Position(11, (0, 10, 0)), [record("b", offset=10)])
    broken = {**record("c", offset=10), "workflow_id": None}
    with pytest.raises(sqlite3.IntegrityError):
        store.fold("visibility", 0, first, Position(12, (0, 11, 0)), [record("b", offset=10), broken])
    assert store.position("visibility", 0) == first
    assert ids(store) == ["a"]


def test_a_list_of_one_value_is_found_as_the_value(store: VisibilityStore) -> None:
    """Older SDKs send single values in lists, and the checks of search attributes let them pass."""
    store.upsert([record("w", searched=attributes(Customer=["ann"], Amount=[7], Paid=[None], Tags=[["a", "b"]]))])
    assert ids(store, "Customer = 'ann' AND Amount = 7 AND Tags = 'b'") == ["w"]


def test_a_value_that_is_not_of_its_type_is_listed_but_not_found(store: VisibilityStore) -> None:
    store.upsert([record("w", searched=attributes(Amount="many", Due="soon", Paid=3, Customer=7, Weight=True))])
    assert ids(store) == ["w"]
    assert ids(store, "Amount IS NOT NULL OR Due IS NOT NULL OR Paid IS NOT NULL OR Customer IS NOT NULL") == []


def test_readers_in_other_threads_see_what_is_committed(store: VisibilityStore) -> None:
    seen: list[list[str]] = []
    store.upsert([record("w", started=SECOND / SECOND)])
    thread = threading.Thread(target=lambda: seen.append(ids(store)))
    thread.start()
    thread.join()
    assert seen == [["w"]]


def test_a_file_that_cannot_serve_is_refused_with_what_to_do(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE mine (x)")
    raw.close()
    newer = tmp_path / "newer.db"
    open_visibility(str(newer)).close()
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    text = tmp_path / "text.db"
    text.write_text("this is no database, but long enough to be looked at as if it were one" * 20)
    for path, words in ((other, "something else"), (newer, "version 99"), (text, "not a database")):
        with pytest.raises(IndexUnusable, match=words):
            open_visibility(str(path))
    for url in ("postgresql://host/db", "mysql://host/db", "sqlite://host/db", "sqlite:///"):
        with pytest.raises(IndexUnusable):
            open_visibility(url)


# ---- large and deep filters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10, 500, 501, 1_000, 5_000, 50_000])
@pytest.mark.parametrize(("field", "shown"), [("WorkflowId", "'w{}'"), ("Amount", "{}"), ("Tags", "'w{}'")])
def test_a_list_of_any_length_finds_what_is_in_it(store: VisibilityStore, count: int, field: str, shown: str) -> None:
    store.upsert([record(f"w{n}", searched=attributes(Amount=n, Tags=[f"w{n}"])) for n in (0, count - 1, count)])
    values = ", ".join(shown.format(n) for n in range(count))
    assert set(ids(store, f"{field} IN ({values})")) == {"w0", f"w{count - 1}"}
    assert ids(store, f"{field} NOT IN ({values})") == [f"w{count}"]


@pytest.mark.parametrize("condition", ["WorkflowId = 'w{}'", "Customer = 'c{}'", "Tags = 't{}'", "Notes = 'n{}'"])
def test_the_longest_chain_is_answered(store: VisibilityStore, condition: str) -> None:
    searched = attributes(Customer="c994", Tags=["t994"], Notes="n994")
    store.upsert([record("w994", searched=searched), record("other")])
    assert ids(store, " OR ".join(condition.format(n) for n in range(995))) == ["w994"]
    assert ids(store, " AND ".join([condition.format(994)] * 995)) == ["w994"]


@pytest.mark.parametrize("nots", [1, 2, 50, 98, 99])
def test_nots_are_answered_however_many_there_are(store: VisibilityStore, nots: int) -> None:
    store.upsert([record("a", searched=attributes(Amount=1)), record("b", searched=attributes(Amount=2))])
    store.upsert([record("none")])
    found = ["a"] if nots % 2 == 0 else ["b"]
    assert ids(store, "NOT " * nots + "WorkflowId = 'a' AND WorkflowId != 'none'") == found
    assert ids(store, "NOT (" * nots + "WorkflowId = 'a'" + ")" * nots + " AND WorkflowId != 'none'") == found


def test_a_not_over_and_and_or_is_what_it_was(store: VisibilityStore) -> None:
    store.upsert([record("a", started=1), record("b", started=2), record("c", started=3)])
    assert ids(store, "NOT (WorkflowId = 'a' OR WorkflowId = 'b')") == ["c"]
    assert ids(store, "NOT (WorkflowId != 'a' AND WorkflowId != 'b')") == ["b", "a"]
    # What is null is neither, also under a NOT.
    assert ids(store, "NOT (ParentWorkflowId = 'x' OR WorkflowId = 'a')") == []
    assert ids(store, "NOT (ParentWorkflowId = 'x' AND WorkflowId = 'a')") == ["c", "b"]


@pytest.mark.parametrize("levels", [1, 5, 10, 20, 50, 100, 199])
def test_nests_are_answered_or_refused_and_nothing_else(store: VisibilityStore, levels: int) -> None:
    store.upsert([record("a")])
    text = "".join(f"WorkflowId = 'a' {('OR', 'AND')[level % 2]} (" for level in range(levels))
    text += "WorkflowId = 'a'" + ")" * levels
    if (refusal := refusal_of(lambda: ids(store, text))) is None:
        assert ids(store, text) == ["a"]
        assert store.count(NAMESPACE_ID, text, TYPES).count == 1
    else:
        assert levels > 10
        assert refusal.code == Code.INVALID_ARGUMENT
        assert refusal.message.startswith("invalid query: its ANDs and ORs are nested too deeply for the index (")


def test_the_sizes_of_an_open_run_are_not_searched_nor_listed(store: VisibilityStore) -> None:
    sizes = {"history_length": 7, "history_size_bytes": 700, "state_transition_count": 3}
    store.upsert([record("open", **sizes), record("closed", closed=9, status="Completed", **sizes)])
    for field in ("HistoryLength", "HistorySizeBytes", "StateTransitionCount"):
        assert ids(store, f"{field} > 0") == ["closed"]
        assert ids(store, f"{field} IS NULL") == ["open"]
    (opened, closed), _ = store.list(NAMESPACE_ID, "", 0, b"", TYPES)
    assert (opened.history_length, opened.history_size_bytes, opened.state_transition_count) == (0, 0, 0)
    assert (closed.history_length, closed.history_size_bytes, closed.state_transition_count) == (7, 700, 3)


BENT_TOKENS = (
    st.binary(max_size=60)
    | st.text(max_size=30).map(str.encode)
    | st.just(b'{"a":' * 50_000)
    | st.just(b"[" * 100_000)
    | st.just(b'[99999999999999999999999,1,"x"]')
    | st.just(b'[1,2,"\\ud800"]')
)


@given(token=BENT_TOKENS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bent_page_token_gives_a_page_or_is_refused(store: VisibilityStore, token: bytes) -> None:
    refusal = refusal_of(lambda: store.list(NAMESPACE_ID, "", 7, token, TYPES))
    if refusal is not None:
        assert (refusal.code, refusal.message) == (Code.INVALID_ARGUMENT, "invalid NextPageToken")
