"""A page as text: for a terminal, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmark import templates
from benchmark.api import UserError
from benchmark.config import nearest
from benchmark.tables.layout import Page

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMATS = ("term", "md", "csv", "tex", "html")
TERM_WIDTH = 100


def render(page: Page, format: str, color: bool = False) -> str:
    """The page as text, ending in a newline. `color`: for a terminal. Raises UserError for an unknown format."""
    writers: dict[str, Callable[[Page], str]] = {
        "term": lambda page: terminal_text(_terminal_parts(page), color),
        "md": _markdown,
        "csv": _csv,
        "tex": _latex,
        "html": _html,
    }
    if format not in writers:
        raise UserError(f"unknown format {format!r}{nearest(format, FORMATS)}")
    return writers[format](page)


def terminal_text(parts: Iterable[RenderableType], color: bool) -> str:
    """What a terminal of TERM_WIDTH columns shows of each part in turn, whatever the environment says of terminals."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=TERM_WIDTH,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        color_system="standard" if color else None,
        _environ={},
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def markdown_safe(text: str) -> str:
    """The text with what Markdown would take for marks of its own escaped."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _marked(text: str, notes: tuple[int, ...], pattern: str) -> str:
    """The text with the numbers of its footnotes, as the pattern shows them."""
    return text + (pattern.format(",".join(map(str, notes))) if notes else "")


def _terminal_parts(page: Page) -> Iterator[RenderableType]:
    """A block that is wider than the terminal is printed in parts."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    def shown(text: str, notes: tuple[int, ...], best: bool = False) -> Text:
        return Text(_marked(text + "*" * best, notes, " [{}]"), "bold" if best else "")

    yield Text(page.title, "bold")
    for block in page.blocks:
        labels = [shown(row.label, row.notes) for row in block.rows]
        body = [[shown(entry.text, entry.notes, entry.best) for entry in row.entries] for row in block.rows]
        widths = [
            max(len(header), *(len(line[place]) for line in body)) + 2 for place, header in enumerate(block.headers)
        ]
        room = TERM_WIDTH - max(map(len, labels)) - 3
        for part in _parts(widths, block.group, room):
            grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            grid.add_column("", no_wrap=True)
            for place in part:
                grid.add_column(block.headers[place], justify="right", no_wrap=True)
            for row, following, label, line in zip(block.rows, (*block.rows[1:], None), labels, body, strict=True):
                last = following is not None and following.sanity and not row.sanity
                grid.add_row(label, *(line[place] for place in part), end_section=last)
            yield Text(block.title, "italic")
            yield grid
    yield from (Text(f"[{number}] {text}") for number, text in enumerate(page.footnotes, 1))
    yield from map(Text, page.caption)


def _parts(widths: Sequence[int], group: int, room: int) -> list[list[int]]:
    """Places of the columns, in parts that fit into `room`; groups stay whole."""
    parts: list[list[int]] = [[]]
    for start in range(0, len(widths), group):
        places = list(range(start, start + group))
        if parts[-1] and sum(widths[place] for place in parts[-1] + places) > room:
            parts.append([])
        parts[-1] += places
    return parts


def _markdown(page: Page) -> str:
    safe = markdown_safe
    lines = [f"**{safe(page.title)}**", ""]
    for block in page.blocks:
        lines.append(f"| {' | '.join(map(safe, (block.title, *block.headers)))} |")
        lines.append("|---" + "|---:" * len(block.headers) + "|")
        for row in block.rows:
            name = f"*{safe(row.label)}*" if row.sanity else safe(row.label)
            texts = ((f"**{entry.text}**" if entry.best else entry.text, entry.notes) for entry in row.entries)
            shown = (_marked(text, notes, "<sup>{}</sup>") for text, notes in ((name, row.notes), *texts))
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    lines += [f"{number}. {safe(text)}" for number, text in enumerate(page.footnotes, 1)]
    lines += [""] * bool(page.footnotes) + [" ".join(map(safe, page.caption))]
    return "\n".join(lines) + "\n"


def _csv(page: Page) -> str:
    """One line per printed number, at full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["table", "preset", "block", "method", "column", "value", "stderr", "status", "best", "notes"])
    for block in page.blocks:
        for row in block.rows:
            owner = ""
            for place, (header, entry) in enumerate(zip(block.headers, row.entries, strict=True)):
                owner = header if place % block.group == 0 else owner  # whose "paper" and "difference" these are
                name = header if header == owner else f"{owner} {header}"
                notes = "; ".join(page.footnotes[number - 1] for number in entry.notes)
                value = entry.text if entry.value is None and entry.text != "—" else _number(entry.value)
                writer.writerow(
                    [
                        page.table,
                        page.preset,
                        block.title,
                        row.method,
                        name,
                        value,
                        _number(entry.stderr),
                        entry.status,
                        int(entry.best),
                        notes,
                    ]
                )
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "±": r"$\pm$",
    "—": "---",
    "−": "$-$",
    "÷": r"$\div$",
    "×": r"$\times$",
    "∈": r"$\in$",
}


def _latex(page: Page) -> str:
    """Needs the package booktabs."""

    def safe(text: str) -> str:
        return "".join(_TEX.get(character, character) for character in text)

    def marked(text: str, notes: tuple[int, ...]) -> str:
        return _marked(text, notes, r"\textsuperscript{{{}}}")

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{safe(page.title)}. {safe(' '.join(page.caption))}}}"]
    for block in page.blocks:
        lines += [
            rf"\begin{{tabular}}{{l{'r' * len(block.headers)}}}",
            r"\toprule",
            " & ".join(map(safe, (block.title, *block.headers))) + r" \\",
            r"\midrule",
        ]
        for place, row in enumerate(block.rows):
            if place and row.sanity and not block.rows[place - 1].sanity:
                lines.append(r"\midrule")
            texts = [rf"\textbf{{{safe(entry.text)}}}" if entry.best else safe(entry.text) for entry in row.entries]
            shown = [marked(text, entry.notes) for text, entry in zip(texts, row.entries, strict=True)]
            lines.append(" & ".join((marked(safe(row.label), row.notes), *shown)) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\par\medskip"]
    lines += [rf"\textsuperscript{{{number}}}\,{safe(text)}\par" for number, text in enumerate(page.footnotes, 1)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _html(page: Page) -> str:
    return templates.render("tables/table_page.html.jinja", title=page.title, page=page, links={})


def html_body(page: Page, links: Mapping[tuple[str, str], str]) -> str:
    """The page below its title. `links`: for a method and a column's header, the id of the element that shows the rows
    behind a number."""
    return templates.render("tables/table.html.jinja", page=page, links=links)
