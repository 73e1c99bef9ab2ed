"""The way to the owner of a shard or a task partition, wherever it is.

A partition that this process holds is served by a plain call: no copy, no frame, no task. For any other the owner is
looked up in the membership and called over its connection. An owner that has moved on (`NotOwner`), or whose
connection broke, is looked up again until the caller's time is over; what is called this way may therefore happen
twice, and every call carries what makes the second time harmless (a request id, a task token, a poll id).
"""

from __future__ import annotations

import asyncio
import inspect
import random
from typing import Any, Final

from everfold.kernel.errors import Code, StatusError
from everfold.runtime.membership import Member, Membership
from everfold.runtime.rpc import ConnectionLost, Method, NotOwner, RpcPool, methods_of
from everfold.runtime.tracebacks import let_go

RETRY_MIN_S: Final = 0.01
RETRY_MAX_S: Final = 0.5
"""Pause before the owner is looked up again: doubled from the first to the second, with jitter. An owner that moves
is away for some hundred milliseconds (rebalance) to some seconds (its process died)."""


class Router:
    """See the module.

    Args:
        membership: who holds what.
        pool: the connections; None in a process that is alone.
    """

    def __init__(self, membership: Membership, pool: RpcPool | None = None) -> None:
        self.membership = membership
        self._pool = pool
        #: (role, method) -> the method, of the services in this process
        self._local: dict[tuple[str, str], Method] = {}
        membership.on_gone(self._gone)

    def add_local(self, role: str, service: object) -> None:
        """This process runs the service of that role. Which partitions of it, says the membership."""
        for name, method in methods_of(service).items():
            self._local[role, name] = method

    def holds(self, role: str, partition: int) -> bool:
        """Whether this process holds the partition."""
        return partition in self.membership.me.partitions.get(role, ())

    async def call(self, role: str, partition: int, method: str, args: list[Any], timeout: float) -> Any:
        """Call a method of the partition's owner.

        A parameter of the method called `timeout` is never more than what is left of `timeout`, also after retries.

        Raises:
            StatusError: what the method raised; UNAVAILABLE when no owner answered in time.
        """
        membership = self.membership
        if partition in membership.me.partitions.get(role, ()):
            local = self._local.get((role, method))
            if local is not None:
                try:
                    result = local(args, timeout)
                    return await result if inspect.isawaitable(result) else result
                except NotOwner as error:
                    let_go(error)  # it is moving right now
        return await self._call_owner(role, partition, method, args, timeout)

    async def _call_owner(self, role: str, partition: int, method: str, args: list[Any], timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout
        attempt = 0
        reason = "its owner is not known"
        while (left := ends_at - loop.time()) > 0:
            owner = await self.membership.wait_owner(role, partition, left)
            if owner is None:
                break
            try:
                return await self._call_member(owner, role, method, args, ends_at - loop.time())
            except NotOwner as error:
                let_go(error)
                reason = f"{owner.member_id} does not hold it"
            except ConnectionLost as error:
                let_go(error)
                reason = f"{owner.member_id} cannot be reached: {error}"
            pause_s = min(RETRY_MIN_S * 2.0 ** min(attempt, 10), RETRY_MAX_S) * (0.5 + random.random() / 2)
            attempt += 1
            await asyncio.sleep(min(pause_s, max(ends_at - loop.time(), 0)))
        raise StatusError(Code.UNAVAILABLE, f"{role} partition {partition} is not available: {reason}")

    async def _call_member(self, owner: Member, role: str, method: str, args: list[Any], timeout: float) -> Any:
        if owner.member_id == self.membership.me.member_id:
            local = self._local.get((role, method))
            if local is None:
                raise StatusError(Code.UNIMPLEMENTED, f"unknown method {method} for service {role}")
            result = local(args, timeout)
            return await result if inspect.isawaitable(result) else result
        if self._pool is None or not owner.address:
            raise ConnectionLost("it serves no calls")
        return await self._pool.call(owner.address, role, method, args, timeout)

    def _gone(self, member: Member) -> None:
        if self._pool is not None and member.address:
            self._pool.drop(member.address)
