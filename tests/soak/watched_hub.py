"""A hub whose workers tell what they have under way: tasks, threads, deadlines on the plane's wheel.

Run as `python -m tests.soak.watched_hub` with the command line of `hub`. SOAK_COUNTS names a directory; each worker
writes PID.json there about once a second, when it renews its lease. SOAK_LEAK has it keep so many bytes each time, and
a task: it shows that the rig finds what a real hub would leave behind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from pathlib import Path

from hub.cli import main
from hub.control import Node
from hub.registry import Registry
from hub.wheel import TimerWheel

kept: list[object] = []
wheels: list[TimerWheel] = []


def counts() -> dict[str, int]:
    """Of this process."""
    if not wheels:
        wheels.extend(one for one in gc.get_objects() if isinstance(one, TimerWheel))
    deadlines = sum(len(slot) for wheel in wheels for slot in wheel._slots)
    return {"tasks": len(asyncio.all_tasks()), "threads": threading.active_count(), "deadlines": deadlines}


def leak(size: int) -> None:
    """Keep bytes that were touched, and a task that waits for ever."""
    kept.append(os.urandom(size))
    kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


def watch() -> None:
    """Change `Registry` of this process, and so of the workers that it forks."""
    honest = Registry._count
    directory, size = Path(os.environ["SOAK_COUNTS"]), int(os.environ.get("SOAK_LEAK", "0"))

    def watched(self: Registry) -> Node:
        if size:
            leak(size)
        path = directory / f"{os.getpid()}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(counts()))
        fresh.replace(path)
        return honest(self)

    Registry._count = watched


if __name__ == "__main__":
    watch()
    main()
