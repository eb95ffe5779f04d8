"""Lines: what is known of a channel, and for how long."""

from __future__ import annotations

from hub.audience import Board, Stand, Terms, Update
from hub.channels import Namespace
from hub.lines import Lines
from hub.pace import Paces
from hub.views import Views, numbering
from tests.support import FakeClock

LATEST, NONE = Namespace(mode="latest", stale_ms=1000), Namespace()
BODY = b'{"data":{"seq":7}}'


class Form:
    def encode_publication(self, channel: str, body: bytes) -> bytes:
        return body


class Rig:
    def __init__(self) -> None:
        self.clock, self.board, self.form, self.views = FakeClock(), Board(), Form(), Views(lambda: 5)
        self.lines = Lines(self.board, self.clock)
        self.lines.numbering = numbering
        self.paces = Paces(lambda pace: None, self.clock, lambda *_: None)

    def terms(self, marks: bool = False, raw: bool = False, hz: float = 1e9) -> Terms:
        return Terms(self.views.of(self.form, marks=marks), raw, self.paces.at(hz))

    def audience(self, terms: Terms | None = None, namespace: Namespace = LATEST, newest: bytes | None = None):
        return self.lines.audience("t:A", namespace, self.form, terms, newest)


def test_equal_terms_are_one_audience():
    """And other ones another, of the same line."""
    rig = Rig()
    line, plain = rig.audience()
    for terms in (rig.terms(), rig.terms(marks=True), rig.terms(raw=True), rig.terms(hz=5)):
        same, one = rig.audience(terms)
        assert same is line and one is rig.audience(terms)[1] and one is not plain
        assert one.apart == (terms.form.marks or terms.pace is not None)
        assert (one.mode == "raw") == terms.raw
    assert len(line.audiences) == 5 and len(rig.lines) == 1


def test_all_channels_of_a_pace_know_their_groups_together():
    """So that a list which goes to another pace leaves one set."""
    rig = Rig()
    _, one = rig.audience(rig.terms(hz=5))
    _, other = rig.lines.audience("t:B", LATEST, rig.form, rig.terms(hz=5, marks=True))
    assert one.groups is other.groups is rig.paces.at(5).groups
    assert rig.audience(rig.terms(hz=1))[1].groups is not one.groups
    assert rig.audience()[1].groups is not rig.lines.audience("t:B", LATEST, rig.form)[1].groups


def test_a_line_ends_with_its_last_audience_and_gives_its_slots_back():
    """A newcomer gets one of them."""
    rig = Rig()
    line, plain = rig.audience()
    _, marked = rig.audience(rig.terms(marks=True))
    rig.lines.drop(line, marked)
    assert rig.lines.marked == {} and len(rig.lines) == 1
    rig.lines.drop(line, plain)
    rig.board.release()
    assert len(rig.lines) == 0 and {rig.board.take(), rig.board.take()} == {plain.slot, marked.slot}


def test_the_newest_body_is_known_of_channels_that_keep_it():
    """Given by the first who brings it; what others bring is older."""
    rig = Rig()
    assert rig.lines.newest("t:A") is None and rig.lines.kept() == []
    rig.audience(newest=BODY)
    rig.audience(newest=b"older")
    assert rig.lines.newest("t:A") == BODY and rig.lines.kept() == ["t:A"]
    assert rig.lines.told("t:A", rig.terms()) == BODY and rig.lines.told("t:B", rig.terms()) is None
    other = Rig()
    other.audience(namespace=NONE, newest=BODY)
    assert other.lines.newest("t:A") is None and other.lines.kept() == []


def test_the_sources_number_is_read_while_somebody_wants_marks():
    """Also of a value that came before them."""
    rig = Rig()
    line, _ = rig.audience(newest=BODY)
    assert line.stand == Stand(0, 0)
    _, marked = rig.audience(rig.terms(marks=True))
    assert line.stand == marked.sent == Stand(0, 7)


def test_a_source_is_silent_when_nothing_has_come_for_its_time():
    """From when the first one wants marks; who is told already is not told again."""
    rig = Rig()
    line, _ = rig.audience(newest=BODY)
    rig.clock.now += 100
    assert rig.lines.silent(rig.clock()) == []
    rig.audience(rig.terms(marks=True))
    assert rig.lines.silent(rig.clock() + 0.9) == []
    assert rig.lines.silent(rig.clock() + 1) == [line]
    line.stale = True
    assert rig.lines.silent(rig.clock() + 9) == []
    assert b'"state":"stale"' in rig.lines.told("t:A", rig.terms(marks=True))


def test_a_source_that_is_silent_already_is_so_for_newcomers_too():
    """From when its last value came, whether or not anybody wanted marks then; where that is not known, from now."""
    rig = Rig()
    line, _ = rig.audience(newest=BODY)
    line.heard_at = rig.clock()
    for _ in range(2):
        rig.clock.now += 0.6
        _, marked = rig.audience(rig.terms(marks=True))
        assert line.heard_at == rig.clock.now - 0.6 and not line.stale and rig.lines.silent(rig.clock() + 0.4) == [line]
        rig.lines.drop(line, marked)
        line.heard_at += 0.6
    rig.clock.now += 1
    _, marked = rig.audience(rig.terms(marks=True))
    assert line.stale and marked.sent.stale and rig.lines.silent(rig.clock()) == []
    assert b'"state":"stale"' in rig.lines.told("t:A", rig.terms(marks=True))
    rig.lines.drop(line, marked)
    assert not line.stale
    never = rig.lines.audience("t:B", Namespace(mode="latest"), rig.form, rig.terms(marks=True))[0]
    assert not never.is_silent(rig.clock() + 10**9)


def test_what_a_line_has_for_somebody_follows_from_how_far_it_was_served():
    """Merged values and gaps since; nothing where it was served all; silence only with marks."""
    rig = Rig()
    line, _ = rig.audience(newest=BODY)
    line.number, line.seq = 5, 12

    def update(stand: Stand, marks: bool = True) -> Update | None:
        found = line.update(stand, marks)
        assert found is None or found.upto == line.stand
        return found._replace(upto=None) if found is not None else None

    assert update(Stand(5, 12), True) is None
    assert update(Stand(4, 11), True) == Update(BODY)
    assert update(Stand(2, 7), True) == Update(BODY, 2, 2)
    assert update(Stand(2), True) == Update(BODY, 2)
    assert update(Stand(2, 7, thinned=0, era=1), True) == Update(BODY, 2)
    line.thinned = 2
    assert update(Stand(2, 7), True) == Update(BODY, 4)
    assert update(Stand(2, 7, thinned=1), True) == Update(BODY, 3, 1)
    line.thinned, line.stale = 0, True
    assert update(Stand(5, 12), True) == Update(BODY, -1, 0, "stale")
    assert update(Stand(5, 12), False) is None
    assert update(Stand(4, 11, True), True) == Update(BODY)


def test_subscribers_are_counted_over_all_terms():
    """By channel."""
    rig = Rig()
    _, plain = rig.audience()
    _, paced = rig.audience(rig.terms(hz=5))
    plain.size, paced.size = 2, 3
    assert rig.lines.counts() == {"t:A": 5} and rig.lines.audience_size("t:A") == 5
    assert rig.lines.audience_size("t:B") == 0
