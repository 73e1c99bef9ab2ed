"""`python -m everfold.cli`, the same as `everfold`."""

from everfold.cli import main

main()
