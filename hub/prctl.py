"""Prctl: what a process asks the kernel to do to itself (Linux prctl(2)).

Does: tie a child's life to its parent's.
Does not: fork or signal anybody else.
Called by: seat and embedded, in the child between fork and its work.
Never break: nothing here may import or log; it runs between fork and exec.
"""

from __future__ import annotations

import ctypes
import os

from .errors import EXIT_FAILED

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Have the kernel send `signum` to this process when its parent ends, however it ends; the wish survives exec.

    parent_pid: the parent as it was before the fork. Raises OSError when the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # prctl is variadic and reads unsigned longs; plain Python ints would be passed as 32-bit ints.
    arguments = [ctypes.c_ulong(value) for value in (signum, 0, 0, 0)]
    if libc.prctl(PR_SET_PDEATHSIG, *arguments) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # A parent that died before the call above sends nothing any more.
    if os.getppid() != parent_pid:
        os._exit(EXIT_FAILED)
