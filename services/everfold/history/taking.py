"""Taking a shard: from an opened store to the moment from which things may leave it.

Phases, in this order (architecture, law 5):

    OPENING      asks for the end of the log; the consumer starts behind the applied offset, with its leader epoch
    CATCHING_UP  folds up to that end; effects are dropped: their first owner had them, or the store still has them
    GENESIS      the log has none, it is empty as a rule: Genesis is appended and folded
    TAKING       ShardTaken is appended and folded: it carries the shard's clock over the time in which nobody ran
    RAISING      the operator wants a higher feature level: FeatureLevelRaised is appended and folded
    SETTING      settings differ from those in the log: SettingsChanged is appended and folded
    SERVING      outputs, hand-offs, timers, ingress, RPCs
    CLOSED       given up, by whoever asked or for trouble; everybody who waited has been answered
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import structlog

from everfold.history.ports import Cancellable, Identity, ShardPorts
from everfold.history.proposals import OnVerdict, Verdict
from everfold.history.tail import Tail
from everfold.kernel.errors import ShardLost, StatusError
from everfold.kernel.features import FEATURE_LEVEL
from everfold.kernel.limits import DEFAULTS
from everfold.kernel.time import MILLISECOND_NS, SECOND_NS
from everfold.schemas.topics import SHARD_LOG

if TYPE_CHECKING:
    from everfold.history.machine.shard_fold import ShardFold

log = structlog.get_logger("history")

_RETRY_NS: Final = 500 * MILLISECOND_NS
"""Pause before a phase is tried again."""

_END_AGE_NS: Final = 5 * SECOND_NS
"""After so long of catching up the end is asked for again: the records up to it may have been lost meanwhile."""


class Phase(Enum):
    """Where a shard is on its way to serving; see the module's text."""

    OPENING = "opening"
    CATCHING_UP = "catching up"
    GENESIS = "genesis"
    TAKING = "taking"
    RAISING = "raising"
    SETTING = "setting"
    SERVING = "serving"
    CLOSED = "closed"


class WrongCluster(ShardLost):
    """The log belongs to another cluster, or was made for another number of shards."""


