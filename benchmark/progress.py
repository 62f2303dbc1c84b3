"""How far a command has come, said while it works."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmark.terminal import shows_color

Report = Callable[[str, float, float, str], None]  # what, done, of, detail


@contextmanager
def progress() -> Iterator[Report]:
    """A bar with the time left on a terminal; elsewhere a line at each tenth of the way."""
    if not shows_color(sys.stderr):
        yield _tenths
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as drawn:
        bars: dict[str, Any] = {}

        def report(what: str, done: float, of: float, detail: str) -> None:
            if what not in bars:
                for bar in bars.values():
                    drawn.update(bar, visible=False)
                bars[what] = drawn.add_task(what, total=of, detail=detail)
            drawn.update(bars[what], completed=done, detail=detail)

        yield report


_said: dict[str, int] = {}


def _tenths(what: str, done: float, of: float, detail: str) -> None:
    tenth = int(10 * done / of) if of else 10
    if _said.get(what) != tenth:
        _said[what] = tenth
        print(f"{what} {100 * done / of if of else 100:.0f} % {detail}", file=sys.stderr, flush=True)
