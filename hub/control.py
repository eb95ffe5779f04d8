"""Control: the words that workers exchange among themselves; bytes ⇄ objects, no I/O.

Does: give and check the shape of surveys, answers, node descriptions, notices and errands.
Does not: send or receive them (registry), or say what an answer is made of.
Called by: registry.
Never break: whoever reaches Redis can write here, so every parser returns what its type says or raises ValueError, and
no error's text repeats what came.

A survey is one message on the control channel, an answer one entry of the survey's own list:

    {"do":"survey","id":"6f1c…","ask":"channels","pattern":"ticker:*"}
    {"uid":"91b0…","channels":{"ticker:ACME":12}}

One that has something done has `params` besides; orders has their words:

    {"do":"survey","id":"6f1c…","ask":"disconnect","pattern":"","params":{"user":"42","code":3503,…}}
    {"uid":"91b0…","met":2}

A notice is one message:

    {"do":"notify","user":"42","channel":"inbox:#42","data":{"text":"hi"}}

An errand is one message, and one for the answer where it is a call:

    {"do":"errand","what":"call","client":"5d1e…","name":"question","args":[6],"number":"0c…","timeout_s":5.0}
    {"do":"errand","what":"answer","number":"0c…","args":[7]}
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import orjson

MAX_CONTROL_BYTES = 65_536
MAX_ANSWER_BYTES = 4_194_304
"""10,000 channels of the longest name are 2.7 MB."""
MAX_COUNT = 2**40
"""No worker has so many of anything; sums of it still fit into the integers of JSON writers."""
PATTERN = re.compile(r"[A-Za-z0-9_:.\-#$,*?!\[\]]{0,255}")
# The id becomes part of a key.
SURVEY_ID = re.compile(r"[0-9a-f-]{32,36}")


class Node(NamedTuple):
    """One worker. `name` is HOST:SLOT; a worker that takes over a slot has a new `uid`."""

    uid: str
    name: str
    version: str
    uptime_s: int
    num_clients: int
    num_users: int
    num_subs: int
    num_channels: int


class Question(NamedTuple):
    """One survey as a worker got it: where the answer goes, what is asked, about which channels ('' for all).

    params: of an order.
    """

    survey: str
    ask: str
    pattern: str
    params: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Notice(NamedTuple):
    """Data for the connections of one user, or of everybody where `user` is ''.

    channel: those that hold it get the data otherwise; '' for none.
    """

    user: str
    channel: str
    data: Any


EMIT, CALL, DISCONNECT, ANSWER = "emit", "call", "disconnect", "answer"
ERRANDS = frozenset({EMIT, CALL, DISCONNECT, ANSWER})
MAX_CALL_S = 600.0
TEXTS = ("client", "name", "number")


class Errand(NamedTuple):
    """What one client is to be sent, or asked. name: of the event; of an answer without a value, why that is.

    args: JSON, with bytes in the form that emission has where `binary`. number: of a call and its answer.
    code: of an answer that is an error.
    """

    what: str
    client: str = ""
    name: str = ""
    args: list[Any] = []  # noqa: RUF012 - never changed
    number: str = ""
    timeout_s: float = 0.0
    volatile: bool = False
    binary: bool = False
    code: int = 0


class Answer(NamedTuple):
    """What one worker answered; `content` is yet to be checked by the parser for what was asked."""

    uid: str
    content: dict[str, Any]


def encode_survey(question: Question) -> bytes:
    """One message for the control channel, as in the file's head. Raises ValueError for more than MAX_CONTROL_BYTES."""
    command: dict[str, Any] = {"do": "survey", "id": question.survey, "ask": question.ask, "pattern": question.pattern}
    message = orjson.dumps(command | ({"params": question.params} if question.params else {}))
    if len(message) > MAX_CONTROL_BYTES:
        raise ValueError(f"{len(message)} bytes; allowed: {MAX_CONTROL_BYTES}")
    return message


def encode_notice(notice: Notice) -> bytes:
    """One message for the control channel. Raises TypeError for data that orjson can't write, and ValueError for more
    than MAX_CONTROL_BYTES.
    """
    message = orjson.dumps({"do": "notify", "user": notice.user, "channel": notice.channel, "data": notice.data})
    if len(message) > MAX_CONTROL_BYTES:
        raise ValueError(f"{len(message)} bytes; allowed: {MAX_CONTROL_BYTES}")
    return message


