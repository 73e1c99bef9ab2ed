"""Diagrams for the docs, in Mermaid, drawn from the tables that the code runs by: topics, and what a run is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from everfold.history.machine.transitions import MACHINES, Change, Machine, name_of
from everfold.kernel.gotext import camel
from everfold.schemas.topics import FRONTEND, HISTORY_OWNERS, MATCHING, TOPICS, WORKER, Topic

_SERVICES = frozenset((FRONTEND, HISTORY_OWNERS, MATCHING, WORKER))


def topics_diagram() -> list[str]:
    """Who writes what, and who reads it. Topics by which services only know of one another are left out."""
    drawn = [topic for topic in TOPICS if len(topic.written_by) == 1]
    parties = dict.fromkeys(party for topic in drawn for party in (*topic.written_by, *topic.read_by))
    return _mermaid(
        "flowchart LR",
        *(f"{_id(party)}[{party}]" if party in _SERVICES else f"{_id(party)}{{{{{party}}}}}" for party in parties),
        *(f"{_topic_id(topic)}[({topic.name})]" for topic in drawn),
        *(f"{_id(party)} --> {_topic_id(topic)}" for topic in drawn for party in topic.written_by),
        *(f"{_topic_id(topic)} --> {_id(party)}" for topic in drawn for party in topic.read_by),
    )


def machines_page(generated: str) -> str:
    """docs/state-machines.md. `generated` is the notice on top."""
    lines = [
        "# What a run is made of",
        "",
        generated,
        "",
        "Drawn from the tables in `services/everfold/history/machine/transitions.py`, which every event of every run "
        "is looked up in before it is applied: what is not drawn cannot happen. Arrows bear the names of history "
        "events; those in lower case leave no event. Once the run is closed, nothing happens to the others.",
    ]
    for machine in MACHINES:
        lines += ["", f"## {machine.name.capitalize()}", "", machine.about, "", *_machine_diagram(machine)]
    return "\n".join(lines) + "\n"


def _machine_diagram(machine: Machine) -> list[str]:
    return _mermaid(
        "stateDiagram-v2",
        "direction LR",
        *(f'state "{state}" as {_id(state)}' for state in machine.table if " " in state),
        f"[*] --> {_id(machine.initial)}",
        *_arrows(machine),
    )


def _arrows(machine: Machine) -> Iterator[str]:
    for before, row in machine.table.items():
        together = defaultdict(list)
        for what, after in row.items():
            together[after].append(name_of(what) if isinstance(what, Change) else camel(name_of(what)))
        for after, names in together.items():
            yield f"{_id(before)} --> {_id(after)}: {'<br/>'.join(names)}"
        if not row:
            yield f"{_id(before)} --> [*]"


def _mermaid(kind: str, *lines: str) -> list[str]:
    return ["```mermaid", kind, *(f"    {line}" for line in lines), "```"]


def _id(words: str) -> str:
    return words.replace(" ", "_")


def _topic_id(topic: Topic) -> str:
    return f"topic_{topic.name.replace('-', '_')}"
