"""Generated things on disk: what was written is what is scored, once, and neither a crash nor damage goes unnoticed."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import Batch, Cell, Modality, Raw, Score, UserError
from benchmark.config import Config, resolve
from benchmark.engine import evaluate
from benchmark.engine.evaluate import evaluate_cell
from benchmark.engine.samples import Samples, one_line
from benchmark.engine.train import training_batch
from benchmark.media.media_files import read_png, read_wav, write_png, write_wav
from benchmark.runtime import Draws

CELL = Cell("pairs", ("audio",), ("text", "image"))
RATE = 8000


def things(rows: int, seed: int = 0) -> Raw:
    draws = Draws("things", seed, rows=rows)
    return {
        "text": [f"line {number} of {seed}" for number in range(rows)],
        "image": draws.integers("image", 256, 1, 4, 4).float() / 255,
        "audio": draws.integers("audio", 2**16 - 1, 50).float() / (2**15 - 1) - 1,
    }


def same(first: Raw, second: Raw) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], atol=1e-6)
        if isinstance(first[name], Tensor)
        else first[name] == second[name]
        for name in first
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    samples = Samples(tmp_path / "cell", {"run": 1})
    samples.append(things(3), RATE, 0.6)
    samples.append(things(2, seed=1), RATE, 0.5)
    again = Samples(tmp_path / "cell", {"run": 1})
    assert len(again) == 5 and again.seconds == pytest.approx(1.1)
    assert same(again.read(0, 3, ["text", "image", "audio"]), things(3))
    assert same(again.read(3, 2, ["audio"]), {"audio": things(2, seed=1)["audio"]})
    lines = (tmp_path / "cell" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(lines[4])["image"] == {"file": "image/000004.png"} and json.loads(lines[4])["row"] == 4


def test_colour_and_shades_survive_a_png(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for channels in (1, 3):
        picture = Draws("png", channels, rows=1).integers("x", 256, channels, 5, 7)[0].float() / 255
        write_png(tmp_path / "x.png", picture)
        assert torch.equal(read_png(tmp_path / "x.png"), picture)


def test_a_sound_is_clipped_to_its_range_and_keeps_its_rate(tmp_path: Path) -> None:
    write_wav(tmp_path / "x.wav", torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), 16000)
    sound, rate = read_wav(tmp_path / "x.wav")
    torch.testing.assert_close(sound, torch.tensor([-1.0, -1.0, 0.0, 0.5, 1.0, 1.0]), atol=2e-5, rtol=0)
    assert rate == 16000


def test_the_channels_of_a_sound_are_averaged(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(torch.tensor([100, 300, -50, 50], dtype=torch.int16).numpy().tobytes())
    torch.testing.assert_close(read_wav(tmp_path / "x.wav")[0] * (2**15 - 1), torch.tensor([200.0, 0.0]))


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\nb", "a\u2028b", "a\x0bb", " a \t b ", "a\x85b", "a\x0cb", "a\u2029b"]
)
def test_a_sentence_is_one_line(hostile: str) -> None:
    assert one_line(hostile) == "a b"


@pytest.mark.parametrize("fault", ["cut", "empty", "other bits", "no sound"])
def test_a_damaged_file_is_named(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("PIL")
    picture, sound = tmp_path / "cell" / "image" / "a.png", tmp_path / "cell" / "audio" / "a.wav"
    for path in (picture, sound):
        path.parent.mkdir(parents=True)
    write_png(picture, torch.rand(1, 8, 8))
    write_wav(sound, torch.rand(100), RATE)
    if fault == "other bits":
        sound.write_bytes(sound.read_bytes()[:34] + b"\x08\x00" + sound.read_bytes()[36:])
    elif fault == "no sound":
        write_wav(sound, torch.empty(0), RATE)
    else:
        for path in (picture, sound):
            path.write_bytes(path.read_bytes()[: 20 if fault == "cut" else 0])
        with pytest.raises(UserError, match=r"a\.png: not a whole picture .*remove .*cell"):
            read_png(picture)
    with pytest.raises(UserError, match=r"a\.wav: not a whole sound .*remove .*cell"):
        read_wav(sound)


@pytest.mark.parametrize("damage", ["manifest.jsonl", "about.json", "other run"])
def test_rows_of_another_run_or_a_damaged_manifest_are_thrown_away(tmp_path: Path, damage: str) -> None:
    pytest.importorskip("PIL")
    Samples(tmp_path, {"run": 1}).append(things(2), RATE, 0.1)
    if damage != "other run":
        path = tmp_path / damage
        path.write_bytes(path.read_bytes()[:-9])
    assert len(Samples(tmp_path, {"run": 2 if damage == "other run" else 1})) == 0
    assert not tmp_path.exists()


# ---------------------------------------------------------------------------------------------- scoring from disk


class Pairs:
    """A dataset of features whose things are a picture of the feature and a line that names it."""

    modalities = (
        Modality("text", (2,), "text", classes=9, words=1),
        Modality("image", (2,), "image"),
        Modality("audio", (2,), "audio"),
    )
    corpora = ("text+image", "text+audio", "image+audio")
    sample_rate = RATE

    def count(self, split: str) -> int:
        return {"text+image": 10, "text+audio": 30, "image+audio": 60, "held out": 600}[split]

    def rows_of(self, cell: Cell) -> int:
        return 600

    def split_of(self, cell: Cell) -> str:
        return "held out"

    def rows(self, split: str, indices: Tensor) -> Batch:
        return {
            name: torch.stack([indices, indices + 1], 1).float() for name in split.split("+") if split in self.corpora
        } or {name: torch.stack([indices, indices + 1], 1).float() for name in ("text", "image", "audio")}

    def raw(self, split: str, indices: Tensor) -> Raw:
        return {"text": [str(int(index)) for index in indices], "image": (indices % 256)[:, None, None, None] / 255}

    def render(self, features: Batch, draws: Draws) -> Raw:
        shade = (features["image"][:, :1, None, None] % 256) / 255
        return {"text": [str(int(word)) for word in features["text"][:, 0]], "image": shade}


class Echo:
    """Generates from a row the row's own number; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def sample(self, given: Batch, want: Any, rows: int, draws: Draws) -> Batch:
        self.calls += 1
        return {"text": given["audio"][:, :1].long() % 9, "image": given["audio"]}


