"""Sheets to look at and listen to: what is given, what is real, and what each method makes of it, side by side.

One PNG per direction, sounds as spectrograms, and one page, `index.html`, on which the sounds can be played. Needs the
extra "plots".
"""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import Cell, Inapplicable, Raw, UserError
from benchmark.engine.evaluate import keep
from benchmark.engine.execution import guarded, kept_things, trained_method
from benchmark.files import ELSEWHERE, write_file
from benchmark.media.media_files import write_png, write_wav
from benchmark.progress import Report
from benchmark.records.run_identity import Run
from benchmark.report.plots import INK, QUIET, png, why_none
from benchmark.templates import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ITEMS = 6
HEIGHTS = {"image": 1.0, "audio": 0.8, "text": 0.6}  # inches
WINDOW = 256  # samples of a spectrogram's window, at 8 kHz; in proportion elsewhere


@dataclass(frozen=True)
class Column:
    """Things of one origin: the given ones, the real ones or a method's."""

    title: str
    things: Raw


def write_sheets(
    runs: Sequence[Run], cells: Sequence[Cell], items: int, device: str, folder: Path, report: Report
) -> list[str]:
    """Write a sheet per cell and the page into `folder`; return lines to print.

    Rows that were not generated yet are generated now, as scoring would. A method that does not support a cell, or is
    not trained, has no column. Raises UserError for a dataset whose modalities are not things, where no run is
    trained, for a folder that cannot be written, and without matplotlib.
    """
    if reason := why_none():
        raise UserError(f"no sheets: {reason}")
    data: Any = None
    columns: dict[Cell, list[Column]] = {}
    without = []
    for number, run in enumerate(runs):
        report("sheets", number, len(runs), registry.stem(run.job.method))
        try:
            with guarded(run, device):
                data, made = _made(run, cells, items, device)
        except Inapplicable as reason:
            without.append(str(reason))
            continue
        for cell, things in made.items():
            columns.setdefault(cell, []).append(Column(run.method_card.label, things))
    if not columns:
        raise UserError(f"nothing to show: {'; '.join(without) or 'no method supports these directions'}")
    first = runs[0]
    about = f"{first.dataset_card.label}, preset {first.job.preset}, seed {first.job.seed}"
    sections = []
    for number, (cell, of_methods) in enumerate(columns.items()):
        report("sheets", number, len(columns), str(cell))
        shown = [*originals(data, cell, items), *of_methods]
        picture = png(draw_sheet(f"{cell.question}\n{about}", shown, data.sample_rate))
        write_file(folder / f"{cell.stem}.png", picture, ELSEWHERE)
        sections.append((cell.question, _section(shown, folder, cell.stem, data.sample_rate)))
    page = render("report/sheets.html.jinja", title=about, sections=sections)
    write_file(folder / "index.html", page.encode(), ELSEWHERE)
    report("sheets", 1, 1, "done")
    return [*without, f"{len(columns)} sheets of {items} items: {folder}", f"to listen: {folder / 'index.html'}"]


def _made(run: Run, cells: Sequence[Cell], items: int, device: str) -> tuple[Any, dict[Cell, Raw]]:
    """The dataset, and what the method makes of each cell that it supports. Raises Inapplicable where it cannot."""
    try:
        method, data, progress = trained_method(run, device)
    except Inapplicable as reason:
        raise Inapplicable(f"{run.method_card.label}: {reason}") from None
    if not hasattr(data, "render"):
        raise UserError(f"{run.job.dataset} holds no pictures, sounds and sentences: bench sample draws its rows")
    if run.method_card.stages and (progress is None or not progress.done):
        raise Inapplicable(f"{run.method_card.label} is not trained")
    found: dict[Cell, Raw] = {}
    for cell in (cell for cell in cells if cell.task in run.method_card.tasks):
        kept = kept_things(run, data, cell, method)
        assert kept is not None
        rows = min(items, data.rows_of(cell))
        keep(method, data, cell, run.config, run.job.seed, device, rows, kept)
        found[cell] = kept.read(0, rows, cell.want)
    return data, found


def originals(data: Any, cell: Cell, items: int) -> list[Column]:
    """The given things, and the real ones that belong to them."""
    if not cell.given:
        return []
    raw = data.raw(data.split_of(cell), torch.arange(min(items, data.rows_of(cell)), device=data.device))
    return [
        Column(title, {name: raw[name] for name in names})
        for title, names in (("given", cell.given), ("real", cell.want))
    ]


