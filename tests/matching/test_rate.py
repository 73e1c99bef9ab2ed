"""The rate that a poller asks for: any double there is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.matching.machine.rate import NEVER_NS, RateLimit


@pytest.mark.parametrize("rate", [math.nan, math.inf, 1e308])
def test_what_has_no_bound_is_no_limit(rate: float) -> None:
    limit = RateLimit(rate)
    for _ in range(1_000):
        assert limit.ready_at_ns(1_000_000) <= 1_000_000
        limit.take(1_000_000)


@pytest.mark.parametrize("rate", [0.0, -1.0, -math.inf, 5e-324])
def test_what_is_nothing_lets_no_task_go(rate: float) -> None:
    assert RateLimit(rate).ready_at_ns(1) == NEVER_NS


@given(st.floats(), st.floats())
def test_every_rate_can_be_asked_for_and_changed(rate: float, other: float) -> None:
    limit = RateLimit(rate)
    if limit.ready_at_ns(1_000_000) <= 1_000_000:
        limit.take(1_000_000)
    limit.change(other)
    assert 0 <= limit.ready_at_ns(1_000_000) <= NEVER_NS
