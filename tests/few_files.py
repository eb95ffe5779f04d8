"""The command line of the hub in a process that may open only so many files as the environment says, FEW_FILES."""

from __future__ import annotations

import os
import resource

from hub.cli import main

LIMIT_ENV = "FEW_FILES"

if __name__ == "__main__":
    limit = int(os.environ[LIMIT_ENV])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    main()
