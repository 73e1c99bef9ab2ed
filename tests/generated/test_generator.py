"""The generator is a function of its seed, and leaves nothing out."""

from __future__ import annotations

import json

from generated.generator import ALL_FEATURES, SEALED, features, generate, walk

PROGRAMS = 300


def test_the_same_seed_makes_the_same_program() -> None:
    for number in range(50):
        assert json.dumps(generate(7, number)) == json.dumps(generate(7, number))


def test_another_seed_makes_other_programs() -> None:
    assert [generate(7, number) for number in range(20)] != [generate(8, number) for number in range(20)]


def test_a_program_is_json() -> None:
    for number in range(PROGRAMS):
        program = generate(1, number)
        assert json.loads(json.dumps(program)) == program


def test_every_feature_appears_in_a_few_hundred_programs() -> None:
    for seed in (1, 2, 3):
        found: set[str] = set().union(*(features(generate(seed, number)) for number in range(PROGRAMS)))
        assert ALL_FEATURES - found == set()


def test_what_is_waited_for_is_sent() -> None:
    for number in range(PROGRAMS):
        program = generate(1, number)
        waited: dict[str, int] = {}
        for step in program["steps"]:
            if step["do"] == "wait":
                waited[step["channel"]] = waited.get(step["channel"], 0) + step["count"]
        sent = {"close": 1} if program["lanes"] else {}
        for lane in program["lanes"]:
            noted = [item for item in lane["items"] if isinstance(item, str) or item["how"] not in ("fail", "reject")]
            if noted:
                sent[lane["channel"]] = len(noted)
        assert waited == sent, program["id"]


def test_every_child_has_an_id_of_its_own() -> None:
    for number in range(PROGRAMS):
        ids = [step["program"]["id"] for step in walk(generate(1, number)) if "program" in step]
        assert len(ids) == len(set(ids))


def test_programs_that_are_run_again_talk_to_nobody() -> None:
    for number in range(PROGRAMS):
        program = generate(1, number)
        if program["end"]["kind"] in SEALED:
            assert not program["lanes"]
            assert not {step["do"] for step in walk(program)} & {"child", "wait", "continue_as_new", "signal_parent"}
