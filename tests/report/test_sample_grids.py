"""Grids of pictures show the samples as they are, and frame exactly those whose labels the verifier does not read."""

from __future__ import annotations

import io

import torch

from benchmark.report import sample_grids


def views() -> dict[str, torch.Tensor]:
    """Two views of three samples: each picture is one grey, and no two are alike."""
    return {
        name: torch.linspace(0.1 + k / 3, 0.3 + k / 3, 3)[:, None, None, None].expand(3, 3, 8, 8)
        for k, name in enumerate("ab")
    }


def test_the_mosaic_holds_every_picture_and_frames_the_wrong() -> None:
    wrong = {"b": torch.tensor([False, True, False])}
    whole, side = sample_grids.mosaic(views(), wrong), 8 + 2 * sample_grids.GAP
    assert whole.shape == (3, 2 * side, 3 * side)
    for row, (name, pictures) in enumerate(views().items()):
        for column, picture in enumerate(pictures):
            tile = whole[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            assert torch.equal(
                tile[:, sample_grids.GAP : -sample_grids.GAP, sample_grids.GAP : -sample_grids.GAP], picture
            )
            assert (tile[:, 0] == 1).all() and (tile[:, :, -1] == 1).all()  # tiles do not touch
            red = (tile[:, 1, 1:-1] == torch.tensor(sample_grids.WRONG)[:, None]).all()
            assert bool(red) == (name == "b" and column == 1)


def test_a_picture_is_wrong_where_any_label_differs() -> None:
    labels = {"digit": torch.tensor([1, 2, 3, 4]), "quadrant": torch.tensor([0, 1, 2, 3])}
    said = {"digit": torch.tensor([1, 9, 3, 9]), "quadrant": torch.tensor([0, 1, 0, 0])}
    assert sample_grids.disagreeing(said, labels).tolist() == [False, True, True, True]


def test_the_heading_counts_the_wrong() -> None:
    wrong = [torch.tensor([True, False]), torch.tensor([True, True])]
    assert "(3 of 4 pictures)" in sample_grids.heading("MUNI", "nothing → all", "data", wrong)


def test_a_grid_is_drawn() -> None:
    figure = sample_grids.draw_grid(
        "Title\nmore", views(), {"digit": torch.tensor([7, 8, 9])}, {"a": torch.tensor([True] * 3)}
    )
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"digit", "7", "8", "9"} <= texts and [text.get_text() for text in figure.texts] == ["Title", "more"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    content = io.BytesIO()
    figure.savefig(content, format="png")
    assert content.getvalue().startswith(b"\x89PNG")
