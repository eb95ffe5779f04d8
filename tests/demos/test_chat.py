"""The chat's server code without a network, and what its files have to agree on."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jwt
import pytest

from hub import config, serve
from hub.app_testing import Kit, TestClient
from hub.errors import CommandError, Reply
from tests.support import async_test

ROOT = Path(__file__).parents[2]
CHAT = ROOT / "hub/demos/chat"
SETTINGS = ROOT / "config/chat.toml"
KEY = "message-1"
SCHEMES = {"light": 0, "dark": 1}


def load() -> ModuleType:
    """A fresh application; not under its own name, which the tests of other applications use too."""
    spec = importlib.util.spec_from_file_location("chat_demo", CHAT / "chat.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def enter(kit: Kit, name: str, *rooms: str) -> TestClient:
    """A client that has said its name, in its own channel and some rooms."""
    client = await kit.connect(data={"name": name})
    for channel in (f"me:#{client.client.user}", *(f"chat:{room}" for room in rooms)):
        await client.subscribe(channel)
    return client


def heard(client: TestClient, name: str) -> list[Any]:
    return [words for event, words in client.received if event == name]


@async_test
async def test_a_name_lets_in_and_login_makes_a_token_of_it():
    """In lower case; the token is one that the hub takes, as it is made with the key of its settings."""
    chat = load()
    async with Kit(chat.app) as kit:
        ann = await kit.connect(data={"name": " Ann "})
        assert ann.client.user == "ann"
        for answer in ([await ann.rpc("login", {})], await ann.emit("login", {})):
            [answer] = answer
            assert (answer["user"], answer["ttl_s"]) == ("ann", chat.TOKEN_TTL_S)
            assert jwt.decode(answer["token"], chat.SECRET, ["HS256"])["sub"] == "ann"
        assert (await kit.connect("Bob", None)).client.user == "bob"  # by a token


@pytest.mark.parametrize("data", [None, {}, "ann", {"name": ""}, {"name": "a b"}, {"name": "x" * 25}, {"name": 1}])
@async_test
async def test_who_is_nobody_is_refused(data):
    async with Kit(load().app) as kit:
        with pytest.raises(CommandError):
            await kit.connect(data=data)


@async_test
async def test_what_is_said_comes_in_both_versions():
    """To everybody in the room, the sender's own devices too; chat:v2 has the time besides."""
    async with Kit(load().app) as kit:
        ann, bob, carl = await enter(kit, "ann", "lobby"), await enter(kit, "bob", "lobby"), await enter(kit, "carl")
        answer = await ann.rpc("say", {"id": KEY, "room": "lobby", "text": " hi "})
        old = {"id": KEY, "room": "lobby", "user": "ann", "text": "hi"}
        for one in (ann, bob):
            assert one.received == [("chat:v1", old), ("chat:v2", {**old, "at": answer["at"]})]
        assert answer["id"] == KEY and carl.received == []


@async_test
async def test_who_is_mentioned_learns_of_it_on_all_devices_and_later():
    """Also in a room where it is not; the mailbox keeps it. Nobody hears of having mentioned itself."""
    async with Kit(load().app) as kit:
        ann, *devices = [
            await enter(kit, name, *rooms) for name, rooms in (("ann", ["lobby"]), ("bob", []), ("bob", []))
        ]
        await ann.emit("say", {"id": KEY, "room": "lobby", "text": "@Bob, @bob and @ann: mail@carl.example"})
        for one in devices:
            [notice] = heard(one, "notice:v1")
            assert (notice["from"], notice["room"], notice["id"]) == ("ann", "lobby", KEY)
        assert [(one.channel, one.data["event"]) for one in kit.published] == [("inbox:#bob", "notice:v1")]
        assert heard(ann, "notice:v1") == []


@async_test
async def test_a_full_mailbox_fails_a_direct_message_but_nothing_that_is_said():
    async with Kit(load().app) as kit:
        ann = await enter(kit, "ann", "lobby")

        async def full(*_: Any) -> None:
            raise CommandError(Reply(106, "limit exceeded"), "the mailbox is full")

        kit.publish = full  # type: ignore[method-assign]
        await ann.emit("say", {"id": KEY, "room": "lobby", "text": "@bob"})
        with pytest.raises(CommandError, match="bob: the mailbox is full") as caught:
            await ann.emit("direct", {"id": KEY, "to": "bob", "text": "hi"})
        assert caught.value.reply.code == 106


