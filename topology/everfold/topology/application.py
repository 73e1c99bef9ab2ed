"""The Faust application that runs projections, and how a projection becomes one of its agents."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any, Final

import faust
import structlog
from faust.transport.drivers import TRANSPORTS
from faust.types import TP
from faust.types.auth import CredentialsT
from faust.worker import Worker as FaustWorker

from everfold.runtime import metrics
from everfold.runtime.datadir import OWNER_ALONE
from everfold.runtime.kafka import KafkaSettings, KafkaUnavailable, known_offset
from everfold.runtime.kafka.security import security_of
from everfold.runtime.kafka.settings import LEADERS_SECONDS_MAX, REQUEST_SECONDS_MAX
from everfold.schemas.topics import full_name
from everfold.topology.dead_letters import DeadLetterBox
from everfold.topology.projection import Projection, Watermarks
from everfold.topology.publisher import PublishFailed, missing_topics
from everfold.topology.sight import Lag, Sight
from everfold.topology.transport import BatchSchema, NoTables

TRANSPORTS.aliases["everfold"] = "everfold.topology.transport:Transport"

SESSION_TIMEOUT_S: Final = 6.0
"""How long the partitions of a killed worker wait, unless it comes back itself: as for the shards."""

COMMIT_INTERVAL_S: Final = 1.0
"""How far the group's commit may be behind, for those who read the lag from it."""

POLL_RECORDS: Final = 500
"""Most records of one fetch: bounds a batch, and so a transaction and the memory it takes."""

FETCH_BYTES: Final = 1024 * 1024
"""Most bytes per partition and fetch, larger single records excepted: bounds the consumer's memory."""

STOP_WITHIN_S: Final = 1.8
"""After SIGTERM: a batch takes milliseconds, so what takes longer hangs. Below the 3 s of the parent's patience."""

CRASH_WITHIN_S: Final = 1.0
"""After a processor has failed: only for Faust to leave the group."""

TOPICS_WITHIN_S: Final = 30.0
"""How long to wait at start for topics, once a broker answers: somebody may be making them."""

BUFFERED_BATCHES: Final = 8
"""Batches waiting for an agent, all partitions together: beyond it the consumer stops fetching."""

log = structlog.get_logger("topology")


class TopicsMissing(Exception):
    """There is nothing to read. The text says what to do."""


@dataclass(frozen=True)
class TopologyOptions:
    """What the topology must know of its surroundings.

    Attributes:
        bootstrap: Kafka's brokers, host:port,….
        data_dir: where the processors keep their state; no two processes share one.
        visibility_url: the index.
        prefix: what every topic's name begins with.
        group: the consumer group, after the prefix; an application with other processors has another one. Its commits
            follow the processors' positions by a second.
        properties: librdkafka's properties for every client, e.g. security.protocol.
        instance: the worker's name in its consumer group, kept over restarts; a restarted worker then has its
            partitions back at once. Empty for none.
        linger_s: rest between fetches: the longer, the fewer and larger the batches. It is latency, too.
        metrics_ip: where Prometheus metrics and `/lag` are served.
        metrics_port: 0 for nowhere.
    """

    bootstrap: str
    data_dir: Path
    visibility_url: str
    prefix: str = "everfold."
    group: str = "topology"
    properties: Mapping[str, str] = field(default_factory=dict)
    instance: str = ""
    linger_s: float = 0.2
    metrics_ip: str = "127.0.0.1"
    metrics_port: int = 0

    @property
    def kafka(self) -> KafkaSettings:
        """The cluster, for clients that are not Faust's."""
        return KafkaSettings(self.bootstrap, self.prefix, self.properties)


