from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.time import parse_rfc3339
from everfold.visibility.query import NESTING_MAX, QUERY_CHARACTERS_MAX, parse
from everfold.visibility.tree import And, Between, Compare, Field, IsNull, Not, OneOf, Or, StartsWith
from everfold.visibility.values import parse_duration
from visibility.records import TYPES

WORKFLOW_ID = Field("WorkflowId", "Keyword", True)
STATUS = Field("ExecutionStatus", "Status", True)
AMOUNT = Field("Amount", "Int", False)


def where(text: str) -> object:
    return parse(text, TYPES).where


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", None),
        ("  \n ", None),
        ("WorkflowId = 'a'", Compare(WORKFLOW_ID, "=", "a")),
        ('`WorkflowId`="a"', Compare(WORKFLOW_ID, "=", "a")),
        ("WorkflowId <> 'a'", Compare(WORKFLOW_ID, "!=", "a")),
        ("WorkflowId = 'it''s'", Compare(WORKFLOW_ID, "=", "it's")),
        (r"WorkflowId = 'it\'s'", Compare(WORKFLOW_ID, "=", "it's")),
        ("WorkflowId = '%_;--'", Compare(WORKFLOW_ID, "=", "%_;--")),
        ("ExecutionStatus = 'Running'", Compare(STATUS, "=", 1)),
        ("ExecutionStatus = 2", Compare(STATUS, "=", 2)),
        ("ExecutionStatus in ('Running', 2)", OneOf(STATUS, (1, 2), False)),
        ("Amount >= -5", Compare(AMOUNT, ">=", -5)),
        ("Amount NOT IN (1,2)", OneOf(AMOUNT, (1, 2), True)),
        ("Weight = 1", Compare(Field("Weight", "Double", False), "=", 1.0)),
        ("Weight = 1e3", Compare(Field("Weight", "Double", False), "=", 1000.0)),
        ("Paid = TRUE", Compare(Field("Paid", "Bool", False), "=", True)),
        ("StartTime > '1970-01-01T00:00:01Z'", Compare(Field("StartTime", "Datetime", True), ">", 1_000_000_000)),
        ("StartTime > 5", Compare(Field("StartTime", "Datetime", True), ">", 5)),
        ("ExecutionDuration > '1m30s'", Compare(Field("ExecutionDuration", "Duration", True), ">", 90_000_000_000)),
        ("ExecutionDuration > '00:01:30'", Compare(Field("ExecutionDuration", "Duration", True), ">", 90_000_000_000)),
        ("WorkflowId BETWEEN 'a' AND 'b'", Between(WORKFLOW_ID, "a", "b", False)),
        ("WorkflowId NOT STARTS_WITH 'a'", StartsWith(WORKFLOW_ID, "a", True)),
        ("WorkflowId IS NOT NULL", IsNull(WORKFLOW_ID, True)),
        ("NOT Amount = 1", Not(Compare(AMOUNT, "=", 1))),
        (
            "Amount = 1 OR Amount = 2 AND Amount = 3",
            Or((Compare(AMOUNT, "=", 1), And((Compare(AMOUNT, "=", 2), Compare(AMOUNT, "=", 3))))),
        ),
        (
            "(Amount = 1 OR Amount = 2) AND Amount = 3",
            And((Or((Compare(AMOUNT, "=", 1), Compare(AMOUNT, "=", 2))), Compare(AMOUNT, "=", 3))),
        ),
    ],
)
def test_a_filter_becomes_this_tree(text: str, tree: object) -> None:
    assert where(text) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The texts that Temporal 1.30 gives to the same queries.
        ("Foo = 1", "invalid search attribute: Foo"),
        ("workflowid = 'a'", "invalid search attribute: workflowid"),
        ("NamespaceId = 'x'", "invalid search attribute: NamespaceId"),
        (
            "WorkflowId = 1",
            "invalid expression: invalid value type for search attribute WorkflowId of type Keyword: 1 (type: int64)",
        ),
        (
            "WorkflowId = abc",
            "operation is not supported: column name on the right side of comparison expression "
            '(did you forget to quote "abc"?)',
        ),
        ("ExecutionStatus = 'Bogus'", "invalid expression: invalid ExecutionStatus value 'Bogus'"),
        ("ExecutionStatus = 99", "invalid expression: invalid ExecutionStatus value 99"),
        ("StartTime > 'yesterday'", "invalid expression: unable to parse datetime 'yesterday'"),
        ("StartTime > '2020-01-01'", "invalid expression: unable to parse datetime '2020-01-01'"),
        (
            "ExecutionDuration > 'x'",
            "invalid expression: invalid duration value for search attribute ExecutionDuration: x",
        ),
        (
            "HistoryLength > '3'",
            'invalid expression: invalid value type for search attribute HistoryLength of type Int: "3" (type: string)',
        ),
        ("Paid = 1", "invalid expression: invalid value type for search attribute Paid of type Bool: 1 (type: int64)"),
        (
            "Notes > 'hello'",
            "operation is not supported: operator '>' not supported for Text type search attribute 'Notes'",
        ),
        (
            "Notes IN ('a')",
            "operation is not supported: operator 'IN' not supported for Text type search attribute 'Notes'",
        ),
        (
            "Tags > 'a'",
            "operation is not supported: operator '>' not supported for KeywordList type search attribute 'Tags'",
        ),
        (
            "WorkflowId LIKE 'a%'",
            "operation is not supported: operator 'LIKE' not supported for Keyword type search attribute 'WorkflowId'",
        ),
        ("WorkflowId = 'a' ORDER BY StartTime", "operation is not supported: 'ORDER BY' clause"),
        ("WorkflowId = 'a' LIMIT 3", "operation is not supported: 'LIMIT' clause"),
        (
            "GROUP BY WorkflowType",
            "operation is not supported: 'GROUP BY' clause is not supported for search attribute WorkflowType",
        ),
        (
            "GROUP BY ExecutionStatus, WorkflowType",
            "operation is not supported: 'GROUP BY' clause supports only a single field",
        ),
        (
            "Notes BETWEEN 'a' AND 'b'",
            "invalid expression: cannot do range condition on search attribute 'Notes' of type Text",
        ),
        ("WorkflowId", "invalid expression: incomplete expression"),
        # Ours, of Temporal's kind: positions count in the caller's text.
        ("(WorkflowId = 'a'", "malformed SQL query: syntax error at position 18"),
        ("WorkflowId = 'a' AND", "malformed SQL query: syntax error at position 21"),
        ("WorkflowId IN ()", "malformed SQL query: syntax error at position 16 near ')'"),
        ("WorkflowId = 'open", "malformed SQL query: syntax error at position 14 near ''open'"),
        ("StartTime > now()", "invalid expression: unexpected value: functions such as now() are not supported"),
        ("StartTime > 1 + 1", "invalid expression: unexpected value: arithmetic is not supported"),
    ],
)
def test_a_bad_filter_is_refused_with_this_text(text: str, message: str) -> None:
    with pytest.raises(StatusError) as refused:
        parse(text, TYPES)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.message == f"invalid query: {message}"


