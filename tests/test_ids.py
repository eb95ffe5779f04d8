"""Names of clients."""

from __future__ import annotations

import uuid

from hub.ids import AT_ONCE, ClientIds


def test_client_ids_are_uuids_of_chance():
    """Of version 4, each another one, in the spelling that uuid has; also beyond what the kernel was asked for once."""
    new_id = ClientIds()
    ids = [new_id() for _ in range(3 * AT_ONCE + 1)]
    assert len(set(ids)) == len(ids)
    for one in map(uuid.UUID, ids):
        assert (one.version, one.variant) == (4, uuid.RFC_4122)
    assert [str(uuid.UUID(one)) for one in ids] == ids
    assert {one[19] for one in ids} == set("89ab")


def test_two_makers_share_no_chance():
    """Each worker has its own."""
    one, other = ClientIds(), ClientIds()
    assert not {one() for _ in range(AT_ONCE)} & {other() for _ in range(AT_ONCE)}
