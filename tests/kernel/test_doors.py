"""The doors for values from outside: time, floats, text. Each takes everything, and lets through what fits inside."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from everfold.kernel.retry import backoff_ns, coefficient_ratio
from everfold.kernel.text import well_formed, well_formed_json
from everfold.kernel.time import DURATION_NS_MAX, comparable, duration_error, duration_ns

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


@given(INT64, INT32)
def test_a_duration_is_a_century_at_most_and_exact_within(seconds: int, nanos: int) -> None:
    found, exact = duration_ns(seconds, nanos), seconds * 1_000_000_000 + nanos
    assert abs(found) <= DURATION_NS_MAX
    assert found == exact or abs(exact) > DURATION_NS_MAX
    assert bool(duration_error(seconds, nanos)) == (seconds < 0 or nanos < 0)


@given(st.integers(), st.integers())
def test_what_is_compared_keeps_its_order(one: int, other: int) -> None:
    assert one >= other or comparable(one) <= comparable(other)


@given(st.floats(min_value=1) | st.just(math.nan), st.integers(1, 1 << 31), st.integers(1, DURATION_NS_MAX))
def test_every_coefficient_has_a_ratio_and_every_backoff_an_end(coefficient: float, attempt: int, first: int) -> None:
    numerator, denominator = coefficient_ratio(coefficient)
    assert 0 < denominator <= numerator < 1 << 63
    wait = backoff_ns(first, numerator, denominator, attempt, DURATION_NS_MAX)
    assert first - 1 <= wait <= DURATION_NS_MAX
    if attempt > 1 and not coefficient < 1 << 62:
        assert wait == DURATION_NS_MAX


@given(st.text(st.characters(exclude_categories=())))
def test_text_becomes_well_formed_and_what_is_stays(text: str) -> None:
    assert well_formed(text).encode().decode() == well_formed(text)
    assert len(well_formed(text)) == len(text)
    assert well_formed(well_formed(text)) == well_formed(text)
    assert well_formed_json({text: [text, 1, None]}) == {well_formed(text): [well_formed(text), 1, None]}
