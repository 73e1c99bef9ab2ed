"""The tree of a list filter: the fields there are, and the conditions on them. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

FieldType = Literal["Keyword", "KeywordList", "Text", "Int", "Double", "Bool", "Datetime", "Status", "Duration"]
Value = str | int | float | bool

STATUSES: Final = {
    "Running": 1,
    "Completed": 2,
    "Failed": 3,
    "Canceled": 4,
    "Terminated": 5,
    "ContinuedAsNew": 6,
    "TimedOut": 7,
    "Paused": 8,
}
"""temporal.api.enums.v1.WorkflowExecutionStatus, by the names that queries use."""

STATUS_NAMES: Final = {number: name for name, number in STATUSES.items()}

SYSTEM_FIELDS: Final[dict[str, FieldType]] = {
    "WorkflowId": "Keyword",
    "RunId": "Keyword",
    "WorkflowType": "Keyword",
    "TaskQueue": "Keyword",
    "ExecutionStatus": "Status",
    "StartTime": "Datetime",
    "ExecutionTime": "Datetime",
    "CloseTime": "Datetime",
    "HistoryLength": "Int",
    "HistorySizeBytes": "Int",
    "ExecutionDuration": "Duration",
    "StateTransitionCount": "Int",
    "ParentWorkflowId": "Keyword",
    "ParentRunId": "Keyword",
    "RootWorkflowId": "Keyword",
    "RootRunId": "Keyword",
}
"""What every run has."""

DIVISION: Final = "TemporalNamespaceDivision"
"""Runs that have it (schedules, batches) are hidden, unless the query names it."""

PREDEFINED: Final[dict[str, FieldType]] = {
    "BatcherNamespace": "Keyword",
    "BatcherUser": "Keyword",
    "BinaryChecksums": "KeywordList",
    "BuildIds": "KeywordList",
    "TemporalChangeVersion": "KeywordList",
    DIVISION: "Keyword",
    "TemporalPauseInfo": "KeywordList",
    "TemporalReportedProblems": "KeywordList",
    "TemporalScheduledById": "Keyword",
    "TemporalSchedulePaused": "Bool",
    "TemporalScheduledStartTime": "Datetime",
    "TemporalUsedWorkerDeploymentVersions": "KeywordList",
    "TemporalWorkerDeployment": "Keyword",
    "TemporalWorkerDeploymentVersion": "Keyword",
    "TemporalWorkflowVersioningBehavior": "Keyword",
}
"""Attributes that exist without being registered."""


class Field(NamedTuple):
    """A field that may be searched: its name, its type, and whether it is a column of every run."""

    name: str
    type: FieldType
    system: bool


@dataclass(frozen=True)
class Compare:
    """`field operator value`; the operator is one of = != < <= > >=. On Text, = means "has one of these words"."""

    field: Field
    operator: str
    value: Value


@dataclass(frozen=True)
class OneOf:
    """`field [NOT] IN (…)`."""

    field: Field
    values: tuple[Value, ...]
    negated: bool


@dataclass(frozen=True)
class Between:
    """`field [NOT] BETWEEN low AND high`, both ends included."""

    field: Field
    low: Value
    high: Value
    negated: bool


@dataclass(frozen=True)
class StartsWith:
    """`field [NOT] STARTS_WITH prefix`."""

    field: Field
    prefix: str
    negated: bool


@dataclass(frozen=True)
class IsNull:
    """`field IS [NOT] NULL`."""

    field: Field
    negated: bool


@dataclass(frozen=True)
class And:
    """All of them."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Or:
    """Any of them."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Not:
    """The contrary."""

    part: Expression


Expression = Compare | OneOf | Between | StartsWith | IsNull | And | Or | Not


@dataclass(frozen=True)
class Query:
    """A parsed filter.

    Attributes:
        where: the condition, or None for every run.
        group_by: the field of GROUP BY, or None.
        fields: the names of all fields that the query mentions.
    """

    where: Expression | None
    group_by: Field | None
    fields: frozenset[str]