# ---------------------------------------------------------------------------------------------- the picture


def draw_sheet(title: str, columns: Sequence[Column], sample_rate: int) -> Figure:
    """One row per item, one column per origin; in each, the modalities below each other."""
    from matplotlib.figure import Figure

    items = len(next(iter(columns[0].things.values())))
    kinds = [[_kind(values) for values in column.things.values()] for column in columns]
    tall = max(sum(HEIGHTS[kind] for kind in each) for each in kinds) + 0.15
    width, top = 1.45, 0.95
    figure = Figure((width * len(columns) + 0.2, tall * items + top), facecolor="white")
    high, wide = figure.get_figheight(), figure.get_figwidth()
    heading, _, below = title.partition("\n")
    figure.text(0.1 / wide, 1 - 0.08 / high, heading, va="top", fontsize=12, color=INK, weight="bold")
    figure.text(0.1 / wide, 1 - 0.32 / high, below, va="top", fontsize=8, color=QUIET)
    for place, column in enumerate(columns):
        left = (0.1 + width * place) / wide
        figure.text(left + 0.65 / wide, 1 - 0.85 / high, column.title, ha="center", fontsize=9, color=INK)
        for item in range(items):
            edge = high - top - tall * item
            for kind, values in zip(kinds[place], column.things.values(), strict=True):
                edge -= HEIGHTS[kind]
                ax = figure.add_axes((left, edge / high, 1.3 / wide, (HEIGHTS[kind] - 0.06) / high))
                ax.set_axis_off()
                _draw(ax, kind, values[item], sample_rate)
    return figure


def _kind(values: Tensor | list[str]) -> str:
    return "text" if isinstance(values, list) else "image" if values.ndim == 4 else "audio"


def _draw(ax: Axes, kind: str, value: Any, sample_rate: int) -> None:
    if kind == "text":
        ax.text(0.5, 0.95, "\n".join(textwrap.wrap(value, 24)[:4]), ha="center", va="top", fontsize=6.5, color=INK)
    elif kind == "image":
        picture = value.movedim(0, -1).cpu()
        ax.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
    else:
        ax.imshow(
            spectrogram(value.cpu(), sample_rate).numpy(), origin="lower", aspect="auto", cmap="magma", vmin=-8, vmax=0
        )


def spectrogram(sound: Tensor, sample_rate: int) -> Tensor:
    """Powers of ten of the magnitude relative to the loudest place, (frequencies, times), for sound (samples,)."""
    size = max(16, WINDOW * sample_rate // 8000)
    window = torch.hann_window(size)
    power = torch.stft(sound, size, size // 4, window=window, return_complex=True).abs().square()
    return (power / power.max().clamp(min=1e-12)).clamp(min=1e-8).log10()


# ---------------------------------------------------------------------------------------------- the page


def _section(columns: Sequence[Column], folder: Path, name: str, sample_rate: int) -> str:
    """A table of a direction; its pictures and sounds are files beside the page."""
    things = folder / name
    shutil.rmtree(things, ignore_errors=True)

    def store(file: str, content: bytes) -> str:
        write_file(things / file, content, ELSEWHERE)
        return f"{name}/{file}"

    return table_of(columns, sample_rate, store)


def table_of(columns: Sequence[Column], sample_rate: int, store: Callable[[str, bytes], str]) -> str:
    """An HTML table, one row per item and one column per origin. `store` takes a name, as `0-1-image.png`, and the
    file of a picture or a sound, and returns where the page finds it."""
    items = len(next(iter(columns[0].things.values())))
    rows = [
        [
            list(_stored(column.things, item, f"{item}-{place}", sample_rate, store))
            for place, column in enumerate(columns)
        ]
        for item in range(items)
    ]
    return render("report/things.html.jinja", titles=[column.title for column in columns], rows=rows)


def _stored(
    things: Raw, item: int, name: str, sample_rate: int, store: Callable[[str, bytes], str]
) -> Iterator[tuple[str, str]]:
    """The kind of each modality, and the item's text or where the page finds it."""
    for modality, values in things.items():
        content = io.BytesIO()
        if isinstance(values, list):
            yield "text", values[item]
        elif _kind(values) == "image":
            write_png(content, values[item].cpu())
            yield "image", store(f"{name}-{modality}.png", content.getvalue())
        else:
            write_wav(content, values[item].cpu(), sample_rate)
            yield "audio", store(f"{name}-{modality}.wav", content.getvalue())
