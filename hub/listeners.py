"""Listeners: the sockets that clients connect to, one per worker slot and TCP address, made once and held throughout.

Does: bind and listen with every TCP option set (accepted sockets inherit them), or take what systemd or an earlier
version of the hub in this process hands over; say in one line what stands in the way.
Does not: accept; a worker does, on the slot that it inherits by the fork.
Called by: serve opens and hands them to supervisor, which keeps them; seat closes foreign slots in a child.
Never break: no TCP listener is closed while the hub serves. Closing one resets every connection in its accept queue,
and the kernel moves the last listener of the group into its place (net/core/sock_reuseport.c).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from .activation import Handed
from .config import Settings
from .errors import BootError
from .inheritance import ListenerRecord
from .sections import TcpSettings
from .values import Address, parse_address

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
UNIX_MODE = 0o660

_CAUSES = {
    errno.EADDRINUSE: "the address is in use by another process",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.ENOENT: "the directory does not exist",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """What worker `index` accepts on. Unix listeners are the same object in every slot.

    combined: those of `public` that serve the internal pages too, as their address stands in both settings.
    secure: those of all that speak TLS.
    proxied: those of `public` whose connections begin with a PROXY line.
    """

    index: int
    public: tuple[socket.socket, ...]
    internal: tuple[socket.socket, ...]
    combined: tuple[socket.socket, ...] = ()
    secure: frozenset[socket.socket] = frozenset()
    proxied: tuple[socket.socket, ...] = ()


@dataclass(frozen=True, slots=True)
class _Group:
    """The listeners of one address.

    setting: what asked for them, which may say less than `address`. file: device and inode of the socket file of a Unix
    listener of our own, None with TCP. shared: all slots have the same. handed: by systemd.
    """

    address: Address
    setting: Address
    sockets: tuple[socket.socket, ...]
    file: tuple[int, int] | None = None
    shared: bool = False
    handed: bool = False

    def record(self) -> ListenerRecord:
        sockets = self.sockets[:1] if self.shared else self.sockets
        return ListenerRecord(
            address=str(self.address),
            setting=str(self.setting),
            sockets=[sock.fileno() for sock in sockets],
            shared=self.shared,
            file=None if self.file is None else list(self.file),
            handed=self.handed,
        )


class Listeners:
    """All listeners of the hub.

    public, internal: the actual addresses, port 0 resolved, in the order of the settings; an address that stands in
    both settings is in `public` and in `combined`, not in `internal`. Port 0 means any port: two are never the same.
    slots: one for each worker. warnings: a line for each wish that the kernel did not grant.
    """

    def __init__(
        self,
        public: list[_Group],
        internal: list[_Group],
        combined: set[Address],
        workers: int,
        proxied: Collection[int] = (),
    ) -> None:
        """proxied: those of `public`, by their place, whose connections begin with a PROXY line."""
        self._public = public
        self._internal = internal
        self._proxied = proxied
        self.public = tuple(group.address for group in public)
        self.internal = tuple(group.address for group in internal)
        self.combined = tuple(group.address for group in public if group.setting in combined)
        self.slots = tuple(self._slot(index) for index in range(workers))
        self.warnings: list[str] = []

    @classmethod
    def open(
        cls, settings: Settings, workers: int, *, somaxconn: Path = SOMAXCONN, handed: Handed | None = None
    ) -> Listeners:
        """Listen on everything that the settings name, for `workers` slots.

        somaxconn: the kernel's cap of the backlog. handed: by systemd; what nobody asks for is closed.
        Raises BootError with one line naming the address and the cause.
        """
        public, internal = _addresses(settings.listen), _addresses(settings.internal)
        combined = {address for address in internal if address in public and not _any_port(address)}
        opened: list[_Group] = []
        handed = dict(handed or {})
        try:
            for address in [*public, *(a for a in internal if a not in combined)]:
                opened.append(_open(address, workers, settings.tcp, handed))
        except BootError:
            _close(opened)
            raise
        finally:
            for sockets in handed.values():
                _close_sockets(sockets)
        proxied = _proxied(settings, public)
        listeners = cls(opened[: len(public)], opened[len(public) :], combined, workers, proxied)
        listeners.warnings += _warnings(settings.tcp, opened, somaxconn)
        listeners.warnings += [f"systemd:{name}: a socket that no address asks for is closed" for name in handed]
        return listeners

    @classmethod
    def inherit(
        cls,
        settings: Settings,
        workers: int,
        public: Iterable[ListenerRecord],
        internal: Iterable[ListenerRecord],
        *,
        somaxconn: Path = SOMAXCONN,
    ) -> Listeners:
        """Take over those of an earlier version in this process, which the settings name as they did then.

        What they pass on to accepted sockets is set anew, and the backlog; those of systemd keep its backlog.
        """
        mine, own = ([_inherit(one, workers, settings.tcp) for one in records] for records in (public, internal))
        named = _addresses(settings.listen)
        combined = {address for address in _addresses(settings.internal) if address in named and not _any_port(address)}
        listeners = cls(mine, own, combined, workers, _proxied(settings, named))
        listeners.warnings += _warnings(settings.tcp, [*mine, *own], somaxconn)
        return listeners

    @staticmethod
    def left_internal(
        settings: Settings, public: Iterable[ListenerRecord], internal: Iterable[ListenerRecord]
    ) -> list[Address]:
        """The actual addresses at which the internal pages would be served after `inherit`; takes nothing over."""
        named = set(map(parse_address, settings.internal))
        both = (one for one in public if (asked := parse_address(one.setting)) in named and not _any_port(asked))
        return [parse_address(one.address) for one in (*both, *internal)]

    def records(self) -> tuple[list[ListenerRecord], list[ListenerRecord]]:
        """Of the public and of the internal ones, for `inherit`."""
        return [group.record() for group in self._public], [group.record() for group in self._internal]

    def keep_only(self, index: int) -> None:
        """In a worker: close this process's copies of the other slots, so that its life does not matter to them."""
        for group in self._groups():
            if not group.shared:
                _close_sockets(s for number, s in enumerate(group.sockets) if number != index)

    def close(self) -> None:
        """In the supervisor: let go of every listener and remove the socket files. May be called twice."""
        _close(self._groups())

    def _groups(self) -> list[_Group]:
        return [*self._public, *self._internal]

    def _slot(self, index: int) -> Slot:
        public = tuple(group.sockets[index] for group in self._public)
        both = tuple(group.sockets[index] for group in self._public if group.address in self.combined)
        secure = frozenset(group.sockets[index] for group in self._groups() if group.address.tls)
        internal = tuple(group.sockets[index] for group in self._internal)
        proxied = tuple(public[place] for place in self._proxied)
        return Slot(index, public, internal, both, secure, proxied)


