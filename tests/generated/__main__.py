"""One program by itself: `python tests/generated SEED NUMBER [temporal|everfold|HOST:PORT]` prints it, and runs it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from generated.conftest import ATTRIBUTES, played
from generated.generator import generate
from support.servers import everfold_server, temporal_server


def main(seed: int, number: int, where: str) -> None:
    """Prints the program and, when it is told where, what came of it there."""
    program = generate(seed, number)
    print(json.dumps(program, indent=1))
    if not where:
        return
    with tempfile.TemporaryDirectory() as directory:
        if ":" in where:
            play = played(where, [program], seed, Path(directory))
        else:
            make = temporal_server if where == "temporal" else everfold_server
            with make(Path(directory), *ATTRIBUTES) as server:
                play = played(server.address, [program], seed, Path(directory))
    print("\n".join(play.outcomes[program["id"]].lines(play.nonce)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
