"""Build: the C programs, compiled into bench/.build/ when they are missing or older than a source.

Called by: the benches before anything else, `make bench`, tests.  `python bench/rig/build.py` builds all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent
PROGRAMS = {
    "population": (
        "population.c",
        "population_clients.c",
        "population_lines.c",
        "population_loop.c",
        "population_posts.c",
        "population_ticks.c",
        "population_changes.c",
        "population_thin.c",
        "population_figures.c",
    ),
    "broadcast_loop": ("broadcast_loop.c", "loop_server.c"),
    "topics_loop": ("topics_loop.c", "loop_server.c"),
}
HEADERS = ("population.h", "loop_server.h")
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]


def program(name: str) -> str:
    """The path of one of PROGRAMS, compiled if need be. Exits with one line when there is no compiler."""
    sources, target = [BENCH / source for source in PROGRAMS[name]], BENCH / ".build" / name
    newest = max(path.stat().st_mtime for path in (*sources, *(BENCH / header for header in HEADERS)))
    if target.exists() and target.stat().st_mtime >= newest:
        return str(target)
    if shutil.which("cc") is None:
        sys.exit("bench: cc is missing; install it with: apt-get install gcc libc6-dev")
    target.parent.mkdir(exist_ok=True)
    # Moved into place when it is whole: two benches, or two test processes, may build at the same time.
    fresh = target.with_name(f"{name}.{os.getpid()}")
    subprocess.run(["cc", *FLAGS, "-o", str(fresh), *map(str, sources)], check=True)
    fresh.replace(target)
    return str(target)


if __name__ == "__main__":
    for name in PROGRAMS:
        print(program(name))
