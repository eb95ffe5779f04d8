"""Changes: files and kernel values that are replaced together, with a record by which they are taken back to the byte.

Does: say what would change, note what was there, change it; take it back, also after a change that was cut short.
Does not: know what the files say (tune) or talk to a person (tuning).
Called by: tuning (`hub tune --apply`, `--undo`).
Never break: what was there is on the disk before anything is replaced; a file is replaced whole or not at all; what
somebody else has written since is not overwritten without being told to.

The record lies in RECORD below the root. It is there as long as something can be taken back.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import HubError
from .tune import current_value

RECORD = "/var/lib/hub-tune/record.json"
VERSION = 1
DIRECTORY_MODE = 0o755
RECORD_MODE = 0o600


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file as it is wanted. path: absolute, below the root, such as '/etc/sysctl.d/60-hub.conf'."""

    path: str
    content: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class State:
    """What stands at a path: a file, a symbolic link (then `content` is where it leads), or nothing (`kind` '')."""

    kind: str = ""
    content: bytes = b""
    mode: int = 0
    uid: int = -1
    gid: int = -1

    @property
    def digest(self) -> str:
        """Tells states apart as far as the record cares: who owns a file may change."""
        return hashlib.sha256(b"%s %o %s" % (self.kind.encode(), self.mode, self.content)).hexdigest()


