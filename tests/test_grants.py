"""Grants: what the claims of a channel token give."""

from __future__ import annotations

from math import inf

import pytest

from hub import grants
from hub.grants import Grant

CLAIMS = {"sub": "42", "channel": "room:7", "exp": 2000}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, Grant("room:7", 2000.0)),
        ({"expire_at": 3000}, Grant("room:7", 3000.0)),
        ({"expire_at": 0}, Grant("room:7", inf)),
        ({"allow": ["pub", "hst"]}, Grant("room:7", 2000.0, frozenset({"pub", "hst"}))),
        ({"jti": "j", "iat": 1500}, Grant("room:7", 2000.0, frozenset(), "j", 1500.0)),
        ({"info": {"name": "Ann"}, "override": None, "aud": "x"}, Grant("room:7", 2000.0)),
    ],
)
def test_a_grant_is_what_the_claims_say(more, expected):
    """It ends with the token unless `expire_at` says otherwise; claims that are not ours are passed over."""
    assert grants.read({**CLAIMS, **more}, "42") == expected


def test_who_has_no_token_of_its_own_may_have_a_channel_token():
    """With an empty `sub` or none; and nobody else may use that one."""
    anonymous = {"channel": "room:7", "exp": 2000}
    assert grants.read(anonymous, "") == grants.read({**anonymous, "sub": ""}, "") == Grant("room:7", 2000.0)
    with pytest.raises(ValueError, match="another user"):
        grants.read(anonymous, "42")


@pytest.mark.parametrize(
    "more",
    [
        {"sub": "77"},
        {"sub": None},
        {"channel": 7},
        {"expire_at": -1},
        {"expire_at": "soon"},
        {"expire_at": True},
        {"expire_at": float("nan")},
        {"allow": ["all"]},
        {"allow": None},
        {"jti": 7},
        {"jti": "j" * 256},
        {"iat": "then"},
        {"override": {"presence": {"value": True}}},
    ],
)
def test_what_is_for_others_or_not_understood_is_refused(more):
    """Nothing of it raises anything else."""
    with pytest.raises(ValueError):
        grants.read({**CLAIMS, **more}, "42")
