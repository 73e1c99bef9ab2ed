"""The facts about time zones that a record carries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from everfold.kernel.cron import Zone
from everfold.kernel.time import SECOND_NS
from everfold.runtime.zones import ZONES_PER_RECORD_MAX, is_zone, zone_facts, zone_from

NOW_NS = int(datetime(2026, 5, 1, tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Tokyo", "Etc/UTC"])
def test_the_offsets_are_those_of_the_zone(name: str) -> None:
    zone, known = zone_from(name, 2026), ZoneInfo(name)
    for days in range(0, 3_650, 9):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days, hours=days % 24)
        second = int(at.timestamp())
        offset = [zone.offset_s, *(offset for since, offset in zone.changes if since <= second)][-1]
        assert timedelta(seconds=offset) == at.astimezone(known).utcoffset()


def test_a_change_is_known_to_the_second() -> None:
    change = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp())
    assert (change, 7_200) in zone_from("Europe/Berlin", 2026).changes


def test_a_request_that_names_a_zone_brings_its_facts_along() -> None:
    facts = zone_facts(b"\x0a\x20CRON_TZ=Europe/Berlin 0 9 * * *", NOW_NS)
    assert list(facts) == ["zone:Europe/Berlin"]
    assert Zone.decode(facts["zone:Europe/Berlin"]) == zone_from("Europe/Berlin", 2026)


@pytest.mark.parametrize(
    "message", [None, b"", b"TZ=Europe/Berlin", b"TZ=../../etc/passwd 1", b"TZ=No/Where * * * * *"]
)
def test_what_names_no_zone_brings_none(message: bytes | None) -> None:
    assert zone_facts(message, NOW_NS) == {}


def test_a_record_tells_of_a_bounded_number_of_zones() -> None:
    names = [f"Etc/GMT-{number}" for number in range(15)] + [f"Etc/GMT+{number}" for number in range(13)]
    facts = zone_facts(b"".join(f"TZ={name} ".encode() for name in names), NOW_NS)
    assert len(facts) == ZONES_PER_RECORD_MAX


def test_the_empty_name_is_a_zone() -> None:
    assert is_zone("")
    assert is_zone("Europe/Berlin")
    assert not is_zone("europe")
