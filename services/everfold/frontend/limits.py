"""What bounds the frontend: sizes as Temporal checks them, page sizes, waiting times, rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from temporalio.api.errordetails.v1 import message_pb2 as errordetails

from everfold.kernel.errors import Code, StatusError
from everfold.kernel.limits import DEFAULTS

RATE_LIMIT_CAUSE: Final = 1
"""RESOURCE_EXHAUSTED_CAUSE_RPS_LIMIT."""
CONCURRENT_LIMIT_CAUSE: Final = 2
"""RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT."""
NAMESPACE_SCOPE: Final = 1
"""RESOURCE_EXHAUSTED_SCOPE_NAMESPACE."""

BURST_RATIO: Final = 2
"""A bucket holds this many seconds' worth, as Temporal's frontend.namespaceBurstRatio."""


@dataclass(frozen=True, slots=True)
class FrontendLimits:
    """The frontend's bounds. Sizes are in bytes, times in seconds.

    Attributes:
        request_bytes_max: one request, decompressed; a blob or a memo is bounded below it.
        id_bytes_max: workflow ids, types, queue names, signal names, identities, request ids.
        blob_bytes_max: one request's payloads; also what SDKs check beforehand (DescribeNamespace).
        memo_bytes_max: a workflow's memo.
        search_attributes_max: how many a start may set.
        search_attribute_bytes_max: the value of one.
        search_attributes_bytes_max: all of a start's together.
        history_page_events_max: events in a page of history.
        visibility_page_max: runs in a page of a list.
        poll_seconds: when a task poll answers empty.
        history_poll_seconds: when a long poll for history answers empty.
        call_seconds: how long a call without a deadline is served.
        long_polls_max: calls of one method that wait in one namespace; each holds a few KiB.
        rps: calls per second and namespace, polls not counted. Stops a client that has run wild; one process answers
            fewer than this (Temporal has 2400, for a cluster that many share).
        visibility_rps: lists and counts per second and namespace. They cost a read transaction of the index each.
        namespace_writes_rps: changes of namespaces and search attributes per second and namespace.
    """

    request_bytes_max: int = 4 * 1024 * 1024
    id_bytes_max: int = DEFAULTS["limit.maxIDLength"]
    blob_bytes_max: int = DEFAULTS["limit.blobSize.error"]
    memo_bytes_max: int = DEFAULTS["limit.memoSize.error"]
    search_attributes_max: int = DEFAULTS["limit.numberOfSearchAttributeKeys"]
    search_attribute_bytes_max: int = DEFAULTS["limit.searchAttributeSizeOfValue"]
    search_attributes_bytes_max: int = DEFAULTS["limit.searchAttributeTotalSize"]
    history_page_events_max: int = 256
    visibility_page_max: int = 1000
    poll_seconds: float = 60.0
    history_poll_seconds: float = 20.0
    call_seconds: float = 30.0
    long_polls_max: int = 10_000
    rps: float = 10_000.0
    visibility_rps: float = 100.0
    namespace_writes_rps: float = 20.0


class _Bucket:
    """A token bucket: `rate` tokens a second, at most BURST_RATIO seconds' worth of them."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = rate * BURST_RATIO
        self._at = now

    def take(self, now: float) -> bool:
        tokens = min(self._rate * BURST_RATIO, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if tokens < 1:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True


def exhausted(cause: int, message: str) -> StatusError:
    """RESOURCE_EXHAUSTED with the detail that SDKs read: they wait at least a second before they try again."""
    detail = errordetails.ResourceExhaustedFailure()
    detail.cause = cause  # type: ignore[assignment]
    detail.scope = NAMESPACE_SCOPE  # type: ignore[assignment]
    details = ((detail.DESCRIPTOR.full_name, detail.SerializeToString()),)
    return StatusError(Code.RESOURCE_EXHAUSTED, message, details)


class Admission:
    """Who may come in: a bucket per namespace and class of calls, and a count of the calls that wait."""

    def __init__(self, limits: FrontendLimits, clock: Callable[[], float]) -> None:
        self._rates = {
            "call": limits.rps,
            "visibility": limits.visibility_rps,
            "namespace": limits.namespace_writes_rps,
        }
        self._long_polls_max = limits.long_polls_max
        self._clock = clock
        #: (namespace id, class of calls) -> bucket; there are few namespaces, each registered
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        #: (namespace id, method) -> calls that wait now
        self._waiting: Counter[tuple[str, str]] = Counter()

    def admit(self, namespace_id: str, api_class: str) -> None:
        """Takes a token for a call of a class: "call", "visibility", "namespace"; "poll" needs none.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, the namespace's calls of this class come too fast.
        """
        if api_class == "poll":
            return
        now = self._clock()
        key = (namespace_id, api_class)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._rates[api_class], now)
        if not bucket.take(now):
            raise exhausted(RATE_LIMIT_CAUSE, "namespace rate limit exceeded")

    def enter(self, namespace_id: str, method: str) -> None:
        """Counts a call that is about to wait; `leave` must follow.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, too many of the namespace's calls of this method wait already.
        """
        key = (namespace_id, method)
        if self._waiting[key] >= self._long_polls_max:
            raise exhausted(CONCURRENT_LIMIT_CAUSE, "namespace concurrent poller limit exceeded")
        self._waiting[key] += 1

    def leave(self, namespace_id: str, method: str) -> None:
        """Takes back an `enter`."""
        key = (namespace_id, method)
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
