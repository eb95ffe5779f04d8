"""The hub's own methods, called through a session without sockets: what is refused has changed nothing."""

from __future__ import annotations

import pytest

from hub.asking import Histories
from hub.auth import Authenticator
from hub.channels import Channels, Namespace
from hub.errors import BrokerUnavailable
from hub.protocol import Command
from hub.publish import Publisher
from hub.remembered import Remembered
from hub.rpc import MAX_IDS
from hub.sections import ClientSettings
from hub.services import Services
from hub.session import Session
from hub.store import Keys
from hub.users import Users
from tests.plane import SECRET
from tests.support import FakeClock
from tests.test_session import Broker, Presence, Subscriptions, Transport

ID = "1764000000000-000000"
LATER = "1764000000001-000000"
NAMESPACES = {"inbox": Namespace(mailbox=True), "news": Namespace(subscribe="anyone")}


class Redelivery:
    """Knows which two messages went out; its answers are the test's."""

    def __init__(self) -> None:
        self.asked: list = []

    def sent_up_to(self, channel: str, last: str) -> list[str]:
        return [one for one in (ID, LATER) if one <= last]

    def acknowledge(self, channel: str, namespace: Namespace, ids: list[str], replied: object) -> None:
        self.asked.append((channel, ids, replied))


class Rig:
    def __init__(self, user: str = "42") -> None:
        clock = FakeClock()
        self.transport, self.redelivery = Transport(clock), Redelivery()
        services = Services(
            ClientSettings(pending_commands=1),
            None,
            Authenticator(SECRET, lambda: 0.0),
            Channels(NAMESPACES),
            Publisher(Broker(), 32),
            Subscriptions(),
            Presence(),
            Histories(lambda asked, done: None, 1, 1),
            self.redelivery,
            Remembered(None, Keys("hub")),
            Users(),
            clock,
            FakeClock(1_764_000_000.5),
        )
        self.session = Session(services, self.transport)
        self.session.user, self.session.connected = user, True

    def call(self, method: object, data: object = None) -> dict:
        """What was answered at once; {} where nothing was."""
        before = len(self.transport.said)
        self.session.take(command(method, data))
        return self.transport.said[before] if len(self.transport.said) > before else {}

    def ack(self, **data: object) -> dict:
        return self.call("hub.ack", data)


def command(method: object, data: object) -> Command:
    return Command(7, "rpc", {"method": method, "data": data})


def test_the_hubs_clock_is_told_in_nanoseconds():
    """As text, since JavaScript's numbers end before."""
    assert Rig().call("hub.time") == {"id": 7, "rpc": {"data": {"time_ns": "1764000000500000000"}}}


@pytest.mark.parametrize("method", ["", "hub.nothing", "time", None, 5, ["hub.time"], {}])
def test_what_is_no_method_is_not_found(method):
    """104, whatever stands there."""
    assert Rig().call(method)["error"]["code"] == 104


def test_messages_are_acknowledged_by_id():
    """Each once, however often it is named; the answer says how many were there."""
    rig = Rig()
    assert rig.ack(channel="inbox:#42", ids=[ID, LATER, ID]) == {}
    ((channel, ids, replied),) = rig.redelivery.asked
    assert (channel, ids) == ("inbox:#42", [ID, LATER])
    replied(2)
    assert rig.transport.said == [{"id": 7, "rpc": {"data": {"acked": 2}}}]


def test_messages_are_acknowledged_up_to_one():
    """What this worker has sent until then."""
    rig = Rig()
    rig.ack(channel="inbox:#42", upto=ID)
    assert rig.redelivery.asked[0][1] == [ID]


@pytest.mark.parametrize("data", [{"ids": []}, {"upto": "0000000000000-000000"}])
def test_an_acknowledgement_of_nothing_asks_nobody(data):
    """It is answered at once."""
    rig = Rig()
    assert rig.ack(channel="inbox:#42", **data) == {"id": 7, "rpc": {"data": {"acked": 0}}}
    assert rig.redelivery.asked == []


BAD = {
    "no data": (None, 107),
    "a list": ([], 107),
    "nothing": ({}, 107),
    "no channel": ({"ids": [ID]}, 107),
    "a channel that is no text": ({"channel": 5, "ids": [ID]}, 107),
    "neither": ({"channel": "inbox:#42"}, 107),
    "both": ({"channel": "inbox:#42", "ids": [ID], "upto": ID}, 107),
    "ids that are no list": ({"channel": "inbox:#42", "ids": ID}, 107),
    "ids as an object": ({"channel": "inbox:#42", "ids": {ID: 1}}, 107),
    "an id that is a number": ({"channel": "inbox:#42", "ids": [1764000000000]}, 107),
    "an id among them that is none": ({"channel": "inbox:#42", "ids": [ID, "bytes"]}, 107),
    "an id with more behind it": ({"channel": "inbox:#42", "ids": [ID + "\n"]}, 107),
    "an id in other digits": ({"channel": "inbox:#42", "ids": ["١٧٦٤٠٠٠٠٠٠٠٠٠-٠٠٠٠٠٠"]}, 107),
    "an upto that is none": ({"channel": "inbox:#42", "upto": "-"}, 107),
    "an upto that is a list": ({"channel": "inbox:#42", "upto": [ID]}, 107),
    "too many": ({"channel": "inbox:#42", "ids": [ID] * (MAX_IDS + 1)}, 106),
    "another user's": ({"channel": "inbox:#77", "ids": [ID]}, 103),
    "several users'": ({"channel": "inbox:#42,77", "ids": [ID]}, 107),
    "nobody's": ({"channel": "inbox:room", "ids": [ID]}, 107),
    "no mailbox": ({"channel": "general", "ids": [ID]}, 108),
    "no mailbox there": ({"channel": "news:#42", "ids": [ID]}, 108),
    "nowhere": ({"channel": "nowhere:#42", "ids": [ID]}, 102),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_acknowledgement_has_its_code_and_changes_nothing(name):
    """The connection lives, and no call waits after it."""
    data, code = BAD[name]
    rig = Rig()
    assert rig.call("hub.ack", data)["error"]["code"] == code
    assert (rig.redelivery.asked, rig.transport.closed) == ([], None)
    assert rig.ack(channel="inbox:#42", ids=[ID]) == {}


def test_the_anonymous_have_no_mailbox():
    """103, by whatever name they call it."""
    assert Rig("").ack(channel="inbox:#42", ids=[ID])["error"]["code"] == 103
    assert Rig("").ack(channel="inbox:#", ids=[ID])["error"]["code"] == 107


def test_a_call_that_waits_counts_among_the_clients_commands():
    """The next one is refused as temporary until it has its answer."""
    rig = Rig()
    rig.ack(channel="inbox:#42", ids=[ID])
    assert rig.ack(channel="inbox:#42", ids=[ID])["error"] == {
        "code": 111,
        "message": "1 commands are waiting",
        "temporary": True,
    }
    rig.redelivery.asked[0][2](1)
    assert rig.ack(channel="inbox:#42", ids=[ID]) == {}


def test_a_failed_acknowledgement_is_temporary():
    """Redis is away: the client may say it again."""
    rig = Rig()
    rig.ack(channel="inbox:#42", ids=[ID])
    rig.redelivery.asked[0][2](BrokerUnavailable("secret address"))
    expected = {"code": 100, "message": "internal server error", "temporary": True}
    assert rig.transport.said == [{"id": 7, "error": expected}]
