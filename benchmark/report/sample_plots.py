"""What a trained model generates: rows as a safetensors file, and pictures that a person can judge.

Pictures need the extra "plots". Two views of vector modalities: the coordinates that two modalities share, one
against the other, where a coherent model lies on the diagonal; and the main directions of the real rows, where a
model that lost modes leaves grey bare.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from benchmark import registry
from benchmark.api import TASKS, Batch, Cell, UserError
from benchmark.config import nearest, resolve
from benchmark.engine.evaluate import BATCH_ROWS, check_rows, given_of
from benchmark.engine.execution import guarded, trained_method
from benchmark.engine.train import autocast, read_log, separate
from benchmark.files import ELSEWHERE, write_file
from benchmark.records.run_identity import Run
from benchmark.report import sample_grids
from benchmark.report.plots import INK, QUIET, png, why_none
from benchmark.runtime import Draws, copied

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACKDROP_ROWS = 4096  # real rows behind the generated ones, and behind their main directions
MOST_ROWS = 256  # where the user names no number
MOST_COLUMNS = 16  # samples in a grid of pictures
MOST_POINTS = 20_000  # per panel of shared coordinates; more only blacken it
REAL, GENERATED = "#c9c8c2", "#2a6fbb"

Pair = tuple[str, str, Tensor, Tensor]  # source, target, and the shared coordinates of both, (rows, shared)
View = tuple[str, Tensor, Tensor]  # what is seen, and real and generated rows on two directions, (rows, 2)


def write_samples(run: Run, given: tuple[str, ...], rows: int | None, device: str, folder: Path) -> list[str]:
    """Write `rows` generated rows of the modalities that are not given into `folder`; return lines to print.

    `<given>_to_<want>.safetensors` holds `given.<name>`, `generated.<name>` and `real.<name>`, each (rows, *shape) in
    raw units: row r answers test row r where anything is given. With the extra "plots" a picture of the same name
    stands beside it, and the training curve as `training.png`. Raises UserError for a modality that is unknown, a
    cell that the method does not support, too many rows, a run that is not trained, and a folder that cannot be
    written.
    """
    cell, data, real, generated = _made(run, given, rows, device)
    rows = len(next(iter(generated.values())))
    contents = {f"given.{name}": real[name] for name in cell.given}
    contents |= {f"generated.{name}": generated[name] for name in cell.want}
    contents |= {f"real.{name}": real[name] for name in cell.want}
    facts = {
        "method": registry.stem(run.job.method),
        "preset": run.job.preset,
        "seed": run.job.seed,
        "cell": str(cell),
        "run_id": run.run_id,
    }
    path = folder / f"{cell.stem}.safetensors"
    described = {"run": json.dumps(facts)}  # one entry: safetensors writes several in an order of the moment
    write_file(path, save(separate(contents), metadata=described), ELSEWHERE)
    pairs = _shared(cell, data, real, generated)
    lines = [f"{rows} rows, {str(cell).partition(': ')[2]}: {path}"]
    if pairs:
        lines.append(f"coherence on these rows: {_coherence(pairs)}")
    if reason := why_none():
        return [*lines, f"no picture: {reason}"]
    if picture := _picture(run, cell, data, real, generated):
        write_file(path.with_suffix(".png"), png(picture), ELSEWHERE)
        lines.append(f"picture: {path.with_suffix('.png')}")
    if curve := list(read_log(run.directory)):
        write_file(folder / "training.png", png(draw_training(f"{_who(run)}: training", curve)), ELSEWHERE)
        lines.append(f"training curve: {folder / 'training.png'}")
    return lines


def sampled_picture(run: Run, given: tuple[str, ...], rows: int | None, device: str) -> Figure | None:
    """The picture that `write_samples` writes; None for a dataset that has none. Raises UserError as that does."""
    return _picture(run, *_made(run, given, rows, device))


def _made(run: Run, given: tuple[str, ...], rows: int | None, device: str) -> tuple[Cell, Any, Batch, Batch]:
    """The cell, the dataset, its first test rows, and what the trained method generates for them. Raises UserError."""
    cell = _cell(run, given)
    with guarded(run, device):
        return cell, *_of_trained(run, cell, rows, device)


def _of_trained(run: Run, cell: Cell, rows: int | None, device: str) -> tuple[Any, Batch, Batch]:
    method, data, progress = trained_method(run, device)
    if run.method_card.stages and (progress is None or not progress.done):
        stands = f"stands at update {progress.updates} of {run.config.updates}" if progress else "has no trained model"
        raise UserError(f"{run.directory} {stands}: train it with: {train_command(run)}")
    rows = min(MOST_ROWS, data.count("test")) if rows is None else rows
    if rows > data.count("test"):
        raise UserError(f"--rows {rows}: {cell.dataset} has {data.count('test')} test rows here: ask for no more")
    return data, *_generate(run, method, data, cell, rows, device)


def _picture(run: Run, cell: Cell, data: Any, real: Batch, generated: Batch) -> Figure | None:
    """Of pictures and their labels, or else of vectors; None where there are neither."""
    if any(each.kind == "image" for each in data.modalities):
        return _grid(run, cell, data, real, generated)
    vectors = [each.name for each in data.modalities if each.kind == "vector" and each.name in cell.want]
    if not vectors:
        return None
    pairs = _shared(cell, data, real, generated)
    title = _title(run, cell, len(generated[vectors[0]]), pairs)
    return draw(title, pairs, _projections(data, vectors, generated))


def train_command(run: Run) -> str:
    """The command that trains exactly this run."""
    plain = resolve(run.dataset_card, run.method_card, run.job.preset).config.values()
    words = [
        "bench",
        "run",
        "--method",
        run.job.method,
        "--dataset",
        run.job.dataset,
        "--preset",
        run.job.preset,
        "--seed",
        str(run.job.seed),
    ]
    for name, value in run.config.values().items():
        if value != plain[name]:
            words += ["--set", f"{name}={value}"]
    runs = run.directory.parents[3]
    return shlex.join(words + (["--runs", str(runs)] if runs != Path("runs") else []))


def _cell(run: Run, given: tuple[str, ...]) -> Cell:
    """The cell that generates all modalities that are not given, in the dataset's order. Raises UserError."""
    names = run.dataset_card.modalities
    for name in given:
        if name not in names:
            raise UserError(f"--given {name}: {run.dataset_card.label} has no such modality{nearest(name, names)}")
    want = tuple(name for name in names if name not in given)
    if not want:
        raise UserError(f"--given {'+'.join(given)}: nothing is left to generate: give fewer than {', '.join(names)}")
    cell = Cell(registry.stem(run.job.dataset), tuple(name for name in names if name in given), want)
    if cell.task in TASKS and cell.task not in run.method_card.tasks:
        raise UserError(
            f"{run.method_card.label} does not support {cell.task} ({cell}): "
            f"it supports {', '.join(run.method_card.tasks)}"
        )
    return cell


