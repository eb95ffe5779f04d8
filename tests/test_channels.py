"""Channels: which names are names, whose namespace they are of, and who may use them."""

from __future__ import annotations

import string

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hub import errors
from hub.channels import Channels, Namespace, mailbox_of, namespace_of
from hub.errors import CommandError, Reply

TICKER = Namespace(mode="latest", subscribe="anyone")
CHANNELS = Channels({"ticker": TICKER, "a.b-c_1": Namespace()})
LETTERS = set(string.ascii_letters + string.digits + "_:.-#$,")


def refusal(channel: object) -> Reply | None:
    try:
        CHANNELS.resolve(channel)
    except CommandError as error:
        return error.reply
    return None


def test_exactly_the_alphabet_is_allowed() -> None:
    """Of Latin-1 the alphabet's characters pass within a name, and no others: no space, brace, newline, NUL, %."""
    passed = {chr(code) for code in range(256) if refusal(f"a{chr(code)}" if chr(code) != ":" else "ticker:") is None}
    assert passed == LETTERS


@pytest.mark.parametrize("name", ["", "é", "a\n", "日本", "a" * 256, None, 5, b"a", ["a"], {"a": 1}, "\ud800"])
def test_what_is_no_name_is_a_bad_request(name: object) -> None:
    """Wrong characters, wrong length and wrong types are 107, whatever came from outside."""
    assert refusal(name) is errors.BAD_REQUEST


def test_a_name_has_at_most_255_characters() -> None:
    """255 pass, one more does not."""
    assert refusal("a" * 255) is None
    assert refusal("a" * 256) is errors.BAD_REQUEST


@pytest.mark.parametrize("name", ["other:x", ":x", ":", "Ticker:x", "#:a", "default2:x"])
def test_an_unknown_namespace_is_an_unknown_channel(name: str) -> None:
    """A well-formed name of a namespace that nobody configured is 102; upper and lower case differ."""
    assert refusal(name) is errors.UNKNOWN_CHANNEL


@pytest.mark.parametrize(
    ("channel", "namespace"),
    [("ticker:ACME", "ticker"), ("ticker:", "ticker"), ("a:b:c", "a"), (":x", ""), ("plain", "default")],
)  # fmt: skip
def test_the_namespace_is_what_stands_before_the_first_colon(channel: str, namespace: str) -> None:
    """Later colons belong to the name; without one it is 'default'."""
    assert namespace_of(channel) == namespace


def test_resolve_gives_the_namespaces_rules() -> None:
    """A configured namespace has its rules, the default one its defaults although nobody configured it."""
    assert CHANNELS.resolve("ticker:ACME") is TICKER
    assert CHANNELS.resolve("anything") == CHANNELS.resolve("default:x") == Namespace()


def test_a_configured_default_namespace_is_kept() -> None:
    """[namespaces.default] rules the channels without a colon."""
    assert Channels({"default": TICKER}).resolve("anything") is TICKER


def test_the_defaults_are_closed() -> None:
    """A namespace without settings lets users with a token listen, and nobody write."""
    assert (Namespace().mode, Namespace().subscribe, Namespace().publish) == ("none", "user", "nobody")


@pytest.mark.parametrize(
    ("channel", "reply"),
    [
        ("inbox:#42", None),
        ("inbox:#a:b", None),
        ("#42", None),
        ("inbox:#", errors.BAD_REQUEST),
        ("inbox:42", errors.BAD_REQUEST),
        ("inbox:", errors.BAD_REQUEST),
        ("inbox:#42,77", errors.BAD_REQUEST),
        ("inbox:#42,", errors.BAD_REQUEST),
        ("inbox:x#42", errors.BAD_REQUEST),
        ("default:#42", errors.BAD_REQUEST),
        ("42", errors.BAD_REQUEST),
    ],
)
def test_a_mailbox_has_one_user_and_one_name(channel: str, reply: Reply | None) -> None:
    """Under a second name for the same user's, or with a second user, messages could be missed."""
    mailbox = Namespace(mailbox=True)
    channels = Channels({"inbox": mailbox, "default": mailbox, "news": Namespace()})
    assert _verdict(lambda: channels.resolve(channel)) is reply
    assert channels.mailboxes() == {"inbox": mailbox, "default": mailbox}


def test_the_mailbox_of_a_user_is_named() -> None:
    """In the namespace `default` without a colon."""
    assert [mailbox_of(name, "42") for name in ("inbox", "default")] == ["inbox:#42", "#42"]


@pytest.mark.parametrize("mode", ["stream", "latest"])
def test_a_mailbox_keeps_its_messages_itself(mode: str) -> None:
    """With another mode there would be two promises for one message."""
    with pytest.raises(ValueError, match=f'found true with mode = "{mode}"; allowed: with mode = "none"'):
        Namespace(mailbox=True, mode=mode)


def test_patterns_need_watch_lists() -> None:
    """A setting that does nothing is a mistake."""
    with pytest.raises(ValidationError, match="watch_prefixes: found true with watch = 0"):
        Namespace(mode="latest", watch_prefixes=True)
    assert Namespace(mode="latest", watch=1, watch_prefixes=True).watch_prefix_length == 1


def _verdict(ask) -> Reply | None:
    try:
        ask()
    except CommandError as error:
        return error.reply
    return None


@pytest.mark.parametrize("rules", [{"mode": "none"}, {"mode": "latest"}])
def test_nothing_is_confirmed_where_nothing_is_kept(rules):
    """The promise would be silently broken; streams and mailboxes keep it."""
    with pytest.raises(ValidationError, match="ack: found 'fsync'"):
        Namespace(ack="fsync", **rules)
    assert Namespace(ack="fsync", mailbox=True).ack == Namespace(ack="fsync", mode="stream").ack == "fsync"


@given(
    st.text(max_size=300) | st.text(st.sampled_from("a:#,$.-_ 0{}\r\n\0*?"), max_size=300) | st.binary() | st.integers()
)
def test_any_name_is_of_the_alphabet_or_refused(name: object) -> None:
    """What passes needs no escape in JSON, no second line in a log, and no brace that would move its key in Redis."""
    if refusal(name) == errors.BAD_REQUEST:
        assert not isinstance(name, str) or not 0 < len(name) <= 255 or set(name) - LETTERS
        return
    assert isinstance(name, str) and 0 < len(name) <= 255 and not set(name) - LETTERS
    assert orjson.dumps(name) == b'"%b"' % name.encode("ascii")
    assert len(name.splitlines()) == 1 and not set("{}*?[] ") & set(name)
