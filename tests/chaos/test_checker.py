"""The checker's verdicts, each on a log by hand that earns it, beside the log that just doesn't."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.checker import FAILING, Checker, Figures, owner
from tests.chaos.events import (
    KINDS,
    Acked,
    Connected,
    Failed,
    Fault,
    Gone,
    Kept,
    Level,
    Log,
    Published,
    Reader,
    Received,
    Settled,
    Subscribed,
    Unsubscribed,
    parse,
)

C = "s:1"
E = "4.a"


class Story:
    """One client, one channel, one publisher; messages are named after their offset: 3 is 'p-3'."""

    def __init__(self, fault: str = "none", lossless: bool = True, victims: tuple[int, ...] = ()) -> None:
        self.checker = Checker()
        self.t = 0.0
        self.add(Fault(0.0, fault, lossless, list(victims)))

    def add(self, *events: object) -> Story:
        self.checker.feed(events)
        return self

    def publish(self, *numbers: int, epoch: str = E) -> Story:
        """Published and acked, in this order, each with its own number as offset."""
        for n in numbers:
            self.add(Published(n, C, f"p-{n}"), Acked(n, C, f"p-{n}", epoch, n))
        return self

    def subscribe(self, offset: int = 0, epoch: str = E, recovered: bool = False, client: str = "ann") -> Story:
        return self.add(Subscribed(0.0, client, C, epoch, offset, recovered, recovered))

    def receive(self, *numbers: int) -> Story:
        return self.add(*[Received(0.0, "ann", C, n, f"p-{n}") for n in numbers])

    def leave(self, t: float = 1.0, asked: bool = False) -> Story:
        return self.add(Gone(t, "ann", 1006, asked))

    def settle(self, *numbers: int, epoch: str = E, top: int | None = None) -> Figures:
        """The store has these; what the round came to, with the failing verdicts that are not zero."""
        kept = [[n, f"p-{n}"] for n in numbers]
        self.add(Kept(9.0, C, epoch, top if top is not None else max(numbers, default=0), kept), Settled(9.0))
        return self.checker.total

    def verdicts(self, *numbers: int, **options: object) -> dict[str, int]:
        """What is not zero of the failing verdicts."""
        figures = self.settle(*numbers, **options)
        return {name: getattr(figures, name) for name in FAILING if getattr(figures, name)}


# Silent loss


def test_who_received_everything_has_lost_nothing():
    story = Story().subscribe().publish(1, 2, 3).receive(1, 2, 3)
    assert story.verdicts(1, 2, 3) == {}
    assert (story.checker.total.published, story.checker.total.acked, story.checker.total.delivered) == (3, 3, 3)


def test_a_hole_is_a_silent_loss():
    story = Story().subscribe().publish(1, 2, 3, 4).receive(1, 4)
    assert story.verdicts(1, 2, 3, 4) == {"silent_loss": 2}
    assert "never received 2 … 3" in story.checker.findings[0]


def test_a_missing_end_is_a_silent_loss():
    assert Story().subscribe().publish(1, 2, 3).receive(1).verdicts(1, 2, 3) == {"silent_loss": 2}


def test_a_hole_left_by_recovery_is_a_silent_loss():
    """Told `recovered`, and the reply brought less than was missed."""
    story = Story().subscribe().publish(1, 2, 3).receive(1).leave().subscribe(3, recovered=True).receive(3)
    assert story.verdicts(1, 2, 3) == {"silent_loss": 1}


def test_who_was_told_has_lost_nothing_silently():
    """The same hole, but its stretch ended by a reply without `recovered`, and the store has it no more."""
    story = Story().subscribe().publish(1, 2, 3).receive(1).leave().subscribe(3)
    assert story.verdicts(3) == {}
    assert story.checker.total.signalled_loss == 1


def test_what_was_missed_before_the_signal_counts_all_the_same():
    story = Story().subscribe().publish(1, 2, 3, 4).receive(1, 3).leave().subscribe(4)
    assert story.verdicts(4) == {"silent_loss": 1}


def test_a_message_that_the_store_has_lost_must_be_told():
    """Generation 4 ended at 1, so 2 is another message now; ann keeps the old one and hears nothing."""
    story = Story("store kill", lossless=False).subscribe().publish(1, 2).receive(1, 2)
    story.add(Published(3, C, "q-2"), Acked(3, C, "q-2", "4.a@1,5.b", 2))
    story.add(Kept(9.0, C, "4.a@1,5.b", 2, [[1, "p-1"], [2, "q-2"]]), Settled(9.0))
    assert story.checker.total.silent_loss == 1
    assert story.checker.total.lost_by_store == 1


def test_a_position_without_messages_that_the_store_has_lost_must_be_told():
    """Subscribed at 2, then the store falls back to 1 and gets another 2."""
    story = Story("store kill", lossless=False).publish(1, 2).subscribe(2)
    story.add(Published(3, C, "q-2"), Acked(3, C, "q-2", "4.a@1,5.b", 2))
    story.add(Kept(9.0, C, "4.a@1,5.b", 2, [[1, "p-1"], [2, "q-2"]]), Settled(9.0))
    assert story.checker.total.silent_loss == 1


def test_a_place_beyond_the_store_must_be_told():
    story = Story("flush", lossless=False).publish(1, 2).subscribe(2)
    assert story.verdicts(top=0, epoch="6.c") == {"silent_loss": 1}


def test_recovery_to_an_earlier_place_is_a_silent_loss():
    story = Story("store kill", lossless=False).subscribe().publish(1, 2, 3).receive(1, 2, 3).leave()
    story.subscribe(1, epoch="4.a@1,5.b", recovered=True)
    assert story.verdicts(1, epoch="4.a@1,5.b") == {"silent_loss": 1}


def test_an_acked_message_that_a_healthy_store_lacks_is_lost_by_all():
    story = Story("worker kill").subscribe().publish(1).receive(1).add(Published(2, C, "p-9"))
    story.add(Acked(2, C, "p-9", E, 2))
    assert story.verdicts(1) == {"silent_loss": 1}


def test_one_that_a_killed_store_lacks_is_lost_by_the_store():
    story = Story("store kill", lossless=False).subscribe().publish(1, 2).receive(1)
    assert story.verdicts(1, epoch="4.a@1,5.b") == {}
    assert story.checker.total.lost_by_store == 1


def test_what_the_history_no_longer_keeps_is_not_lost():
    assert Story().subscribe().publish(1, 2, 3).receive(1, 2, 3).verdicts(3) == {}


def test_a_loss_is_counted_once():
    story = Story().subscribe().publish(1, 2).receive(1)
    assert story.settle(1, 2).silent_loss == 1
    assert story.publish(3).receive(3).settle(1, 2, 3).silent_loss == 1


def test_the_second_round_begins_where_the_first_ended():
    story = Story().subscribe().publish(1, 2).receive(1, 2)
    story.settle(1, 2)
    assert story.publish(3, 4).receive(4).verdicts(1, 2, 3, 4) == {"silent_loss": 1}


# False alarms


def test_an_alarm_where_all_is_kept_is_false():
    story = Story().subscribe().publish(1, 2, 3).receive(1).leave().subscribe(3)
    assert story.verdicts(1, 2, 3) == {"false_alarm": 1}


def test_an_alarm_at_the_top_is_false_too():
    story = Story().subscribe().publish(1, 2).receive(1, 2).leave().subscribe(2)
    assert story.verdicts(1, 2) == {"false_alarm": 1}


def test_an_alarm_before_the_first_message_is_false():
    assert Story().subscribe().publish(1).leave().subscribe(1).verdicts(1) == {"false_alarm": 1}


def test_an_alarm_in_a_new_generation_that_has_it_all_is_false():
    """The rule of lineages: generation 4 ended at 2, and ann was at 2."""
    epoch = "4.a@2,5.b"
    story = Story("store kill", lossless=False).subscribe().publish(1, 2).receive(1, 2).leave()
    assert story.publish(3, epoch=epoch).subscribe(3, epoch=epoch).verdicts(1, 2, 3, epoch=epoch) == {"false_alarm": 1}


def test_an_alarm_beyond_what_survived_is_right():
    """Also where the publisher tried again, so that the same message has the same offset in the new generation."""
    epoch = "4.a@1,5.b"
    story = Story("store kill", lossless=False).subscribe().publish(1, 2).receive(1, 2).leave()
    assert story.add(Acked(3, C, "p-2", epoch, 2)).subscribe(2, epoch=epoch).verdicts(1, 2, epoch=epoch) == {}
    assert story.checker.total.signalled_loss == 1


def test_an_alarm_for_more_than_a_reply_may_bring_is_right():
    numbers = range(1, 303)
    story = Story().subscribe().publish(*numbers).receive(1).leave().subscribe(302)
    assert story.verdicts(*numbers) == {}
    assert story.checker.total.signalled_loss == 1


def test_an_alarm_at_a_place_that_no_log_knows_is_unjudged():
    """Subscribed at 5, whose message is no longer kept and was published before the logs began."""
    story = Story().subscribe(5).publish(6, 7).leave().subscribe(7)
    assert story.verdicts(6, 7) == {}
    assert story.checker.total.unjudged == 1


# Order, duplicates, phantoms


def test_a_message_that_comes_late_is_a_reorder():
    assert Story().subscribe().publish(1, 2).receive(2, 1).verdicts(1, 2) == {"reorder": 1}


def test_a_message_that_comes_twice_is_a_duplicate():
    story = Story().subscribe().publish(1, 2).receive(1, 2, 2)
    assert story.verdicts(1, 2) == {}
    assert story.checker.total.duplicate == 1


def test_a_message_that_is_stored_twice_is_a_duplicate():
    story = Story().subscribe().publish(1).receive(1).add(Received(0.0, "ann", C, 2, "p-1"))
    story.add(Kept(9.0, C, E, 2, [[1, "p-1"], [2, "p-1"]]), Settled(9.0))
    assert story.checker.total.duplicate == 1


def test_a_message_again_after_a_signal_is_none():
    story = Story().subscribe().publish(1, 2).receive(1, 2).leave().subscribe(0, epoch="6.c").receive(1, 2)
    assert story.verdicts(1, 2, epoch="6.c") == {}
    assert story.checker.total.duplicate == 0


def test_acks_of_one_publisher_have_the_order_of_the_store():
    story = Story().subscribe().add(Published(1, C, "p-2"), Acked(1, C, "p-2", E, 2)).publish(1).receive(1, 2)
    assert story.verdicts(1, 2) == {"reorder": 1}


def test_a_message_that_nobody_published_is_a_phantom():
    story = Story().subscribe().publish(1).receive(1, 2)
    assert story.verdicts(1, top=1)["phantom"] == 1


def test_a_message_of_another_channel_is_a_phantom():
    story = Story().subscribe().add(Published(1, "s:2", "p-1")).receive(1)
    assert story.verdicts(1)["phantom"] == 2  # to the client, and in the store


def test_a_message_before_the_subscription_is_a_phantom():
    assert Story().publish(1).receive(1).verdicts(1) == {"phantom": 1}


# Leaks, and who is back


def test_growth_beyond_the_slack_is_a_leak():
    story = Story().add(Level(0, "descriptors", 100, 4), Level(1, "descriptors", 104, 4))
    assert story.verdicts(top=0) == {}
    assert story.add(Level(2, "descriptors", 105, 4)).verdicts(top=0) == {"leak": 1}


def test_who_is_not_back_at_the_end_is_stuck():
    assert Story().subscribe().leave().verdicts(top=0) == {"stuck": 1}
    unsubscribed = Story().subscribe().add(Unsubscribed(1.0, "ann", C, 2500))
    assert unsubscribed.verdicts(top=0) == {"stuck": 1}


def test_a_disconnect_of_somebody_else_is_counted():
    """The fault was about port 5, the second client is at 6, and the third one left by itself."""
    story = Story("worker kill", victims=[5])
    for client, port, asked in (("ann", 5, False), ("bob", 6, False), ("eve", 7, True)):
        story.add(Connected(0.0, client, port)).subscribe(client=client).add(Gone(1.0, client, 1006, asked))
    figures = story.settle(top=0)
    assert (figures.disconnects, figures.strangers) == (3, 1)


def test_the_way_back_is_timed_until_the_last_channel():
    story = Story().add(Subscribed(0, "ann", "s:2", E, 0, False, False)).subscribe().leave(t=2.0)
    story.add(Subscribed(2.5, "ann", C, E, 0, True, True), Subscribed(3.0, "ann", "s:2", E, 0, True, True))
    assert story.settle(top=0).back_s == [1.0]


def test_the_error_window_is_from_the_first_failure_to_the_last():
    story = Story().add(Failed(1.0, C, "p-1", "503"), Failed(4.0, C, "p-1", "503"))
    assert story.settle(top=0).error_windows_s == [3.0]


def test_each_fault_has_its_own_figures():
    story = Story("one").subscribe().publish(1).receive(1)
    story.settle(1)
    story.add(Fault(0.0, "two", True, [])).publish(2)
    assert story.verdicts(1, 2) == {"silent_loss": 1}
    assert [story.checker.faults[name].silent_loss for name in ("one", "two")] == [0, 1]
    assert story.checker.findings[0].startswith("two: silent loss: ann in s:1")


# Around it


@pytest.mark.parametrize(
    ("epoch", "offset", "expected"),
    [("4.a", 9, "4.a"), ("4.a@17,5.b", 17, "4.a"), ("4.a@17,5.b", 18, "5.b"), ("4.a@3,5.b@7,6.c", 5, "5.b")],
)
def test_the_owner_of_an_offset(epoch, offset, expected):
    assert owner(epoch, offset) == expected


def test_logs_are_read_as_they_were_written(tmp_path):
    """Also by and by: a line that is half written waits."""
    log, reader = Log(tmp_path / "a.jsonl"), Reader(tmp_path)
    first = Subscribed(1.5, "ann", C, E, 3, True, False)
    log.write(first)
    log.flush()
    assert list(reader.read()) == [first]
    with (tmp_path / "b.jsonl").open("ab") as other:
        other.write(b'["p",1.0,"s:1"')
        other.flush()
        assert list(reader.read()) == []
        other.write(b',"p-1"]\n')
    assert list(reader.read()) == [Published(1.0, C, "p-1")]
    log.close()
    reader.close()


def test_a_line_of_another_kind_is_an_error():
    for line in (b'["z",1]', b'["p",1]', b"{"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            parse(line)
    assert len(KINDS) == len(set(KINDS.values()))


@pytest.mark.parametrize(("received", "status"), [((1, 2), 0), ((2,), 1)])
def test_the_exit_status_says_whether_anything_failed(tmp_path, received, status):
    """By hand, on a run that was kept."""
    log = Log(tmp_path / "all.jsonl")
    for n in (1, 2):
        log.write(Published(n, C, f"p-{n}"))
    log.write(Subscribed(0, "ann", C, E, 0, False, False))
    for n in received:
        log.write(Received(n, "ann", C, n, f"p-{n}"))
    log.write(Kept(9, C, E, 2, [[1, "p-1"], [2, "p-2"]]))
    log.write(Settled(9))
    log.close()
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.checker", str(tmp_path / "all.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
