"""The feature level: which behaviour of the fold holds for a shard's records (law 2).

As with Kafka's own `metadata.version` (KIP-584), a log says itself by which rules it is folded. Genesis names the level
to begin with, `FeatureLevelRaised` a higher one from there on. A build folds every level up to its own, so that new
processes run beside old ones at the old level; it is raised when the last old one is gone.
"""

from __future__ import annotations

from typing import Final

FEATURE_LEVEL: Final = 1
"""The newest behaviour that this build knows. A log raised above it is left alone."""

SINCE: Final[dict[str | int, int]] = {}
"""Kind of a shard record, or id of its schema -> the level from which it is written; 1 where it is not named.

In a log below that level it is garbage for every build: an old one cannot read it, so a new one must not. GENESIS,
FEATURE_LEVEL_RAISED and their schema are of level 1 for ever, as a build reads in them that it is too old.
"""
