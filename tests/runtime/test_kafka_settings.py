"""What every Kafka client of ours waits for, and for how long."""

from __future__ import annotations

from everfold.runtime.kafka import KafkaSettings

SERVING_SECONDS_MAX = 15
"""From Kafka's new leaders to shards that serve (tests/brokers)."""


def test_a_hung_broker_may_be_asked_twice_in_vain_before_the_new_leaders_are_and_shards_still_serve_in_time() -> None:
    config = KafkaSettings("here:9092").client("any")
    assert 2 * config["socket.timeout.ms"] < SERVING_SECONDS_MAX * 1000
    assert config["topic.metadata.refresh.interval.ms"] < config["socket.timeout.ms"]
    assert config["socket.connection.setup.timeout.ms"] < config["socket.timeout.ms"]


def test_the_users_own_properties_win() -> None:
    config = KafkaSettings("here:9092", properties={"socket.timeout.ms": "30000"}).client("any", socket_timeout_ms=1)
    assert config["socket.timeout.ms"] == "30000"