def test_length_and_nesting_are_bounded() -> None:
    for text in (
        "A" * (QUERY_CHARACTERS_MAX + 1),
        "(" * 5000 + "Amount = 1" + ")" * 5000,
        "NOT " * 5000 + "Amount = 1",
    ):
        with pytest.raises(StatusError):
            parse(text, TYPES)
    deep = NESTING_MAX - 1
    assert where("(" * deep + "Amount = 1" + ")" * deep) == Compare(AMOUNT, "=", 1)


def test_the_group_and_the_fields_mentioned_are_reported() -> None:
    query = parse("Amount = 1 AND WorkflowType = 'x' GROUP BY ExecutionStatus", TYPES)
    assert query.group_by == STATUS
    assert query.fields == {"Amount", "WorkflowType", "ExecutionStatus"}


@given(st.text(alphabet="()'\"`=<>!, \\ANDORInot WorkflowIdAmount0123456789.-", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_or_refused_and_nothing_else(text: str) -> None:
    with suppress(StatusError):
        parse(text, TYPES)


def test_instants_keep_nine_digits_and_take_offsets() -> None:
    assert parse_rfc3339("1970-01-01T00:00:00.123456789Z") == 123_456_789
    assert parse_rfc3339("1970-01-01T01:00:00+01:00") == 0
    assert parse_rfc3339("1969-12-31T23:59:59Z") == -1_000_000_000
    assert parse_rfc3339("2024-02-30T00:00:00Z") is None


def test_durations_are_read_as_go_writes_them() -> None:
    assert parse_duration("1h2m3.5s") == 3_723_500_000_000
    assert parse_duration("-250ms") == -250_000_000
    assert parse_duration("2d") == 172_800_000_000_000
    assert [parse_duration(text) for text in ("", "-", "5", "1x", "00:61:00")] == [None, None, 5, None, None]