def _addresses(texts: list[str]) -> list[Address]:
    """Parsed, in order, and each once: a second entry for the same port could only fail."""
    kept: list[Address] = []
    for address in map(parse_address, texts):
        if _any_port(address) or address not in kept:
            kept.append(address)
    return kept


def _proxied(settings: Settings, public: list[Address]) -> list[int]:
    """Which of the public addresses begin with a PROXY line."""
    named = set(map(parse_address, settings.proxy_protocol))
    return [place for place, address in enumerate(public) if address in named]


def _inherit(record: ListenerRecord, workers: int, tcp: TcpSettings) -> _Group:
    sockets = [socket.socket(fileno=number) for number in record.sockets]
    for sock in sockets:
        sock.setblocking(False)
        if not record.shared:
            for level, option, value in _inherited_options(tcp):
                sock.setsockopt(level, option, value)
        if not record.handed:
            sock.listen(tcp.backlog)  # of a socket that listens already, this is the backlog alone
    address, setting = parse_address(record.address), parse_address(record.setting)
    file = None if record.file is None else (record.file[0], record.file[1])
    return _Group(
        address, setting, tuple(sockets) * (workers if record.shared else 1), file, record.shared, record.handed
    )


def _any_port(address: Address) -> bool:
    return not (address.path or address.name) and address.port == 0


def _open(address: Address, workers: int, tcp: TcpSettings, handed: Handed) -> _Group:
    """handed: what is used is taken out of it."""
    if address.name:
        return _take(address, workers, tcp, handed)
    try:
        return _open_unix(address, workers, tcp) if address.path else _open_tcp(address, workers, tcp)
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0) or error.strerror or str(error)
        if error.errno == errno.EACCES and not address.path:
            cause += " (ports below 1024 need sockets of systemd, or net.ipv4.ip_unprivileged_port_start: hub tune)"
        raise BootError(f"cannot listen on {address}: {cause}") from None


def _take(setting: Address, workers: int, tcp: TcpSettings, handed: Handed) -> _Group:
    """The sockets that systemd has handed over under a name. Raises BootError."""
    if setting.name not in handed:
        found = ", ".join(sorted(handed)) or "none at all"
        raise BootError(f"cannot listen on {setting}: systemd has handed over {found}; FileDescriptorName= names them")
    sockets = handed.pop(setting.name)
    try:
        shared = _check_handed(setting, sockets, workers)
        for sock in sockets:
            sock.setblocking(False)
            if not shared:
                for level, option, value in _inherited_options(tcp):
                    sock.setsockopt(level, option, value)
    except (BootError, OSError) as error:
        _close_sockets(sockets)
        raise BootError(f"cannot listen on {setting}: {error}") from None
    name = sockets[0].getsockname()
    address = Address("", 0, str(name)) if shared else Address(name[0], name[1], tls=setting.tls)
    return _Group(address, setting, tuple(sockets) * (workers if shared else 1), shared=shared, handed=True)


