"""What is told apart by the shared validator of search attributes and cannot be seen from outside."""

from __future__ import annotations

import pytest
from temporalio.api.common.v1 import message_pb2 as common_pb2

from everfold.kernel.errors import StatusError
from everfold.kernel.search_attributes import check_values


def check(data: bytes) -> None:
    payload = common_pb2.Payload(metadata={"encoding": b"json/plain"}, data=data)
    check_values({"BuildIds": payload}, {}, 100)


def test_a_deeply_nested_value_is_refused_and_not_decoded() -> None:
    """How deep a process can decode depends on the process: no fold may."""
    with pytest.raises(StatusError, match="value from <metadata"):
        check(b"[" * 100_000)
    with pytest.raises(StatusError, match="value from <metadata"):
        check(b"[" * 40 + b'"x"' + b"]" * 40)
    check(b'["' + b"[" * 1_000 + b'"]')


def test_a_huge_number_is_not_decoded() -> None:
    with pytest.raises(StatusError, match="value from <metadata"):
        check(b"1" * 1_000_000)


def test_a_refusal_shows_only_so_much_of_a_value() -> None:
    with pytest.raises(StatusError) as refused:
        check(b'"' + b"x" * 10_000 + b'"')
    assert len(refused.value.message) < 1_200
