"""Node.js: run one of the scripts beside this file with the packages of package.json.

Does: find what is missing before a test runs, run a script to its end, show its words where it fails.
Called by: the tests here whose client is written in JavaScript.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INSTALL_PACKAGES = "npm install --prefix tests/e2e"
TIMEOUT_S = 90.0
"""Above the deadlines of the scripts' own waits, whose messages say more."""

NODE = pytest.mark.needs("node", "apt-get install nodejs npm")
PACKAGES = pytest.mark.needs(str(HERE / "node_modules/.bin/playwright-core"), INSTALL_PACKAGES)
"""The one command that the packages bring stands for all of them: npm installs all or none."""
CHROMIUM = pytest.mark.needs("/usr/bin/chromium", "apt-get install chromium")


def run(script: str, *arguments: object) -> None:
    """Run a script; it fails the test unless its exit status is 0."""
    command = ["node", "--expose-gc", str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
