"""Files that survive a crash, how a failure to write is told, locks, and where files go that are kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.api import UserError

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the committed results inside the package, a checkout beside it.
RESULTS = (_PACKAGE if (_PACKAGE / "results").is_dir() else _PACKAGE.parent) / "results"

CACHE = "MUNI_BENCH_CACHE"


def cache_folder() -> Path:
    """Where the suite keeps what it made once for this machine. Raises UserError where the user has no home folder."""
    return folder_named(CACHE) or home(CACHE) / ".cache" / "muni-bench"


def folder_named(variable: str) -> Path | None:
    """The folder that an environment variable names, `~` expanded; None where it is unset or empty."""
    value = os.environ.get(variable)
    return expanded(Path(value)) if value else None


def expanded(path: Path) -> Path:
    """The path with a `~` at its start as a home folder. Raises UserError where there is no such home folder."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no home folder for {path.parts[0]}: write the whole path, or set HOME") from None


def home(*other: str) -> Path:
    """The user's home folder; `other`: variables that name a folder in place of it.

    Raises UserError where HOME is not set and the system does not know the user, as in many containers.
    """
    try:
        return Path.home()
    except RuntimeError:
        known = " or ".join(["HOME", *other])
        raise UserError(
            f"no home folder: HOME is not set and user {os.getuid()} has no account: set {known} to a folder"
        ) from None


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` or leave it as it was; a crash leaves at worst a stray temporary file.

    A new file has the mode that the umask gives, one that is replaced keeps its own. A symbolic link stays one: the
    file that it points at is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            _as_before(file.fileno(), path)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def is_temporary(path: Path) -> bool:
    """Whether it is named as the files are that `write_atomic` leaves where it is killed."""
    return re.fullmatch(r"\..+\.[0-9a-z_]{8}", path.name) is not None and path.is_file()


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The folder's files of a suffix, by name, but for hidden ones: an editor's locks, a Mac's `._` files."""
    return sorted(path for path in folder.glob(f"*{suffix}") if path.is_file() and not path.name.startswith("."))


def _as_before(descriptor: int, path: Path) -> None:
    """Give a file the mode and, where that is allowed, the group of the one whose place it takes."""
    with contextlib.suppress(FileNotFoundError):
        before = os.stat(path)
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, before.st_gid)
        os.fchmod(descriptor, before.st_mode & 0o777)


AGAIN = "free space or permit writing, and run the same command again"
ELSEWHERE = "name another folder with --out"


@contextlib.contextmanager
def replacing(path: Path, mend: str = AGAIN) -> Iterator[None]:
    """Turns a failure to write into a UserError that says that the file is as it was, and how to mend that."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): it is as it was; {mend}") from error


def write_file(path: Path, content: bytes, mend: str = AGAIN) -> None:
    """As `write_atomic`. Raises UserError, with the file as it was, where it cannot be written."""
    with replacing(path, mend):
        write_atomic(path, content)


def lock(descriptor: int, path: Path, mend: str, wait: bool = True, shared: bool = False) -> None:
    """Lock the open file at `path` until it is closed.

    `mend`: the option or variable that names another folder. Raises BlockingIOError where it is locked and this does
    not `wait`, and UserError where the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: its file system cannot lock files ({error.strerror}): name a folder on another one, such as a "
            f"local disk, with {mend}, or mount it with locks"
        ) from error


@contextlib.contextmanager
def alone_in(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a folder of the cache: one process works in it, and others wait, once `waiting` has said so.

    Raises UserError where that cannot be.
    """
    path = folder / "lock"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}): permit writing, or set {CACHE}") from error
    try:
        try:
            lock(descriptor, path, CACHE, wait=False)
        except BlockingIOError:
            waiting()
            lock(descriptor, path, CACHE)
        yield
    finally:
        os.close(descriptor)
