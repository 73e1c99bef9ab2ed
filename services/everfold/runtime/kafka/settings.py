"""How to reach Kafka, and what every client of ours has in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from everfold.schemas.topics import RECORD_BYTES_MAX, Topic, full_name

MESSAGE_BYTES_MAX: Final = RECORD_BYTES_MAX + 64 * 1024
"""Above the brokers' record limit by the room for keys, headers and framing, so that the broker's answer decides."""

librdkafka_log: Final = logging.getLogger("everfold.kafka")
"""Where librdkafka's own lines go; it speaks of lost connections mostly."""

Config = dict[str, Any]


@dataclass(frozen=True)
class KafkaSettings:
    """A Kafka cluster and our place in it.

    Attributes:
        bootstrap: `host:port[,host:port...]`.
        prefix: put before each topic and group name, e.g. `everfold.`.
        properties: librdkafka properties for all clients, e.g. `security.protocol`; they win over ours.
    """

    bootstrap: str
    prefix: str = "everfold."
    properties: Mapping[str, str] = field(default_factory=dict)

    def topic(self, topic: Topic) -> str:
        """The topic's name on the broker."""
        return full_name(self.prefix, topic)

    def client(self, name: str, **config: Any) -> Config:
        """A librdkafka configuration: the common part, then `config` (underscores for dots), then the user's own."""
        return {
            "bootstrap.servers": self.bootstrap,
            "client.id": f"{self.prefix}{name}",
            # A broker on this machine is back in three seconds: look often, and don't back off to the default of 10 s.
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "retry.backoff.ms": 50,
            "socket.connection.setup.timeout.ms": 5000,
            "message.max.bytes": MESSAGE_BYTES_MAX,
            # Nobody asked for client telemetry (KIP-714), and its subscription costs a round trip at start.
            "enable.metrics.push": False,
            "logger": librdkafka_log,
            **{key.replace("_", "."): value for key, value in config.items()},
            **self.properties,
        }
