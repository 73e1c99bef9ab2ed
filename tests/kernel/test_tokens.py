"""Task tokens: users keep them for days, so each layout that was released is read for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.kernel import tokens
from everfold.kernel.tokens import ActivityTaskToken, BadTaskToken, QueryToken, WorkflowTaskToken

TEXT = st.text(max_size=60)
NUMBER = st.integers(-(2**63), 2**63 - 1)
TOKENS = st.one_of(
    st.builds(WorkflowTaskToken, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER),
    st.builds(ActivityTaskToken, TEXT, TEXT, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER),
    st.builds(QueryToken, TEXT, TEXT, TEXT, NUMBER),
)
CODECS: dict[type, tuple[Any, Any]] = {
    WorkflowTaskToken: (tokens.encode_workflow_task_token, tokens.decode_workflow_task_token),
    ActivityTaskToken: (tokens.encode_activity_task_token, tokens.decode_activity_task_token),
    QueryToken: (tokens.encode_query_token, tokens.decode_query_token),
}

RELEASED = bytes.fromhex(
    "010200056e732d696400076f726465722d31000672756e2d696400013500064368617267650000000000000005000000"
    "00000000060000000000000002000000000000004d17979cfe362a0000"
)


@given(TOKENS)
def test_a_token_comes_back_as_it_was(token: Any) -> None:
    encode, decode = CODECS[type(token)]
    assert decode(encode(token)) == token


@given(TOKENS, st.data())
def test_a_token_cut_short_or_grown_is_refused(token: Any, data: st.DataObject) -> None:
    encode, decode = CODECS[type(token)]
    whole = encode(token)
    with pytest.raises(BadTaskToken):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(BadTaskToken):
        decode(whole + b"\0")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_and_nothing_worse_happens(data: bytes) -> None:
    for _, decode in CODECS.values():
        try:
            decode(data)
        except BadTaskToken:
            continue


def test_a_token_of_one_kind_is_none_of_another() -> None:
    token = tokens.encode_query_token(QueryToken("ns", "queue", "query", 1))
    with pytest.raises(BadTaskToken):
        tokens.decode_workflow_task_token(token)


def test_a_token_of_version_1_is_read_for_ever() -> None:
    expected = ActivityTaskToken("ns-id", "order-1", "run-id", "5", "Charge", 5, 6, 2, 77, 1_700_000_000_000_000_000)
    assert tokens.decode_activity_task_token(RELEASED) == expected
