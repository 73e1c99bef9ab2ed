"""Cron schedules as Temporal takes them: five fields, `@daily` and its like, `@every 5m`, and `CRON_TZ=Zone` before.

The next time is a pure function of the schedule, the instant and the zone's offsets: no clock and no zone database is
read here, so that every fold of a log finds the same instants. Fields, names, steps and the rule of the two day fields
are those of robfig/cron v3 (ParseStandard), which a real server uses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final, NamedTuple

from everfold.kernel.time import DURATION_NS_MAX, HOUR_NS, MILLISECOND_NS, MINUTE_NS, SECOND_NS

YEARS_MAX: Final = 5
"""A schedule that does not come within so many years never comes (30 February)."""

ZONE_FACT: Final = "zone:"
"""Under this prefix and its name, a zone's offsets are among the facts of a record."""

_DAY_S: Final = 86_400
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()

_MONTHS: Final = {
    name: number
    for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)  # noqa: SIM905
}
_WEEKDAYS: Final = {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())}  # noqa: SIM905
_FIELDS: Final[tuple[tuple[int, int, dict[str, int]], ...]] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 6, _WEEKDAYS),
)
_DESCRIPTORS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ZONE: Final = re.compile(r"(?:CRON_)?TZ=(\S*)\s+(.*)", re.DOTALL)
_DURATION_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": MILLISECOND_NS, "s": SECOND_NS, "m": MINUTE_NS, "h": HOUR_NS}


class BadCron(ValueError):
    """A text that is no cron schedule."""


class Zone(NamedTuple):
    """The offsets of a time zone.

    Attributes:
        offset_s: local time minus UTC before the first change.
        changes: (UTC second, offset from then on), in order.
    """

    offset_s: int = 0
    changes: tuple[tuple[int, int], ...] = ()

    def encode(self) -> str:
        """As text, for a record: `3600;1774746000:7200;1792890000:3600`."""
        return ";".join([str(self.offset_s), *(f"{at}:{offset}" for at, offset in self.changes)])

    @classmethod
    def decode(cls, text: str) -> Zone:
        """From its text.

        Raises:
            ValueError: it is none.
        """
        first, *rest = text.split(";")
        pairs = [part.split(":") for part in rest]
        return cls(int(first), tuple((int(at), int(offset)) for at, offset in pairs))


UTC: Final = Zone()


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed schedule.

    Attributes:
        zone: name of the time zone; empty for UTC.
        every_s: the period of `@every`; 0 for the five fields.
        both_days: day of month and day of week must both match, as one of them is open; otherwise either will do.
    """

    zone: str
    every_s: int = 0
    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    both_days: bool = True


CRON_LENGTH_MAX: Final = 1_000
"""Of a schedule: parsed ones are remembered, and nobody writes one of more than a line."""


@lru_cache(maxsize=256)
def parse_cron(text: str) -> Cron:
    """Parses a schedule.

    Raises:
        BadCron: it is none.
    """
    if len(text) > CRON_LENGTH_MAX:
        raise BadCron(f"a schedule of {len(text)} characters, expected at most {CRON_LENGTH_MAX}")
    zone = ""
    if text.startswith(("CRON_TZ=", "TZ=")):
        found = _ZONE.fullmatch(text)
        if found is None:
            raise BadCron(f"no schedule after the time zone: {text}")
        zone, text = found.groups()
        zone = "" if zone == "UTC" else zone
    text = text.strip()
    if text.startswith("@every "):
        period_ns = min(_duration_ns(text.removeprefix("@every ")), DURATION_NS_MAX)
        return Cron(zone, every_s=max(period_ns // SECOND_NS, 1))
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise BadCron(f"unrecognized descriptor: {text}")
        text = _DESCRIPTORS[text]
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise BadCron(f"expected exactly {len(_FIELDS)} fields, found {len(fields)}: {text}")
    minutes, hours, days, months, weekdays = (
        _field(field, *bounds) for field, bounds in zip(fields, _FIELDS, strict=True)
    )
    return Cron(zone, 0, minutes[0], hours[0], days[0], months[0], weekdays[0], both_days=days[1] or weekdays[1])


def _field(text: str, least: int, most: int, names: dict[str, int]) -> tuple[frozenset[int], bool]:
    """The numbers of a field, and whether it is open (`*` without a step)."""
    numbers: set[int] = set()
    is_open = False
    for part in text.split(","):
        spread, slash, step_text = part.partition("/")
        low, dash, high = spread.partition("-")
        step = _number(step_text, {}) if slash else 1
        if low in ("*", "?"):
            if dash:
                raise BadCron(f"expected a number, found {low}: {part}")
            start, end = least, most
            is_open = is_open or step == 1
        else:
            start = _number(low, names)
            end = _number(high, names) if dash else most if slash else start
        if start < least or end > most or start > end or step < 1:
            raise BadCron(f"out of range {least}..{most}: {part}")
        numbers.update(range(start, end + 1, step))
    return frozenset(numbers), is_open


def _number(text: str, names: dict[str, int]) -> int:
    named = names.get(text.lower())
    if named is not None:
        return named
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise BadCron(f"expected a number, found {text!r}")
    return int(text)


def _duration_ns(text: str) -> int:
    """A Go duration, such as 1h30m."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise BadCron(f"failed to parse duration {text!r}")
    total = 0
    for number, unit in parts:
        whole, _, fraction = number.partition(".")
        total += int(whole or "0") * _UNITS[unit] + int(fraction or "0") * _UNITS[unit] // 10 ** len(fraction)
    if total > (1 << 63) - 1:
        raise BadCron(f"failed to parse duration {text!r}")
    return total


