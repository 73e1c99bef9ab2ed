"""Trouble with Kafka, as the rest of the engine sees it.

ProducerQueueFull: Kafka takes nothing at present: stop consuming, try again later
KafkaUnavailable: a question to the cluster got no answer in time
"""

from __future__ import annotations


class KafkaTrouble(Exception):
    """Anything below."""


class ProducerQueueFull(KafkaTrouble):
    """The producer holds as much undelivered data as it may; nothing was taken."""


class KafkaUnavailable(KafkaTrouble):
    """The cluster did not answer in time."""
