"""Mistakes: pydantic's errors as lines, on a small model of this file's own."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hub.mistakes import MAX_SHOWN_CHARACTERS, bare, meant, sentences, short


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(1, gt=0, le=9)
    names: list[str] = Field([], max_length=2)
    secret: str = Field("", repr=False)

    @field_validator("names")
    @classmethod
    def no_x(cls, names: list[str]) -> list[str]:
        if "x" in names:
            raise ValueError("anything but 'x'")
        return names


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    internal: int | Literal["auto"] = "auto"
    inner: Inner = Inner()
    many: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"internal": "x"}, "internal: found 'x'; allowed: a whole number or 'auto'"),
        ({"inner": 1}, "inner: found a value that is not shown; allowed: a table"),
        ({"inner": {"size": 0}}, "inner.size: found 0; allowed: a whole number above 0 to 9"),
        ({"inner": {"secret": 5}}, "inner.secret: found a value that is not shown; allowed: text"),
        ({"inner": {"names": ["x"]}}, "inner.names: found ['x']; allowed: anything but 'x'"),
        ({"inner": {"names": ["a", 1]}}, "inner.names[1]: found 1; allowed: a list of texts to 2"),
        ({"inner": {"sise": 5}}, "inner.sise: unknown setting; did you mean 'size'? allowed: size, names, secret"),
        ({"many": {"a b": {"size": "y"}}}, "many.'a b'.size: found 'y'; allowed: a whole number above 0 to 9"),
        ({"many": {"a": {"q": {"r": 1}}}}, "many.a.q: unknown setting; allowed: size, names, secret"),
    ],
)
def test_each_error_is_one_line(value: dict[str, object], line: str) -> None:
    """The key is the file's, the branches of a union are no part of it and give the same line."""
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    assert set(sentences(Outer, caught.value)) == {line}


def test_a_found_value_is_one_bounded_line() -> None:
    """A long value with line breaks neither breaks the line nor fills the screen."""
    shown = short("a\nb" * 1000)
    assert "\n" not in shown and len(shown) == MAX_SHOWN_CHARACTERS + 1


def test_a_key_is_quoted_unless_plain() -> None:
    """As TOML has it."""
    assert [bare("a_b-1"), bare("a.b"), bare("")] == ["a_b-1", "'a.b'", "''"]


def test_only_a_close_name_is_proposed() -> None:
    """A guess that is no help is not made."""
    assert meant("prefx", ["prefix", "url"]) == "did you mean 'prefix'? "
    assert meant("zzz", ["prefix", "url"]) == ""