class Taking:
    """The way through the phases up to SERVING.

    Args:
        append: appends a record about the shard: (kind, body, what to call with the verdict).
        done: called when everything is folded that must be, be its rows written or not.
        lose: gives the shard up.
        tail: whether the log has all that was folded.
    """

    def __init__(
        self,
        shard: int,
        fold: ShardFold,
        ports: ShardPorts,
        identity: Identity,
        settings: Mapping[str, int],
        append: Callable[[str, dict[str, Any], OnVerdict], None],
        done: Callable[[], None],
        lose: Callable[[ShardLost], None],
        tail: Tail,
        *,
        epoch_check: bool,
    ) -> None:
        self.phase = Phase.OPENING
        #: when the log was folded to its end, by the ports' boottime; 0 before
        self.caught_up_at_ns = 0
        #: everything is folded that must be
        self.ready = False
        self._shard = shard
        self._fold = fold
        self._ports = ports
        self._identity = identity
        self._settings = dict(settings)
        self._append = append
        self._tell_done = done
        self._lose = lose
        self._tail = tail
        self._epoch_check = epoch_check
        self._end: int | None = None
        self._retry: Cancellable | None = None

    def resume_position(self) -> tuple[int, int]:
        """(offset, leader epoch of the record before it, or -1): where the consumer of the log has to start."""
        meta = self._fold.meta
        epoch = meta.applied_epoch if self._epoch_check and meta.applied_offset >= 0 else -1
        return meta.applied_offset + 1, epoch

    def start(self) -> None:
        """Ask for the log's end; all else follows."""
        if (wrong := self._tail.of_topic()) is not None:
            self._lose(wrong)
            return
        self._ask_end()

    def _ask_end(self) -> None:
        self._ports.request_end_offset(SHARD_LOG.name, self._shard, self._end_known)

    def advance(self) -> None:
        """Go on as far as what has been folded, and written, allows."""
        meta = self._fold.meta
        if self.phase in (Phase.OPENING, Phase.CATCHING_UP):
            if self._end is None or meta.applied_offset + 1 < self._end:
                return
            self.caught_up_at_ns = self._ports.boottime_ns()
            if not meta.cluster_id:
                self._enter(Phase.GENESIS)
            elif self._is_ours():
                self._enter(Phase.TAKING)
        elif self.phase is Phase.GENESIS and meta.cluster_id and self._is_ours():
            # Another owner's Genesis may have been first; the fold has ignored ours then.
            self._enter(Phase.TAKING)

    def close(self) -> None:
        """Try nothing more."""
        self.phase = Phase.CLOSED
        if self._retry is not None:
            self._retry.cancel()

    def _end_known(self, end: int | None) -> None:
        if self.phase is not Phase.OPENING:
            return
        if end is None:
            self._again(Phase.OPENING, self._ask_end)
            return
        # Records may have been folded since the question, so the end is compared with where the store resumed. (A tail
        # that was lost and written anew is found by the consumer, which resumes with the leader epoch.)
        if (wrong := self._tail.of_end(end)) is not None:
            self._lose(wrong)
            return
        self._end = end
        self.phase = Phase.CATCHING_UP
        self._again(Phase.CATCHING_UP, self._ask_again, _END_AGE_NS)
        self.advance()

    def _ask_again(self) -> None:
        self._ports.request_end_offset(SHARD_LOG.name, self._shard, self._end_known_again)

    def _end_known_again(self, end: int | None) -> None:
        if self.phase is not Phase.CATCHING_UP:
            return
        if end is not None and self._end is not None and end < self._end:
            # Nobody else may ever write up to the old one. What is folded beyond the new one the consumer finds.
            self._end = end
        self._again(Phase.CATCHING_UP, self._ask_again, _END_AGE_NS)
        self.advance()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        me = self._identity
        if phase is Phase.GENESIS:
            genesis = {
                "cluster_id": me.cluster_id,
                "shard": self._shard,
                "shard_count": me.shard_count,
                "feature_level": me.feature_level or FEATURE_LEVEL,
            }
            self._append_step("GENESIS", genesis, phase, lambda: None)  # its fold advances
        elif phase is Phase.TAKING:
            self._append_step("SHARD_TAKEN", {"owner": me.owner}, phase, lambda: self._enter(Phase.RAISING))
        elif phase is Phase.RAISING:
            if me.feature_level <= self._fold.meta.feature_level:
                self._enter(Phase.SETTING)
            else:
                raised = {"feature_level": me.feature_level}
                self._append_step("FEATURE_LEVEL_RAISED", raised, phase, lambda: self._enter(Phase.SETTING))
        elif phase is Phase.SETTING:
            # The record replaces what the shard knew: a setting that it does not name has its default again.
            wanted = {n: v for n, v in self._settings.items() if n in DEFAULTS and v != DEFAULTS[n]}
            if wanted == {n: v for n, v in self._fold.meta.settings.items() if v != DEFAULTS.get(n)}:
                self._done()
            else:
                self._append_step("SETTINGS_CHANGED", {"settings": wanted}, phase, self._done)

    def _done(self) -> None:
        self.ready = True
        self._tell_done()

    def _append_step(self, kind: str, body: dict[str, Any], phase: Phase, then: Callable[[], None]) -> None:
        def verdict(result: Verdict) -> None:
            if self.phase is not phase:
                return
            error = result if isinstance(result, StatusError) else result.error
            if error is None:
                then()
                return
            log.warning("could not take the shard yet", shard=self._shard, record=kind, error=str(error))
            self._again(phase, lambda: self._enter(phase))

        self._append(kind, body, verdict)

    def _again(self, phase: Phase, action: Callable[[], None], pause_ns: int = _RETRY_NS) -> None:
        def run() -> None:
            self._retry = None
            # The record may have been folded after all, and the phase be over.
            if self.phase is phase:
                action()

        self._retry = self._ports.call_later(pause_ns, run)

    def _is_ours(self) -> bool:
        meta, me = self._fold.meta, self._identity
        if (meta.cluster_id, meta.shard_count) == (me.cluster_id, me.shard_count):
            return True
        self._lose(
            WrongCluster(
                f"shard {self._shard}: its log says cluster {meta.cluster_id} with {meta.shard_count} shards, "
                f"this owner is of cluster {me.cluster_id} with {me.shard_count}; "
                "check the bootstrap servers, the topic prefix and the number of shards"
            )
        )
        return False