class Shade:
    """The mean difference of pictures, in levels, and the share of lines whose number is the row's, modulo nine."""

    def __init__(self, cell: Cell, data: Any) -> None:
        self.found: list[tuple[float, bool]] = []

    def update(self, real: Raw, generated: Raw) -> None:
        gaps = 255 * (real["image"] - generated["image"]).abs().flatten(1).mean(1)  # type: ignore[operator]
        right = [int(a) % 9 == int(b) for a, b in zip(real["text"], generated["text"], strict=True)]
        self.found += zip(gaps.tolist(), right, strict=True)

    def compute(self) -> Score:
        worst = max(gap for gap, _ in self.found) + sum(not right for _, right in self.found)
        return Score(worst, None, len(self.found))


@pytest.fixture
def shade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name, own=(): Shade)


def config() -> Config:
    return resolve(registry.card("dataset", "gaussian_mixture"), None, "smoke").config


def score(method: Any, kept: Samples) -> Any:
    (result,) = evaluate_cell(method, Pairs(), CELL, ["shade"], config(), 0, "cpu", kept=kept)
    return result


def test_things_are_scored_from_disk_and_generated_once(tmp_path: Path, shade: None) -> None:
    pytest.importorskip("PIL")
    method = Echo()
    first = score(method, Samples(tmp_path, {"run": 1}))
    assert first.score == Score(pytest.approx(0, abs=1e-4), None, 600) and method.calls == 3
    second = score(method, Samples(tmp_path, {"run": 1}))
    assert second.score == first.score and second.sample_seconds == pytest.approx(first.sample_seconds)
    assert method.calls == 3  # scored again, not generated again
    write_png(tmp_path / "image" / "000300.png", torch.zeros(1, 1, 1))
    assert score(method, Samples(tmp_path, {"run": 1})).score.value == pytest.approx(
        300 % 256
    )  # what lies there counts


