"""Time zones for cron schedules: looked up here, outside the fold, and carried into the log as facts (law 2).

The zones come from the pinned package `tzdata`, never from the host's own database, so that two hosts agree. A shard
keeps the offsets that a record has told it; a newer database reaches it with the next record that names the zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from typing import Final
from zoneinfo import ZoneInfo

from everfold.kernel.cron import ZONE_FACT, Zone

YEARS_AHEAD: Final = 30
"""How far the changes of a zone are told. A chain of runs that goes on longer hears of more with its next new start."""

ZONES_PER_RECORD_MAX: Final = 16
"""Zones that one record tells of at most: a request that only mentions many is no reason for a record of megabytes."""

_MENTION: Final = b"TZ="
_NAME: Final = re.compile(rb"TZ=([A-Za-z0-9_+\-/]{1,64})\s")
_STRIDE: Final = timedelta(days=5)
"""No zone changes twice in so few days; the closest are the weeks of Ramadan in Morocco."""

_SECONDS: Final = timedelta(seconds=1)


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    text = resources.files("tzdata").joinpath("zones").read_text("utf-8")
    return frozenset(text.split())


def is_zone(name: str) -> bool:
    """Whether there is a time zone of that name; the empty name is UTC."""
    return not name or name in _names()


@lru_cache(maxsize=64)
def zone_from(name: str, year: int) -> Zone:
    """The offsets of a zone from a year on.

    Raises:
        KeyError: there is no such zone.
    """
    if name not in _names():
        raise KeyError(name)
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        zone = ZoneInfo.from_file(file, key=name)
    first = datetime(year - 1, 1, 1, tzinfo=UTC)
    return Zone(_offset(zone, first), tuple(_changes(zone, first, datetime(year + YEARS_AHEAD, 1, 1, tzinfo=UTC))))


def _offset(zone: ZoneInfo, at: datetime) -> int:
    offset = at.astimezone(zone).utcoffset()
    assert offset is not None
    return offset // _SECONDS


def _changes(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[tuple[int, int]]:
    """Looks every few days, and where the offset is another one than before, for the second of the change."""
    day, known = start, _offset(zone, start)
    while day < end:
        following = day + _STRIDE
        offset = _offset(zone, following)
        if offset != known:
            low, high = int(day.timestamp()), int(following.timestamp())
            while high - low > 1:
                middle = (low + high) // 2
                if _offset(zone, datetime.fromtimestamp(middle, UTC)) == known:
                    low = middle
                else:
                    high = middle
            yield high, offset
            known = offset
        day = following


def zone_facts(message: object, now_ns: int) -> dict[str, str]:
    """The facts of the zones that a request mentions, in whatever field: `TZ=` before a schedule.

    Args:
        message: serialized request of a record's body; anything else mentions none.
        now_ns: wall clock.
    """
    if not isinstance(message, bytes) or _MENTION not in message:
        return {}
    year = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).year
    names = sorted({found.decode() for found in _NAME.findall(message)} & _names())
    return {ZONE_FACT + name: zone_from(name, year).encode() for name in names[:ZONES_PER_RECORD_MAX]}
