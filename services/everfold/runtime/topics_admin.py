"""Creates the topics, and checks that they are what the engine rests on.

`everfold topics apply` creates what is missing and sets what is unsafe; a service only checks, and refuses to run while
anything is: a topic with client timestamps breaks the shard clock, a retention on `shard-log` forgets workflows. Where
more than that is set, a longer retention say, it is the owner's right, and nobody touches it (`will_do`). What cannot
be set afterwards (partition count, replication factor) is always for a person to mend.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from everfold.runtime.kafka.answers import ask_metadata
from everfold.runtime.kafka.errors import KafkaTrouble, KafkaUnavailable
from everfold.runtime.kafka.settings import KafkaSettings
from everfold.schemas.topics import AT_LEAST, COMMANDS, SHARD_LOG, TOPICS, Topic, will_do

ASK_SECONDS_MAX: Final = 30.0
"""Bound on one question to the cluster, its connection included."""

_VISIBLE_SECONDS_MAX: Final = 20.0
"""How long after its creation a topic may take to get a leader everywhere: milliseconds on one broker."""

_NEVER: Final = str(2**63 - 1)
"""Kafka's default of `flush.messages`."""

REPLICATION_MIN: Final = 3
"""With `min.insync.replicas=2` one broker may be lost without losing records or standing still."""


@dataclass(frozen=True)
class ClusterShape:
    """What is fixed when a cluster is created.

    Attributes:
        shards: history shards, a power of two.
        task_partitions: partitions of the task topics.
        replication: replication factor of all topics.
        single_broker: whether fewer than three replicas are accepted.
        write_through: whether what workflows rest on is on the disk before it is acknowledged; None leaves that to the
            cluster's owner, whose replicas do the same.
    """

    shards: int
    task_partitions: int
    replication: int = REPLICATION_MIN
    single_broker: bool = False
    write_through: bool | None = None

    def config(self, topic: Topic) -> dict[str, str]:
        """The configuration that a topic must have."""
        shared = {"unclean.leader.election.enable": "false"}
        if not self.single_broker:
            shared["min.insync.replicas"] = "2"
        if self.write_through is not None and topic in (SHARD_LOG, COMMANDS):
            shared["flush.messages"] = "1" if self.write_through else _NEVER
        return {**topic.full_config(), **shared}


@dataclass(frozen=True)
class Difference:
    """One thing about one topic that is not safe as it is.

    Attributes:
        topic: full name.
        what: a configuration key, "partitions", "replication" or "topic".
        expected: what it must be; with `at_least`, or more.
        found: what it is; "" when missing.
        mendable: whether `apply_topics` can put it right.
        at_least: whether more is as good.
    """

    topic: str
    what: str
    expected: str
    found: str
    mendable: bool
    at_least: bool = False

    @property
    def deed(self) -> str:
        """What `apply_topics` does about it, in one word."""
        if self.what == "topic":
            return "create"
        return "raise" if self.at_least else "set"

    def __str__(self) -> str:
        if self.what == "topic":
            return f"{self.topic}: missing"
        expected = f"at least {self.expected}" if self.at_least else self.expected
        if self.expected == "-1":
            expected = "-1 (unlimited)"
        return f"{self.topic}: {self.what}: expected {expected}, found {self.found or 'nothing'}"


class TopicsWrong(KafkaTrouble):
    """The topics are not what the engine rests on.

    Attributes:
        differences: each of them; the message lists them too.
    """

    def __init__(self, differences: list[Difference]) -> None:
        lines = "".join(f"\n  {difference}" for difference in differences)
        advice = (
            "`everfold topics apply` puts this right."
            if all(difference.mendable for difference in differences)
            else "Partition counts and replication cannot be changed here: use the counts the cluster was created with "
            "(--shards, --task-partitions), reassign the replicas, or take another --kafka-prefix for a new cluster. "
            "On fewer than three brokers: --single-broker."
        )
        super().__init__(f"Topics are not as Everfold needs them:{lines}\n{advice}")
        self.differences = differences


def check_topics(settings: KafkaSettings, shape: ClusterShape, topics: Iterable[Topic] = TOPICS) -> list[Difference]:
    """What is missing or unsafe; empty when all is well. Blocks.

    Raises:
        KafkaUnavailable: the cluster did not answer.
    """
    return _differences(_admin(settings), settings, shape, list(topics))


def require_topics(settings: KafkaSettings, shape: ClusterShape, topics: Iterable[Topic] = TOPICS) -> None:
    """What an owner does at start. Blocks.

    Raises:
        TopicsWrong: anything is missing or unsafe.
        KafkaUnavailable: the cluster did not answer.
    """
    differences = check_topics(settings, shape, topics)
    if differences:
        raise TopicsWrong(differences)


