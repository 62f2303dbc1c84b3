"""The command `bench` in the test's own process, and what came of it."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest import mock

from benchmark.cli import commands


class Answer(NamedTuple):
    """`status`: the exit status, or minus the number of the signal that ended the process."""

    status: int
    out: str
    err: str


def bench(*words: object) -> Answer:
    """Run the command. Raises what the command does not say in a line of its own."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["bench", *map(str, words)]):
        try:
            commands.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return Answer(status, out.getvalue(), err.getvalue())
