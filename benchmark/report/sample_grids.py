"""Pictures of joint samples: the views of a sample below each other, its labels underneath, wrong views framed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmark.report.plots import INK, QUIET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 3  # pixels around a picture: a white one, and within it the frame of a wrong one
WRONG = (0.85, 0.1, 0.1)


def draw_grid(
    title: str, views: Mapping[str, Tensor], labels: Mapping[str, Tensor], wrong: Mapping[str, Tensor]
) -> Figure:
    """One column per sample: its pictures, then its labels.

    views: name -> (samples, 3 or 1, height, width) in [0, 1]; labels: name -> (samples,); wrong: name of a view ->
    (samples,) booleans, those to frame. The first line of `title` is printed larger.
    """
    from matplotlib.figure import Figure

    samples = len(next(iter(views.values())))
    side = max(x.shape[-1] for x in views.values()) + 2 * GAP
    height, lines = side * len(views), 0.22 * len(labels)
    inch = max(0.45, min(0.8, 13 / samples))  # of one picture
    figure = Figure((inch * samples + 1.1, inch * len(views) + lines + 0.85), facecolor="white")
    total = figure.get_figheight()
    first, _, second = title.partition("\n")
    figure.text(0.01, 1 - 0.1 / total, first, va="top", fontsize=13, color=INK, weight="bold")
    figure.text(0.01, 1 - 0.37 / total, second, va="top", fontsize=9, color=QUIET)
    left = 1.0 / figure.get_figwidth()
    ax = figure.add_axes((left, (lines + 0.1) / total, 1 - left - 0.005, inch * len(views) / total))
    ax.imshow(mosaic(views, wrong).permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
    ax.set(xticks=[], yticks=[(row + 0.5) * side for row in range(len(views))], yticklabels=list(views))
    ax.tick_params(length=0, labelsize=9, labelcolor=INK)
    ax.spines[:].set_visible(False)
    for line, (name, values) in enumerate(labels.items()):
        below = height + side * 0.22 / inch * (line + 0.5)
        ax.text(-0.15 * side, below, name, ha="right", va="center", fontsize=9, color=INK)
        for sample, value in enumerate(values.tolist()):
            ax.text((sample + 0.5) * side, below, str(value), ha="center", va="center", fontsize=9, color=INK)
    return figure


def mosaic(views: Mapping[str, Tensor], wrong: Mapping[str, Tensor]) -> Tensor:
    """All pictures in one, (3, views * side, samples * side): white gaps, and red ones around the wrong."""
    side = max(x.shape[-1] for x in views.values())
    rows = [torch.cat(list(_framed(x.float().cpu(), wrong.get(name), side)), -1) for name, x in views.items()]
    return torch.cat(rows, -2)


def _framed(pictures: Tensor, wrong: Tensor | None, side: int) -> Tensor:
    """(samples, 3, side + 2 GAP, side + 2 GAP): smaller pictures stand in the corner of a white square."""
    samples, _, height, width = pictures.shape
    framed = torch.ones(samples, 3, side + 2 * GAP, side + 2 * GAP)
    if wrong is not None:
        framed[wrong.cpu(), :, 1:-1, 1:-1] = torch.tensor(WRONG)[:, None, None]
    framed[:, :, GAP:-GAP, GAP:-GAP] = 1
    framed[:, :, GAP : GAP + height, GAP : GAP + width] = pictures.clamp(0, 1)
    return framed


def disagreeing(said: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Whether a verifier's reading of each picture, name -> (samples,), differs from the sample's labels in any."""
    return torch.stack([said[name].cpu() != values.cpu() for name, values in labels.items()]).any(0)


def heading(who: str, question: str, dataset: str, wrong: Sequence[Tensor]) -> str:
    """Title of a grid; its second line says how many pictures are wrong."""
    of = sum(len(each) for each in wrong)
    count = sum(int(each.sum()) for each in wrong)
    return f"{who}: {question}\n{dataset}; framed: the verifier reads another label ({count} of {of} pictures)"
