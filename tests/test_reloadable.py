"""Reloadable: the table of what may change while the hub runs, and what two sets of settings differ in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from hub.channels import Namespace
from hub.config import Settings
from hub.mistakes import as_table
from hub.reloadable import (
    NAMESPACES,
    SETTINGS,
    Fresh,
    When,
    differences,
    gone,
    pack,
    refusals,
    unpack,
    when,
)

README = Path(__file__).parent.parent / "config/hub.toml"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = as_table(field.annotation)
        yield from keys(inner, f"{prefix}{name}.") if inner is not None else iter([prefix + name])


def lines(old: dict[str, object], new: dict[str, object]) -> list[str]:
    return refusals(differences(Settings(**old), Settings(**new)))


def changed(old: dict[str, object], new: dict[str, object]) -> dict[str, When]:
    return {each.key: each.when for each in differences(Settings(**old), Settings(**new))}


def test_every_setting_has_its_row_or_its_tables() -> None:
    """A new setting is put into the table by whoever adds it; a row of one that is gone goes with it."""
    known = set(keys(Settings))
    tables = {key.partition(".")[0] for key in known}
    missing = [key for key in known if key not in SETTINGS and key.partition(".")[0] not in SETTINGS]
    assert not missing
    assert set(SETTINGS) <= known | tables
    assert set(NAMESPACES) == set(Namespace.model_fields)


def test_what_the_settings_file_says_of_each_is_what_the_table_says() -> None:
    """config/hub.toml lists those that need a restart, for operators."""
    text = " ".join(line.removeprefix("#").strip() for line in README.read_text().splitlines())
    found = text.partition("A restart is needed for ")[2].partition(" (and ")[0]
    listed = {word.strip("[].,;") for word in found.split() if word not in ("and", "all", "of", "but")}
    wanted = {name for name, found in SETTINGS.items() if found is When.RESTART}
    assert listed == wanted


def test_a_settings_own_row_goes_before_its_tables() -> None:
    assert when("socketio.namespaces") is When.RESTART
    assert when("socketio.max_packets") is When.IN_PLACE
    assert when("auth.issuer") is When.IN_PLACE


def test_equal_settings_differ_in_nothing() -> None:
    assert differences(Settings(workers=2), Settings(workers=2)) == []


@pytest.mark.parametrize(
    ("new", "line"),
    [
        ({"workers": 3}, "workers needs a restart (was 2, is 3)"),
        ({"listen": ["127.0.0.1:9"]}, "listen needs a restart (was ['127.0.0.1:8000'], is ['127.0.0.1:9'])"),
        ({"tcp": {"backlog": 9}}, "tcp.backlog needs a restart (was 65535, is 9)"),
        ({"redis": {"prefix": "x"}}, "redis.prefix needs a restart (was 'hub', is 'x')"),
        ({"socketio": {"enabled": False}}, "socketio.enabled needs a restart (was True, is False)"),
    ],
)
def test_what_needs_a_restart_is_named_with_both_values(new: dict[str, object], line: str) -> None:
    assert lines({"workers": 2}, {"workers": 2, **new}) == [line]


def test_no_secret_is_in_a_line() -> None:
    """That it is another one is said, and not what it was or is."""
    old, new = {"url": "redis://:hunter2@a"}, {"url": "redis://:hunter3@a"}
    assert lines({"redis": old}, {"redis": new}) == ["redis.url needs a restart (was not shown, is another value)"]
    assert lines({"redis": old}, {"redis": {}}) == ["redis.url needs a restart (was not shown, is none)"]
    old_key, new_key = ({"key": f"{word}-key-of-16-characters"} for word in ("old", "new"))
    found = differences(Settings(api=old_key), Settings(api=new_key))
    assert not any("old" in str(each) or "new" in str(each) for each in found) and len(found) == 1


def test_namespaces_come_and_go_in_place() -> None:
    """Those of mailboxes only come: who has one was promised its messages."""
    chat, inbox = {"chat": {}}, {"inbox": {"mailbox": True}}
    assert changed({}, {"namespaces": chat}) == {"namespaces.chat": When.IN_PLACE}
    assert changed({"namespaces": chat}, {}) == {"namespaces.chat": When.IN_PLACE}
    assert changed({}, {"namespaces": inbox}) == {"namespaces.inbox": When.IN_PLACE}
    assert changed({"namespaces": inbox}, {}) == {"namespaces.inbox": When.RESTART}


def test_a_mode_needs_a_restart() -> None:
    old, new = {"chat": {"mode": "none"}}, {"chat": {"mode": "stream", "history_size": 5}}
    assert lines({"namespaces": old}, {"namespaces": new}) == [
        "namespaces.chat.mode needs a restart (was 'none', is 'stream')"
    ]
    assert changed({"namespaces": old}, {"namespaces": new})["namespaces.chat.history_size"] is When.IN_PLACE


def test_the_default_namespace_is_there_without_a_word() -> None:
    """Named or not, its mode can't change, and it is never gone."""
    stream = {"default": {"mode": "stream"}}
    assert lines({}, {"namespaces": stream}) == ["namespaces.default.mode needs a restart (was 'none', is 'stream')"]
    plain = {"default": {"publish": "anyone"}, "chat": {}}
    assert gone(Settings(namespaces=plain), Settings()) == {"chat"}
    assert changed({"namespaces": {"default": {"publish": "anyone"}}}, {}) == {
        "namespaces.default.publish": When.IN_PLACE
    }


def test_what_is_packed_comes_out_as_it_was() -> None:
    """Secrets and rules too; nothing is read or checked again on the way."""
    fresh = Fresh(Settings(auth={"hmac_secret": "x" * 32}, namespaces={"a": {"mode": "stream"}}), {"/a": b"pem"}, None)
    assert unpack(pack(fresh)) == fresh
