"""JSON that costs more than its bytes."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.nesting import TooManyValues, openers, parse, too_deep

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=30,
)


def count(value) -> int:
    """Values in a value, empty arrays and objects twice."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + (sum(map(count, value)) or 1)
    return 1


@given(json_values)
def test_values_are_counted_and_what_stands_in_strings_is_not(value):
    """As many as there are pass, one less does not; whatever brackets, commas and escapes are in the texts."""
    text, number = orjson.dumps(value), count(value)
    assert parse(text, number) == value
    if len(text) > number - 1:
        with pytest.raises(TooManyValues):
            parse(text, number - 1)


@pytest.mark.parametrize("text", [b"[" + b"[]," * 30_000 + b"[]]", b'{"a":' * 200 + b"1" + b"}" * 200, b"," * 500])
def test_a_bomb_is_refused_before_it_is_parsed(text):
    """Also one that is no JSON."""
    with pytest.raises(TooManyValues):
        parse(text, 100)


@pytest.mark.parametrize(
    "text",
    [b'"' + b'\\"' * 200_000, b'"' * 400_000, b'"' + b"\\" * 400_001, b'["' + b'","' * 100_000, b'"\\', b'"\\\n,,' * 9],
)
def test_no_text_takes_longer_than_its_length(text):
    """Strings that never end are looked at once, and not once for each quote in them."""
    began = time.process_time()
    with pytest.raises((TooManyValues, orjson.JSONDecodeError)):
        parse(text + b",[" * 200, 100)
    assert time.process_time() - began < 1.0


@given(json_values)
def test_no_text_is_deeper_than_its_opening_brackets(value):
    """So whoever has few of them need not be walked."""
    assert not too_deep(value, openers(orjson.dumps(value)))
