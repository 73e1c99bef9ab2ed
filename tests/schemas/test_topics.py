"""What of a topic's configuration is Everfold's business, and what its owner's."""

from __future__ import annotations

import pytest

from everfold.schemas.topics import will_do


@pytest.mark.parametrize(
    ("setting", "wanted", "found", "good"),
    [
        ("retention.ms", "604800000", "604800000", True),
        ("retention.ms", "604800000", "604800001", True),
        ("retention.ms", "604800000", "-1", True),
        ("retention.ms", "604800000", "604799999", False),
        ("retention.ms", "604800000", "", False),
        ("retention.ms", "-1", "604800000", False),
        ("retention.bytes", "-1", "1099511627776", False),
        ("min.insync.replicas", "2", "3", True),
        ("min.insync.replicas", "2", "1", False),
        ("max.message.bytes", "8388608", "16777216", True),
        ("max.message.bytes", "8388608", "1048588", False),
        ("segment.ms", "600000", "3600000", True),
        ("segment.ms", "600000", "1000", True),
        ("cleanup.policy", "delete", "compact,delete", False),
        ("message.timestamp.type", "LogAppendTime", "CreateTime", False),
        ("unclean.leader.election.enable", "false", "true", False),
    ],
)
def test_more_is_good_where_more_is_harmless_and_only_there(setting: str, wanted: str, found: str, good: bool) -> None:
    assert will_do(setting, wanted, found) is good
