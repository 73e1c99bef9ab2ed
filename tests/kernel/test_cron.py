"""Cron schedules: what is one, and when it comes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold.kernel.cron import BadCron, Zone, backoff_to_next, next_time, parse_cron
from everfold.kernel.time import SECOND_NS

#: New York in 2026: summer time from 8 March, 07:00 UTC, to 1 November, 06:00 UTC
NEW_YORK = Zone(-18_000, ((1_772_953_200, -14_400), (1_793_512_800, -18_000)))


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def shown(at: int | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    ("schedule", "after", "following"),
    [
        ("* * * * *", "2026-01-01T00:00:00", "2026-01-01T00:01:00"),
        ("* * * * *", "2026-01-01T00:00:59", "2026-01-01T00:01:00"),
        ("*/15 * * * *", "2026-01-01T23:46:00", "2026-01-02T00:00:00"),
        ("5/20 * * * *", "2026-01-01T00:06:00", "2026-01-01T00:25:00"),
        ("0 9 * * MON-FRI", "2026-01-02T09:00:00", "2026-01-05T09:00:00"),
        ("0 0 1 jan *", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 30 2 *", "2026-01-01T00:00:00", "never"),
        ("0 12 13 * 5", "2026-01-01T00:00:00", "2026-01-02T12:00:00"),  # either of the two days will do
        ("0 12 */1 * 5", "2026-01-01T00:00:00", "2026-01-02T12:00:00"),  # both must match, as one is open
        ("@daily", "2026-01-01T00:00:00", "2026-01-02T00:00:00"),
        ("@weekly", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("@every 1m30s", "2026-01-01T00:00:10", "2026-01-01T00:01:40"),
        ("@every 10ms", "2026-01-01T00:00:10", "2026-01-01T00:00:11"),
    ],
)
def test_a_schedule_comes_at_the_first_instant_that_matches(schedule: str, after: str, following: str) -> None:
    assert shown(next_time(parse_cron(schedule), ns(after))) == following


@pytest.mark.parametrize(
    ("after", "following"),
    [
        ("2026-03-07T00:00:00", "2026-03-07T07:30:00"),
        ("2026-03-08T00:00:00", "2026-03-09T06:30:00"),  # there is no 2:30 on the day when summer time begins
        ("2026-10-31T12:00:00", "2026-11-01T07:30:00"),
    ],
)
def test_a_schedule_follows_the_offsets_of_its_zone(after: str, following: str) -> None:
    cron = parse_cron("CRON_TZ=America/New_York 30 2 * * *")
    assert cron.zone == "America/New_York"
    assert shown(next_time(cron, ns(after), NEW_YORK)) == following


def test_an_hour_that_a_zone_repeats_comes_twice() -> None:
    cron = parse_cron("TZ=America/New_York 30 1 * * *")
    first = next_time(cron, ns("2026-10-31T12:00:00"), NEW_YORK)
    assert first is not None
    assert shown(first) == "2026-11-01T05:30:00"
    assert shown(next_time(cron, first, NEW_YORK)) == "2026-11-01T06:30:00"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* * 0 * *",
        "* * * * 7",
        "a * * * *",
        "*/0 * * * *",
        "5-1 * * * *",
        "1-2-3 * * * *",
        "*-5 * * * *",
        "@fortnightly",
        "@every",
        "@every soon",
        "@every -5s",
        "TZ=Europe/Berlin",
        "\N{SUPERSCRIPT TWO} * * * *",
    ],
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(BadCron):
        parse_cron(text)


@pytest.mark.parametrize(
    ("schedule", "scheduled", "now", "seconds"),
    [
        ("@every 10s", 0, 0, 10),
        ("@every 10s", 10, 12, 8),
        ("@every 10s", 10, 35, 5),  # two that were missed are not made up for
        ("@every 10s", 10, 20, 10),
        ("* * * * *", 0, 61, 59),
        ("* * * * *", 120, 61, 59),  # the present run has not been due yet
    ],
)
def test_the_next_run_waits_for_the_next_time_after_now(schedule: str, scheduled: int, now: int, seconds: int) -> None:
    waits = backoff_to_next(parse_cron(schedule), scheduled * SECOND_NS, now * SECOND_NS)
    assert waits == seconds * SECOND_NS


def test_a_wait_is_rounded_up_to_a_second() -> None:
    assert backoff_to_next(parse_cron("* * * * *"), 0, 59 * SECOND_NS + 1) == SECOND_NS


@given(st.integers(min_value=0, max_value=2_500_000_000), st.integers(0, 59), st.integers(0, 23))
def test_the_next_time_is_later_and_matches(after_s: int, minute: int, hour: int) -> None:
    at = next_time(parse_cron(f"{minute} {hour} * * *"), after_s * SECOND_NS, NEW_YORK)
    assert at is not None
    assert after_s < at // SECOND_NS <= after_s + 2 * 86_400 + 3_600
    offset = [known for since, known in ((0, -18_000), *NEW_YORK.changes) if since <= at // SECOND_NS][-1]
    local = datetime.fromtimestamp(at // SECOND_NS + offset, UTC)
    assert (local.minute, local.hour, local.second) == (minute, hour, 0)


def test_a_zone_survives_as_text() -> None:
    assert Zone.decode(NEW_YORK.encode()) == NEW_YORK
    assert Zone.decode("0") == Zone()


def test_a_schedule_is_of_bounded_length() -> None:
    with pytest.raises(BadCron, match="1008 characters, expected at most 1000"):
        parse_cron(",".join(["1"] * 500) + "  * * * *")
    with pytest.raises(BadCron, match="expected at most 1000"):
        parse_cron(f"CRON_TZ={'Z' * 1_000} * * * * *")
