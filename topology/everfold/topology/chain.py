"""Chains of outputs, read side (law 6). Pure.

A sender numbers its outputs to a partition by their origins and names in each the origin of the one before. After
trouble it sends again from the first output that it does not know to have arrived, later ones included. So a partition
holds, for instance, outputs 1 2 4 2 3 4 5 (each naming its predecessor), and the reader makes 1 2 3 4 5 of it:

    last taken   record            verdict
    2            4, after 3        GAP      3 has not arrived; 4 comes again after it
    2            2, after 1        REPEAT
    2            3, after 2        TAKE
    4            5, after 4        TAKE
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

Place = tuple[int, int, int]
"""(leader epoch, offset, index): of one shard's outputs to one partition, later ones compare greater."""


class Verdict(Enum):
    """What a record is to its reader."""

    TAKE = "take"
    REPEAT = "repeat"
    GAP = "gap"


def place(origin: Mapping[str, Any] | None) -> Place | None:
    """The place in an Origin record."""
    return None if origin is None else (origin["epoch"], origin["offset"], origin["index"])


def judge(last: Place | None, origin: Place, predecessor: Place | None) -> Verdict:
    """What a record is, after `last` was the last one taken (None: none yet, and the partition is whole)."""
    if last is not None and origin <= last:
        return Verdict.REPEAT
    if predecessor is not None and (last is None or predecessor > last):
        return Verdict.GAP
    return Verdict.TAKE