def test_generation_goes_on_at_the_block_where_it_was_cut(
    tmp_path: Path, shade: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setattr(evaluate, "KEPT_ROWS", 256)
    method, append = Echo(), Samples.append

    def dies(self: Samples, *parts: Any) -> None:
        if len(self):
            raise KeyboardInterrupt
        append(self, *parts)

    monkeypatch.setattr(Samples, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        score(method, Samples(tmp_path, {"run": 1}))
    monkeypatch.setattr(Samples, "append", append)
    kept = Samples(tmp_path, {"run": 1})
    assert len(kept) == 256
    assert score(method, kept).score.value == pytest.approx(0, abs=1e-4)
    assert method.calls == 4  # 1, 2 (lost), 2, 3


def test_a_method_may_make_things_itself(tmp_path: Path, shade: None) -> None:
    pytest.importorskip("PIL")

    class Own:
        def things(self, cell: Cell, split: str, indices: Tensor, draws: Draws) -> Raw:
            assert split == "held out"
            return Pairs().raw(split, indices + 1)

    assert score(Own(), Samples(tmp_path, {"run": 1})).score.value >= 600


# ---------------------------------------------------------------------------------------------- corpora


def test_a_batch_comes_from_one_corpus_in_proportion_to_its_rows() -> None:
    drawn: dict[frozenset[str], int] = {}
    for update in range(2000):
        batch = training_batch(Pairs(), Draws("train", update, rows=3), 0, update)
        drawn[frozenset(batch)] = drawn.get(frozenset(batch), 0) + 1
    assert set(drawn) == {frozenset(("text", "image")), frozenset(("text", "audio")), frozenset(("image", "audio"))}
    for names, share in ((("text", "image"), 0.1), (("text", "audio"), 0.3), (("image", "audio"), 0.6)):
        assert abs(drawn[frozenset(names)] / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    again = [frozenset(training_batch(Pairs(), Draws("train", update, rows=3), 1, update)) for update in range(20)]
    first = [frozenset(training_batch(Pairs(), Draws("train", update, rows=3), 0, update)) for update in range(20)]
    assert again != first  # the seed's own order
    assert first == [
        frozenset(training_batch(Pairs(), Draws("train", update, rows=3), 0, update)) for update in range(20)
    ]


def test_a_dataset_without_corpora_trains_on_its_split() -> None:
    data = SimpleNamespace(count=lambda split: 7, rows=lambda split, at: {split: at})
    draws = Draws("train", rows=5)
    assert torch.equal(training_batch(data, draws, 0, 0)["train"], Draws("train", rows=5).integers("rows", 7))


def test_a_metrics_own_protocol_goes_with_its_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")

    class Stated(Shade):
        @staticmethod
        def protocol(data: Any) -> dict[str, Any]:
            return {"judge": "of version 2", "rows": data.count("held out")}

    monkeypatch.setattr(registry, "load", lambda kind, name, own=(): Stated)
    assert score(Echo(), Samples(tmp_path, {"run": 1})).protocol == {"judge": "of version 2", "rows": 600}


def test_a_metric_that_lacks_something_is_an_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")

    class Lacking(Shade):
        def compute(self) -> Score:
            raise RuntimeError("no Java:\nput java on the PATH")

    monkeypatch.setattr(registry, "load", lambda kind, name, own=(): Lacking if name == "lacking" else Shade)
    kept = Samples(tmp_path, {"run": 1})
    first, second = evaluate_cell(Echo(), Pairs(), CELL, ["lacking", "shade"], config(), 0, "cpu", kept=kept)
    assert (first.metric, first.reason, first.score) == ("lacking", "error: no Java: put java on the PATH", None)
    assert second.score is not None and second.score.value == pytest.approx(0, abs=1e-4)


def test_chance_shuffles_each_modality_by_itself() -> None:
    chance = registry.load("method", "chance")((), config())
    chance.bind(Pairs())
    whole = chance.things(CELL, "held out", torch.arange(600), Draws("x", rows=600))
    numbers = [int(text) for text in whole["text"]]
    assert sorted(numbers) == list(range(600)) and numbers != list(range(600))
    shades = (whole["image"].flatten() * 255).round().long()
    assert (shades != torch.tensor(numbers) % 256).float().mean() > 0.9  # another order than the texts'
    part = chance.things(CELL, "held out", torch.arange(256, 512), Draws("y", rows=256))
    assert part["text"] == whole["text"][256:512]
