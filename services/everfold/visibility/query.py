"""Temporal's list filter: text to a type-checked tree. Pure: no I/O, no database.

    WorkflowType = 'order' AND (ExecutionStatus = "Running" OR `CustomerId` IN ('a', 'b'))

The grammar, loosest binding first (keywords in any case, field names exactly as registered, backticks optional):

    query      = [ either ] [ GROUP BY field ]
    either     = both { OR both }
    both       = negation { AND negation }
    negation   = NOT negation | ( either ) | predicate
    predicate  = field ( = | != | <> | < | <= | > | >= ) value
               | field [NOT] IN ( value { , value } )
               | field [NOT] BETWEEN value AND value
               | field [NOT] STARTS_WITH value
               | field IS [NOT] NULL
    value      = 'text' | "text" | number | TRUE | FALSE

A field is a system field, a predefined attribute, or one that the namespace has registered; its type decides which
operators and values it takes. Instants become nanoseconds since the epoch, durations nanoseconds, statuses
their numbers, so that the tree holds plain values only. `ORDER BY` and `LIMIT` are refused, as by Temporal's SQL
stores.

Texts of errors are those of Temporal 1.30 (`common/persistence/visibility/store/query`), except that positions count
from the start of the caller's own text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, NoReturn

from everfold.kernel.search_attributes import DIVISION, PREDEFINED
from everfold.visibility.tree import (
    SCHEDULE_ID,
    SYSTEM_FIELDS,
    And,
    Between,
    Compare,
    Expression,
    Field,
    FieldType,
    IsNull,
    Not,
    OneOf,
    Or,
    Query,
    StartsWith,
    Value,
)
from everfold.visibility.values import convert, invalid, refuse, shown_type, unsupported

QUERY_CHARACTERS_MAX: Final = 4 * 1024 * 1024
"""Longest filter taken: as much as a request may hold, as on a real server. Bounds the values of IN lists."""

NESTING_MAX: Final = 199
"""Most parentheses and NOTs around a condition, as on a real server."""

DEPTH_MAX: Final = 995
"""Deepest tree of ANDs and ORs, as on a real server: a chain is as deep as it has conditions."""


def parse(text: str, search_attributes: Mapping[str, str]) -> Query:
    """Parses and type-checks a list filter.

    Args:
        text: the filter; empty or blank means every run.
        search_attributes: the namespace's registered attributes, name -> type name as in Temporal ("Keyword", …).

    Raises:
        StatusError: INVALID_ARGUMENT, with a text that says what is wrong and where.
    """
    if len(text) > QUERY_CHARACTERS_MAX:
        refuse(f"the query has {len(text)} characters, the limit is {QUERY_CHARACTERS_MAX}")
    return _Parser(_tokens(text), search_attributes).query()


class _Token(NamedTuple):
    """kind is one of name, quoted (a backticked name), text, number, symbol, end."""

    kind: str
    text: str
    position: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "name" and self.text.upper() in words


_TOKEN: Final = re.compile(
    r"""\s+
    | (?P<number>-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
    | `(?P<quoted>[^`]+)`
    | '(?P<single>(?:[^'\\]|\\.|'')*)'
    | "(?P<double>(?:[^"\\]|\\.|"")*)"
    | (?P<symbol><=|>=|!=|<>|[=<>(),;+*/%-])
    """,
    re.VERBOSE | re.DOTALL,
)

_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


def _unescaped(body: str, quote: str) -> str:
    body = body.replace(quote * 2, quote)
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), body, flags=re.DOTALL) if "\\" in body else body


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            refuse(f"malformed SQL query: syntax error at position {at + 1} near '{text[at : at + 20]}'")
        kind = match.lastgroup
        if kind == "single" or kind == "double":
            tokens.append(_Token("text", _unescaped(match[kind], "'" if kind == "single" else '"'), at))
        elif kind is not None:
            tokens.append(_Token(kind, match[kind], at))
        at = match.end()
    tokens.append(_Token("end", "", len(text)))
    return tokens


_CLAUSES: Final = {"ORDER": "'ORDER BY' clause", "LIMIT": "'LIMIT' clause", "HAVING": "'HAVING' clause"}
_RESERVED: Final = frozenset(
    {"AND", "OR", "NOT", "IN", "BETWEEN", "STARTS_WITH", "LIKE", "REGEXP", "IS", "NULL"}
    | {"GROUP", "ORDER", "BY", "LIMIT", "HAVING", "TRUE", "FALSE"}
)
_COMPARISONS: Final = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})


class _Group:
    """What is read of a pair of parentheses, or of the whole filter: chains of ANDs, with ORs between them.

    Depths are those of the tree if each condition of a chain had the ones before it in parentheses.

    Attributes:
        nots: NOTs before the condition that comes next.
    """

    def __init__(self) -> None:
        self.nots = 0
        self._chain: list[Expression] = []
        self._chain_depth = 0
        self._chains: list[Expression] = []
        self._depth = 0

    def add(self, part: Expression, depth: int) -> int:
        """Adds a condition to the chain. Returns how many NOTs were before it."""
        nots, self.nots = self.nots, 0
        for _ in range(nots):
            part = Not(part)
        self._chain.append(part)
        self._chain_depth = _deeper(self._chain_depth, depth)
        return nots

    def end_chain(self) -> None:
        """An OR comes, or the end."""
        self._chains.append(self._chain[0] if len(self._chain) == 1 else And(tuple(self._chain)))
        self._depth = _deeper(self._depth, self._chain_depth)
        self._chain, self._chain_depth = [], 0

    def whole(self) -> tuple[Expression, int]:
        """The condition, and how deep it is."""
        self.end_chain()
        return self._chains[0] if len(self._chains) == 1 else Or(tuple(self._chains)), self._depth


def _deeper(before: int, depth: int) -> int:
    """The depth of a chain that gets one more part; `before` is 0 for the first. Refuses one that is too deep."""
    deeper = max(before, depth) + 1 if before else depth
    if deeper > DEPTH_MAX:
        refuse("malformed SQL query: max ast depth reached")
    return deeper


class _Parser:
    """One pass over the tokens; `_nesting` counts the parentheses and NOTs around the place reached."""

    def __init__(self, tokens: list[_Token], search_attributes: Mapping[str, str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._nesting = 0
        self._search_attributes = search_attributes
        self._fields: set[str] = set()

    def query(self) -> Query:
        where: Expression | None = None
        if not self._peek().is_word("GROUP", *_CLAUSES) and self._peek().kind != "end":
            where = self._either()
        group_by: Field | None = None
        if self._peek().is_word("GROUP"):
            self._next()
            self._expect_word("BY")
            group_by = self._group_by()
        token = self._peek()
        if token.is_word(*_CLAUSES):
            unsupported(_CLAUSES[token.text.upper()])
        if token.kind != "end":
            self._syntax(token)
        return Query(where, group_by, frozenset(self._fields))

    def _group_by(self) -> Field:
        field = self._field()
        if self._peek().text == ",":
            unsupported("'GROUP BY' clause supports only a single field")
        if field.name != "ExecutionStatus":
            unsupported(f"'GROUP BY' clause is not supported for search attribute {field.name}")
        return field

    def _either(self) -> Expression:
        """A whole condition. A loop with a stack of its own, as Python's would not do for the deepest nests."""
        open_: list[_Group] = [_Group()]
        while True:
            group = open_[-1]
            if self._accept_word("NOT"):
                self._nest()
                group.nots += 1
                continue
            if self._accept_symbol("("):
                self._nest()
                open_.append(_Group())
                continue
            self._nesting -= group.add(self._predicate(), 1)
            while len(open_) > 1 and self._accept_symbol(")"):
                inner, depth = open_.pop().whole()
                group = open_[-1]
                self._nesting -= 1 + group.add(inner, depth)
            if self._accept_word("AND"):
                continue
            if self._accept_word("OR"):
                group.end_chain()
                continue
            if len(open_) > 1:
                self._expect_symbol(")")
            return group.whole()[0]

    def _nest(self) -> None:
        """One parenthesis or NOT more, which was the last token."""
        self._nesting += 1
        if self._nesting > NESTING_MAX:
            token = self._tokens[self._at - 1]
            near = f" near '{token.text.lower()}'" if token.kind == "name" else ""
            end = token.position + len(token.text)
            refuse(f"malformed SQL query: max nesting level reached at position {end}{near}")

    def _predicate(self) -> Expression:
        field = self._field()
        token = self._next()
        if token.kind == "symbol" and token.text in _COMPARISONS:
            return self._comparison(field, "!=" if token.text == "<>" else token.text)
        if token.is_word("IS"):
            negated = self._accept_word("NOT")
            self._expect_word("NULL")
            return IsNull(field, negated)
        negated = token.is_word("NOT")
        if negated:
            token = self._next()
        if token.is_word("IN"):
            return self._one_of(field, negated)
        if token.is_word("BETWEEN"):
            return self._between(field, negated)
        if token.is_word("STARTS_WITH"):
            return self._starts_with(field, negated)
        if token.is_word("LIKE", "REGEXP"):
            operator = ("NOT " if negated else "") + token.text.upper()
            _operator_refused(field, operator)
        if token.kind == "end" or token.is_word("AND", "OR") or token.text == ")":
            invalid("incomplete expression")
        return self._syntax(token)

    def _comparison(self, field: Field, operator: str) -> Expression:
        if operator not in ("=", "!="):
            _only_scalars(field, operator)
        return Compare(field, operator, self._value(field))

    def _one_of(self, field: Field, negated: bool) -> Expression:
        if field.type == "Text":
            _operator_refused(field, "NOT IN" if negated else "IN")
        self._expect_symbol("(")
        values = [self._value(field)]
        while self._accept_symbol(","):
            values.append(self._value(field))
        self._expect_symbol(")")
        return OneOf(field, tuple(values), negated)

    def _between(self, field: Field, negated: bool) -> Expression:
        if field.type in ("Text", "KeywordList"):
            invalid(f"cannot do range condition on search attribute '{field.name}' of type {field.type}")
        low = self._value(field)
        self._expect_word("AND")
        return Between(field, low, self._value(field), negated)

    def _starts_with(self, field: Field, negated: bool) -> Expression:
        operator = "NOT STARTS_WITH" if negated else "STARTS_WITH"
        if field.type in ("Text", "KeywordList"):
            _operator_refused(field, operator)
        prefix = self._value(field)
        if field.type not in ("Keyword", "Schedule") or not isinstance(prefix, str):
            _operator_refused(field, operator)
        return StartsWith(field, prefix, negated)

    def _field(self) -> Field:
        token = self._next()
        if token.kind in ("text", "number"):
            invalid(f"must be a column name but was {_literal(token)}")
        if token.kind not in ("name", "quoted") or (token.kind == "name" and token.text.upper() in _RESERVED):
            self._syntax(token)
        name = token.text
        kind: FieldType
        if name in SYSTEM_FIELDS:
            kind, system = SYSTEM_FIELDS[name], True
        elif name in PREDEFINED:
            kind, system = PREDEFINED[name], name == DIVISION
        elif name in self._search_attributes:
            kind, system = _registered_type(name, self._search_attributes[name]), False
        elif name == SCHEDULE_ID:
            kind, system = "Schedule", True
        else:
            refuse(f"invalid search attribute: {name}")
        self._fields.add(name)
        return Field(name, kind, system)

    def _value(self, field: Field) -> Value:
        token = self._next()
        raw: Value
        if token.kind == "text":
            raw = token.text
        elif token.kind == "number":
            raw = float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
        elif token.is_word("TRUE", "FALSE"):
            raw = token.text.upper() == "TRUE"
        elif token.is_word("NULL"):
            invalid("unexpected value NULL (did you mean IS NULL?)")
        elif token.kind in ("name", "quoted") and token.text.upper() not in _RESERVED:
            if self._peek().text == "(":
                invalid(f"unexpected value: functions such as {token.text}() are not supported")
            unsupported(
                f'column name on the right side of comparison expression (did you forget to quote "{token.text}"?)'
            )
        else:
            self._syntax(token)
        if self._peek().kind == "number" or self._peek().text in ("+", "-", "*", "/", "%"):
            invalid("unexpected value: arithmetic is not supported")
        return convert(field, raw)

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _accept_word(self, word: str) -> bool:
        if self._peek().is_word(word):
            self._at += 1
            return True
        return False

    def _accept_symbol(self, symbol: str) -> bool:
        token = self._peek()
        if token.kind == "symbol" and token.text == symbol:
            self._at += 1
            return True
        return False

    def _expect_word(self, word: str) -> None:
        if not self._accept_word(word):
            self._syntax(self._peek())

    def _expect_symbol(self, symbol: str) -> None:
        if not self._accept_symbol(symbol):
            self._syntax(self._peek())

    def _syntax(self, token: _Token) -> NoReturn:
        near = f" near '{token.text}'" if token.kind != "end" else ""
        refuse(f"malformed SQL query: syntax error at position {token.position + 1}{near}")


def _registered_type(name: str, type_name: str) -> FieldType:
    for known in ("Keyword", "KeywordList", "Text", "Int", "Double", "Bool", "Datetime"):
        if type_name == known:
            return known
    return refuse(f"search attribute {name} has the unknown type {type_name}")


def _operator_refused(field: Field, operator: str) -> NoReturn:
    unsupported(f"operator '{operator}' not supported for {shown_type(field)} type search attribute '{field.name}'")


def _only_scalars(field: Field, operator: str) -> None:
    if field.type in ("Text", "KeywordList"):
        _operator_refused(field, operator)


def _literal(token: _Token) -> str:
    return f'"{token.text}" (type: string)' if token.kind == "text" else f"{token.text} (a number)"
