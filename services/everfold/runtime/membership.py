"""Who is in the cluster, and who holds what: the compacted topic `cluster`, seen from one process.

Every process writes a `Member` record about itself when something changes and every HEARTBEAT_S, and reads
everybody's. A member that has not written for GONE_AFTER_MS is gone. Both ends of that are times of the *topic*
(LogAppendTime): no clock of ours takes part, and while the broker is away, time stands still and nobody is declared
dead for it.

Ownership itself is the Kafka consumer groups' business; this only says where to look. When two members claim a
partition, the later claim is believed: the earlier owner has not heard yet. Whoever is asked wrongly says `NotOwner`,
and the caller looks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

HEARTBEAT_S: Final = 2.0
GONE_AFTER_MS: Final = 10_000
"""Five heartbeats. Above Kafka's group session of 6 s, after which a dead owner's partitions have a new owner, whose
later claim wins anyway; so this only bounds how long dead members are listed."""

FORGET_AFTER_MS: Final = 600_000
"""After this a gone member gets a tombstone from whoever sees it, so that restarts do not fill the topic."""

REVIEW_S: Final = 0.5
"""How often the process looks whether somebody is gone."""

log = structlog.get_logger("membership")


@dataclass(frozen=True)
class Member:
    """One process of the cluster, as it describes itself; see Member.avsc.

    Attributes:
        address: host:port of its internal calls; empty if it serves none.
        partitions: role -> the partitions it holds.
        load: share of a core that it used lately.
        frontend_address: host:port of its gRPC front; empty if it has none.
    """

    member_id: str
    address: str = ""
    roles: tuple[str, ...] = ()
    partitions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    load: float = 0.0
    started_at_ns: int = 0
    seen_at_ns: int = 0
    frontend_address: str = ""


class Membership(Protocol):
    """What the router and the services ask. All on the loop's thread."""

    @property
    def me(self) -> Member:
        """This process."""
        ...

    def members(self) -> list[Member]:
        """Everybody who is there, this process included."""
        ...

    def owner(self, role: str, partition: int) -> Member | None:
        """Who holds the partition, as far as is known."""
        ...

    def set_partitions(self, role: str, partitions: Iterable[int]) -> None:
        """This process holds exactly these partitions from now on."""
        ...

    async def wait_owner(self, role: str, partition: int, timeout: float) -> Member | None:
        """The owner, as soon as one is known; None when the time is over."""
        ...

    def on_gone(self, callback: Callable[[Member], None]) -> None:
        """Call back when another member leaves or has not been seen for too long."""
        ...