def _generate(run: Run, method: Any, data: Any, cell: Cell, rows: int, device: str) -> tuple[Batch, Batch]:
    """The first `rows` test rows, and what the method generates for them."""
    real = data.rows("test", torch.arange(rows, device=device))
    parts = []
    for start in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - start)
        draws = Draws("sample", cell, run.job.seed, rows=count, first_row=start, device=device)
        source = given_of(method, cell, {name: x[start : start + count] for name, x in real.items()})
        with torch.no_grad(), autocast(run.config, device):
            made = method.sample(source, cell.want, count, draws)
        check_rows(made, cell, data.modalities, count)
        parts.append(copied({name: made[name] for name in cell.want}))
    return real, {name: torch.cat([part[name] for part in parts]) for name in cell.want}


def _grid(run: Run, cell: Cell, data: Any, real: Batch, generated: Batch) -> Figure:
    """The first samples, given modalities among them; framed where the verifier reads another label than theirs."""
    from benchmark.judges import verifier

    shown = {
        each.name: (real if each.name in cell.given else generated)[each.name][:MOST_COLUMNS]
        for each in data.modalities
    }
    views = {each.name: shown[each.name] for each in data.modalities if each.kind == "image"}
    labels = {each.name: shown[each.name] for each in data.modalities if each.kind == "label"}
    read = {name: verifier.reading(data, name, str(x.device)).read(x).labels for name, x in views.items()}
    for name in getattr(data, "labels", {}):  # that no modality says: of what is given, or as the first picture reads
        labels[name] = real[name][:MOST_COLUMNS] if cell.given else read[cell.want[0]][name]
    wrong = {name: sample_grids.disagreeing(read[name], labels) for name in views if name in cell.want}
    title = sample_grids.heading(_who(run), cell.question, run.dataset_card.label, list(wrong.values()))
    return sample_grids.draw_grid(title, views, labels, wrong)


