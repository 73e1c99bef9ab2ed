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
SCHEDULE = Field("ScheduleId", "Schedule", True)


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
        ("ExecutionStatus = 'WORKFLOW_EXECUTION_STATUS_RUNNING'", Compare(STATUS, "=", 1)),
        ("ExecutionStatus = 'WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW'", Compare(STATUS, "=", 6)),
        ("ExecutionStatus = 'Unspecified'", Compare(STATUS, "=", 0)),
        ("ExecutionStatus = 0", Compare(STATUS, "=", 0)),
        ("ScheduleId = 'nightly'", Compare(SCHEDULE, "=", "temporal-sys-scheduler:nightly")),
        ("ScheduleId STARTS_WITH 'n'", StartsWith(SCHEDULE, "temporal-sys-scheduler:n", False)),
        ("billing.Plan.name = 'a'", Compare(Field("billing.Plan.name", "Keyword", False), "=", "a")),
        ("`billing.Plan.name` = 'a'", Compare(Field("billing.Plan.name", "Keyword", False), "=", "a")),
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
        ("ExecutionStatus = 'running'", "invalid expression: invalid ExecutionStatus value 'running'"),
        ("ExecutionStatus STARTS_WITH 'R'", "invalid expression: invalid ExecutionStatus value 'R'"),
        (
            "ScheduleId = 1",
            "invalid expression: invalid value type for search attribute ScheduleId of type Keyword: 1 (type: int64)",
        ),
        ("ScheduleID = 'x'", "invalid search attribute: ScheduleID"),
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


ONE = "Amount = 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A" * (QUERY_CHARACTERS_MAX + 1), "the query has 4194305 characters, the limit is 4194304"),
        # From here on the texts of a real server, which counts positions from further ahead.
        (
            "(" * 200 + ONE + ")" * 200,
            "malformed SQL query: max nesting level reached at position 200",
        ),
        ("NOT " * 200 + ONE, "malformed SQL query: max nesting level reached at position 799 near 'not'"),
        ("(NOT " * 50_000 + ONE, "malformed SQL query: max nesting level reached at position 499 near 'not'"),
        (" OR ".join([ONE] * 996), "malformed SQL query: max ast depth reached"),
        (" AND ".join([ONE] * 996), "malformed SQL query: max ast depth reached"),
        (" AND ".join([ONE] * 50_000), "malformed SQL query: max ast depth reached"),
        (f"{ONE} AND (" + " OR ".join([ONE] * 995) + ")", "malformed SQL query: max ast depth reached"),
    ],
    ids=range(8),
)
def test_length_nesting_and_chains_are_bounded(text: str, message: str) -> None:
    with pytest.raises(StatusError) as refused:
        parse(text, TYPES)
    assert refused.value.message == f"invalid query: {message}"


@pytest.mark.parametrize("deep", [1, 2, NESTING_MAX])
def test_parentheses_and_nots_end(deep: int) -> None:
    assert where("(" * deep + ONE + ")" * deep) == Compare(AMOUNT, "=", 1)
    after = where("(" * deep + ONE + ")" * deep + " AND " + "(" * deep + ONE + ")" * deep)
    assert after == And((Compare(AMOUNT, "=", 1), Compare(AMOUNT, "=", 1)))
    assert isinstance(where("NOT " * deep + ONE + " OR " + "NOT " * deep + ONE), Or)


@pytest.mark.parametrize("text", [" OR ".join([ONE] * 995), " AND ".join([ONE] * 995)])
def test_a_chain_as_long_as_a_real_server_takes_is_taken(text: str) -> None:
    tree = where(text)
    assert isinstance(tree, (And, Or))
    assert len(tree.parts) == 995


def test_a_list_of_a_hundred_thousand_values_is_taken() -> None:
    tree = where(f"Amount IN ({', '.join(map(str, range(100_000)))})")
    assert isinstance(tree, OneOf)
    assert len(tree.values) == 100_000


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
