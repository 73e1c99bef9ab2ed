"""What a process says of itself on its metrics port."""

from __future__ import annotations

import urllib.request

from support.servers import LOOPBACK


def sample(port: int, name: str) -> float:
    """The sum of a metric over its labels; 0 when the process has not counted anything under that name yet."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
