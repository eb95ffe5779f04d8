"""A hub that loses one publication in fifty on its way to the clients, and is sure that it doesn't.

Run as `python -m tests.chaos.lossy_hub` with the command line of `hub`: it shows that the rig finds what a real hub
does wrong, as test_liar shows it of clients and checker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hub.cli import main
from hub.streams import Streams

ONE_IN = 50


def make_lossy() -> None:
    """Change `Streams` of this process, and so of the workers that it forks."""
    honest: Callable[[Streams], None] = Streams._pass_on
    numbers = itertools.count()

    def lossy(self: Streams) -> None:
        self._out = [one for one in self._out if next(numbers) % ONE_IN]
        honest(self)

    Streams._pass_on = lossy


if __name__ == "__main__":
    make_lossy()
    main()