def _shared(cell: Cell, data: Any, real: Batch, generated: Batch) -> list[Pair]:
    """What the generated rows share with the given ones, or with each other; none where the dataset names nothing."""
    if not hasattr(data, "shared"):
        return []
    sources = {name: real[name] for name in cell.given} or generated
    wanted = [(i, j) for i in sources for j in cell.want if cell.given or cell.want.index(i) < cell.want.index(j)]
    found = []
    for i, j in wanted:
        at_i, at_j = data.shared(i, j)
        found.append((i, j, sources[i][:, at_i].float().cpu(), generated[j][:, at_j].float().cpu()))
    return found


def _coherence(pairs: Sequence[Pair]) -> str:
    """The mean squared difference of shared coordinates, beside that of rows which have nothing in common."""
    found = math.fsum(_difference(source, target) for _, _, source, target in pairs) / len(pairs)
    strangers = math.fsum(_difference(source, target.roll(1, 0)) for _, _, source, target in pairs) / len(pairs)
    return f"MSE {found:#.3g} (0 is perfect, shuffled rows have {strangers:#.3g})"


def _difference(source: Tensor, target: Tensor) -> float:
    return (source - target).double().square().mean().item()


def _projections(data: Any, names: Sequence[str], generated: Batch) -> dict[str, list[View]]:
    """Per modality, views on the first two principal directions of the real rows: of all its coordinates, or, where the
    dataset names the factors that fill them, of each factor; the modes of several factors together only blur."""
    device = next(iter(generated.values())).device
    real = data.rows("test", torch.arange(min(BACKDROP_ROWS, data.count("test")), device=device))
    found: dict[str, list[View]] = {}
    for name in names:
        many, few = real[name].flatten(1).double().cpu(), generated[name].flatten(1).double().cpu()
        parts = getattr(data, "layout", {}).get(name, {"all coordinates": slice(None)})
        found[name] = [(part, *_main_plane(many[:, at], few[:, at])) for part, at in parts.items()]
    return found


