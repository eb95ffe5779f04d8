"""The native protocol: commands in, replies and pushes out."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import errors, protocol
from hub.errors import ProtocolError
from hub.protocol import PONG, Command, decode


@pytest.mark.parametrize(
    ("message", "commands"),
    [
        (b"{}", [PONG]),
        (b'{"id":1,"connect":{}}', [Command(1, "connect", {})]),
        (b'{"id":1,"connect":{}}\n{}\n', [Command(1, "connect", {}), PONG]),
        (b'{"send":{"data":1}}', [Command(0, "send", {"data": 1})]),
        (b'{"id":7,"nonsense":{}}', [Command(7, "unknown", {})]),
        (b'{"id":4294967295,"rpc":{"method":"x"},"flag":1}', [Command(4294967295, "rpc", {"method": "x"})]),
    ],
)
def test_a_message_becomes_its_commands_in_order(message, commands):
    """One command or several by lines; fields that we don't know are passed over, as protobuf does."""
    assert decode(message, 10) == commands


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\n",
        b"not json",
        b"[]",
        b"1",
        b'{"id":"1","connect":{}}',
        b'{"id":-1,"connect":{}}',
        b'{"id":4294967296,"connect":{}}',
        b'{"id":true,"connect":{}}',
        b'{"id":1.5,"connect":{}}',
        b'{"id":1,"connect":[]}',
        b'{"id":1,"connect":null}',
        b'{"id":1,"connect":{},"publish":{}}',
        b"{}\n" * 12,
    ],
)
def test_what_is_no_command_ends_the_connection_as_a_bad_request(message):
    """3501 for everything that is not the protocol."""
    with pytest.raises(ProtocolError) as refused:
        decode(message, 10)
    assert refused.value.close == errors.CLOSE_BAD_REQUEST


@given(st.binary(max_size=200))
def test_decode_raises_nothing_but_protocol_errors(message):
    """Whatever bytes come, decode answers with commands or ProtocolError."""
    try:
        assert decode(message, 10)
    except ProtocolError:
        pass


def test_replies_and_pushes_are_the_schema_s():
    """Literal bytes, as stock SDKs read them."""
    assert protocol.encode_reply(2, "subscribe", {}) == b'{"id":2,"subscribe":{}}'
    assert (
        protocol.encode_error(2, errors.PERMISSION_DENIED)
        == b'{"id":2,"error":{"code":103,"message":"permission denied"}}'
    )
    assert orjson.loads(protocol.encode_error(2, errors.INTERNAL))["error"]["temporary"] is True
    assert (
        protocol.encode_reply(2, "subscribe", {"publications": protocol.fragments([b'{"data":1}', b'{"data":{ }}'])})
        == b'{"id":2,"subscribe":{"publications":[{"data":1},{"data":{ }}]}}'
    )
    assert protocol.encode_publication("a:b", b'{"data":1}') == b'{"push":{"channel":"a:b","pub":{"data":1}}}'
    assert protocol.encode_arrival("a:b", b'"join":{"info":{"client":"1"}}') == (
        b'{"push":{"channel":"a:b","join":{"info":{"client":"1"}}}}'
    )
    assert protocol.encode_disconnect(3001, "x") == b'{"push":{"disconnect":{"code":3001,"reason":"x"}}}'
    assert protocol.encode_unsubscribe("a", 2500, "x") == (
        b'{"push":{"channel":"a","unsubscribe":{"code":2500,"reason":"x"}}}'
    )


COMMANDS = st.tuples(
    st.integers(0, protocol.MAX_ID),
    st.sampled_from(sorted(protocol.METHODS)),
    st.dictionaries(st.text(max_size=5), st.none() | st.integers(-9, 9) | st.text(max_size=5), max_size=3),
)


@given(st.lists(COMMANDS, min_size=1, max_size=5), st.sampled_from([b"", b"\n"]))
def test_any_commands_come_back_in_their_order(commands, end):
    """One on each line, whatever they carry; the last line may have an end."""
    message = b"\n".join(orjson.dumps({"id": id, method: params}) for id, method, params in commands) + end
    assert decode(message, 5) == [Command(*command) for command in commands]


@given(
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=4),
        lambda one: st.lists(one) | st.dictionaries(st.text(max_size=9), one),
    )
)
def test_any_json_is_a_command_or_a_bad_request(data):
    """Nothing but ProtocolError 3501 comes out, and never a command of two methods or with a strange id."""
    try:
        [command] = decode(orjson.dumps(data), 5)
    except ProtocolError as error:
        assert error.close.code == 3501
    else:
        assert isinstance(data, dict) and isinstance(command.params, dict)
        assert command.method in protocol.METHODS | {"", "unknown"} and 0 <= command.id <= protocol.MAX_ID