def apply_topics(
    settings: KafkaSettings, shape: ClusterShape, topics: Iterable[Topic] = TOPICS, *, create_only: bool = False
) -> list[Difference]:
    """Creates what is missing, sets what is unsafe, and returns what it did. Repeating it is harmless. Blocks.

    Args:
        settings: the cluster.
        shape: what the topics must look like.
        topics: which.
        create_only: touch no topic that is there: somebody else's cluster is changed only by who asked for it.

    Raises:
        TopicsWrong: something is unsafe that cannot, or with `create_only` may not, be set; nothing was changed.
        KafkaUnavailable: the cluster did not answer.
    """
    wanted = list(topics)
    admin = _admin(settings)
    differences = _differences(admin, settings, shape, wanted)
    if not all(difference.mendable for difference in differences):
        raise TopicsWrong(differences)
    if create_only and (unsafe := [difference for difference in differences if difference.what != "topic"]):
        raise TopicsWrong(unsafe)
    by_name = {settings.topic(topic): topic for topic in wanted}
    missing = [difference.topic for difference in differences if difference.what == "topic"]
    if missing:
        _create(admin, shape, {name: by_name[name] for name in missing})
    resources: dict[str, ConfigResource] = {}
    for difference in differences:
        if difference.what != "topic":
            resource = resources.setdefault(difference.topic, ConfigResource(ResourceType.TOPIC, difference.topic))
            resource.add_incremental_config(
                ConfigEntry(difference.what, difference.expected, incremental_operation=AlterConfigOpType.SET)
            )
    if resources:
        for future in admin.incremental_alter_configs(list(resources.values())).values():
            _result(future)
    _await(admin, settings, shape, wanted)
    return differences


def _admin(settings: KafkaSettings) -> AdminClient:
    return AdminClient(settings.client("topics-admin"))


def _result(future: Future[Any]) -> Any:
    try:
        return future.result(timeout=ASK_SECONDS_MAX)
    except KafkaException as error:
        cause: KafkaError = error.args[0]
        kind = KafkaUnavailable if cause.retriable() or cause.code() in _AWAY else KafkaTrouble
        raise kind(cause.str()) from error
    except TimeoutError as error:
        raise KafkaUnavailable(f"no answer within {ASK_SECONDS_MAX:.0f} s") from error


_AWAY: Final = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)


def _differences(
    admin: AdminClient, settings: KafkaSettings, shape: ClusterShape, topics: list[Topic]
) -> list[Difference]:
    present = ask_metadata(
        admin, [settings.topic(topic) for topic in topics], settings.bootstrap, ASK_SECONDS_MAX
    ).topics
    found_names = [name for topic in topics if (name := settings.topic(topic)) in present]
    configs = _configs(admin, found_names)
    differences = []
    for topic in topics:
        name = settings.topic(topic)
        if name not in present:
            differences.append(Difference(name, "topic", "", "", mendable=True))
            continue
        partitions = present[name].partitions
        expected = topic.partition_count(shape.shards, shape.task_partitions)
        # A partition more than there are shards is one that nobody reads. Where all is written to the first, more are
        # merely empty.
        fixed = isinstance(topic.partitions, int)
        if len(partitions) != expected and not (fixed and len(partitions) > expected):
            found = str(len(partitions))
            differences.append(Difference(name, "partitions", str(expected), found, mendable=False, at_least=fixed))
        replicas = min(len(partition.replicas) for partition in partitions.values())
        if not shape.single_broker and replicas < REPLICATION_MIN:
            found = str(replicas)
            wanted = str(REPLICATION_MIN)
            differences.append(Difference(name, "replication", wanted, found, mendable=False, at_least=True))
        for key, value in shape.config(topic).items():
            found = configs[name].get(key, "")
            if not will_do(key, value, found):
                at_least = key in AT_LEAST
                differences.append(Difference(name, key, value, found, mendable=True, at_least=at_least))
    return differences


def _configs(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    answers = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    return {
        resource.name: {key: entry.value or "" for key, entry in _result(future).items()}
        for resource, future in answers.items()
    }


def _create(admin: AdminClient, shape: ClusterShape, topics: dict[str, Topic]) -> None:
    new = [
        NewTopic(
            name,
            num_partitions=topic.partition_count(shape.shards, shape.task_partitions),
            replication_factor=shape.replication,
            config=shape.config(topic),
        )
        for name, topic in topics.items()
    ]
    for future in admin.create_topics(new, request_timeout=ASK_SECONDS_MAX).values():
        try:
            future.result(timeout=ASK_SECONDS_MAX)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster
                raise KafkaTrouble(f"could not create topics: {error.args[0].str()}") from error


def _await(admin: AdminClient, settings: KafkaSettings, shape: ClusterShape, topics: list[Topic]) -> None:
    """Waits until brokers show the topics as they were made, and each partition has a leader."""
    deadline = time.monotonic() + _VISIBLE_SECONDS_MAX
    names = {settings.topic(topic) for topic in topics}
    while True:
        present = ask_metadata(admin, (), settings.bootstrap, ASK_SECONDS_MAX).topics
        led = all(
            name in present and all(partition.leader >= 0 for partition in present[name].partitions.values())
            for name in names
        )
        differences = _differences(admin, settings, shape, topics) if led else []
        if led and not differences:
            return
        if time.monotonic() > deadline:
            if differences:
                raise TopicsWrong(differences)
            raise KafkaUnavailable("the topics were created but have no leaders yet")
        time.sleep(0.05)