def parse_notice(command: dict[str, Any]) -> Notice:
    """The notice of a control message. Raises ValueError."""
    if "data" not in command:
        raise ValueError("a notice without data")
    return Notice(_text(command, "user"), _text(command, "channel"), command["data"])


def encode_errand(errand: Errand) -> bytes:
    """One message for the control channel; what is empty is left out. Raises TypeError, ValueError as encode_notice."""
    message = orjson.dumps({"do": "errand"} | {name: value for name, value in errand._asdict().items() if value})
    if len(message) > MAX_CONTROL_BYTES:
        raise ValueError(f"{len(message)} bytes; allowed: {MAX_CONTROL_BYTES}")
    return message


def parse_errand(command: dict[str, Any]) -> Errand:
    """The errand of a control message. Raises ValueError."""
    args, timeout_s, code = command.get("args", []), command.get("timeout_s", 0.0), command.get("code", 0)
    if _text(command, "what") not in ERRANDS:
        raise ValueError("an unknown errand")
    if not isinstance(args, list) or not _are_counts([code]) or type(timeout_s) not in (int, float):
        raise ValueError("an errand with something else for args, code or timeout_s")
    if not 0 <= timeout_s <= MAX_CALL_S or (command["what"] == ANSWER and not (args or command.get("name"))):
        raise ValueError("an errand that nobody can wait for, or an answer that is none")
    client, name, number = (_text({"client": "", "name": "", "number": ""} | command, key) for key in TEXTS)
    volatile, binary = command.get("volatile") is True, command.get("binary") is True
    return Errand(command["what"], client, name, args, number, timeout_s, volatile, binary, code)


def parse_control(payload: bytes) -> tuple[str, dict[str, Any]]:
    """What a control message asks a worker to do, and the whole message. Raises ValueError."""
    if len(payload) > MAX_CONTROL_BYTES:
        raise ValueError(f"{len(payload)} bytes; allowed: {MAX_CONTROL_BYTES}")
    command = _parse_object(payload)
    return _text(command, "do"), command


def parse_question(command: dict[str, Any]) -> Question:
    """The question of a survey. Raises ValueError."""
    survey = _text(command, "id")
    if not SURVEY_ID.fullmatch(survey):
        raise ValueError("a survey without a proper id")
    params = command.get("params", {})
    if not isinstance(params, dict):
        raise ValueError("a survey with something else for params")
    return Question(survey, _text(command, "ask"), check_pattern(command.get("pattern", "")), params)


def parse_answer(text: bytes) -> Answer:
    """Who answered, and what. Raises ValueError."""
    if len(text) > MAX_ANSWER_BYTES:
        raise ValueError(f"an answer of {len(text)} bytes; allowed: {MAX_ANSWER_BYTES}")
    answer = _parse_object(text)
    return Answer(_text(answer, "uid"), answer)


def parse_node(value: object) -> Node:
    """A node's description; a number that another version of the hub does not tell is 0. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("a node's description is not an object")
    counts = {name: value.get(name, 0) for name in Node._fields[3:]}
    if not _are_counts(counts.values()):
        raise ValueError("a node's description with something else for a count")
    return Node(_text(value, "uid"), _text(value, "name"), _text(value, "version"), **counts)


def parse_stored_node(text: bytes) -> Node:
    """A node's description as it stands in Redis. Raises ValueError."""
    return parse_node(_parse_object(text))


def parse_counts(value: object) -> dict[str, int]:
    """Subscribers by channel. Raises ValueError."""
    if not isinstance(value, dict) or not _are_counts(value.values()):
        raise ValueError("an answer without counts by channel")
    return value


def check_pattern(pattern: object) -> str:
    """A glob over channel names, or '' for all of them. Raises ValueError with what is allowed."""
    if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern):
        raise ValueError("pattern: allowed are up to 255 of A-Z a-z 0-9 _ : . - # $ , and the glob's * ? [abc] [!abc]")
    return pattern


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is not a text")
    return text


def _are_counts(values: Collection[object]) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_COUNT for value in values)
