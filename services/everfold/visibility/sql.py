"""A list filter's tree as parameterised SQL.

A system field is a column of `executions`; any other attribute is a row of one of four tables, by its type:

    keywords(namespace, name, value TEXT, run)       Keyword, KeywordList (one row per element)
    integers(namespace, name, value INTEGER, run)    Int, Bool, Datetime (nanoseconds)
    reals(namespace, name, value REAL, run)          Double
    texts(id, namespace, name, run) + text_words     Text, by its words (FTS5)

so that there may be any number of attributes and every one of them is indexed. A condition on an attribute reads
`executions.id IN (SELECT run FROM … WHERE namespace = ? AND name = ? AND value …)`, which the database may walk
from either end. Names and values are always parameters; only tables, columns and operators are put into the text.

Null is as in Temporal: a condition on a field that the run has not is neither true nor false, and so selects nothing;
except that `!=` and `NOT IN` on KeywordList and Text mean "has none of these", which a run without the field satisfies.

A filter may have a thousand conditions in a chain, deep nests and lists of a hundred thousand values. So NOTs are moved
down to the conditions, chains are cut into groups, and a long list is one parameter. What is too deep for the database
all the same, it says itself (`store`).

What differs between databases is in `Dialect`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from everfold.kernel.search_attributes import DIVISION
from everfold.visibility.tree import (
    SCHEDULE_ID,
    And,
    Between,
    Compare,
    Expression,
    Field,
    IsNull,
    Not,
    OneOf,
    Or,
    Query,
    StartsWith,
    Value,
)

_COLUMNS: Final = {
    "WorkflowId": "workflow_id",
    "RunId": "run_id",
    "WorkflowType": "workflow_type",
    "TaskQueue": "task_queue",
    "ExecutionStatus": "status",
    "StartTime": "start_time_ns",
    "ExecutionTime": "execution_time_ns",
    "CloseTime": "close_time_ns",
    # Of an open run these are not known to its index, as on a real server.
    "HistoryLength": "(CASE WHEN close_time_ns IS NOT NULL THEN history_length END)",
    "HistorySizeBytes": "(CASE WHEN close_time_ns IS NOT NULL THEN history_size_bytes END)",
    "ExecutionDuration": "(close_time_ns - execution_time_ns)",
    "StateTransitionCount": "(CASE WHEN close_time_ns IS NOT NULL THEN state_transition_count END)",
    "ParentWorkflowId": "parent_workflow_id",
    "ParentRunId": "parent_run_id",
    "RootWorkflowId": "root_workflow_id",
    "RootRunId": "root_run_id",
    DIVISION: "division",
    SCHEDULE_ID: "workflow_id",
}

ATTRIBUTE_TABLES: Final = {
    "Keyword": "keywords",
    "KeywordList": "keywords",
    "Int": "integers",
    "Bool": "integers",
    "Datetime": "integers",
    "Double": "reals",
    "Text": "texts",
}
"""The table that holds the values of an attribute, by its type."""

_LAST_CHARACTER: Final = "\U0010ffff"

_GROUP: Final = 32
"""Conditions of a chain in one group. A database reads a chain as a tree as deep as it is long, SQLite at most 1000."""

_LISTED_MAX: Final = 500
"""Values of an IN list that are a parameter each; SQLite has at most 32,766 of those, in older builds 999."""


@dataclass(frozen=True)
class Dialect:
    """What differs between databases.

    Attributes:
        placeholder: how a parameter is written.
        word_match: the condition that a text has one of some words; takes one parameter, made by `_words`.
        word_source: what `texts t` is joined with for it.
        listed: a select of the values in a JSON array; takes one parameter.
    """

    placeholder: str
    word_source: str
    word_match: str
    listed: str


SQLITE: Final = Dialect(
    "?", " JOIN text_words w ON w.rowid = t.id", "text_words MATCH ?", "SELECT value FROM json_each(?)"
)
POSTGRESQL: Final = Dialect(
    "%s",
    "",
    "t.words @@ websearch_to_tsquery('simple', %s)",
    "SELECT value FROM jsonb_array_elements_text(%s::jsonb) AS e (value)",
)

Parameters = list[Value]
_Condition = Callable[[str], str]
_Values = Callable[[], str]


def where(query: Query, namespace: int, dialect: Dialect = SQLITE) -> tuple[str, Parameters]:
    """The WHERE condition (without the word) that selects the query's runs from `executions`, and its parameters.

    Args:
        query: the parsed filter.
        namespace: the namespace's number in the index.
        dialect: the database's.
    """
    compiler = _Compiler(namespace, dialect)
    text = f"namespace = {compiler.parameter(namespace)}"
    if DIVISION not in query.fields:
        text += " AND division IS NULL"
    if query.where is not None:
        text += f" AND {compiler.condition(_negations_last(query.where))}"
    return text, compiler.parameters


def _negations_last(node: Expression, negated: bool = False) -> Expression:
    """The same condition with NOT around single conditions only: an AND that is not is an OR of what is not."""
    match node:
        case Not(part):
            return _negations_last(part, not negated)
        case And(parts) | Or(parts):
            moved = tuple([_negations_last(part, negated) for part in parts])
            return And(moved) if isinstance(node, And) != negated else Or(moved)
    return Not(node) if negated else node


def _joined(word: str, conditions: list[str]) -> str:
    while len(conditions) > _GROUP:
        groups = [conditions[at : at + _GROUP] for at in range(0, len(conditions), _GROUP)]
        conditions = [_joined(word, group) for group in groups]
    return f"({word.join(conditions)})"


class _Compiler:
    def __init__(self, namespace: int, dialect: Dialect) -> None:
        self._namespace = namespace
        self._dialect = dialect
        self.parameters: Parameters = []

    def parameter(self, value: Value) -> str:
        self.parameters.append(int(value) if isinstance(value, bool) else value)
        return self._dialect.placeholder

    def condition(self, node: Expression) -> str:
        match node:
            case And(parts):
                return _joined(" AND ", [self.condition(part) for part in parts])
            case Or(parts):
                return _joined(" OR ", [self.condition(part) for part in parts])
            case Not(part):
                return f"(NOT {self.condition(part)})"
            case Compare(field, operator, value) if field.type == "Text":
                return self._words(field, (value,), negated=operator == "!=")
            case Compare(field, "!=", value) if field.type == "KeywordList":
                return self._has(field, lambda: f"value = {self.parameter(value)}", negated=True)
            case Compare(field, operator, value):
                return self._scalar(field, lambda column: f"{column} {operator} {self.parameter(value)}")
            case OneOf(field, values, negated) if field.type == "KeywordList":
                return self._has(field, lambda: self._in("value", values, negated=False), negated=negated)
            case OneOf(field, values, negated):
                return self._scalar(field, lambda column: self._in(column, values, negated))
            case Between(field, low, high, negated):
                word = "NOT BETWEEN" if negated else "BETWEEN"
                return self._scalar(
                    field, lambda column: f"{column} {word} {self.parameter(low)} AND {self.parameter(high)}"
                )
            case StartsWith(field, prefix, negated):
                return self._scalar(field, lambda column: self._prefix(column, prefix, negated))
            case IsNull(field, negated):
                return self._is_null(field, negated)
        raise AssertionError(f"unknown node {node!r}")

    def _scalar(self, field: Field, condition: _Condition) -> str:
        """A condition on one value: on the column, or on a row of the attribute's table."""
        if field.system:
            return condition(_COLUMNS[field.name])
        return self._has(field, lambda: condition("value"), negated=False)

    def _has(self, field: Field, condition: _Values, *, negated: bool) -> str:
        if field.system:  # no system field is a list
            raise AssertionError(f"{field.name} is a column")
        head = f"id {'NOT IN' if negated else 'IN'} (SELECT run FROM {ATTRIBUTE_TABLES[field.type]}"
        place = f"namespace = {self.parameter(self._namespace)} AND name = {self.parameter(field.name)}"
        return f"{head} WHERE {place} AND {condition()})"

    def _in(self, column: str, values: Sequence[Value], negated: bool) -> str:
        if len(values) > _LISTED_MAX:
            self.parameter(json.dumps(values))
            listed = self._dialect.listed
        else:
            listed = ", ".join([self.parameter(value) for value in values])
        return f"{column} {'NOT IN' if negated else 'IN'} ({listed})"

    def _prefix(self, column: str, prefix: str, negated: bool) -> str:
        """A range rather than LIKE: it walks the index, and no character of the prefix has a meaning."""
        text = f"({column} >= {self.parameter(prefix)} AND {column} < {self.parameter(prefix + _LAST_CHARACTER)})"
        return f"NOT {text}" if negated else text

    def _words(self, field: Field, values: Sequence[Value], *, negated: bool) -> str:
        words = [word for value in values for word in re.findall(r"\w+", str(value))]
        if not words:  # nothing to look for: no text has it, every text lacks it
            return "1 = 1" if negated else "1 = 0"
        head = f"id {'NOT IN' if negated else 'IN'} (SELECT t.run FROM texts t{self._dialect.word_source}"
        head += f" WHERE t.namespace = {self.parameter(self._namespace)} AND t.name = {self.parameter(field.name)}"
        self.parameter(" OR ".join(f'"{word}"' for word in words))
        return f"{head} AND {self._dialect.word_match})"

    def _is_null(self, field: Field, negated: bool) -> str:
        if field.system:
            return f"{_COLUMNS[field.name]} IS {'NOT NULL' if negated else 'NULL'}"
        head = f"id {'IN' if negated else 'NOT IN'} (SELECT run FROM {ATTRIBUTE_TABLES[field.type]}"
        return f"{head} WHERE namespace = {self.parameter(self._namespace)} AND name = {self.parameter(field.name)})"
