"""What Kafka answers, looked at before it is believed: the one door for offsets and for metadata.

A question that nobody answered can come back as an answer. Of a partition whose leader is hung, dead or unknown,
librdkafka reports the offset -1001 ("invalid") and no error; metadata that could not be had names no cluster, or a
topic without partitions. Whoever takes that for a fact finds a log that ends before its store, or a topic with no tail.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from everfold.runtime.kafka.errors import KafkaUnavailable


def known_offset(answer: int | None, where: str) -> int:
    """The offset, when it is one: Kafka's own begin at 0, and all below are librdkafka's words for something else.

    Raises:
        KafkaUnavailable: it is none; asking again, with the leaders looked up anew, may help.
    """
    if answer is None or answer < 0:
        raise KafkaUnavailable(f"{where}: its leader did not say an offset (found {answer})")
    return answer


class Metadata:
    """What the brokers say about the cluster, all of it known.

    Attributes:
        cluster_id: Kafka's own id.
        brokers: how many are alive.
        topics: full name -> confluent-kafka's `TopicMetadata`, with partitions.
    """

    def __init__(self, cluster_id: str, brokers: int, topics: Mapping[str, Any]) -> None:
        self.cluster_id = cluster_id
        self.brokers = brokers
        self.topics = topics


def ask_metadata(admin: AdminClient, topics: Collection[str], bootstrap: str, seconds_max: float) -> Metadata:
    """Asks the brokers about the cluster. Blocks.

    Args:
        admin: whom to ask through.
        topics: full names of those that matter: what is said of others may be incomplete.
        bootstrap: for the error's text.
        seconds_max: bound on the answer.

    Raises:
        KafkaUnavailable: no broker answered in time, or not wholly.
    """
    try:
        found: Any = admin.list_topics(timeout=seconds_max)  # its stubs know no absent values
    except KafkaException as error:
        raise KafkaUnavailable(
            f"No Kafka broker answered at {bootstrap} within {seconds_max:.0f} s ({error.args[0].str()}). "
            "Check the address, that the brokers are up, and that their advertised listeners can be reached from here."
        ) from error
    if not found.cluster_id:
        raise KafkaUnavailable(f"The broker at {bootstrap} does not say its cluster's id; it may be starting.")
    for name in topics:
        topic = found.topics.get(name)
        if topic is not None and (topic.error is not None or not topic.partitions):
            raise KafkaUnavailable(
                f"The brokers at {bootstrap} do not describe {name}: {topic.error or 'no partition'}"
            )
    return Metadata(found.cluster_id, len(found.brokers), found.topics)