@async_test
async def test_a_direct_message_goes_to_the_mailbox_and_to_all_devices_of_both():
    async with Kit(load().app) as kit:
        anns = [await enter(kit, "ann"), await enter(kit, "ann")]
        bobs = [await enter(kit, "bob"), await enter(kit, "bob")]
        carl = await enter(kit, "carl")
        answer = await anns[0].emit("direct", {"id": KEY, "to": "bob", "text": "psst"})
        message = {"id": KEY, "from": "ann", "to": "bob", "text": "psst", "at": answer[0]["at"]}
        for one in anns + bobs:
            assert one.received == [("direct:v1", message)]
        assert [tuple(one)[:2] for one in kit.published] == [("inbox:#bob", {"event": "direct:v1", **message})]
        assert carl.received == []
        await carl.rpc("direct", {"id": KEY, "to": "carl", "text": "a note"})
        assert len(heard(carl, "direct:v1")) == 1


@async_test
async def test_marks_reach_all_devices_of_both():
    async with Kit(load().app) as kit:
        everybody = [await enter(kit, name) for name in ("ann", "ann", "bob", "bob")]
        await everybody[2].emit("mark", {"to": "ann", "ids": [KEY], "state": "read"})
        for one in everybody:
            assert heard(one, "mark:v1") == [{"by": "bob", "to": "ann", "ids": [KEY], "state": "read"}]


GOOD = {
    "say": {"id": KEY, "room": "lobby", "text": "hi"},
    "direct": {"id": KEY, "to": "bob", "text": "hi"},
    "mark": {"to": "bob", "ids": [KEY], "state": "read"},
}
BAD = {
    "id": ["", "short", "x" * 65, "with space", None, 7],
    "room": ["", "a b", "a:b", "#", None, "x" * 25],
    "to": ["", "a,b", "#bob", None],
    "text": ["", "  ", "x" * 2001, None, 5],
    "ids": [[], None, ["a"], [KEY] * 101, [None]],
    "state": ["seen", "", None],
}


@pytest.mark.parametrize(
    ("event", "data"),
    [(event, {**good, field: bad}) for event, good in GOOD.items() for field in good for bad in BAD[field]]
    + [(event, data) for event in GOOD for data in (None, [], "x", {})],
)
@async_test
async def test_what_is_not_as_it_should_be_is_refused_with_words(event, data):
    """The client hears what is allowed; nobody hears anything else."""
    async with Kit(load().app) as kit:
        ann, bob = await enter(kit, "ann", "lobby"), await enter(kit, "bob", "lobby")
        with pytest.raises(CommandError, match="allowed") as caught:
            await ann.emit(event, data)
        assert caught.value.reply.code == 107
        assert (ann.received, bob.received, kit.published) == ([], [], [])
        await ann.emit(event, GOOD[event])


# What stands in several files.


def test_the_settings_are_whole_and_have_the_key_of_the_application():
    settings = config.load(SETTINGS)
    serve.check(settings)
    serve.check_application(settings)
    assert settings.auth.hmac_secret == load().SECRET
    # Nobody but the application writes where the page believes what it reads.
    assert {name for name, rules in settings.namespaces.items() if rules.publish != "nobody"} == {"signs"}
    assert all(rules.subscribe == "user" for rules in settings.namespaces.values())


def test_an_hour_away_is_within_what_is_kept():
    """Of rooms and of a user's own things; in a reply of its own size."""
    settings = config.load(SETTINGS)
    for name in ("chat", "me"):
        assert settings.namespaces[name].history_ttl_s > 3600
    assert settings.client.recovery_publications >= settings.namespaces["chat"].history_size
    assert settings.namespaces["inbox"].mailbox


def test_the_page_obeys_its_policy():
    """Nothing inline, nothing from elsewhere, and no HTML made of texts."""
    html = (CHAT / "page/index.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon\w+=|<script(?![^>]*\bsrc=)|https?:", html)
    scripts = "".join(path.read_text() for path in (CHAT / "page").glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(", scripts)
    assert not re.search(r"https?://", scripts)
    assert tomllib.loads(SETTINGS.read_text())["app"]["pages"] == "../hub/demos/chat/page"


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of '#rrggbb'."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_stand_out_from_what_they_stand_on(scheme):
    """WCAG 2.2, 1.4.3 and, for the edges of fields, 1.4.11."""
    pairs = re.findall(r"(--[a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", (CHAT / "page/chat.css").read_text())
    colours = {name: (light, dark)[SCHEMES[scheme]] for name, light, dark in pairs if name != "--tint"}
    tints = [(light, dark)[SCHEMES[scheme]] for name, light, dark in pairs if name == "--tint"]
    for text in ("--text", "--quiet", "--accent", "--good", "--wait", "--bad"):
        for ground in ("--ground", "--panel", "--raised", *(["--wash"] if text in ("--text", "--accent") else [])):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["--on-accent"], colours["--accent"]) >= 4.5
    assert len(tints) == 8 and all(contrast(one, ("#ffffff", "#14161b")[SCHEMES[scheme]]) >= 4.5 for one in tints)
    assert contrast(colours["--field"], colours["--panel"]) >= 3