class Worker(FaustWorker):
    """Faust's worker without its spinner, and with an end that is bounded.

    Faust's own stop may wait for ever for a consumer thread whose loop is closed, above all after a crash. Nothing is
    lost by leaving: what a processor did and its position move together.
    """

    def __init__(self, app: TopologyApp, **options: Any) -> None:
        super().__init__(app, **options)
        self.spinner = None
        self._last_call: threading.Timer | None = None

    async def _sentinel_task(self) -> None:
        """Faust sleeps for a second here, before it closes its loop."""

    def _schedule_shutdown(self, signal: Signals) -> None:
        self._leave_within(STOP_WITHIN_S, 0)
        super()._schedule_shutdown(signal)

    def _crash(self, reason: BaseException) -> None:
        if not self._crashed.is_set():
            self._leave_within(CRASH_WITHIN_S, 1)
        super()._crash(reason)

    def _leave_within(self, seconds: float, status: int) -> None:
        if self._last_call is None:
            self._last_call = threading.Timer(seconds, os._exit, (status,))
            self._last_call.daemon = True
            self._last_call.start()


class TopologyApp(faust.App):
    """A Faust application with projections.

    Attributes:
        batched: full names of the topics that are delivered in batches.
        linger_s: rest between fetches.
    """

    def __init__(self, options: TopologyOptions) -> None:
        self.options = options
        self.batched: set[str] = set()
        self.linger_s = options.linger_s
        self._projections: dict[str, Projection] = {}
        self._factories: list[Callable[[], Projection]] = []
        self._dead_letter_box = DeadLetterBox(options.kafka)
        self._sight = Sight(options.metrics_ip, options.metrics_port, self.lag)
        super().__init__(
            options.prefix + options.group,
            broker=";".join(f"everfold://{server.strip()}" for server in options.bootstrap.split(",")),
            broker_credentials=credentials(options.properties),
            autodiscover=False,
            datadir=str(options.data_dir / "faust"),
            store="memory://",
            processing_guarantee="at_least_once",
            table_standby_replicas=0,
            topic_allow_declare=False,
            topic_disable_leader=True,
            consumer_group_instance_id=options.instance or None,
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=FETCH_BYTES,
            broker_max_poll_records=POLL_RECORDS,
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=SESSION_TIMEOUT_S / 4,
            # Faust wants it to be no shorter than the session.
            broker_request_timeout=max(REQUEST_SECONDS_MAX, SESSION_TIMEOUT_S),
            consumer_metadata_max_age_ms=round(LEADERS_SECONDS_MAX * 1000),
            broker_commit_interval=COMMIT_INTERVAL_S,
            stream_buffer_maxsize=BUFFERED_BATCHES,
            stream_wait_empty=False,
            stream_recovery_delay=0.0,
            producer_acks=-1,
            # `faust worker` turns the web server on whatever is said here (--without-web turns it off): then on
            # loopback, since it shows more than the lag.
            web_enabled=False,
            web_bind="127.0.0.1",
            web_host="127.0.0.1",
            worker_redirect_stdouts=False,
            TableManager=NoTables,
            Worker=Worker,
        )

    def attach(self, kind: type[Projection], make: Callable[[], Projection]) -> None:
        """Adds a processor.

        Args:
            kind: its class.
            make: makes it when the worker starts: importing the application must open nothing.
        """
        topic_name = full_name(self.options.prefix, kind.source)
        if topic_name in self.batched:
            raise ValueError(f"{topic_name} has a processor already: give another one an application of its own")
        self.batched.add(topic_name)

        async def run(stream: Any) -> None:
            async for batch in stream:
                try:
                    await self._projections[topic_name].process(batch)
                except Exception as error:
                    # Faust would restart the agent behind the batch, and so skip it. The process must go instead:
                    # whoever starts it again reads on from the stored position.
                    await self.crash(error)
                    raise

        topic = self.topic(topic_name, schema=BatchSchema(), allow_empty=True)
        self.agent(topic, name=f"{__name__}.{kind.name}")(run)
        self._factories.append(make)

    async def on_first_start(self) -> None:
        """Makes the processors."""
        await self._await_topics()
        for make in self._factories:
            projection = make()
            projection.dead_letter_box = self._dead_letter_box
            await projection.start()
            self._projections[full_name(self.options.prefix, projection.source)] = projection
        await self._sight.start()
        await super().on_first_start()

    async def _await_topics(self) -> None:
        # A consumer that joins before its topics exist gets nothing to read until it asks again, seconds later.
        loop = asyncio.get_running_loop()
        wanted = [*sorted(self.batched), self._dead_letter_box.topic]
        deadline: float | None = None
        while True:
            try:
                missing = await loop.run_in_executor(None, missing_topics, self.options.kafka, wanted)
            except KafkaUnavailable as error:
                log.warning("waits for Kafka", reason=str(error))
                continue
            if not missing:
                return
            deadline = deadline or loop.time() + TOPICS_WITHIN_S
            if loop.time() > deadline:
                raise TopicsMissing(
                    f"there is no topic {', '.join(missing)} on {self.options.bootstrap}; make the topics with "
                    "`everfold topics apply`, or correct kafka.prefix"
                )
            await asyncio.sleep(0.25)

    async def on_shutdown(self) -> None:
        """Lets the processors' stores go."""
        await super().on_shutdown()
        await self._sight.stop()
        for projection in self._projections.values():
            await projection.stop()
        self._projections.clear()
        self._dead_letter_box.close()

    async def crash(self, reason: BaseException) -> None:
        """Says why, once and in words, and stops the worker."""
        known = isinstance(reason, TopicsMissing | PublishFailed)
        log.error("the topology stops", reason=str(reason), exc_info=None if known else reason)
        # What the libraries say while they are torn down is not what the reader is looking for.
        logging.disable(logging.CRITICAL)
        await super().crash(reason)

    async def open_partitions(self, assigned: Iterable[TP]) -> dict[TP, int]:
        """Opens the assigned partitions in their processors: partition -> the offset to read next."""
        wanted = [tp for tp in assigned if tp.topic in self._projections]
        first = await self.consumer.earliest_offsets(*wanted) if wanted else {}
        end = await self.consumer.highwaters(*wanted) if wanted else {}
        starts: dict[TP, int] = {}
        for topic, projection in self._projections.items():
            marks = {
                tp.partition: Watermarks(
                    *(known_offset(found[tp], f"{tp.topic}[{tp.partition}]") for found in (first, end))
                )
                for tp in wanted
                if tp.topic == topic
            }
            for partition, offset in (await projection.open(marks)).items():
                starts[TP(topic, partition)] = offset
        log.info("partitions", held=len(wanted), behind=sum(end[tp] - starts[tp] for tp in wanted))
        return starts

    def _create_directories(self) -> None:
        # Faust makes no directory above its own, and an application may be the first to need the data directory.
        Path(self.conf.datadir).mkdir(OWNER_ALONE, parents=True, exist_ok=True)
        super()._create_directories()

    def lag(self) -> Lag:
        """Processor -> partition -> records not yet applied; also sets the gauges."""
        found: Lag = {}
        for topic, projection in self._projections.items():
            ends = {tp.partition: end for tp in self._held(topic) if (end := self.consumer.highwater(tp)) is not None}
            found[projection.name] = projection.lag(ends)
            for partition, records in found[projection.name].items():
                metrics.PROJECTION_LAG.labels(projection.name, str(partition)).set(records)
        return found

    def _held(self, topic: str) -> list[TP]:
        return [TP(*tp) for tp in self.consumer.assignment() if tp.topic == topic]


def credentials(properties: Mapping[str, str]) -> CredentialsT | None:
    """Librdkafka's security properties as Faust's credentials.

    Raises:
        ValueError: a property that has no counterpart here.
    """
    security = security_of(properties)
    if security.mechanism:
        return faust.SASLCredentials(
            username=security.username,
            password=security.password,
            mechanism=security.mechanism,
            ssl_context=security.context,
        )
    if security.context is not None:
        return faust.SSLCredentials(security.context)
    return None
