"""The README: each command in it is run here, or is one that CI runs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.hubs import HubProcess, clean_environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WSCAT = (str(ROOT / "tests/e2e/node_modules/.bin/wscat"), "npm install --prefix tests/e2e")
SHOWS = {
    "/sse?": "event: open",
    "transport=polling": '"upgrades":["websocket"]',
    "/hub.js": "Cache-Control: public",
    "Upgrade: websocket": "101 Switching Protocols",
    "wscat": '"push":{"channel":"ticker:ACME"',
}
"""Commands that end with 0 whatever comes: what has to come. By words of theirs."""
BY_CI = {"make run", "make test"}
"""Shown by .ci/run (make test) and by tests/e2e, which start what `make run` starts."""


def blocks() -> list[str]:
    """The commands in ```sh blocks, in order; a block in a list item is indented."""
    found = re.findall(r"^ *```sh\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [line.strip() for block in found for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def demo():
    """The demo as `make run` starts it, but on free ports and with a state directory of its own."""
    import tomllib

    settings = tomllib.loads((ROOT / "config/demo.toml").read_text())
    del settings["state_dir"]
    with HubProcess(
        {**settings, "listen": ["127.0.0.1:0"], "internal": ["127.0.0.1:0"], "workers": 2}, base=False
    ) as hub:
        yield hub


def port(url: str) -> str:
    return re.search(r":(\d+)/", url)[1]


def needed(command: str) -> object:
    """A command as a parameter, which is skipped where its tool is missing."""
    marks = [pytest.mark.needs("curl", "apt-get install curl")] if command.startswith("curl") else []
    if command.startswith("npx wscat"):
        marks = [pytest.mark.needs("node", "apt-get install nodejs npm"), pytest.mark.needs(*WSCAT)]
    return pytest.param(command, marks=marks)


@pytest.mark.parametrize("command", [*map(needed, blocks())])
def test_a_command_of_the_readme_does_what_it_says(demo, command):
    """It ends with 0, run from the checkout against the running demo."""
    command = re.sub(r"(\.venv|/opt/hub)/bin/hub\b", f"{sys.executable} -m hub", command)
    command = command.replace("/etc/hub/hub.toml", str(demo.config_path))
    command = command.replace("npx wscat", WSCAT[0])
    command = command.replace("8000", port(demo.ws_url)).replace("8001", port(demo.api_url))
    command = command.replace(" --config config/demo.toml", f" --config {demo.config_path}")
    if "tail" in command:
        command += f" --url {demo.ws_url} --timeout 15"
    if "hub publish" in command:
        command += f" --url {demo.api_url}"
    # Standard input stays open, as a terminal does: wscat ends with it.
    waiting, held = os.pipe()
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=ROOT,
            env=clean_environment(),
            stdin=waiting,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        os.close(waiting)
        os.close(held)
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    for words, expected in SHOWS.items():
        assert words not in command or expected in done.stdout


def test_the_application_of_the_readme_passes_its_test(monkeypatch):
    """The file and its test, as they stand there."""
    application, test = [one for one in re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S) if "hub.app" in one]
    chat = ModuleType("chat")
    exec(application, chat.__dict__)
    monkeypatch.setitem(sys.modules, "chat", chat)
    names: dict[str, Any] = {}
    exec(test, names)
    asyncio.run(names["a_line_reaches_the_room"]())


def test_the_readme_shows_commands_at_all():
    """The pattern above finds them; and the two that CI runs stand there."""
    assert len(blocks()) >= 7
    for command in BY_CI:
        assert f"\n    {command}\n" in README


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_a_link_of_the_readme_leads_somewhere(path):
    """Relative links name files of the checkout."""
    assert (ROOT / path).exists()
