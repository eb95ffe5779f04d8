"""Bombs: what parsing would make of a text is counted before it is parsed, and never too low."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.bombs import too_many_values


def values(data: Any) -> int:
    """Arrays, objects, their members and keys."""
    if isinstance(data, dict):
        return 1 + sum(1 + values(value) for value in data.values())
    return 1 + sum(map(values, data)) if isinstance(data, list) else 1


@pytest.mark.parametrize("text", [b"[[]," + b"[]," * 60 + b"1]", b"[" * 200, b'{"a":' * 60, b"[" + b"1," * 200 + b"1]"])
def test_small_texts_of_many_values_are_found(text: bytes) -> None:
    """Whether wide or deep, and whether they are JSON or not."""
    assert too_many_values(text, 100)


def test_a_large_text_of_few_values_is_none() -> None:
    """Nor one that is as large as the number itself."""
    assert not too_many_values(orjson.dumps({"text": "x" * 10_000}), 100)
    assert not too_many_values(b"," * 100, 100) and too_many_values(b"," * 101, 100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=2), inner, max_size=9),
)


@given(JSON)
def test_the_count_is_not_below_the_truth(data: Any) -> None:
    """Of any JSON; a value more or less for what stands alone."""
    assert values(data) <= 2 or too_many_values(orjson.dumps(data), (values(data) - 1) // 2 - 1)
