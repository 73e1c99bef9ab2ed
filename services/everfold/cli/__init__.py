"""The `everfold` command."""

from __future__ import annotations


def main() -> None:
    """Run the `everfold` command."""
    from everfold.cli.commands import everfold

    everfold.main(prog_name="everfold")