def _check_handed(setting: Address, sockets: list[socket.socket], workers: int) -> bool:
    """Whether they are one Unix listener, shared by all. Raises BootError for what can't be served."""
    for sock in sockets:
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise BootError("a socket does not listen for streams; allowed: ListenStream= with Accept=no")
    if sockets[0].family == socket.AF_UNIX:
        if setting.tls or len(sockets) > 1:
            raise BootError(f"found {len(sockets)} Unix sockets; allowed: one, for all workers, without tls:")
        return True
    if len({sock.getsockname()[:2] for sock in sockets}) > 1:
        raise BootError("found sockets of several addresses; allowed: one address for each name")
    if len(sockets) != workers:
        plural = "s" if len(sockets) > 1 else ""
        raise BootError(
            f"found {len(sockets)} socket{plural} for {workers} workers; allowed: one for each, with ReusePort=yes"
        )
    return False


def _open_tcp(address: Address, workers: int, tcp: TcpSettings) -> _Group:
    setting = address
    if address.port:
        _probe(address)
    sockets: list[socket.socket] = []
    try:
        # In slot order: the kernel numbers the group by the order of listen().
        for _ in range(workers):
            sockets.append(_listen_tcp(address, tcp))
            address = address._replace(port=sockets[0].getsockname()[1])
    except OSError:
        _close_sockets(sockets)
        raise
    return _Group(address, setting, tuple(sockets))


def _probe(address: Address) -> None:
    """Raise OSError if somebody listens there.

    SO_REUSEPORT would let a second hub of the same user join the group in silence and take a part of the clients; a
    bind without it is refused. Two hubs that start in the same millisecond can still both pass.
    """
    with _tcp_socket(address) as probe:
        probe.bind((address.host, address.port))


def _tcp_socket(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    # Connections of an earlier hub may linger in TIME_WAIT; they are no reason not to listen.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _listen_tcp(address: Address, tcp: TcpSettings) -> socket.socket:
    sock = _tcp_socket(address)
    try:
        # Before listen(): accepted sockets inherit them, and the receive buffer decides the handshake's window scale.
        for level, option, value in [(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1), *_inherited_options(tcp)]:
            sock.setsockopt(level, option, value)
        sock.bind((address.host, address.port))
        sock.listen(tcp.backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _inherited_options(tcp: TcpSettings) -> list[tuple[int, int, int]]:
    """(level, option, value) of what accepted sockets inherit: five to eight system calls less for each client."""
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, tcp.keepalive_idle_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, tcp.keepalive_interval_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, tcp.keepalive_count),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, tcp.user_timeout_s * 1000),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, tcp.send_buffer_bytes),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, tcp.receive_buffer_bytes),
        (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, tcp.notsent_lowat_bytes),
    ]


def _open_unix(address: Address, workers: int, tcp: TcpSettings) -> _Group:
    _remove_stale(address.path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # fchmod before bind(), chmod after it: the file is never more open than it shall be, whatever the umask.
        os.fchmod(sock.fileno(), UNIX_MODE)
        sock.bind(address.path)
        os.chmod(address.path, UNIX_MODE)
        sock.listen(tcp.backlog)
        sock.setblocking(False)
        status = os.stat(address.path)
    except OSError:
        sock.close()
        raise
    return _Group(address, address, (sock,) * workers, (status.st_dev, status.st_ino), shared=True)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a killed hub. Raises OSError if somebody answers there, or if it is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket stands there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    # EAGAIN is a full accept queue: somebody lives there.
    if code in (0, errno.EAGAIN):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    if code != errno.ECONNREFUSED:
        raise OSError(code, os.strerror(code))
    os.unlink(path)


def _close(groups: Iterable[_Group]) -> None:
    for group in groups:
        # The file goes first, so that nobody finds a path whose listener has just gone.
        if group.file is not None:
            _unlink_own(group.address.path, group.file)
        _close_sockets(group.sockets)


def _unlink_own(path: str, file: tuple[int, int]) -> None:
    """Remove the socket file, unless another process has put its own there since."""
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) == file:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _close_sockets(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _warnings(tcp: TcpSettings, groups: list[_Group], somaxconn: Path) -> list[str]:
    """What the kernel cut down without an error, a line for each."""
    lines = []
    try:
        cap = int(somaxconn.read_text())
    except (OSError, ValueError):
        cap = tcp.backlog  # hidden by a sandbox; nothing can be said then
    if cap < tcp.backlog:
        lines.append(f"tcp.backlog: {tcp.backlog} is capped at {cap} by net.core.somaxconn")
    first = next((group.sockets[0] for group in groups if not group.shared), None)
    if first is not None:
        wishes = [
            ("send_buffer_bytes", socket.SO_SNDBUF, tcp.send_buffer_bytes, "wmem_max"),
            ("receive_buffer_bytes", socket.SO_RCVBUF, tcp.receive_buffer_bytes, "rmem_max"),
        ]
        for name, option, wanted, sysctl in wishes:
            # The kernel doubles the wish for its bookkeeping (socket(7)).
            granted = first.getsockopt(socket.SOL_SOCKET, option) // 2
            if granted < wanted:
                lines.append(f"tcp.{name}: {wanted} is capped at {granted} by net.core.{sysctl}")
    return lines
