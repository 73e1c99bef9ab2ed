"""Random workflow programs, as data: the same seed and number always make the same program.

A program is JSON that `interpreter.py` runs as a workflow and `driver.py` drives from outside. A root program has

    steps    what the workflow does, in order; `parallel` and `scope` hold steps of their own, `child` a whole program
    end      how it ends: complete, fail, retried, cancelled, caught, terminated, timed_out
    lanes    signals and updates that the driver sends; lanes go side by side, a lane's items one after the other
    start    plain, signal_with_start or update_with_start

What comes of a program must not depend on time, so that two servers can be compared and one of them can be killed at
any moment. The generator sees to it:

- Signals and updates come whenever they like and are waited for by name. A program that has lanes ends only after the
  signal `close`, which the driver sends when all lanes are done, so nothing meets a closed workflow.
- The client's cancellation or termination comes when the workflow says (to a query, or in its memo) that it waits.
- What is cancelled from inside has begun, or waits for ever; what is raced against wins or never happens.
- What lasts (a search attribute, a name in the memo) is overwritten only where no other branch does so beside it.
- A program that the server runs again from its start (`retried`) takes no signals and has no children: their ids would
  meet themselves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

Program = dict[str, Any]
Step = dict[str, Any]

ACTIVITIES: Final = ("succeed", "flaky", "refuse", "listed", "give_up", "resume", "nobody", "hang")
LOCAL_ACTIVITIES: Final = ("succeed", "flaky", "refuse")
CANCELLATIONS: Final = ("try", "wait", "abandon")
CHILDREN: Final = ("await", "await", "await", "cancel", "cancel", "leave", "timeout", "duplicate", "retried")
UPDATES: Final = ("plain", "plain", "slow", "work", "held", "fail", "reject")
NOTED_UPDATES: Final = frozenset(("plain", "slow", "work", "held"))
ENDS: Final = {"complete": 10, "fail": 3, "cancelled": 3, "caught": 3, "terminated": 2, "retried": 2, "timed_out": 1}
ENDED_BY_CLIENT: Final = frozenset(("cancelled", "caught", "terminated"))
SEALED: Final = frozenset(("retried", "timed_out"))
"""Ends of programs that talk to nobody while they run."""

DEPTH_MAX: Final = 2
TIMER_MS_MAX: Final = 1500


def generate(seed: int, number: int) -> Program:
    """The root program of that number."""
    return _Maker(random.Random(f"{seed}/{number}"), f"p{number:04}").root()


def walk(program: Program) -> Iterator[Step]:
    """Every step of a program and of the programs in it."""
    yield from _walk_steps(program["steps"])


def _walk_steps(steps: list[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        for branch in step.get("branches", ()):
            yield from _walk_steps(branch)
        yield from _walk_steps(step.get("steps", []))
        if "program" in step:
            yield from walk(step["program"])


def features(program: Program) -> set[str]:
    """What a program exercises, by name."""
    found = {f"end {program['end']['kind']}", f"start {program['start']}"}
    if "tells_by" in program["end"]:
        found.add(f"tells by {program['end']['tells_by']}")
    if program["end"].get("pending"):
        found.add("end with pending work")
    for lane in program["lanes"]:
        found |= {f"update {item['how']}" for item in lane["items"]} if lane["kind"] == "update" else {"signal"}
    for step in walk(program):
        parts = [step["do"], *(str(step[key]) for key in ("act", "how", "policy") if key in step)]
        found.add(" ".join(parts))
        if step["do"] == "child":
            found.add(f"child's end {step['program']['end']['kind']}")
    return found


ALL_FEATURES: Final = frozenset(
    (
        *(f"end {kind}" for kind in ENDS),
        "end with pending work",
        *("tells by query", "tells by memo"),
        *(f"start {kind}" for kind in ("plain", "signal_with_start", "update_with_start")),
        "signal",
        *(f"update {how}" for how in UPDATES),
        *(f"activity {act}" for act in ACTIVITIES),
        *(f"local_activity {act}" for act in LOCAL_ACTIVITIES),
        *(f"cancel_activity {how}" for how in CANCELLATIONS),
        *(f"child {how} TERMINATE" for how in CHILDREN if how != "duplicate"),
        *(f"child leave {policy}" for policy in ("REQUEST_CANCEL", "ABANDON")),
        *(f"child's end {kind}" for kind in ("complete", "fail", "cancelled", "caught", "retried")),
        *("timer", "cancel_timer", "never", "scope", "parallel", "wait", "signal_parent", "signal_nobody"),
        *("memo", "attribute", "patched", "continue_as_new"),
    )
)
"""What the programs of any few hundred numbers must exercise between them."""


class _Maker:
    """Makes one root program and the programs in it."""

    def __init__(self, chance: random.Random, name: str) -> None:
        self._chance = chance
        self._name = name
        self._texts = 0
        self._children = 0
        #: whether what is made now runs beside other branches of its program
        self._beside = False

    def root(self) -> Program:
        end = self._pick(ENDS)
        lanes = [] if end in SEALED else self._lanes()
        steps = self._sealed(end) if end in SEALED else self._steps(0, self._chance.randint(2, 6))
        # CAN and waits only at the top: what is carried to the next run is then plain data.
        steps += self._waits(lanes)
        self._chance.shuffle(steps)
        if end not in SEALED:
            for _ in range(self._chance.choice((0, 0, 1, 1, 2))):
                steps.insert(self._chance.randint(0, len(steps)), {"do": "continue_as_new"})
        if lanes:
            steps.append({"do": "wait", "channel": "close", "count": 1})
        program: Program = {
            "id": self._name,
            "start": self._start(lanes),
            "steps": steps,
            "end": self._end(end),
            "lanes": lanes,
        }
        if end in ENDED_BY_CLIENT:
            # Asked while a local activity is under way, the SDK answers the query and splits the rest of the task off,
            # now and then in a place where its own replayer does not. Such a program says by its memo that it waits.
            local = any(step["do"] == "local_activity" for step in walk(program))
            program["end"]["tells_by"] = "memo" if local else "query"
        return program

    def _sealed(self, end: str) -> list[Step]:
        # How far a run comes before its timeout is a matter of time: such a program only waits.
        return [] if end == "timed_out" else self._simple_steps(1, 4)

    # ---- what comes from outside ------------------------------------------------

    def _lanes(self) -> list[dict[str, Any]]:
        lanes: list[dict[str, Any]] = []
        for number in range(self._chance.choice((0, 1, 1, 2))):
            items = [self._text() for _ in range(self._chance.randint(1, 5))]
            lanes.append({"kind": "signal", "channel": f"s{number}", "items": items})
        for number in range(self._chance.choice((0, 0, 1, 2))):
            updates = [
                {"how": self._chance.choice(UPDATES), "text": self._text()} for _ in range(self._chance.randint(1, 4))
            ]
            lanes.append({"kind": "update", "channel": f"u{number}", "items": updates})
        return lanes

    def _waits(self, lanes: list[dict[str, Any]]) -> list[Step]:
        """Steps that between them wait for all that the lanes bring."""
        waits: list[Step] = []
        for lane in lanes:
            left = len(lane["items"])
            if lane["kind"] == "update":
                left = sum(item["how"] in NOTED_UPDATES for item in lane["items"])
            while left:
                count = self._chance.randint(1, left)
                waits.append({"do": "wait", "channel": lane["channel"], "count": count})
                left -= count
        return waits

    def _start(self, lanes: list[dict[str, Any]]) -> str:
        if not lanes or self._chance.random() < 0.6:
            return "plain"
        # The lane that starts the workflow is the first; a rejected update would not do: it leaves nothing to wait for.
        first = lanes[0]
        if first["kind"] == "signal":
            return "signal_with_start"
        return "update_with_start" if first["items"][0]["how"] in ("plain", "slow", "work") else "plain"

    def _end(self, kind: str) -> dict[str, Any]:
        end: dict[str, Any] = {"kind": kind}
        if kind == "retried":
            end |= {"failures": self._chance.randint(1, 2), "attempts_max": self._chance.choice((2, 3, 0))}
        elif kind in ("cancelled", "caught"):
            end["cleanup"] = self._chance.random() < 0.5
            end["pending"] = [
                self._forever_child(self._chance.choice(("cancelled", "caught"))) if kind == "child" else {"do": kind}
                for kind in self._chance.sample(("timer", "activity", "child"), self._chance.choice((0, 1, 1, 2, 3)))
            ]
        elif kind == "timed_out":
            end["run_timeout_ms"] = 2000
        return end

    # ---- steps ------------------------------------------------------------------

    def _steps(self, depth: int, count: int) -> list[Step]:
        return [self._step(depth) for _ in range(count)]

    def _step(self, depth: int) -> Step:
        kinds = {
            "timer": 3,
            "activity": 7,
            "local_activity": 2,
            "cancel_timer": 1,
            "cancel_activity": 2,
            "never": 1,
            "memo": 1,
            "attribute": 0 if self._beside else 1,
            "patched": 1,
            "signal_nobody": 1,
            "parallel": 2,
            "scope": 1,
        }
        if depth < DEPTH_MAX:
            kinds["child"] = 6 if depth == 0 else 2
        kind = self._pick(kinds)
        if kind == "parallel":
            with self._branches(beside=True):
                branches = [
                    self._steps(depth + 1, self._chance.randint(1, 2)) for _ in range(self._chance.randint(2, 3))
                ]
            return {"do": kind, "branches": branches}
        if kind == "scope":
            return {"do": kind, "steps": self._simple_steps(0, 2)}
        if kind == "child":
            with self._branches(beside=False):
                return self._child(depth)
        if kind == "cancel_activity":
            return {"do": kind, "how": self._chance.choice(CANCELLATIONS), "text": self._text()}
        if kind == "signal_nobody":
            return {"do": kind, "cancel": self._chance.random() < 0.5}
        return self._simple(kind)

    @contextmanager
    def _branches(self, *, beside: bool) -> Iterator[None]:
        before, self._beside = self._beside, beside
        yield
        self._beside = before

    def _simple_steps(self, least: int, most: int) -> list[Step]:
        kinds = ("timer", "activity", "local_activity", "cancel_timer", "memo")
        return [self._simple(self._chance.choice(kinds)) for _ in range(self._chance.randint(least, most))]

    def _simple(self, kind: str) -> Step:
        step: Step = {"do": kind, "text": self._text()}
        if kind in ("timer", "never"):
            step["ms"] = self._chance.choice(
                (0, 1, self._chance.randint(2, 200), self._chance.randint(200, TIMER_MS_MAX))
            )
            if kind == "never":
                step["ms"] = max(1, step["ms"])
        elif kind == "activity":
            step["act"] = self._chance.choice(ACTIVITIES)
            step["elsewhere"] = self._chance.random() < 0.5
            step["failures"] = self._chance.randint(1, 3)
            step["delay_ms"] = self._chance.choice((0, 0, 100))
        elif kind == "local_activity":
            step["act"] = self._chance.choice(LOCAL_ACTIVITIES)
            step["failures"] = self._chance.randint(1, 2)
        elif kind == "memo":
            step["overwrites"] = not self._beside
        elif kind == "patched":
            step["text"] = f"change-{self._chance.randint(1, 3)}"
        return step

    # ---- children ---------------------------------------------------------------

    def _child(self, depth: int) -> Step:
        how = self._chance.choice(CHILDREN)
        step: Step = {"do": "child", "how": how, "policy": "TERMINATE", "signals": [], "hears": 0}
        if how == "cancel":
            step = self._forever_child(self._chance.choice(("cancelled", "caught")))
            step["by"] = self._chance.choice(("handle", "external", "try"))
            if step["by"] == "try":
                # The parent does not wait for the child's end, so its own end must not terminate it first.
                step["policy"] = "ABANDON"
                program = step["program"]
                program["end"]["tells"] = {"do": "signal_parent", "channel": program["id"], "text": self._text()}
        elif how == "leave":
            step["policy"] = self._chance.choice(("TERMINATE", "REQUEST_CANCEL", "ABANDON"))
            end = "complete" if step["policy"] == "ABANDON" else "cancelled"
            step["program"] = self._program(self._simple_steps(0, 1) if end == "complete" else [], end)
        elif how == "timeout":
            step["program"] = self._program([], "cancelled")
            step["run_timeout_ms"] = 1000
        elif how == "duplicate":
            step["program"] = self._program([], "cancelled")
        elif how == "retried":
            step["program"] = self._program(self._simple_steps(0, 2), "retried")
        else:
            step["policy"] = self._chance.choice(("TERMINATE", "REQUEST_CANCEL", "ABANDON"))
            step["signals"] = [self._text() for _ in range(self._chance.choice((0, 0, 1, 3)))]
            step["hears"] = self._chance.choice((0, 0, 1, 2))
            step["program"] = self._talking_child(step, depth)
        return step

    def _talking_child(self, step: Step, depth: int) -> Program:
        steps = self._steps(depth + 1, self._chance.randint(0, 3))
        steps += [{"do": "wait", "channel": "p", "count": 1} for _ in step["signals"]]
        self._chance.shuffle(steps)
        if self._chance.random() < 0.3:
            steps.insert(self._chance.randint(0, len(steps)), {"do": "continue_as_new"})
        program = self._program(steps, self._chance.choice(("complete", "complete", "fail")))
        for _ in range(step["hears"]):
            place = self._chance.randint(0, len(steps))
            steps.insert(place, {"do": "signal_parent", "channel": program["id"], "text": self._text()})
        return program

    def _forever_child(self, end: str) -> Step:
        """A child that says when it is ready to be cancelled, and waits for it."""
        program = self._program(self._simple_steps(0, 1), end)
        program["end"]["ready"] = {"do": "signal_parent", "channel": program["id"], "text": self._text()}
        program["end"]["cleanup"] = self._chance.random() < 0.5
        return {
            "do": "child",
            "how": "cancel",
            "by": "handle",
            "policy": "TERMINATE",
            "signals": [],
            "hears": 1,
            "program": program,
        }

    def _program(self, steps: list[Step], end: str) -> Program:
        self._children += 1
        ends: dict[str, Any] = {"kind": end}
        if end == "retried":
            ends = self._end(end)
        return {"id": f"{self._name}/c{self._children}", "steps": steps, "end": ends}

    # ---- chance -----------------------------------------------------------------

    def _text(self) -> str:
        self._texts += 1
        return f"{self._name}-t{self._texts}"

    def _pick(self, weights: dict[str, int]) -> str:
        return self._chance.choices(list(weights), list(weights.values()))[0]
