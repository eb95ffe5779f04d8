"""Seats: an application's way to one client, here or gone."""

from __future__ import annotations

import pytest

from hub.app import App
from hub.app_seat import check_event, departed
from hub.manifest import Entry
from tests.support import async_test


@async_test
async def test_a_client_that_went_with_its_worker_can_be_looked_at_and_no_more():
    """Id, user, namespace and claims are there; what can't be done any more raises, what is done anyway does not."""
    client = departed(App(), Entry("c1", "ann", "/chat", b'{"user":"ann","role":"admin"}'))
    assert (client.id, client.user, client.namespace) == ("c1", "ann", "/chat")
    assert (client.claims, client.state) == ({"user": "ann", "role": "admin"}, {})
    for doing in (client.emit("x"), client.call("x"), client.join("room:a")):
        with pytest.raises(ConnectionError):
            await doing
    await client.leave("room:a")
    await client.disconnect()


@pytest.mark.parametrize("name", [1, None, b"x", "connect", "disconnect", "newListener"])
def test_names_that_are_the_librarys_own_are_no_events(name):
    """Nor is what is no text."""
    with pytest.raises(ValueError, match="allowed"):
        check_event(name)
    check_event("said")
