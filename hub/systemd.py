"""Systemd: tell the service manager how we are (sd_notify(3)); without one, do nothing.

Does: send READY, STOPPING, STATUS and WATCHDOG to $NOTIFY_SOCKET; the last one as often as the watchdog asks, while all
is well.
Does not: know what ready or healthy means; supervisor does.
Called by: supervisor; serve builds it from the environment.
Never break: a service manager that is away or slow must not stop the hub.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping

# The manager's queue is short; a blocked supervisor would be worse than a lost line.
SEND_TIMEOUT_S = 0.5


class Notifier:
    """The way to the service manager.

    watchdog_s: seconds between two `watchdog` calls, half of what the unit allows; None where nobody watches.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ)

    def notify(self, *lines: str) -> None:
        """Send lines such as 'READY=1' as one datagram."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            # The manager restarts or its socket has vanished: it has its own timeouts, our clients must not suffer.
            pass

    def ready(self, status: str) -> None:
        self.notify("READY=1", _status_line(status))

    def stopping(self) -> None:
        self.notify("STOPPING=1")

    def watchdog(self) -> None:
        self.notify("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self.notify(_status_line(text))


class Watchdog:
    """Fed in time, as long as all is well.

    due_s: when it is to be fed next. well: asked then. retry_s: until it is asked again after a no, at most.
    """

    def __init__(self, notifier: Notifier, well: Callable[[float], bool], retry_s: float) -> None:
        self._notifier = notifier
        self._well = well
        self._retry_s = retry_s
        self.due_s = math.inf

    def begin(self, now: float) -> None:
        """At once and from now on, where somebody watches."""
        if self._notifier.watchdog_s is not None:
            self.due_s = now

    def turn(self, now: float) -> None:
        """Feed it where that is due."""
        interval_s = self._notifier.watchdog_s
        if interval_s is None or now < self.due_s:
            return
        if self._well(now):
            self.due_s = now + interval_s
            self._notifier.watchdog()
        else:
            # Asked again soon: the kill of who is to blame may just be taking effect.
            self.due_s = now + min(interval_s, self._retry_s)

    def feed(self) -> None:
        """Whatever is due: before what takes longer than a turn."""
        if self._notifier.watchdog_s is not None:
            self._notifier.watchdog()


def _status_line(text: str) -> str:
    # A line break would begin a second assignment.
    return "STATUS=" + " ".join(text.split())


def _socket_address(text: str) -> str:
    """A path, or an abstract name, which is written with '@' and begins with a zero byte in the kernel (unix(7))."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    usec = environ.get("WATCHDOG_USEC", "")
    # WATCHDOG_PID is of the process that shall answer; a variable inherited from somebody else's service is not for us.
    if not usec.isdecimal() or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2 / 1_000_000 or None
