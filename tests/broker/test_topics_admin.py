from __future__ import annotations

import dataclasses
import time

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from everfold.runtime.kafka import KafkaSettings
from everfold.runtime.topics_admin import ClusterShape, TopicsWrong, apply_topics, check_topics, require_topics
from everfold.schemas.topics import CLUSTER, COMMANDS, KEPT_MS, RECORD_BYTES_MAX, SHARD_LOG, TOPICS, WORKFLOW_TASKS

pytestmark = pytest.mark.broker

SHAPE = ClusterShape(shards=2, task_partitions=1, replication=1, single_broker=True)


def test_missing_topics_are_named_created_and_then_all_is_well(kafka: KafkaSettings) -> None:
    assert [str(difference) for difference in check_topics(kafka, SHAPE)] == [
        f"{kafka.topic(topic)}: missing" for topic in TOPICS
    ]
    with pytest.raises(TopicsWrong, match="everfold topics apply"):
        require_topics(kafka, SHAPE)
    assert len(apply_topics(kafka, SHAPE)) == len(TOPICS)
    require_topics(kafka, SHAPE)
    assert apply_topics(kafka, SHAPE) == []


def test_a_wrong_setting_is_named_and_put_right(kafka: KafkaSettings) -> None:
    name = kafka.topic(SHARD_LOG)
    admin = AdminClient(kafka.client("test"))
    admin.create_topics([NewTopic(name, 2, 1, config={"cleanup.policy": "compact"})])[name].result(timeout=20)
    deadline = time.monotonic() + 20
    while True:  # a topic that was created is in the brokers' metadata a moment later
        found = {difference.what: str(difference) for difference in check_topics(kafka, SHAPE, [SHARD_LOG])}
        if "cleanup.policy" in found or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert found["cleanup.policy"] == f"{name}: cleanup.policy: expected delete, found compact"
    assert "expected LogAppendTime, found CreateTime" in found["message.timestamp.type"]
    assert "expected -1 (unlimited), found 604800000" in found["retention.ms"]
    with pytest.raises(TopicsWrong, match="cleanup"):
        apply_topics(kafka, SHAPE, [SHARD_LOG, CLUSTER], create_only=True)
    assert check_topics(kafka, SHAPE, [CLUSTER]) != []  # nothing at all was changed
    apply_topics(kafka, SHAPE, [SHARD_LOG])
    require_topics(kafka, SHAPE, [SHARD_LOG])


def test_more_than_asked_for_is_the_owners_right_and_less_is_raised(kafka: KafkaSettings) -> None:
    apply_topics(kafka, SHAPE, [COMMANDS])
    name = kafka.topic(COMMANDS)
    admin = AdminClient(kafka.client("test"))

    def configure(**wanted: str) -> None:
        resource = ConfigResource(ResourceType.TOPIC, name)
        for key, value in wanted.items():
            resource.add_incremental_config(
                ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            )
        admin.incremental_alter_configs([resource])[resource].result(timeout=20)

    def configured(key: str) -> str:
        resource = ConfigResource(ResourceType.TOPIC, name)
        return str(admin.describe_configs([resource])[resource].result(timeout=20)[key].value)

    more = {"retention_ms": str(2 * KEPT_MS), "max_message_bytes": str(2 * RECORD_BYTES_MAX), "segment_ms": "3600000"}
    for wanted in (more, {"retention_ms": "-1"}):
        configure(**wanted)
        require_topics(kafka, SHAPE, [COMMANDS])
        assert apply_topics(kafka, SHAPE, [COMMANDS]) == []
        assert {key: configured(key.replace("_", ".")) for key in wanted} == wanted

    configure(retention_ms="60000")
    with pytest.raises(TopicsWrong, match=f"retention.ms: expected at least {KEPT_MS}, found 60000"):
        require_topics(kafka, SHAPE, [COMMANDS])
    assert [(change.deed, change.what) for change in apply_topics(kafka, SHAPE, [COMMANDS])] == [
        ("raise", "retention.ms")
    ]
    assert configured("retention.ms") == str(KEPT_MS)
    assert configured("max.message.bytes") == more["max_message_bytes"]


def test_another_partition_count_is_refused_and_nothing_changed(kafka: KafkaSettings) -> None:
    apply_topics(kafka, SHAPE, [SHARD_LOG])
    other = dataclasses.replace(SHAPE, shards=4)
    with pytest.raises(TopicsWrong, match="partitions: expected 4, found 2"):
        apply_topics(kafka, other, [SHARD_LOG, CLUSTER])
    assert [difference.what for difference in check_topics(kafka, SHAPE, [SHARD_LOG, CLUSTER])] == ["topic"]


def test_more_partitions_than_one_are_merely_empty(kafka: KafkaSettings) -> None:
    name = kafka.topic(CLUSTER)
    admin = AdminClient(kafka.client("test"))
    admin.create_topics([NewTopic(name, 2, 1, config=SHAPE.config(CLUSTER))])[name].result(timeout=20)
    apply_topics(kafka, SHAPE, [CLUSTER])
    require_topics(kafka, SHAPE, [CLUSTER])


def test_one_replica_is_refused_without_single_broker(kafka: KafkaSettings) -> None:
    apply_topics(kafka, SHAPE, [WORKFLOW_TASKS])
    strict = dataclasses.replace(SHAPE, single_broker=False)
    with pytest.raises(TopicsWrong, match="replication: expected at least 3, found 1") as caught:
        require_topics(kafka, strict, [WORKFLOW_TASKS])
    assert "--single-broker" in str(caught.value)
    assert "min.insync.replicas: expected at least 2, found 1" in str(caught.value)
