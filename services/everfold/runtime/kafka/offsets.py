"""What the cluster says of topics: where partitions end, asked for many waiters at once, and the topics' ids.

Ends are the first half of a read barrier (architecture law 7).

A waiter needs an answer to a question that was asked after the waiter came. So those who come while a question is under
way wait for the next one, which asks for all their partitions together: under load the cost per waiter vanishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from everfold.runtime.kafka.answers import known_offset
from everfold.runtime.kafka.errors import KafkaUnavailable
from everfold.runtime.kafka.settings import KafkaSettings

ANSWER_SECONDS_MAX: Final = 5.0
"""Usually 2 ms. Below an RPC's usual deadline of 10 s, so that it can say UNAVAILABLE itself."""

_ATTEMPT_SECONDS_MAX: Final = 1.5
"""A leader that does not answer by then is hung or dead; there is time to look for the next one and to ask that. Above
the 0.5 s that a busy broker may take."""

_RETRY_S: Final = 0.02
"""A partition without a leader (just created, or its broker is starting) has one milliseconds later."""

_REFRESH_SECONDS_MAX: Final = 1.5
"""Bound on asking for the leaders anew, of all topics together: whoever is asked may be the one that hangs."""

Place = tuple[str, int]
"""(full topic name, partition)"""


class _Wait(NamedTuple):
    """Those who wait for one place, and until when they do."""

    answer: asyncio.Future[int]
    deadline: float


class EndOffsets:
    """Answers with the offset after the last record of a partition; loop thread only."""

    def __init__(self, settings: KafkaSettings, *, name: str = "end-offsets") -> None:
        """A client, connecting by itself in the background. Must be made with the event loop running."""
        self._admin = AdminClient(settings.client(name))
        self._loop = asyncio.get_running_loop()
        #: the question that will be asked next: place -> its answer
        self._next: dict[Place, _Wait] = {}
        self._asking = False
        self._refreshing: asyncio.Task[None] | None = None

    async def end_offset(self, topic: str, partition: int) -> int:
        """The partition's end, at some moment between the call and the return.

        Raises:
            KafkaUnavailable: no answer within `ANSWER_SECONDS_MAX`.
        """
        return await self._wait((topic, partition))

    async def end_offsets(self, places: Iterable[Place]) -> dict[Place, int]:
        """The ends of several partitions, by one question.

        Raises:
            KafkaUnavailable: no answer for one of them within `ANSWER_SECONDS_MAX`.
        """
        wanted = list(places)
        found = await asyncio.gather(*(self._wait(place) for place in wanted))
        return dict(zip(wanted, found, strict=True))

    async def topic_id(self, topic: str) -> str:
        """The id that Kafka gave a topic when it was made; empty where brokers have none.

        Raises:
            KafkaUnavailable: no answer within `ANSWER_SECONDS_MAX`.
        """
        futures = self._admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_SECONDS_MAX)
        try:
            found = (await asyncio.wrap_future(futures[topic])).topic_id
        except KafkaException as error:
            raise KafkaUnavailable(f"{topic}: {error.args[0].str()}") from None
        known = found.get_most_significant_bits() or found.get_least_significant_bits()
        return str(found) if known else ""

    def close(self) -> None:
        """Fails those who wait."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for waiting in self._next.values():
            _fail(waiting.answer, KafkaUnavailable("closed"))
        self._next = {}

    async def _wait(self, place: Place) -> int:
        waiting = self._next.get(place)
        if waiting is None:
            waiting = _Wait(self._loop.create_future(), self._loop.time() + ANSWER_SECONDS_MAX)
            self._next[place] = waiting
            if not self._asking:
                self._asking = True
                # After the callers that are ready in this turn of the loop have put their places down too.
                self._loop.call_soon(self._ask)
        return await asyncio.shield(waiting.answer)

    def _ask(self) -> None:
        asked, self._next = self._next, {}
        if not asked:
            self._asking = False
            return
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        request: dict[Any, Any] = {TopicPartition(*place): latest for place in asked}
        try:
            futures: dict[Any, Future[Any]] = self._admin.list_offsets(request, request_timeout=_ATTEMPT_SECONDS_MAX)
        except (KafkaException, RuntimeError) as error:
            self._answered(asked, dict.fromkeys(asked, error))
            return
        answers: dict[Place, Any] = {}

        def collect(place: Place, future: Future[Any]) -> None:
            # In the client's own thread, one call after the other.
            try:
                answers[place] = known_offset(future.result().offset, f"{place[0]}[{place[1]}]")
            except Exception as error:
                answers[place] = error
            if len(answers) == len(asked) and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._answered, asked, answers)

        for where, future in futures.items():
            place = (where.topic, where.partition)
            future.add_done_callback(lambda done, place=place: collect(place, done))  # type: ignore[misc]

    def _answered(self, asked: dict[Place, _Wait], answers: dict[Place, Any]) -> None:
        again = False
        for place, waiting in asked.items():
            found = answers[place]
            if not isinstance(found, BaseException):
                waiting.answer.set_result(found)
            elif _passes(found) and self._loop.time() < waiting.deadline:
                again = True
                later = self._next.get(place)
                if later is None:
                    self._next[place] = waiting
                else:
                    later.answer.add_done_callback(partial(_copy, waiting.answer))
            else:
                _fail(waiting.answer, _unavailable(place, found))
        if not again:
            self._ask()
        else:
            # The client asks the leader that it remembers, with the leader epoch that it remembers, and looks neither
            # up again by itself: not when that leader is silent, and not when one that died and came back refuses the
            # epoch of its former life for ever.
            self._refreshing = self._loop.create_task(self._refresh(sorted({topic for topic, _ in asked})))

    async def _refresh(self, topics: list[str]) -> None:
        """Make the client look up leaders and epochs, then ask again."""

        def look_up() -> None:
            deadline = time.monotonic() + _REFRESH_SECONDS_MAX
            for topic in topics:
                self._admin.list_topics(topic, timeout=max(deadline - time.monotonic(), 0.1))

        with contextlib.suppress(KafkaException):  # the broker went away again: the next answer says so
            await asyncio.to_thread(look_up)
        await asyncio.sleep(_RETRY_S)
        self._ask()


def _passes(error: BaseException) -> bool:
    """Whether asking again helps."""
    if isinstance(error, KafkaUnavailable):
        return True
    if not isinstance(error, KafkaException):
        return False
    cause: KafkaError = error.args[0]
    return cause.retriable() or cause.code() in _PASSING


_PASSING: Final = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)
"""Errors of the first moments after a topic's creation or a broker's start, not all of them marked as retriable."""


def _unavailable(place: Place, found: BaseException) -> KafkaUnavailable:
    return found if isinstance(found, KafkaUnavailable) else KafkaUnavailable(f"{place[0]}[{place[1]}]: {found}")


def _fail(answer: asyncio.Future[int], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # seen: a waiter that was cancelled must not make it "never retrieved"


def _copy(to: asyncio.Future[int], answered: asyncio.Future[int]) -> None:
    error = answered.exception()
    if error is None:
        to.set_result(answered.result())
    else:
        _fail(to, KafkaUnavailable(str(error)))
