"""What Kafka answers is believed only where it is an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, OFFSET_STORED, KafkaError

from everfold.runtime.kafka import KafkaUnavailable, ask_metadata, known_offset


@pytest.mark.parametrize("answer", [OFFSET_INVALID, OFFSET_STORED, OFFSET_BEGINNING, OFFSET_END, None])
def test_what_is_no_offset_is_an_error_that_names_the_place(answer: int | None) -> None:
    with pytest.raises(KafkaUnavailable, match=r"log\[3\].*found (-\d+|None)"):
        known_offset(answer, "log[3]")


@pytest.mark.parametrize("answer", [0, 1, 1 << 40])
def test_an_offset_passes(answer: int) -> None:
    assert known_offset(answer, "log[3]") == answer


class Brokers:
    """As much of an admin client as is asked."""

    def __init__(self, cluster_id: str | None, **topics: Any) -> None:
        self._found = SimpleNamespace(cluster_id=cluster_id, brokers={1: None, 2: None}, topics=topics)

    def list_topics(self, timeout: float) -> Any:
        return self._found


def topic(partitions: int, error: KafkaError | None = None) -> Any:
    return SimpleNamespace(partitions=dict.fromkeys(range(partitions)), error=error)


def test_metadata_without_a_cluster_id_is_none() -> None:
    with pytest.raises(KafkaUnavailable, match="cluster's id"):
        ask_metadata(Brokers(None), (), "here:1", 1)  # type: ignore[arg-type]


def test_a_topic_that_matters_and_is_not_described_is_an_error_and_another_is_not() -> None:
    away = KafkaError(KafkaError.LEADER_NOT_AVAILABLE)
    brokers: Any = Brokers("k", ours=topic(0, away), empty=topic(0), theirs=topic(4))
    for name in ("ours", "empty"):
        with pytest.raises(KafkaUnavailable, match=f"do not describe {name}"):
            ask_metadata(brokers, [name], "here:1", 1)
    found = ask_metadata(brokers, ["theirs", "missing"], "here:1", 1)
    assert (found.cluster_id, found.brokers, len(found.topics["theirs"].partitions)) == ("k", 2, 4)
    assert "missing" not in found.topics
