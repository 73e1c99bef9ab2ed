"""Who is in the cluster and who holds what, by the records of the topic and the topic's own time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from everfold.runtime.membership import FORGET_AFTER_MS, GONE_AFTER_MS, ClusterMembership, LocalMembership, Member

A = Member("a", "10.0.0.1:1", ("matching",), {"matching": (0, 1)})
B = Member("b", "10.0.0.2:1", ("matching",), {"matching": (1, 2)})


class Topic:
    """The membership of process `me`, and what it publishes."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Member | None]] = []
        self.membership = ClusterMembership(Member("me", "10.0.0.9:1"), self.publish)
        self.gone: list[str] = []
        self.membership.on_gone(lambda member: self.gone.append(member.member_id))

    def publish(self, member_id: str, member: Member | None) -> None:
        self.published.append((member_id, member))

    def owner(self, partition: int) -> str | None:
        member = self.membership.owner("matching", partition)
        return None if member is None else member.member_id


def test_the_later_claim_is_believed_until_it_is_given_up() -> None:
    topic = Topic()
    topic.membership.received("a", A, 1000)
    assert [topic.owner(p) for p in range(3)] == ["a", "a", None]
    topic.membership.received("b", B, 1100)
    assert [topic.owner(p) for p in range(3)] == ["a", "b", "b"]
    topic.membership.received("a", A, 1200)  # a heartbeat is no new claim
    assert topic.owner(1) == "b"
    topic.membership.received("b", replace(B, partitions={}), 1300)
    assert [topic.owner(p) for p in range(3)] == ["a", "a", None]


def test_a_member_that_is_silent_while_the_topic_goes_on_is_gone() -> None:
    topic = Topic()
    topic.membership.received("a", A, 1000)
    topic.membership.received("me", Member("me"), 1000 + GONE_AFTER_MS)
    topic.membership.review()
    assert topic.owner(0) == "a"
    topic.membership.received("me", Member("me"), 1001 + GONE_AFTER_MS)
    topic.membership.review()
    assert topic.owner(0) is None
    assert topic.gone == ["a"]
    assert topic.published == []
    topic.membership.received("me", Member("me"), 1001 + FORGET_AFTER_MS)
    topic.membership.review()
    assert topic.published == [("a", None)]


def test_nobody_is_gone_while_the_topic_stands_still() -> None:
    topic = Topic()
    topic.membership.received("a", A, 1000)
    for _ in range(100):
        topic.membership.review()
    assert topic.owner(0) == "a"


def test_records_of_members_long_dead_are_not_believed_when_the_topic_is_read() -> None:
    topic = Topic()
    topic.membership.received("b", B, 500_000)
    topic.membership.received("a", A, 1000)  # compaction keeps order by offset, but times may be anything
    assert topic.owner(0) is None
    assert topic.owner(1) == "b"


def test_a_tombstone_ends_a_membership_at_once() -> None:
    topic = Topic()
    topic.membership.received("a", A, 1000)
    topic.membership.received("a", None, 1001)
    assert topic.owner(0) is None
    assert topic.gone == ["a"]


def test_what_this_process_holds_is_told_at_once_and_every_two_seconds() -> None:
    async def main() -> None:
        topic = Topic()
        await topic.membership.start()
        assert len(topic.published) == 1
        topic.membership.set_partitions("matching", [3, 1])
        topic.membership.set_partitions("history", [0])
        assert topic.owner(3) == "me"
        await asyncio.sleep(0)
        assert len(topic.published) == 2
        member = topic.published[-1][1]
        assert member is not None
        assert member.partitions == {"matching": (1, 3), "history": (0,)}
        topic.membership.set_partitions("history", [0])
        await asyncio.sleep(0)
        assert len(topic.published) == 2
        await topic.membership.stop()
        assert topic.published[-1] == ("me", None)

    asyncio.run(main())


def test_who_waits_for_an_owner_learns_of_it() -> None:
    async def main() -> None:
        topic = Topic()
        waiting = asyncio.ensure_future(topic.membership.wait_owner("matching", 2, 5))
        nobody = asyncio.ensure_future(topic.membership.wait_owner("matching", 9, 0.01))
        await asyncio.sleep(0)
        topic.membership.received("b", B, 1000)
        owner = await waiting
        assert owner is not None
        assert owner.member_id == "b"
        assert await nobody is None
        assert not topic.membership._owners._waiting

    asyncio.run(main())


def test_a_process_alone_is_its_own_cluster() -> None:
    alone = LocalMembership()
    assert alone.owner("history", 0) is None
    alone.set_partitions("history", range(4))
    assert alone.owner("history", 3) is alone.me
    alone.set_partitions("history", [])
    assert alone.owner("history", 3) is None
