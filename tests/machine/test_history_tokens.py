"""A page token of a history that a client bent: it is refused, or gives a page, and asking ends."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_driver import NAMESPACE, NAMESPACE_ID, ShardDriver, complete_workflow
from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.history.machine.reads import Token, encode_token, get_history, get_history_reverse
from everfold.kernel.errors import Code, StatusError

NUMBERS = st.integers(min_value=-(1 << 63), max_value=(1 << 64) - 1) | st.integers(min_value=-3, max_value=9)
VALUES = st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
BENT = (
    st.binary(max_size=40)
    | st.lists(VALUES, max_size=6).map(msgpack.packb)
    | st.dictionaries(st.integers(0, 5), VALUES, max_size=5).map(msgpack.packb)
    | st.just(bytes([0x91]) * 50_000)
    | st.just(msgpack.packb([1, "r", float("inf"), 0, 0]))
)


@pytest.fixture(scope="module")
def closed() -> tuple[ShardDriver, str]:
    shard = ShardDriver()
    run_id = shard.start()
    shard.complete(shard.poll(), complete_workflow())
    return shard, run_id


def forward(shard: ShardDriver, token: bytes, size: int = 0) -> Any:
    request = ws.GetWorkflowExecutionHistoryRequest(next_page_token=token, maximum_page_size=size)
    request.execution.workflow_id = "w"
    answer = get_history(shard.fold, NAMESPACE_ID, NAMESPACE, request.SerializeToString(), final=True)
    return ws.GetWorkflowExecutionHistoryResponse.FromString(answer.response or b"")


def backward(shard: ShardDriver, token: bytes, size: int = 0) -> Any:
    request = ws.GetWorkflowExecutionHistoryReverseRequest(next_page_token=token, maximum_page_size=size)
    request.execution.workflow_id = "w"
    answer = get_history_reverse(shard.fold, NAMESPACE_ID, NAMESPACE, request.SerializeToString())
    return ws.GetWorkflowExecutionHistoryReverseResponse.FromString(answer)


def refusal_of(ask: Any, shard: ShardDriver, token: bytes) -> StatusError | None:
    try:
        ask(shard, token)
    except StatusError as refusal:
        return refusal
    return None


@pytest.mark.parametrize("ask", [forward, backward])
@given(token=BENT.filter(bool))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_bytes_are_refused(closed: tuple[ShardDriver, str], ask: Any, token: bytes) -> None:
    refusal = refusal_of(ask, closed[0], token)
    assert refusal is not None
    assert refusal.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


@pytest.mark.parametrize("ask", [forward, backward])
@given(first=NUMBERS, end=NUMBERS, task=NUMBERS)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_numbers_are_refused_or_give_a_page(
    closed: tuple[ShardDriver, str], ask: Any, first: int, end: int, task: int
) -> None:
    shard, run_id = closed
    refusal = refusal_of(ask, shard, encode_token(Token(run_id, first, end, task)))
    assert refusal is None or refusal.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("ask", [forward, backward])
@pytest.mark.parametrize("size", [-(1 << 31), -1, 0, 1, 3, 256, 257, (1 << 31) - 1])
@pytest.mark.parametrize("begins", [0, 1, 4, 1 << 40])
def test_pages_of_any_size_end(closed: tuple[ShardDriver, str], ask: Any, size: int, begins: int) -> None:
    shard, run_id = closed
    token, pages = (encode_token(Token(run_id, begins, 0, 0)) if begins else b""), 0
    while True:
        token = ask(shard, token, size).next_page_token
        pages += 1
        assert pages <= 6
        if not token:
            return
