"""Prctl: a child's life tied to its parent's."""

from __future__ import annotations

import os
import select
import subprocess
import sys

PARENT = """
import os, signal, subprocess, sys
from hub.prctl import die_with_parent
me = os.getpid()
child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: die_with_parent(signal.SIGTERM, me))
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_takes_its_child_along() -> None:
    """SIGKILL gives the parent no chance to say goodbye; the kernel ends the child, even after exec."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        watch = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        # A pidfd becomes readable when its process ends (pidfd_open(2)).
        assert select.select([watch], [], [], 5.0)[0], "the child lives on"
        os.close(watch)


def test_an_orphan_ends_at_once() -> None:
    """A parent that was gone before the wish was made sends nothing any more, so the child ends itself."""
    code = "import signal; from hub.prctl import die_with_parent; die_with_parent(signal.SIGTERM, -1); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10)
    assert done.returncode == 1 and done.stdout == ""
