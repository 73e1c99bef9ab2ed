"""Failures are cut where a real server cuts them: the numbers are its own (1.32, limit 4096)."""

from __future__ import annotations

import pytest
from temporalio.api.common.v1 import message_pb2 as common_pb2
from temporalio.api.failure.v1.message_pb2 import (
    ApplicationFailureInfo,
    CanceledFailureInfo,
    Failure,
    ServerFailureInfo,
)

from everfold.kernel.failures import exceeding

LIMIT = 4096


def cut(failure: Failure) -> Failure:
    found = exceeding(failure, LIMIT, non_retryable=False)
    assert found.message == "Failure exceeds size limit."
    assert found.WhichOneof("failure_info") == "server_failure_info"
    return found.cause


@pytest.mark.parametrize(
    ("failure", "source", "message", "stack"),
    [
        ({"message": "m" * 6000}, 0, 4088, 0),
        ({"message": "m" * 6000, "type": "1234567"}, 0, 4077, 0),
        ({"message": "m" * 4090, "source": "script", "type": "ScriptError"}, 6, 4063, 0),
        ({"message": "a" + "é" * 6000}, 0, 4087, 0),
        ({"message": "m", "source": "script", "type": "ScriptError", "stack": "é" * 20000}, 6, 1, 4058),
        ({"message": "m" * 6000, "source": "s" * 6000, "stack": "t" * 6000}, 4088, 0, 0),
        ({"message": "m" * 10, "source": "s" * 10, "type": "T" * 4082}, 2, 0, 0),
        ({"message": "m" * 10, "source": "s" * 10, "type": "T" * 20000}, 0, 0, 0),
    ],
)
def test_texts_get_the_bytes_in_their_order(failure: dict[str, str], source: int, message: int, stack: int) -> None:
    found = cut(
        Failure(
            message=failure["message"],
            source=failure.get("source", ""),
            stack_trace=failure.get("stack", ""),
            application_failure_info=ApplicationFailureInfo(type=failure.get("type", "")),
        )
    )
    texts = (found.source, found.message, found.stack_trace)
    assert tuple(len(text.encode()) for text in texts) == (source, message, stack)
    assert found.application_failure_info.type == failure.get("type", "")[:LIMIT]


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (Failure(message="m" * 6000), 4084),
        (Failure(message="m" * 6000, server_failure_info=ServerFailureInfo(non_retryable=True)), 4080),
        (Failure(message="m" * 6000, canceled_failure_info=CanceledFailureInfo()), 4084),
        (Failure(message="m" * 6000, application_failure_info={"type": "x", "non_retryable": True}), 4071),
        (Failure(message="m" * 6000, source="ss"), 4078),
    ],
)
def test_a_cause_gets_what_is_left(cause: Failure, message: int) -> None:
    details = common_pb2.Payloads(payloads=[common_pb2.Payload(data=bytes(20_000))])
    found = cut(Failure(application_failure_info=ApplicationFailureInfo(details=details), cause=cause))
    assert not found.application_failure_info.HasField("details")
    assert len(found.cause.message) == message
    assert found.cause.application_failure_info.non_retryable == cause.application_failure_info.non_retryable
    assert found.cause.server_failure_info.non_retryable == cause.server_failure_info.non_retryable
    assert not found.cause.HasField("canceled_failure_info")


def test_a_chain_of_causes_ends_where_its_bytes_or_twenty_end() -> None:
    deep = Failure(message="m")
    inner = deep
    for number in range(59):
        inner.cause.message = f"c{number}"
        inner = inner.cause
    assert depth(cut(deep)) == 20
    named = {"source": "script", "application_failure_info": ApplicationFailureInfo(type="ScriptError")}
    long = None
    for number in reversed(range(1, 60)):
        long = Failure(message=f"m{number}{'x' * 300}", cause=long, **named)
    found = cut(Failure(message="m0", cause=long, **named))
    assert depth(found) == 12
    while found.HasField("cause"):
        found = found.cause
    assert len(found.message) == 245


def depth(failure: Failure) -> int:
    return 1 + depth(failure.cause) if failure.HasField("cause") else 0