def _main_plane(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the two directions in which the real rows vary most."""
    center = real.mean(0)
    directions = torch.linalg.svd(real - center, full_matrices=False)[2][:2].T
    return (real - center) @ directions, (generated - center) @ directions


def _who(run: Run) -> str:
    return f"{run.method_card.label}, preset {run.job.preset}, seed {run.job.seed}"


def _title(run: Run, cell: Cell, rows: int, pairs: Sequence[Pair]) -> str:
    coherence = f", coherence {_coherence(pairs)}" if pairs else ""
    return f"{_who(run)}: {cell.question}\n{run.dataset_card.label}, {rows} rows{coherence}"


# Pictures. matplotlib is optional, so it is imported where it is used.


def draw(title: str, pairs: Sequence[Pair], views: Mapping[str, Sequence[View]]) -> Figure:
    """Shared coordinates, source against target, above real and generated rows of each modality.

    The first line of `title` is printed larger. At most four panels stand in a row.
    """
    from matplotlib.figure import Figure

    bands: list[tuple[str, list[Callable[[Axes], None]]]] = []
    if pairs:
        bands.append(("Shared coordinates: on the diagonal is coherent", [partial(_draw_pair, pair) for pair in pairs]))
    for name, seen in views.items():
        bands.append(
            (
                f"{name}: main directions of the real rows (grey), generated rows (blue)",
                [partial(_draw_view, view) for view in seen],
            )
        )
    columns = min(4, max(len(panels) for _, panels in bands))
    heights = [math.ceil(len(panels) / columns) for _, panels in bands]
    inches = [0.7] + [2.8 * height + 0.35 for height in heights]
    figure = Figure((2.8 * columns + 0.2, sum(inches)), layout="constrained", facecolor="white")
    head, *below = figure.subfigures(len(inches), 1, height_ratios=inches, squeeze=False)[:, 0]
    first, _, second = title.partition("\n")
    head.text(0.01, 0.9, first, va="top", fontsize=14, color=INK, weight="bold")
    head.text(0.01, 0.42, second, va="top", fontsize=11, color=QUIET)
    for band, (heading, panels), height in zip(below, bands, heights, strict=True):
        band.suptitle(heading, x=0.01, ha="left", fontsize=11, color=INK)
        axes = band.subplots(height, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, paint in zip(axes, panels, strict=False):
            paint(ax)
    return figure


def _draw_pair(pair: Pair, ax: Axes) -> None:
    source_name, target_name, source, target = pair
    x, y = source.flatten()[:MOST_POINTS], target.flatten()[:MOST_POINTS]
    ax.axline((0, 0), slope=1, color=QUIET, linewidth=0.8)
    ax.scatter(x, y, s=3, linewidths=0, alpha=0.35, color=GENERATED)
    # The range of the source: a target that runs away must not shrink the rest to a dot.
    reach = 1.1 * float(x.abs().max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=source_name, ylabel=target_name)
    _quieten(ax, f"MSE {_difference(source, target):#.3g}")


def _draw_view(view: View, ax: Axes) -> None:
    part, real, generated = view
    ax.scatter(real[:, 0], real[:, 1], s=4, linewidths=0, color=REAL)
    ax.scatter(generated[:, 0], generated[:, 1], s=7, linewidths=0, alpha=0.75, color=GENERATED)
    middle, reach = (real.amax(0) + real.amin(0)) / 2, 0.65 * float((real.amax(0) - real.amin(0)).max())
    (left, low), (right, high) = (middle - reach).tolist(), (middle + reach).tolist()
    ax.set(xlim=(left, right), ylim=(low, high), aspect="equal", xticks=[], yticks=[])
    _quieten(ax, part)


def draw_training(title: str, curve: Sequence[Mapping[str, float]]) -> Figure:
    """Each logged part of the loss against updates, on an axis of its own."""
    from matplotlib.figure import Figure

    parts = [name for name in curve[-1] if name != "update"]
    figure = Figure((3.2 * len(parts) + 0.4, 3.2), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK, weight="bold")
    for ax, name in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        lines = [line for line in curve if name in line]  # stages log different parts
        ax.plot([line["update"] for line in lines], [line[name] for line in lines], color=GENERATED, linewidth=1.6)
        ax.set_xlabel("updates")
        ax.grid(color=REAL, linewidth=0.4)
        _quieten(ax, name)
    return figure


def _quieten(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=10, color=INK)
    ax.spines[:].set_color(REAL)
    ax.tick_params(colors=QUIET, labelsize=8)
    ax.xaxis.label.set_color(QUIET)
    ax.yaxis.label.set_color(QUIET)
