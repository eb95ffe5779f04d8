"""Inheritance: what is sealed is what is read, and nothing else is."""

from __future__ import annotations

import json
import os

import pytest

from hub import inheritance
from hub.errors import BootError, ConfigError
from hub.inheritance import (
    DIGEST,
    FORMAT,
    VARIABLE,
    Estate,
    HomeRecord,
    ListenerRecord,
    Tally,
    ValkeyRecord,
    WorkerRecord,
    check_fixed,
    digest,
    open_checked,
    peek,
    read,
    seal,
    seal_checked,
    take,
    take_checked,
    write_checked,
)


def estate(*descriptors: int, **changes: object) -> Estate:
    """One with a listener for each descriptor but the first, which is the home's lock."""
    lock, *sockets = descriptors or (3, 4, 4)
    found = Estate(
        version="0.1.0",
        fixed={"workers": "2"},
        workers=[
            WorkerRecord(
                slot=1,
                generation=7,
                pid=4711,
                pulse=lock,
                instructor=lock,
                ready=True,
                born_s=1.5,
                heartbeat_timeout_s=10.0,
                goodbye_s=35.0,
            )
        ],
        next_generation=9,
        home=HomeRecord(hub="0123456789abcdef", directory="/tmp/hub-relay-x", lock=lock),
        state_lock=-1,
        board=lock,
        public=[ListenerRecord(address="127.0.0.1:80", setting="127.0.0.1:0", sockets=sockets, shared=False)],
        internal=[],
        valkey=ValkeyRecord(pid=12, socket_path="/tmp/v.sock", short_directory=""),
        tally=Tally(done=3, failed=1, again=True),
    )
    return found.model_copy(update=changes)


def test_what_is_sealed_is_what_is_read_and_read_once() -> None:
    """The variable is gone, so that no child takes itself for an heir; and so is the memory file."""
    file = seal(estate())
    environ = {VARIABLE: str(file), "OTHER": "x"}
    assert peek(environ) == estate()
    assert environ == {"OTHER": "x"} and peek(environ) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_nobody_can_change_what_is_sealed() -> None:
    """Neither its bytes nor its size."""
    file = seal(estate())
    try:
        changes = (lambda: os.pwrite(file, b"x", 0), lambda: os.ftruncate(file, 0), lambda: os.ftruncate(file, 9999))
        for change in changes:
            with pytest.raises(PermissionError):
                change()
        assert not os.get_inheritable(file)
    finally:
        os.close(file)


def test_an_heirs_children_inherit_nothing() -> None:
    """The exec left the descriptors open; a later one, of a check or of Valkey, does not."""
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    try:
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        assert take({VARIABLE: str(seal(estate(*kept)))}) == estate(*kept)
        assert not any(map(os.get_inheritable, kept))
    finally:
        for descriptor in kept:
            os.close(descriptor)


def test_all_that_has_to_stay_open_is_named() -> None:
    """Locks, listeners, pipes: what is forgotten here is closed by the exec."""
    full = estate(3, 4, 5, state_lock=6, checked=7)
    assert sorted({*full.descriptors()}) == [3, 4, 5, 6, 7]


def test_checked_settings_are_left_whole_and_for_good() -> None:
    """What the check has written is what its heir reads, and nobody changes it in between."""
    file = open_checked()
    write_checked(file, b"settings" * 1000)
    assert seal_checked(file)
    for change in (lambda: os.pwrite(file, b"x", 0), lambda: os.ftruncate(file, 0)):
        with pytest.raises(PermissionError):
            change()
    assert take_checked(file) == b"settings" * 1000
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_a_check_that_has_left_nothing_or_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, or half of it, is no settings; too many are refused by the check itself, where that costs nothing."""
    silent, half = open_checked(), open_checked()
    os.write(half, b"half")
    assert not seal_checked(silent) and not seal_checked(half)
    monkeypatch.setattr(inheritance, "MAX_CHECKED_BYTES", 1000)
    full = open_checked()
    with pytest.raises(ConfigError, match="found 1000 bytes; allowed: less than 1000"):
        write_checked(full, b"x" * 1000)
    for file in (silent, half, full):
        os.close(file)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"format": FORMAT + 1}, f"in format {FORMAT + 1}, this version reads {FORMAT}: restart"),
        ({"format": "x"}, "in format unknown"),
        ({"surprise": 1}, r"can't be read \(1 mistakes\)"),
        ({"workers": None}, "can't be read"),
    ],
)
def test_another_format_is_refused_in_words(change: dict[str, object], pattern: str) -> None:
    """A newer one, and one that claims to be ours: refused where that costs nothing."""
    data = json.dumps({**json.loads(estate().model_dump_json()), **change}).encode()
    with pytest.raises(BootError, match=pattern):
        read(data)


@pytest.mark.parametrize("text", ["x", "987654"])
def test_a_variable_that_leads_nowhere_is_refused(text: str) -> None:
    """A mistake of whoever started us, and no reason to begin as if nothing were there."""
    with pytest.raises(BootError, match="where nothing can be read"):
        peek({VARIABLE: text})


def test_a_setting_that_only_a_restart_changes_is_named_with_both_values() -> None:
    """One line for each; digests are told apart and not told."""
    was = {"listen": "a", "workers": "2", "redis": digest("redis://:secret@a"), "same": "1"}
    now = {"listen": "a, b", "workers": "3", "redis": digest("redis://:secret@b"), "same": "1", "new": "x"}
    with pytest.raises(ConfigError) as found:
        check_fixed(was, now)
    assert str(found.value).splitlines() == [
        "listen: found changed (was a, is a, b); needs a restart",
        "new: found changed (was , is x); needs a restart",
        "redis: found changed; needs a restart",
        "workers: found changed (was 2, is 3); needs a restart",
    ]
    check_fixed(was, dict(was))
    assert was["redis"].startswith(DIGEST) and "secret" not in was["redis"]
    assert digest("a", "bc") != digest("ab", "c")


def test_the_format_is_the_one_that_was_agreed() -> None:
    """Whoever changes the fields changes the number too, and then this list."""
    models = {name: model for name, model in vars(inheritance).items() if hasattr(model, "model_fields")}
    fields = {name: sorted(model.model_fields) for name, model in models.items()}
    assert FORMAT == 4
    assert fields == {
        "BaseModel": [],
        "_Record": [],
        "WorkerRecord": [
            *("born_s", "generation", "goodbye_s", "heartbeat_timeout_s", "instructor", "pid", "pulse", "ready", "slot")
        ],
        "ListenerRecord": ["address", "file", "handed", "setting", "shared", "sockets"],
        "ValkeyRecord": ["pid", "short_directory", "socket_path"],
        "HomeRecord": ["directory", "hub", "lock"],
        "OriginRecord": ["command", "options", "real"],
        "Tally": ["again", "done", "failed"],
        "Estate": sorted(Estate.model_fields),
    }
    assert sorted(Estate.model_fields) == [
        *("back", "board", "checked", "failure", "fixed", "format", "home", "internal", "next_generation", "origin"),
        *("public", "settings", "state_lock", "tally", "valkey", "version", "workers"),
    ]
