"""Task tokens: what goes in comes out, the layout is fixed for ever, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.kernel.tokens import (
    ActivityTaskToken,
    BadTaskToken,
    QueryToken,
    WorkflowTaskToken,
    decode_activity_task_token,
    decode_query_token,
    decode_workflow_task_token,
    encode_activity_task_token,
    encode_query_token,
    encode_workflow_task_token,
)

TEXT = st.text(max_size=1000)
NUMBER = st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1)


@given(st.builds(WorkflowTaskToken, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER))
def test_a_workflow_task_token_survives(token: WorkflowTaskToken) -> None:
    assert decode_workflow_task_token(encode_workflow_task_token(token)) == token


@given(st.builds(ActivityTaskToken, TEXT, TEXT, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER))
def test_an_activity_task_token_survives(token: ActivityTaskToken) -> None:
    assert decode_activity_task_token(encode_activity_task_token(token)) == token


@given(st.builds(QueryToken, TEXT, TEXT, TEXT, NUMBER))
def test_a_query_token_survives(token: QueryToken) -> None:
    assert decode_query_token(encode_query_token(token)) == token


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_workflow_task_token, decode_activity_task_token, decode_query_token):
        try:
            decode(data)
        except BadTaskToken:
            continue


def test_a_token_that_a_user_stored_years_ago_is_still_read() -> None:
    stored = bytes.fromhex(
        "0102"
        "00026e73"
        "000177"
        "000172"
        "000131"
        "000474797065"
        "0000000000000005"
        "0000000000000006"
        "0000000000000002"
        "0000000000000007"
        "0000000000000008"
    )
    token = ActivityTaskToken("ns", "w", "r", "1", "type", 5, 6, 2, 7, 8)
    assert decode_activity_task_token(stored) == token
    assert encode_activity_task_token(token) == stored


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_token_that_was_cut_short_is_refused(cut: int) -> None:
    whole = encode_workflow_task_token(WorkflowTaskToken("ns", "w", "r", 1, 2, 3, 4, 5))
    with pytest.raises(BadTaskToken):
        decode_workflow_task_token(whole[:-cut])


def test_a_field_that_no_token_can_hold_is_an_error_at_once() -> None:
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        encode_query_token(QueryToken("n" * 70_000, "q", "id", 0))
