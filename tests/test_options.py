"""What several commands take from the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import orjson
import pytest

from hub import options
from hub.errors import ConfigError


def test_a_url_that_is_given_goes_before_the_settings():
    """The settings are not even looked at, as their file may not be there."""
    endpoint = options.choose_endpoint("http", "http://10.0.0.1:9/api", lambda: pytest.fail("asked"))
    assert endpoint.url.startswith("http://10.0.0.1:9/api")


def test_the_first_address_of_the_settings_is_the_hub():
    """TCP or Unix; without any, or with a port that nobody can know, it says what to give instead."""
    assert "127.0.0.1:8001" in options.choose_endpoint("http", None, lambda: ["127.0.0.1:8001", "[::1]:2"]).url
    assert options.choose_endpoint("http", None, lambda: ["unix:/run/h.sock"]).unix_path == "/run/h.sock"
    for addresses in ([], ["127.0.0.1:0"]):
        with pytest.raises(ConfigError, match="--url"):
            options.choose_endpoint("http", None, lambda addresses=addresses: addresses)


def test_a_client_command_goes_on_without_a_settings_file_and_the_hub_itself_does_not(monkeypatch, tmp_path):
    """Only the file at the usual place may be missing; one that is named must be there."""
    missing = tmp_path / "hub.toml"
    monkeypatch.setattr(options, "DEFAULT_PATH", missing)
    assert options.load_for_client(None).listen == ["127.0.0.1:8000"]
    for load in (lambda: options.load_own(None), lambda: options.load_for_client(Path(missing))):
        with pytest.raises(ConfigError, match=r"hub\.toml"):
            load()


def test_json_comes_from_the_argument_or_from_standard_input(monkeypatch):
    """What is none is a usage error."""
    assert options.read_json('{"a":1}') == {"a": 1}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[2]")))
    assert options.read_json("-") == [2]
    with pytest.raises(click.BadParameter):
        options.read_json("{")


def test_no_message_moves_the_cursor_of_its_reader():
    """C0, DEL and C1 controls are written as escapes, and still read back as what they are."""
    for text in ("\x1b[2J", "\x7f", "\x9b2J", "plain ü"):
        written = options.write_json(text)
        assert orjson.loads(written) == text
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in written)


def test_a_bad_channel_name_is_a_usage_error():
    """One name or several."""
    assert options.channel_names(None, None, ("a", "b:c")) == ("a", "b:c")
    for value in ("a b", ("fine", "")):
        with pytest.raises(click.BadParameter, match="allowed"):
            options.channel_names(None, None, value)
