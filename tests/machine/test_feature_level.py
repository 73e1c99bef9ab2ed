"""The feature level (law 2): a log says by which rules it is folded, and who does not know them leaves it alone."""

from __future__ import annotations

import pytest

from everfold.history.machine.shard_fold import ShardFold
from everfold.kernel.errors import UnknownFeatureLevel
from everfold.kernel.features import FEATURE_LEVEL
from machine.shard_driver import DictRows, ShardDriver

NEWER = FEATURE_LEVEL + 1


def raise_to(shard: ShardDriver, level: int) -> None:
    shard.append("FEATURE_LEVEL_RAISED", {"feature_level": level})


def test_it_is_raised_and_never_lowered() -> None:
    shard = ShardDriver(replay=False)
    shard.fold.feature_level_known = NEWER
    raise_to(shard, NEWER)
    assert shard.fold.meta.feature_level == NEWER
    raise_to(shard, FEATURE_LEVEL)
    assert shard.steps[-1].ignored
    assert shard.fold.meta.feature_level == NEWER


def test_a_build_that_does_not_know_the_level_folds_nothing_of_the_record_and_says_what_to_do() -> None:
    shard = ShardDriver(replay=False)
    applied, state_hash = shard.fold.meta.applied_offset, shard.fold.meta.state_hash
    with pytest.raises(UnknownFeatureLevel, match=f"this build knows {FEATURE_LEVEL}; run the newer version"):
        raise_to(shard, NEWER)
    assert shard.fold.meta.applied_offset == applied
    assert shard.fold.meta.state_hash == state_hash
    assert shard.fold.meta.feature_level == FEATURE_LEVEL


def test_nor_does_it_begin_a_log_of_that_level() -> None:
    genesis = ShardDriver(replay=False).log[0]
    with pytest.raises(UnknownFeatureLevel):
        ShardFold(0, DictRows(), 1, feature_level_known=FEATURE_LEVEL - 1).fold(genesis)


def test_nor_does_it_open_a_store_of_that_level() -> None:
    shard = ShardDriver(replay=False)
    shard.fold.feature_level_known = NEWER
    raise_to(shard, NEWER)
    shard.store.write(shard.fold.take_writes())
    assert ShardFold(0, shard.store, 1, feature_level_known=NEWER).meta.feature_level == NEWER
    with pytest.raises(UnknownFeatureLevel, match=f"is at feature level {NEWER}"):
        ShardFold(0, shard.store, 1)
