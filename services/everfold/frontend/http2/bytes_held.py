"""The bytes that clients make a process hold, and what each may.

A request is counted from its first byte until its answer is complete, a compressed one by what it inflates to; an
answer from when it cannot be handed to the client's socket until it is. Each of the two has a budget for the process,
and a connection may take a part of it.
"""

from __future__ import annotations

from typing import Final

from everfold.kernel.errors import Code, StatusError

REQUESTS_HELD_MAX: Final = 96 * 1024 * 1024
"""Bytes of requests from their first byte to their answer's last: a shard takes 64 MiB at once."""

ANSWERS_HELD_MAX: Final = 64 * 1024 * 1024
"""Bytes of answers that clients have not read: a page of history has 4 MiB at most."""


class Budget:
    """Bytes that a process may hold at once.

    Attributes:
        most: how many.
        held: how many are.
    """

    __slots__ = ("held", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0


class Account:
    """A connection's part of a budget: at most half of it, so that no single client can take everything.

    Attributes:
        held: bytes taken.
    """

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int) -> bool:
        """Takes `count` bytes; False, and nothing is taken, when that is more than there is."""
        budget = self._budget
        if budget.held + count > budget.most or self.held + count > budget.most // 2:
            return False
        self.held += count
        budget.held += count
        return True

    def is_over(self, count: int) -> bool:
        """Whether the connection itself would hold more than its part, whatever the others do."""
        return self.held + count > self._budget.most // 2

    def give_back(self, count: int) -> None:
        """Gives back what was taken."""
        self.held -= count
        self._budget.held -= count


def too_much_held(what: str) -> StatusError:
    """What answers a call for which the budget of requests, or of answers, has no room."""
    return StatusError(
        Code.RESOURCE_EXHAUSTED,
        f"too many bytes of {what} are held already: send less at once, read what is answered",
    )
