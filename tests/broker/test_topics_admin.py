from __future__ import annotations

import dataclasses
import time

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from everfold.runtime.kafka import KafkaSettings
from everfold.runtime.topics_admin import ClusterShape, TopicsWrong, apply_topics, check_topics, require_topics
from everfold.schemas.topics import CLUSTER, SHARD_LOG, TOPICS, WORKFLOW_TASKS

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
    assert "expected -1, found 604800000" in found["retention.ms"]
    apply_topics(kafka, SHAPE, [SHARD_LOG])
    require_topics(kafka, SHAPE, [SHARD_LOG])


def test_another_partition_count_is_refused_and_nothing_changed(kafka: KafkaSettings) -> None:
    apply_topics(kafka, SHAPE, [SHARD_LOG])
    other = dataclasses.replace(SHAPE, shards=4)
    with pytest.raises(TopicsWrong, match="partitions: expected 4, found 2"):
        apply_topics(kafka, other, [SHARD_LOG, CLUSTER])
    assert [difference.what for difference in check_topics(kafka, SHAPE, [SHARD_LOG, CLUSTER])] == ["topic"]


def test_one_replica_is_refused_without_single_broker(kafka: KafkaSettings) -> None:
    apply_topics(kafka, SHAPE, [WORKFLOW_TASKS])
    strict = dataclasses.replace(SHAPE, single_broker=False)
    with pytest.raises(TopicsWrong, match="replication: expected at least 3, found 1") as caught:
        require_topics(kafka, strict, [WORKFLOW_TASKS])
    assert "--single-broker" in str(caught.value)
    assert "min.insync.replicas: expected 2, found 1" in str(caught.value)