class _Owners:
    """The claims of all members, and those who wait for one."""

    def __init__(self) -> None:
        #: (role, partition) -> member ids, the latest claim last
        self._claims: dict[tuple[str, int], list[str]] = {}
        self._waiting: dict[tuple[str, int], set[asyncio.Future[None]]] = {}

    def change(self, member_id: str, before: Member | None, after: Member | None) -> None:
        """A member's claims went from those of `before` to those of `after`."""
        old = {(role, p) for role, ps in before.partitions.items() for p in ps} if before is not None else set()
        new = {(role, p) for role, ps in after.partitions.items() for p in ps} if after is not None else set()
        for place in old - new:
            self._claims[place].remove(member_id)
            if not self._claims[place]:
                del self._claims[place]
        for place in new - old:
            self._claims.setdefault(place, []).append(member_id)
            for future in self._waiting.pop(place, ()):
                if not future.done():
                    future.set_result(None)

    def latest(self, role: str, partition: int) -> str | None:
        """The member with the latest claim."""
        claims = self._claims.get((role, partition))
        return claims[-1] if claims else None

    async def wait(self, role: str, partition: int, timeout: float) -> None:
        """Returns when somebody claims the partition, or the time is over."""
        place = (role, partition)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(place, set()).add(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            pass
        finally:
            if (waiting := self._waiting.get(place)) is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[place]


class LocalMembership:
    """The membership of a process that is a cluster of its own: it holds what it says, and nobody else is there."""

    def __init__(self, member_id: str = "local", roles: tuple[str, ...] = ()) -> None:
        self._me = Member(member_id, roles=roles, started_at_ns=time.time_ns())
        self._owners = _Owners()

    async def start(self) -> None:
        """Nothing."""

    async def stop(self) -> None:
        """Nothing."""

    @property
    def me(self) -> Member:
        """This process."""
        return self._me

    def members(self) -> list[Member]:
        """This process."""
        return [self._me]

    def owner(self, role: str, partition: int) -> Member | None:
        """This process, if it holds the partition."""
        return self._me if self._owners.latest(role, partition) is not None else None

    def set_partitions(self, role: str, partitions: Iterable[int]) -> None:
        """This process holds exactly these partitions from now on."""
        before = self._me
        self._me = replace(before, partitions={**before.partitions, role: tuple(sorted(partitions))})
        self._owners.change(before.member_id, before, self._me)

    async def wait_owner(self, role: str, partition: int, timeout: float) -> Member | None:
        """The owner, as soon as there is one; None when the time is over."""
        if self.owner(role, partition) is None:
            await self._owners.wait(role, partition, timeout)
        return self.owner(role, partition)

    def on_gone(self, callback: Callable[[Member], None]) -> None:
        """Nobody leaves."""


class ClusterMembership:
    """The membership over the topic `cluster`. Who owns this object feeds it (`received`) and carries its records.

    Args:
        me: this process, without partitions.
        publish: write (member id, record or None for a tombstone) to the topic; must not block.
    """

    def __init__(self, me: Member, publish: Callable[[str, Member | None], None]) -> None:
        self._me = replace(me, started_at_ns=me.started_at_ns or time.time_ns())
        self._publish = publish
        self._owners = _Owners()
        #: member id -> (topic time of its last record, member), this process not included
        self._seen: dict[str, tuple[int, Member]] = {}
        #: gone, but still on the topic: member id -> topic time of its last record
        self._gone: dict[str, int] = {}
        self._topic_ms = 0
        self._on_gone: list[Callable[[Member], None]] = []
        self._beat: asyncio.TimerHandle | None = None
        self._review: asyncio.TimerHandle | None = None
        self._cpu = (time.monotonic(), time.process_time())
        self._publish_soon = False
        self._stopped = False

    async def start(self) -> None:
        """Announce this process, and go on doing so."""
        self._heartbeat()
        self._look()

    async def stop(self) -> None:
        """Say that this process leaves."""
        self._stopped = True
        for timer in (self._beat, self._review):
            if timer is not None:
                timer.cancel()
        self._publish(self._me.member_id, None)

    @property
    def me(self) -> Member:
        """This process."""
        return self._me

    def members(self) -> list[Member]:
        """Everybody who is there, this process first."""
        return [self._me, *(member for _, member in self._seen.values())]

    def owner(self, role: str, partition: int) -> Member | None:
        """Who claimed the partition last, be it this process or another."""
        member_id = self._owners.latest(role, partition)
        if member_id is None:
            return None
        return self._me if member_id == self._me.member_id else self._seen[member_id][1]

    def set_partitions(self, role: str, partitions: Iterable[int]) -> None:
        """This process holds exactly these partitions from now on; the others hear of it at once."""
        before = self._me
        held = tuple(sorted(partitions))
        if before.partitions.get(role) == held:
            return
        self._me = replace(before, partitions={**before.partitions, role: held})
        self._owners.change(before.member_id, before, self._me)
        self._announce_soon()

    def set_addresses(self, address: str, frontend_address: str) -> None:
        """Where this process is reached."""
        self._me = replace(self._me, address=address, frontend_address=frontend_address)
        self._announce_soon()

    async def wait_owner(self, role: str, partition: int, timeout: float) -> Member | None:
        """The owner, as soon as one is known; None when the time is over."""
        if self.owner(role, partition) is None:
            await self._owners.wait(role, partition, timeout)
        return self.owner(role, partition)

    def on_gone(self, callback: Callable[[Member], None]) -> None:
        """Call back when another member leaves or has not been seen for too long."""
        self._on_gone.append(callback)

    def received(self, member_id: str, member: Member | None, topic_ms: int) -> None:
        """A record of the topic: a member's description, or None for its tombstone, with the broker's time."""
        self._topic_ms = max(self._topic_ms, topic_ms)
        if member_id == self._me.member_id:
            return
        if member is None:
            self._gone.pop(member_id, None)
            self._drop(member_id)
            return
        if topic_ms < self._topic_ms - GONE_AFTER_MS:
            self._gone[member_id] = topic_ms
            return
        self._gone.pop(member_id, None)
        before = self._seen.get(member_id)
        self._seen[member_id] = (topic_ms, member)
        self._owners.change(member_id, None if before is None else before[1], member)
        if before is None:
            log.info("member joined", member=member_id, address=member.address, roles=list(member.roles))

    def review(self) -> None:
        """Drop who has not been seen for GONE_AFTER_MS of the topic's time."""
        for member_id, (topic_ms, _) in list(self._seen.items()):
            if topic_ms < self._topic_ms - GONE_AFTER_MS:
                self._gone[member_id] = topic_ms
                self._drop(member_id)
        for member_id, topic_ms in list(self._gone.items()):
            if topic_ms < self._topic_ms - FORGET_AFTER_MS:
                del self._gone[member_id]
                self._publish(member_id, None)

    def _drop(self, member_id: str) -> None:
        seen = self._seen.get(member_id)
        if seen is None:
            return
        self._owners.change(member_id, seen[1], None)
        del self._seen[member_id]
        log.info("member gone", member=member_id, address=seen[1].address)
        for callback in self._on_gone:
            callback(seen[1])

    def _announce_soon(self) -> None:
        """Once per turn of the loop, however much changes in it."""
        if self._beat is None or self._publish_soon or self._stopped:
            return  # not started, and so announced at the start
        self._publish_soon = True
        asyncio.get_running_loop().call_soon(self._heartbeat)

    def _heartbeat(self) -> None:
        self._publish_soon = False
        if self._stopped:
            return
        if self._beat is not None:
            self._beat.cancel()
        self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._heartbeat)
        now, used = time.monotonic(), time.process_time()
        before, used_before = self._cpu
        load = self._me.load
        if now - before >= HEARTBEAT_S / 2:
            load = (used - used_before) / (now - before)
            self._cpu = (now, used)
        self._me = replace(self._me, load=round(load, 3), seen_at_ns=time.time_ns())
        with contextlib.suppress(BufferError):  # the producer takes nothing: Kafka is away, and time stands still
            self._publish(self._me.member_id, self._me)

    def _look(self) -> None:
        self.review()
        self._review = asyncio.get_running_loop().call_later(REVIEW_S, self._look)


def new_member_id() -> str:
    """An id for this process, new each time it starts."""
    return f"{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
