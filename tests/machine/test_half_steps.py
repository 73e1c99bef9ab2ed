"""A step leaves nothing behind: a record that is folded half, and then again, is a record that is folded once."""

from __future__ import annotations

from random import Random

import pytest
from random_logs import Player, plain, program_of
from shard_driver import DictRows

from everfold.history.machine.rows import Rows
from everfold.history.machine.shard_fold import ShardFold
from support.half_steps import break_off


def fold_with_breaks(player: Player, random: Random, writes_max: int) -> None:
    """Breaks each record off at its first writes, and at one of all, before it is folded."""
    rows = DictRows()
    fold = ShardFold(0, rows, 1)
    for record, step in zip(player.log, player.steps, strict=True):
        folded = None
        for at in (*range(writes_max), random.randrange(writes_max, 60)):
            folded = break_off(fold, record, at)
            if folded is not None:
                break
        assert plain(folded or fold.fold(record)) == plain(step), f"offset {record.offset}"
        rows.write(fold.take_writes())
        fold.written()
    assert rows.rows == player.store.rows


@pytest.mark.parametrize("seed", range(6))
def test_a_record_that_was_folded_half_is_folded_as_if_for_the_first_time(seed: int) -> None:
    player = Player()
    player.play(program_of(seed, 150))
    fold_with_breaks(player, Random(seed), writes_max=12)


def test_the_check_notices_a_row_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    player = Player()
    player.play(program_of(1, 40))
    monkeypatch.setattr(Rows, "abandon_step", lambda self: None)
    with pytest.raises(AssertionError, match="step"):
        fold_with_breaks(player, Random(1), writes_max=12)
