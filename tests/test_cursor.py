"""Cursors: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub import cursor
from hub.position import MAX_EPOCH_LENGTH, MAX_OFFSET, Position, survives

EPOCH = "4.3f9a0c1d2e4b5a69-1f,5.00aa11bb22cc33dd-0"


def test_positions_and_marks_come_back() -> None:
    positions = {"chat:a": Position(EPOCH, 17), "chat:b": Position("1.x-0", MAX_OFFSET), "c": Position("1.y", 0)}
    found = cursor.decode(cursor.encode(positions, {"ticker:ACME": cursor.mark_of(b"{}")}))
    assert {name: found.position(name) for name in positions} == positions
    assert found.mark("ticker:ACME") == cursor.mark_of(b"{}") != cursor.mark_of(b"{ }")


def test_a_channel_that_a_cursor_does_not_know_is_at_no_position() -> None:
    found = cursor.decode(cursor.encode({"chat:a": Position(EPOCH, 17)}))
    assert found.position("chat:b") is None
    assert found.mark("chat:a") == ""


def test_nothing_to_say_is_the_empty_text() -> None:
    assert cursor.encode({}) == ""
    assert cursor.decode("") == cursor.NOWHERE


def test_a_cursor_needs_no_escapes_in_a_header_an_id_or_a_query() -> None:
    text = cursor.encode({"chat:a": Position("4.k3@17,5.p0-1", 17)}, {"t": cursor.mark_of(b"1")})
    assert re.fullmatch(r"[A-Za-z0-9~._@,\-]+", text)


def test_the_largest_cursor_is_clipped_to_what_decode_takes() -> None:
    """And to positions that survive where the whole ones do, as long as the store does not go back."""
    epoch = ",".join(f"{generation}.{'f' * 16}-{'0' * 8}@{10**15}" for generation in range(8)) + ",9." + "a" * 25
    positions = {f"chat:{number}": Position(epoch, MAX_OFFSET - 1) for number in range(cursor.MAX_CHANNELS)}
    text = cursor.encode(positions)
    assert len(text) <= cursor.MAX_LENGTH
    found = cursor.decode(text).position("chat:7")
    assert found is not None and found.offset == MAX_OFFSET - 1
    assert survives(found, epoch, MAX_OFFSET)
    assert not survives(found, epoch, MAX_OFFSET - 2)


GOOD = cursor.encode({"chat:a": Position("4.k3", 17)})
KEY = cursor.key_of("chat:a")
BAD = {
    "another version": GOOD.replace("1~", "2~", 1),
    "no fields": "1",
    "a field is missing": f"1~{KEY}~17",
    "no number": f"1~{KEY}~x~4.k3",
    "a negative offset": f"1~{KEY}~-1~4.k3",
    "an offset beyond all": f"1~{KEY}~{MAX_OFFSET + 1}~4.k3",
    "other digits": f"1~{KEY}~١~4.k3",
    "no epoch": f"1~{KEY}~17~",
    "a long epoch": f"1~{KEY}~17~{'a' * (MAX_EPOCH_LENGTH + 1)}",
    "a line end": f"1~{KEY}~17~4.k3\n",
    "a carriage return": f"1~{KEY}~17~4\rk3",
    "a space": f"1~{KEY}~17~4 k3",
    "a short key": "1~abc~17~4.k3",
    "twice the same channel": f"{GOOD}~{KEY}~18~4.k3",
    "a mark of another size": f"1~{KEY}~v~abc",
    "too long": "1" + f"~{KEY}~17~4.k3" * 2000,
    "too many": "1" + "".join(f"~{cursor.key_of(str(number))}~1~4" for number in range(cursor.MAX_CHANNELS + 1)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_cursor_is_refused_without_repeating_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"^cursor: ") as caught:
        cursor.decode(BAD[name])
    assert KEY not in str(caught.value)


def test_a_changed_cursor_is_refused_or_is_another_one() -> None:
    """Fuzz: no text makes `decode` fail in another way, and what it takes it writes again as it was."""
    chosen = random.Random(1)
    for _ in range(5000):
        text = list(GOOD)
        for _ in range(chosen.randint(1, 3)):
            text[chosen.randrange(len(text))] = chosen.choice("~1v.@,-\r\n\0 ü9aZ")
        try:
            found = cursor.decode("".join(text))
        except ValueError:
            continue
        assert len(found.positions) + len(found.marks) == 1


def test_a_channels_key_is_fnv_1a_folded() -> None:
    """The vectors are those of the hash's authors, whose upper 24 bits are folded in here."""
    for channel, vector in {"": 0xCBF29CE484222325, "a": 0xAF63DC4C8601EC8C, "foobar": 0x85944171F73967E8}.items():
        assert int(cursor.key_of(channel), 32) == (vector & 0xFFFFFFFFFF) ^ (vector >> 40)


def test_names_that_are_alike_have_keys_that_are_not() -> None:
    assert len({cursor.key_of(f"chat:{number}") for number in range(10_000)}) == 10_000


NAMES = st.text(st.sampled_from("abc:#,.-_9"), min_size=1, max_size=20)
EPOCHS = st.from_regex(r"[A-Za-z0-9_.@,\-]{1,60}", fullmatch=True)
POSITIONS = st.dictionaries(NAMES, st.builds(Position, EPOCHS, st.integers(0, MAX_OFFSET)), max_size=20)


@given(POSITIONS, st.sets(NAMES, max_size=5))
def test_any_positions_come_back(positions: dict[str, Position], marked: set[str]) -> None:
    """And the marks of other channels; nothing else is in it."""
    marks = {name: cursor.mark_of(name.encode()) for name in marked - set(positions)}
    found = cursor.decode(cursor.encode(positions, marks))
    assert {name: found.position(name) for name in positions} == positions
    assert {name: found.mark(name) for name in marks} == marks
    assert (len(found.positions), len(found.marks)) == (len(positions), len(marks))


@given(
    st.text(max_size=80)
    | st.from_regex(r"1(~[0-9a-v]{8}~(v|[0-9]{1,17})~[A-Za-z0-9_.@,\-]{1,12}){1,4}", fullmatch=True)
)
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    """With a ValueError, and nothing else."""
    try:
        found = cursor.decode(text)
    except ValueError:
        return
    assert len(found.positions) + len(found.marks) == text.count("~") // 3
    assert all(0 <= offset <= MAX_OFFSET for _, offset in found.positions.values())
