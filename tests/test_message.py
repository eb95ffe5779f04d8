"""Publications: their bodies, and the lines in which they cross Redis."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.channels import NAME
from hub.message import Arrival, ClientInfo, Publication, encode_body, pack, unpack, unpack_arrivals

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=10,
)


def test_a_body_carries_data_info_and_tags_and_leaves_out_what_is_not_there():
    """The keys are those of Centrifugo's Publication."""
    assert encode_body(1) == b'{"data":1}'
    assert encode_body({"a": "b"}, ClientInfo("42", "c1"), {"k": "v"}) == (
        b'{"data":{"a":"b"},"info":{"user":"42","client":"c1"},"tags":{"k":"v"}}'
    )


@given(st.lists(st.tuples(st.from_regex(NAME, fullmatch=True), json_values), min_size=1, max_size=5))
def test_what_is_packed_comes_out_again(items):
    """Any names and any data survive the lines, newlines inside the data too."""
    publications = [Publication(channel, encode_body(data)) for channel, data in items]
    unpacked = unpack(pack(publications))
    assert unpacked == publications
    assert [orjson.loads(body)["data"] for _, body in unpacked] == [data for _, data in items]


@pytest.mark.parametrize(
    "payload", [b"", b"1\nonly-a-name", b"2\na\n{}", b'{"data":1}', b"1\na\n{}\nb", b"1\n\xff\n{}"]
)
def test_a_payload_that_is_not_ours_is_refused(payload):
    """Another version, an odd number of lines and names that are no ASCII raise ValueError."""
    with pytest.raises(ValueError):
        unpack(payload)


def test_an_empty_batch_is_no_publications():
    """The version alone is a payload."""
    assert unpack(pack([])) == []


def test_arrivals_are_unpacked_as_the_scripts_pack_them():
    """Channel and body in turn; the body goes on as it is."""
    join, leave = b'"join":{"info":{"user":"42","client":"1"}}', b'"leave":{"info":{"user":"42","client":"1"}}'
    assert unpack_arrivals(b"3\na\n" + join + b"\nb:c\n" + leave) == [Arrival("a", join), Arrival("b:c", leave)]


@pytest.mark.parametrize("payload", [b"", b"3\na", b"1\na\n{}", b"3\n\xff\n{}"])
def test_arrivals_that_are_not_ours_are_refused(payload):
    """Another version, an odd number of lines, a name that is no ASCII."""
    with pytest.raises(ValueError):
        unpack_arrivals(payload)
