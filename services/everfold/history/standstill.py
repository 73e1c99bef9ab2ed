"""Partitions that have records and do not move: said with the reason, before anybody has to ask for it.

A lag says that there is something to do, not that nobody does it: it looks the same on a busy shard and on one that
waits for something which never comes.
"""

from __future__ import annotations

from typing import Final

import structlog

from everfold.history.ports import Metrics

log = structlog.get_logger("history.standstill")

STILL_S: Final = 10.0
"""Longer than a broker's restart, or a change of leaders, holds a shard up; shorter than anybody waits patiently."""

SAY_AGAIN_S: Final = 60.0
"""A partition that stands still is told of this often."""


class _Seen:
    """One partition at the last looks.

    Attributes:
        position: how far it was.
        since_s: when it was first seen there, with records behind it.
        said_s: when that was last told; None for never.
    """

    __slots__ = ("position", "said_s", "since_s")

    def __init__(self, position: int, since_s: float) -> None:
        self.position = position
        self.since_s = since_s
        self.said_s: float | None = None


class Standstill:
    """Watches the partitions of this process; told of each every few seconds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        #: (topic, partition) -> how it was seen
        self._seen: dict[tuple[str, int], _Seen] = {}

    def look(self, topic: str, partition: int, position: int, records: int, reason: str, now_s: float) -> None:
        """A partition as it is now.

        Args:
            topic: name without prefix.
            partition: number.
            position: the offset of the last record that was taken.
            records: how many are behind it, as far as is known.
            reason: why it does not move, if it does not.
            now_s: by a clock that never goes back.
        """
        place = (topic, partition)
        seen = self._seen.get(place)
        if seen is not None and (seen.position != position or records == 0):
            if seen.said_s is not None:
                log.info("partition moves again", topic=topic, partition=partition, seconds=round(now_s - seen.since_s))
            del self._seen[place]
            seen = None
        if seen is None:
            seen = _Seen(position, now_s)
            if records:
                self._seen[place] = seen
        still_s = now_s - seen.since_s
        self._metrics.gauge("partition_standstill_seconds", still_s, topic=topic, partition=str(partition))
        if still_s < STILL_S or (seen.said_s is not None and now_s - seen.said_s < SAY_AGAIN_S):
            return
        seen.said_s = now_s
        log.warning(
            "partition does not move",
            topic=topic,
            partition=partition,
            offset=position,
            records=records,
            seconds=round(still_s),
            reason=reason,
        )

    def forget(self, partition: int) -> None:
        """Somebody else has the partition now."""
        for place in [place for place in self._seen if place[1] == partition]:
            del self._seen[place]
            self._metrics.gauge("partition_standstill_seconds", 0, topic=place[0], partition=str(partition))
