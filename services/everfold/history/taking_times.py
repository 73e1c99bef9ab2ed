"""How long each part of a shard's way to serving took: where the time goes after a kill."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from everfold.kernel.time import SECOND_NS


class TakingTimes(NamedTuple):
    """All in seconds.

    Attributes:
        group: from the process's joining the group to the shard's assignment.
        open: until the store was open.
        refold: until the log was folded to its end.
        take: until the shard served.
    """

    group: float
    open: float
    refold: float
    take: float

    @classmethod
    def between(cls, joining: int, assigned: int, opened: int, caught_up: int, served: int) -> TakingTimes:
        """The times between these moments of a clock, in nanoseconds."""
        moments = (joining, assigned, opened, caught_up, served)
        return cls(*((after - before) / SECOND_NS for before, after in pairwise(moments)))

    @property
    def own(self) -> float:
        """Without the group: what the shard itself took."""
        return self.open + self.refold + self.take

    def shown(self) -> dict[str, float]:
        """For a log line: rounded, with the unit in each name."""
        return {f"{name}_s": round(seconds, 3) for name, seconds in self._asdict().items()}
