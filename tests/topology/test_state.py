from __future__ import annotations

from pathlib import Path

import pytest

from everfold.topology.state import SAMPLE_BYTES_MAX, DeadLetter, Position, ProcessorState, StateInUse


def test_rows_position_and_dead_letters_are_there_after_a_restart(tmp_path: Path) -> None:
    state = ProcessorState(tmp_path)
    assert state.position(0) is None
    state.commit(0, Position(7, None), {b"a": b"1", b"b": b"2"})
    big = b"x" * (SAMPLE_BYTES_MAX + 5)
    state.commit(0, Position(9, (1, 8, 3)), {b"a": None}, [DeadLetter(8, "no good", big), DeadLetter(10, "nor", b"y")])
    state.commit(10, Position(1, (0, 0, 0)), {b"a": b"of another partition"})
    state.close()
    again = ProcessorState(tmp_path)
    assert again.position(0) == Position(9, (1, 8, 3))
    assert (again.get(0, b"a"), again.get(0, b"b")) == (None, b"2")
    assert again.get(10, b"a") == b"of another partition"
    assert again.dead_letters(0) == [DeadLetter(8, "no good", big[:SAMPLE_BYTES_MAX]), DeadLetter(10, "nor", b"y")]
    assert again.dead_letters(1) == []
    again.close()


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    state = ProcessorState(tmp_path)
    with pytest.raises(StateInUse, match="in use by another process"):
        ProcessorState(tmp_path)
    state.close()
    ProcessorState(tmp_path).close()
