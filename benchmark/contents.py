"""What files hold, as SHA-256: read once and stored, and read again where a file's size, modification time or inode is
another.

The stored hashes are `contents/*.json` in the cache, a file for each folder that was asked about. A file that was
written in the last FRESH seconds before it was read is not entered: it could change again within one tick of its file
system's clock. `verify` reads every file anew: it finds what changed behind the three, such as a bit on a failing disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmark.files import cache_folder, write_atomic

FRESH = 2.0  # seconds: the coarsest clock of a file system in use
SAVE_EVERY = 15.0  # seconds, so that little is read again after a kill; then it says how far it is

Entry = tuple[int, int, int, str]  # size, modification time in ns, inode; SHA-256
Say = Callable[[str], None]


def content_hash(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises OSError where it cannot be read."""
    found = content_hashes([path])[path]
    if isinstance(found, OSError):
        raise found
    return found


def content_hashes(paths: Iterable[Path], say: Say | None = None) -> dict[Path, str | OSError]:
    """The SHA-256 of each file, or why it cannot be read. say: gets a line now and then where that takes long."""
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(Path(os.path.abspath(path.parent)), []).append(path)
    found: dict[Path, str | OSError] = {}
    for folder, members in folders.items():
        found |= _Folder(folder).hashes(members, say)
    return found


def folder_hash(folder: Path, say: Say | None = None) -> str:
    """64 hex digits of the names and contents of all files below a folder; of a single file, its content.

    Hidden files and folders are left out, such as `.git` and `.cache`: they tell when and whence the others came.
    Raises OSError where one cannot be read.
    """
    if not folder.is_dir():
        return content_hash(folder)
    content = hashlib.sha256()
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    files = {name: path for name, path in names.items() if path.is_file() and not _hidden(name)}
    hashes = content_hashes(files.values(), say)
    for name, path in files.items():
        found = hashes[path]
        if isinstance(found, OSError):
            raise found
        content.update(f"{name.as_posix()}\0{found}\n".encode())
    return content.hexdigest()


def verify() -> Iterator[tuple[Path, int, list[Path]]]:
    """Read every file again whose hash is stored: each folder, how many of its files are there, and which of those
    hold something else than was stored. What they hold now is stored then; files that are gone are forgotten."""
    for path in sorted((cache_folder() / "contents").glob("*.json")):
        folder = _Folder(Path(_stored(path)[0]), path)
        if folder.entries:
            yield folder.path, *folder.verify()


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


class _Folder:
    """The stored hashes of one folder's files. `place`: the file that has them."""

    def __init__(self, path: Path, place: Path | None = None) -> None:
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        self.path, self.place = path, place or cache_folder() / "contents" / f"{name}.json"
        self.entries: dict[str, Entry] = {}
        stored_for, entries = _stored(self.place)
        if stored_for == str(path):
            self.entries = entries

    def hashes(self, paths: Sequence[Path], say: Say | None = None) -> dict[Path, str | OSError]:
        found: dict[Path, str | OSError] = {}
        saved, new = time.monotonic(), False
        for number, path in enumerate(paths, 1):
            try:
                state = _state(path)
                before = self.entries.get(path.name)
                if before is not None and before[:3] == state:
                    found[path] = before[3]
                    continue
                found[path] = _read(path)
                if _settled(path, state):
                    self.entries[path.name], new = (*state, str(found[path])), True
            except OSError as error:
                found[path] = error
            if new and time.monotonic() - saved > SAVE_EVERY:
                self._save()
                saved, new = time.monotonic(), False
                if say is not None:
                    say(f"{self.path}: {number:,} of {len(paths):,} files are read, to know them by their content")
        if new:
            self._save()
        return found

    def verify(self) -> tuple[int, list[Path]]:
        """How many of the files are there, and which of them changed behind their size, time and inode."""
        before, self.entries = self.entries, {}
        there = [self.path / name for name in before if (self.path / name).is_file()]
        alike = [path for path in there if before[path.name][:3] == _state(path)]
        found = self.hashes(there)
        self._save()
        return len(there), [path for path in alike if found[path] != before[path.name][3]]

    def _save(self) -> None:
        """A cache that takes no files costs reading them again."""
        with contextlib.suppress(OSError):
            write_atomic(self.place, json.dumps({"folder": str(self.path), "files": self.entries}).encode())


def _stored(place: Path) -> tuple[str, dict[str, Entry]]:
    """The folder and the entries of a file of stored hashes; nothing where there is none or it is damaged."""
    try:
        stored = json.loads(place.read_bytes())
        return stored["folder"], {
            name: (int(size), int(time), int(inode), str(found))
            for name, (size, time, inode, found) in stored["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "", {}


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _settled(path: Path, state: tuple[int, int, int]) -> bool:
    """Whether it is as it was before it was read, and was not written just then."""
    return _state(path) == state and time.time() - state[1] / 1e9 > FRESH


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
