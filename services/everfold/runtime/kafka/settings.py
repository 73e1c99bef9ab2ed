"""How to reach Kafka, and what every client of ours has in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from everfold.schemas.topics import RECORD_BYTES_MAX, Topic, full_name

MESSAGE_BYTES_MAX: Final = RECORD_BYTES_MAX + 64 * 1024
"""Above the brokers' record limit by the room for keys, headers and framing, so that the broker's answer decides."""

REQUEST_SECONDS_MAX: Final = 6.0
"""How long a request may stay unanswered (librdkafka: 60 s). A hung broker keeps its connections and says nothing, so
each client asks it in vain for so long, and now and then twice: a question for the new leaders may go to it, too. Kafka
has those after 9 s. The largest record takes as long on a line of 12 Mbit/s; a slower one needs `socket.timeout.ms`
among the properties. Measured in docs/decisions/0025-a-broker-that-hangs.md."""

CONNECT_SECONDS_MAX: Final = 3.0
"""How long a connection may take until it can be used: the kernel of a hung broker's machine still accepts it."""

LEADERS_SECONDS_MAX: Final = 5.0
"""How old the knowledge of the leaders may be (librdkafka: 300 s). One small request per client; what a hung broker led
is otherwise asked of nobody else until a request to it fails."""

ACKNOWLEDGE_SECONDS_MAX: Final = 4.0
"""How long the leader waits for the other copies before it says that they did not come. It is sent the record again
then, and knows it. Below REQUEST_SECONDS_MAX, or the leader itself would be taken for hung."""

assert CONNECT_SECONDS_MAX < REQUEST_SECONDS_MAX
assert ACKNOWLEDGE_SECONDS_MAX < REQUEST_SECONDS_MAX

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
            "socket.timeout.ms": round(REQUEST_SECONDS_MAX * 1000),
            "socket.connection.setup.timeout.ms": round(CONNECT_SECONDS_MAX * 1000),
            "topic.metadata.refresh.interval.ms": round(LEADERS_SECONDS_MAX * 1000),
            "message.max.bytes": MESSAGE_BYTES_MAX,
            # Nobody asked for client telemetry (KIP-714), and its subscription costs a round trip at start.
            "enable.metrics.push": False,
            "logger": librdkafka_log,
            **{key.replace("_", "."): value for key, value in config.items()},
            **self.properties,
        }
