from __future__ import annotations

import random

import pytest

from everfold.topology.chain import Verdict, judge


@pytest.mark.parametrize(
    ("last", "origin", "predecessor", "verdict"),
    [
        (None, (0, 1, 0), None, Verdict.TAKE),
        (None, (0, 2, 0), (0, 1, 0), Verdict.GAP),
        ((0, 1, 0), (0, 2, 0), (0, 1, 0), Verdict.TAKE),
        ((0, 1, 0), (0, 1, 1), (0, 1, 0), Verdict.TAKE),
        ((0, 2, 0), (0, 2, 0), (0, 1, 0), Verdict.REPEAT),
        ((0, 2, 0), (0, 1, 0), None, Verdict.REPEAT),
        ((0, 2, 0), (0, 4, 0), (0, 3, 0), Verdict.GAP),
        # A later leader epoch is later, whatever the offset: the log lost its tail and went on from an earlier place.
        ((0, 9, 0), (1, 5, 0), (0, 4, 0), Verdict.TAKE),
        ((1, 5, 0), (0, 9, 0), (0, 8, 0), Verdict.REPEAT),
    ],
)
def test_a_record_is_judged_by_the_last_one_taken(
    last: tuple[int, int, int] | None,
    origin: tuple[int, int, int],
    predecessor: tuple[int, int, int] | None,
    verdict: Verdict,
) -> None:
    assert judge(last, origin, predecessor) is verdict


@pytest.mark.parametrize("seed", range(50))
def test_whatever_is_lost_and_sent_again_each_output_is_taken_once_and_in_order(seed: int) -> None:
    choice = random.Random(seed)
    outputs = [((0, n, 0), (0, n - 1, 0) if n else None) for n in range(30)]
    arrived = []
    first_unacknowledged = 0
    while first_unacknowledged < len(outputs):
        for n in range(first_unacknowledged, len(outputs)):
            if choice.random() < 0.15:  # lost, and the sender learns of it later than of those behind it
                arrived += [outputs[m] for m in range(n + 1, min(n + 1 + choice.randrange(4), len(outputs)))]
                first_unacknowledged = choice.randint(first_unacknowledged, n)
                break
            arrived.append(outputs[n])
        else:
            first_unacknowledged = len(outputs)
    last, taken = None, []
    for origin, predecessor in arrived:
        if judge(last, origin, predecessor) is Verdict.TAKE:
            taken.append(origin)
            last = origin
    assert taken == [origin for origin, _ in outputs]