@dataclass(slots=True)
class Record:
    """What was there, and what we put in its place.

    before: by path. ours: digests of all that we have put at a path, as several versions may have.
    directories: those that we made, outermost first. values: by sysctl key, what it was; given: what we set it to.
    """

    before: dict[str, State] = field(default_factory=dict)
    ours: dict[str, list[str]] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    given: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> bytes:
        files = {
            path: {
                "kind": state.kind,
                "content": base64.b64encode(state.content).decode(),
                "mode": state.mode,
                "uid": state.uid,
                "gid": state.gid,
                "ours": self.ours[path],
            }
            for path, state in self.before.items()
        }
        values = {key: {"before": text, "given": self.given[key]} for key, text in self.values.items()}
        whole = {"version": VERSION, "files": files, "directories": self.directories, "values": values}
        return json.dumps(whole, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Record:
        """Raises ValueError, KeyError or TypeError for what is no record of ours."""
        whole: dict[str, Any] = json.loads(text)
        if whole["version"] != VERSION:
            raise ValueError(f"version {whole['version']}")
        record = cls(directories=list(whole["directories"]))
        for path, one in whole["files"].items():
            content = base64.b64decode(one["content"], validate=True)
            record.before[path] = State(one["kind"], content, one["mode"], one["uid"], one["gid"])
            record.ours[path] = list(one["ours"])
        for key, one in whole["values"].items():
            record.values[key], record.given[key] = one["before"], list(one["given"])
        return record


class Changes:
    """What may be changed and taken back below one root.

    root: '/' is this machine. proc_sys: where its kernel's values are written.
    Every method raises HubError, with one line, for what cannot be read or written.
    """

    def __init__(self, root: Path = Path("/"), proc_sys: Path = Path("/proc/sys")) -> None:
        self._root = root
        self._proc_sys = proc_sys
        self._record_path = self._at(RECORD)

    # What would be done

    def diff(self, files: Sequence[NewFile], values: Mapping[str, str]) -> str:
        """What `apply` would change, as a unified diff and a line for each value; '' for nothing."""
        with _as_hub_errors():
            parts = [_diff(file.path, self._state(file.path), _wanted(file)) for file in files]
            parts += [f"{key} = {now} → {value}\n" for key, now, value in self._values_to_set(values)]
        return "".join(parts)

    def undo_diff(self, values: bool) -> str:
        """The same for `undo`."""
        with _as_hub_errors():
            record = self._read_record() or Record()
            parts = [_diff(path, self._state(path), before) for path, before in record.before.items()]
            wanted = record.values if values else {}
            parts += [f"{key} = {now} → {value}\n" for key, now, value in self._values_to_set(wanted)]
        return "".join(parts)

    def check_record(self) -> None:
        """Raise HubError where what was there before is noted, and the note is damaged."""
        with _as_hub_errors(), contextlib.suppress(PermissionError):  # of whoever may only look (--dry-run)
            self._read_record()

    # Doing it

    def apply(self, files: Sequence[NewFile], values: Mapping[str, str], *, force: bool = False) -> list[str]:
        """Put these files there, and set these kernel values; returns a line for each that the kernel refused.

        What is so already is left alone, so that a second time does nothing. force: also over what somebody else has
        made of a file that we had put there.
        """
        with _as_hub_errors():
            to_write = [file for file in files if self._state(file.path).digest != _wanted(file).digest]
            to_set = self._values_to_set(values)
            if not to_write and not to_set:
                return []
            made = self._missing_directories(RECORD)
            with self._locked():
                record = self._read_record() or Record(directories=made)
                if not force:
                    self._refuse_foreign(record, [file.path for file in to_write if file.path in record.before])
                self._note(record, to_write, to_set)
                self._write_record(record)
                for file in to_write:
                    self._put(file.path, _wanted(file))
                return self._set(to_set)

    def undo(self, *, values: bool, force: bool = False) -> list[str]:
        """Bring back what the record holds; returns a line for each value that was left as it is.

        values: the kernel's, too; otherwise they stay in the record. Without a record nothing is done. It may be called
        again after it was cut short. force: also over what somebody else has made of a file since.
        """
        with _as_hub_errors():
            if self._read_record() is None:
                return []
            with self._locked():
                record = self._read_record() or Record()
                if not force:
                    self._refuse_foreign(record, list(record.before))
                for path, before in record.before.items():
                    self._put(path, before)
                left = self._set_back(record) if values else []
                if record.values and not values:
                    record.before, record.ours = {}, {}
                    self._write_record(record)
                    return left
                self._forget(record)
                return left

    @property
    def values_remain(self) -> bool:
        """Whether the record holds values of the kernel that `undo` has not brought back."""
        record = self._read_record()
        return record is not None and bool(record.values)

    # Files

    def _at(self, path: str) -> Path:
        """Where a path is below the root; its directory must not lead out of there by a link."""
        found = self._root / path.lstrip("/")
        if not found.parent.resolve().is_relative_to(self._root.resolve()):
            raise HubError(f"{found}: leads out of {self._root}")
        return found

    def _state(self, path: str) -> State:
        where = self._at(path)
        try:
            status = where.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return State()
        if stat.S_ISLNK(status.st_mode):
            return State("link", os.fsencode(os.readlink(where)), 0, status.st_uid, status.st_gid)
        if not stat.S_ISREG(status.st_mode):
            raise HubError(f"{where}: is no file")
        return State("file", where.read_bytes(), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)

    def _put(self, path: str, state: State) -> None:
        """Make a path what it shall be, at once: a reader finds the old or the new, and after a crash one of them."""
        where = self._at(path)
        beside = where.with_name(f".{where.name}.hub-tune")
        # Of one that was cut short.
        beside.unlink(missing_ok=True)
        if self._state(path) == state:
            return
        if not state.kind:
            where.unlink(missing_ok=True)
        else:
            where.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            try:
                _make(beside, state)
                os.replace(beside, where)
            finally:
                beside.unlink(missing_ok=True)
        _sync_directory(where.parent)

    def _refuse_foreign(self, record: Record, paths: Sequence[str]) -> None:
        for path in paths:
            now = self._state(path)
            if now.digest != record.before[path].digest and now.digest not in record.ours[path]:
                raise HubError(f"{self._at(path)}: was changed since hub tune wrote it; --force overwrites it")

    # Values

    def _values_to_set(self, values: Mapping[str, str]) -> list[tuple[str, str, str]]:
        """(key, what it is, what it shall be) of those that differ and that this kernel has."""
        now = ((key, current_value(self._proc_sys, key), value) for key, value in values.items())
        return [(key, text, value) for key, text, value in now if text is not None and text != value]

    def _set(self, values: Sequence[tuple[str, str, str]]) -> list[str]:
        refused = []
        for key, _, value in values:
            try:
                (self._proc_sys / key.replace(".", "/")).write_text(value + "\n")
            except OSError as error:
                refused.append(f"{key} = {value}: {error.strerror}")
        return refused

    def _set_back(self, record: Record) -> list[str]:
        left, to_set = [], []
        for key, now, before in reversed(self._values_to_set(record.values)):
            if now in record.given[key]:
                to_set.append((key, now, before))
            else:
                left.append(f"{key} = {now}: was changed since, and is left so")
        return left + self._set(to_set)

    # The record

    def _note(self, record: Record, files: Sequence[NewFile], values: Sequence[tuple[str, str, str]]) -> None:
        for file in files:
            record.before.setdefault(file.path, self._state(file.path))
            record.ours.setdefault(file.path, []).append(_wanted(file).digest)
            record.directories += [
                path for path in self._missing_directories(file.path) if path not in record.directories
            ]
        for key, now, value in values:
            record.values.setdefault(key, now)
            record.given.setdefault(key, []).append(value)

    def _missing_directories(self, path: str) -> list[str]:
        """Those above a path that have to be made, outermost first."""
        above = [str(parent) for parent in reversed(Path(path).parents)][1:]
        return [each for each in above if not self._at(each).is_dir()]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time. Makes the record's directory."""
        directory = self._record_path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(fd)

    def _read_record(self) -> Record | None:
        try:
            text = self._record_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Record.from_json(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            lost = "so --undo is lost; moved away, --apply begins a new one with what is there now"
            raise HubError(f"{self._record_path}: is no record of this hub's ({error!r}), {lost}") from None

    def _write_record(self, record: Record) -> None:
        self._put(RECORD, State("file", record.to_json(), RECORD_MODE))

    def _forget(self, record: Record) -> None:
        """Everything is as it was: the record goes, and the directories that nobody needs any more."""
        self._put(RECORD, State())
        for path in reversed(record.directories):
            try:
                self._at(path).rmdir()
            except FileNotFoundError:
                pass  # it was not made, or has been removed
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise


def _wanted(file: NewFile) -> State:
    return State("file", file.content, file.mode)


def _make(path: Path, state: State) -> None:
    if state.kind == "link":
        os.symlink(os.fsdecode(state.content), path)
    else:
        # Open to nobody until it is complete.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(state.content)
            file.flush()
            os.fchmod(fd, state.mode)
            os.fsync(fd)
    if state.uid >= 0 and (state.uid, state.gid) != (os.geteuid(), os.getegid()):
        os.chown(path, state.uid, state.gid, follow_symlinks=False)


def _sync_directory(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing was there, and nothing is
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _diff(path: str, now: State, then: State) -> str:
    if now.digest == then.digest:
        return ""
    other_mode = now.kind == then.kind and now.mode != then.mode
    modes = f"mode {now.mode:04o} → {then.mode:04o}  {path}\n" if other_mode else ""
    old, new = (path if state.kind else "/dev/null" for state in (now, then))
    return modes + "".join(difflib.unified_diff(_lines(now), _lines(then), old, new))


def _lines(state: State) -> list[str]:
    if state.kind == "link":
        return [f"symbolic link to {os.fsdecode(state.content)}\n"]
    text = state.content.decode(errors="replace")
    if text and not text.endswith("\n"):
        text += "\n\\ No newline at end of file\n"
    return text.splitlines(keepends=True)


@contextlib.contextmanager
def _as_hub_errors() -> Iterator[None]:
    """What the operating system refuses, as one line."""
    try:
        yield
    except BlockingIOError:
        raise HubError("another hub tune is at work") from None
    except OSError as error:
        raise HubError(f"{error.filename or 'hub tune'}: {error.strerror or error}") from None
