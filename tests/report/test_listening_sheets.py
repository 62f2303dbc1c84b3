"""Sheets show what is given, what is real and what each method made, and the page plays what it says."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmark.api import Cell, UserError
from benchmark.engine.samples import Samples
from benchmark.media.media_files import read_png, read_wav
from benchmark.report import listening_sheets, plots
from benchmark.report.listening_sheets import Column, draw_sheet, spectrogram, write_sheets

RATE, ITEMS = 8000, 2
CELL = Cell("world", ("audio",), ("text", "image"))


def tone(frequency: float, samples: int = 4000) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples) / RATE)


def things(shade: float) -> dict[str, torch.Tensor | list[str]]:
    return {
        "text": [f"<b>{shade} & {number}</b>" for number in range(ITEMS)],
        "image": torch.full((ITEMS, 1, 4, 4), shade),
        "audio": torch.stack([0.5 * tone(1000), 0.5 * tone(2000)]),
    }


class World:
    device, sample_rate = "cpu", RATE

    def rows_of(self, cell: Cell) -> int:
        return ITEMS

    def split_of(self, cell: Cell) -> str:
        return "test"

    def raw(self, split: str, indices: torch.Tensor) -> dict[str, torch.Tensor | list[str]]:
        return things(1.0)

    def render(self, generated: object, draws: object) -> None: ...


def test_a_spectrogram_peaks_where_the_tone_is() -> None:
    for frequency in (500.0, 1500.0, 3000.0):
        power = spectrogram(tone(frequency), RATE)
        assert power.max() == 0 and power.min() >= -8
        peak = power[:, power.shape[1] // 2].argmax().item()
        assert abs(peak * RATE / listening_sheets.WINDOW - frequency) <= RATE / listening_sheets.WINDOW


def test_a_sheet_has_a_panel_for_every_thing_under_its_column() -> None:
    pytest.importorskip("matplotlib")
    shown = [
        Column("given", {"audio": things(1.0)["audio"]}),
        Column("A", {k: things(0.2)[k] for k in ("text", "image")}),
    ]
    figure = draw_sheet("audio → text + image\nworld", shown, RATE)
    assert len(figure.axes) == ITEMS * (1 + 2)
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["audio → text + image", "world", "given", "A"]
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert any(float(picture.max()) == float(picture.min()) == pytest.approx(0.2) for picture in pictures)
    assert all(0 <= edge <= 1 for ax in figure.axes for edge in ax.get_position().bounds)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """A trained method, an untrained one, and one that answers unconditional questions alone."""

    def run(name: str, tasks: tuple[str, ...], trained: bool) -> SimpleNamespace:
        card = SimpleNamespace(label=name, stages=(("joint", 1.0),), tasks=tasks)
        job = SimpleNamespace(method=name, dataset="world", preset="cpu", seed=0)
        about = SimpleNamespace(label="The world")
        return SimpleNamespace(job=job, method_card=card, dataset_card=about, config=None, trained=trained)

    def kept(run: SimpleNamespace, data: World, cell: Cell, method: object) -> Samples:
        return Samples(tmp_path / "kept" / run.job.method, {"run": run.job.method})

    def keep(
        method: str, data: World, cell: Cell, config: None, seed: int, device: str, rows: int, kept: Samples
    ) -> None:
        if len(kept) < rows:
            kept.append({name: things(0.4)[name] for name in cell.want}, RATE, 0.1)

    monkeypatch.setattr(listening_sheets, "kept_things", kept)
    monkeypatch.setattr(listening_sheets, "keep", keep)
    monkeypatch.setattr(listening_sheets, "guarded", lambda run, device: contextlib.nullcontext())
    monkeypatch.setattr(
        listening_sheets,
        "trained_method",
        lambda run, device: (run.job.method, World(), SimpleNamespace(done=run.trained)),
    )
    return [run("A", ("one_to_many",), True), run("B", ("one_to_many",), False), run("C", ("uncond",), True)]


def test_the_page_holds_what_it_names(tmp_path: Path, runs: list[SimpleNamespace]) -> None:
    pytest.importorskip("matplotlib")
    lines = write_sheets(runs, [CELL], ITEMS, "cpu", tmp_path / "sheets", lambda *parts: None)
    assert lines[0] == "B is not trained" and "index.html" in lines[-1]
    page = (tmp_path / "sheets" / "index.html").read_text()
    assert re.findall("<th>(.*?)</th>", page) == ["given", "real", "A"]
    assert "&lt;b&gt;0.4 &amp; 1&lt;/b&gt;" in page and "<b>0.4" not in page
    files = re.findall('src="(.*?)"', page)
    assert len(files) == ITEMS * 3  # a sound that is given, a real picture, a generated one
    made = [read_png(tmp_path / "sheets" / file) for file in files if file.endswith(".png")]
    assert sorted(round(float(picture.mean()), 1) for picture in made) == [0.4, 0.4, 1.0, 1.0]
    sound, rate = read_wav(tmp_path / "sheets" / next(file for file in files if file.endswith(".wav")))
    torch.testing.assert_close(sound, 0.5 * tone(1000), atol=1e-4, rtol=0)
    assert rate == RATE
    assert (tmp_path / "sheets" / "audio_to_text+image.png").stat().st_size > 5000


def test_nothing_trained_is_said_in_one_line(tmp_path: Path, runs: list[SimpleNamespace]) -> None:
    with pytest.raises(UserError, match="nothing to show: B is not trained"):
        write_sheets(runs[1:2], [CELL], ITEMS, "cpu", tmp_path, lambda *parts: None)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, runs: list[SimpleNamespace]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_bytes(b"a file")
    with pytest.raises(UserError, match=r"cannot write .*file/.*: it is as it was; name another folder with --out"):
        write_sheets(runs[:1], [CELL], ITEMS, "cpu", tmp_path / "file", lambda *parts: None)
    assert (tmp_path / "file").read_bytes() == b"a file"


def test_without_matplotlib_a_line_says_so(
    tmp_path: Path, runs: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no sheets: matplotlib is not installed: .*pip install"):
        write_sheets(runs, [CELL], ITEMS, "cpu", tmp_path / "sheets", lambda *parts: None)
    assert not (tmp_path / "sheets").exists()


def test_a_dataset_without_things_is_refused(
    tmp_path: Path, runs: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        listening_sheets, "trained_method", lambda run, device: ("A", object(), SimpleNamespace(done=True))
    )
    with pytest.raises(UserError, match="bench sample draws its rows"):
        write_sheets(runs[:1], [CELL], ITEMS, "cpu", tmp_path, lambda *parts: None)
