"""Files that survive a crash, how a failure to write is told, and where those go that are kept for the machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmark.api import UserError


def cache_folder() -> Path:
    """Where the suite keeps what it made once for this machine."""
    return Path(os.environ.get("MUNI_BENCH_CACHE") or Path.home() / ".cache" / "muni-bench")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content` or leave it as it was; a crash leaves at worst a stray temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


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
