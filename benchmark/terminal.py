"""Standard output and error in any encoding, with a reader that has gone or on a full disk; whether they show color."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

LOST = 141  # exit status where the reader of the output has gone: as a shell has it of SIGPIPE
_SIGNS = {
    "—": "-",
    "–": "-",
    "−": "-",
    "→": ">",
    "←": "<",
    "↑": "^",
    "↓": "v",
    "±": "~",
    "·": ".",
    "×": "x",
    "≤": "<",
    "≥": ">",
    "’": "'",
    "│": "|",
    "━": "-",
    "─": "-",
}


def plain_signs(error: UnicodeError) -> tuple[str, int]:
    """An error handler of encodings: one sign of ASCII for each that one lacks, so that columns stay columns."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(sign: str) -> str:
    spelled = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return _SIGNS.get(sign) or spelled[:1] or "?"


codecs.register_error("plain_signs", plain_signs)


def shows_color(stream: TextIO) -> bool:
    """Whether the stream is a terminal that takes escape codes, and the user wants them (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("dumb", "")


class Stream:
    """A stream whose writes never fail: once one did, `fault` says why and the rest goes nowhere.

    So output that nobody can read stops no work and becomes no method's error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._faults_kept():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with self._faults_kept():
            self._stream.flush()

    @contextlib.contextmanager
    def _faults_kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.fault = self.fault or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still in its buffer, too
            os.close(nowhere)


@contextlib.contextmanager
def streams() -> Iterator[tuple[Stream, Stream]]:
    """Standard output and error as Streams, in whatever encoding they have."""
    before = sys.stdout, sys.stderr
    # A closed one's number would be given to the next file that is opened, and what libraries print would land there.
    opened = [stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for stream in before]
    for stream in opened:
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="plain_signs")
    out, err = Stream(opened[0]), Stream(opened[1])
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
