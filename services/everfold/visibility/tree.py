"""The tree of a list filter: the fields there are, and the conditions on them. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from everfold.kernel.search_attributes import SYSTEM, Kind

FieldType = Kind | Literal["Status", "Duration", "Schedule"]
Value = str | int | float | bool

STATUSES: Final = {
    "Unspecified": 0,
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

SYSTEM_FIELDS: Final[dict[str, FieldType]] = {**SYSTEM, "ExecutionStatus": "Status", "ExecutionDuration": "Duration"}
"""What every run has."""

SCHEDULE_ID: Final = "ScheduleId"
"""Another name of a schedule's workflow id, without the prefix that such ids have. An attribute registered by that
name goes before it."""


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