def next_time(cron: Cron, after_ns: int, zone: Zone = UTC) -> int | None:
    """The first instant after `after_ns` (ns since 1970) at which the schedule comes; None if it never does.

    An hour that the zone skips does not come; one that it repeats comes twice, as in robfig/cron.
    """
    after_s = after_ns // SECOND_NS
    if cron.every_s:
        return (after_s + cron.every_s) * SECOND_NS
    limit = after_s + (YEARS_MAX + 1) * 366 * _DAY_S
    start, offset = after_s + 1, zone.offset_s
    for at, following in (*zone.changes, (limit, 0)):
        if at > start:
            local = _next_local(cron, start + offset, min(at, limit) + offset)
            if local is not None:
                return (local - offset) * SECOND_NS
            start = at
        offset = following
    return None


def _next_local(cron: Cron, first: int, end: int) -> int | None:
    """The first full minute in [first, end), in seconds of local time, that matches."""
    first += -first % 60
    for day in range(first // _DAY_S, end // _DAY_S + 1):
        if not _day_matches(cron, day):
            continue
        earliest = max(first - day * _DAY_S, 0) // 60
        for hour in sorted(cron.hours):
            for minute in sorted(cron.minutes):
                at = hour * 60 + minute
                if at >= earliest:
                    found = day * _DAY_S + at * 60
                    return found if found < end else None
    return None


def _day_matches(cron: Cron, day: int) -> bool:
    calendar = date.fromordinal(_EPOCH_DAY + day)
    if calendar.month not in cron.months:
        return False
    of_month, of_week = calendar.day in cron.days, calendar.isoweekday() % 7 in cron.weekdays
    return (of_month and of_week) if cron.both_days else (of_month or of_week)


def backoff_to_next(cron: Cron, scheduled_ns: int, now_ns: int, zone: Zone = UTC) -> int | None:
    """How long a run that is made now waits, rounded up to a second; None when the schedule never comes again.

    Temporal: common/backoff/cron.go. The times are counted on from the instant for which the present run was scheduled,
    so that `@every` does not drift.

    Args:
        cron: the schedule.
        scheduled_ns: when the present run was due; now, for the first run of a chain.
        now_ns: the instant of the decision.
        zone: of the schedule.
    """
    due: int | None
    if now_ns < scheduled_ns:
        due = scheduled_ns
    elif cron.every_s:
        period = cron.every_s * SECOND_NS
        first = scheduled_ns // SECOND_NS * SECOND_NS + period
        due = first if first > now_ns else first + ((now_ns - first) // period + 1) * period
    else:
        due = next_time(cron, now_ns, zone)
    if due is None:
        return None
    return -((now_ns - due) // SECOND_NS) * SECOND_NS
