"""Heartbeat: the pipe by which a worker tells the supervisor that it lives. Both ends.

    worker   Heartbeat ââ b"R" ready Â· b"." alive Â· b"S" rests Â· b"E" + text: cannot boot âââ¶ Pulse   supervisor
                          b"A" + "number word text" + b"\n": the answer to an instruction

Does: write without ever waiting, read whatever has come, remember when.
Does not: judge how long is too long, nor signal anybody; supervisor does.
Called by: worker (Heartbeat), supervisor (Pulse).
Never break: a full or broken pipe must not stop a worker; the supervisor's judgement or the kernel ends it then.
"""

from __future__ import annotations

import os
from typing import NamedTuple

READY = b"R"
BEAT = b"."
RESTS = b"S"
FAILED = b"E"
ANSWER, ANSWER_END = b"A", b"\n"
# A write up to PIPE_BUF (4096 on Linux, pipe(7)) is whole or not at all, so that a text never arrives in part.
MAX_TEXT_BYTES = 4000


class Answer(NamedTuple):
    """What a worker says to an instruction. number: the instruction's. text: '' or one line, cut to MAX_TEXT_BYTES."""

    number: int
    word: str
    text: str = ""


class Heartbeat:
    """The worker's end. Beat at least every quarter of `heartbeat_timeout_s`, from the loop that does the work."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def ready(self) -> None:
        """Say once that this worker accepts connections."""
        self._send(READY)

    def beat(self) -> None:
        self._send(BEAT)

    def rests(self) -> None:
        """Say once, in a deploy, that this worker accepts no more."""
        self._send(RESTS)

    def answer(self, answer: Answer) -> None:
        """Say what became of an instruction."""
        head = f"{answer.number} {answer.word} ".encode()
        self._send(ANSWER + head + " ".join(answer.text.split()).encode()[:MAX_TEXT_BYTES] + ANSWER_END)

    def boot_failed(self, text: str) -> None:
        """Say in one line why this worker cannot start; nothing may be sent after it. Then exit with EXIT_BOOT."""
        self._send(FAILED + " ".join(text.split()).encode()[:MAX_TEXT_BYTES])

    def close(self) -> None:
        os.close(self._fd)

    def _send(self, data: bytes) -> None:
        try:
            os.write(self._fd, data)
        except (BlockingIOError, BrokenPipeError):
            # Full: the supervisor is stopped, and finds thousands of beats later. Broken: it is gone, as we are soon.
            pass


class Pulse:
    """The supervisor's end: what is known of one worker.

    last_s: clock of the last byte (at first: of the fork). ready, rests: it has said so. failure: its text, '' without
    one.
    """

    __slots__ = ("_answer", "_answers", "_text", "fd", "last_s", "ready", "rests")

    def __init__(self, fd: int, now: float) -> None:
        self.fd = fd
        self.last_s = now
        self.ready = False
        self.rests = False
        self._text: bytes | None = None
        self._answer: bytes | None = None
        """The beginning of one."""
        self._answers: list[Answer] = []

    @property
    def failure(self) -> str:
        return (self._text or b"").decode(errors="replace")

    def read(self, now: float) -> bool:
        """Take what has come, without waiting. False once the worker's end is closed."""
        while True:
            try:
                data = os.read(self.fd, 65_536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._take(data, now)

    def _take(self, data: bytes, now: float) -> None:
        self.last_s = now
        # Answers stand between beats; what one says may hold any of the marks.
        while data and self._text is None:
            if self._answer is None:
                marks = [at for at in (data.find(FAILED), data.find(ANSWER)) if at >= 0]
                at = min(marks, default=len(data))
                self.ready = self.ready or READY in data[:at]
                self.rests = self.rests or RESTS in data[:at]
                mark, data = data[at : at + 1], data[at + 1 :]
                self._text = b"" if mark == FAILED else None
                self._answer = b"" if mark == ANSWER else None
            else:
                text, end, data = data.partition(ANSWER_END)
                self._answer += text
                if end:
                    number, word, said = self._answer.decode(errors="replace").split(" ", 2)
                    self._answers.append(Answer(int(number), word, said))
                    self._answer = None
        if self._text is not None:
            self._text += data

    def take_answers(self) -> list[Answer]:
        """Those that have come, once."""
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        os.close(self.fd)


def open_pipe(now: float) -> tuple[Pulse, Heartbeat]:
    """Make both ends, neither of them blocking, neither inherited by exec. Raises OSError without free descriptors."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    return Pulse(reader, now), Heartbeat(writer)
