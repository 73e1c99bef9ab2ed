"""Exponential backoff without floating-point arithmetic, so that every fold of a log computes the same nanosecond.

The coefficient is a protobuf double; its exact value is a ratio of integers. Powers are taken in fixed point.
"""

from __future__ import annotations

from typing import Final

from everfold.kernel.time import DURATION_NS_MAX

_FRACTION_BITS: Final = 64

COEFFICIENT_MAX: Final = float(1 << 62)
"""More leads from one nanosecond beyond a century, the longest interval, at once. Its ratio fits in 64 bits."""


def coefficient_ratio(coefficient: float) -> tuple[int, int]:
    """The exact value of a coefficient as (numerator, denominator), each below 2**63.

    Infinity and NaN count as the largest: they too lead to the longest interval at the second retry, as on a real
    server.
    """
    if not coefficient <= COEFFICIENT_MAX:  # so written for NaN's sake
        coefficient = COEFFICIENT_MAX
    numerator, denominator = coefficient.as_integer_ratio()
    return numerator, denominator


def backoff_ns(initial_ns: int, numerator: int, denominator: int, attempt: int, maximum_ns: int) -> int:
    """The wait before the attempt after `attempt`: initial * coefficient ** (attempt - 1), at most `maximum_ns`.

    Args:
        initial_ns: first interval.
        numerator: of the coefficient, which is at least 1.
        denominator: of the coefficient.
        attempt: number of the attempt that failed, from 1.
        maximum_ns: the longest interval; 0 for a century.
    """
    cap = maximum_ns or DURATION_NS_MAX
    interval = initial_ns << _FRACTION_BITS
    limit = cap << _FRACTION_BITS
    factor = (numerator << _FRACTION_BITS) // denominator
    exponent = attempt - 1
    while exponent > 0:
        if exponent & 1:
            interval = (interval * factor) >> _FRACTION_BITS
            if interval >= limit:
                return cap
        exponent >>= 1
        if exponent:
            factor = (factor * factor) >> _FRACTION_BITS
            if factor > limit:
                return cap
    return min(interval >> _FRACTION_BITS, cap)
