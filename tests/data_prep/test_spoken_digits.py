"""spoken_digits at its smallest: rows are standardised features of the things behind them, and all of it runs."""

from __future__ import annotations

import dataclasses
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmark import registry
from benchmark.api import Cell, words_of
from benchmark.config import resolve
from benchmark.engine import execution, tune
from benchmark.records import results_file, run_identity
from benchmark.records.job import job_of
from benchmark.runtime import Draws
from tests.helpers import command, processes
from tests.helpers.command import Answer
from tests.helpers.processes import at_call, bench, contents, die, die_after, rows

pytest.importorskip("datasets", reason="spoken_digits needs the extra spoken-digits")
pytest.importorskip("sklearn", reason="its smallest variant shows scikit-learn's digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for this file: codecs and judges are trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(cache))


@pytest.fixture(scope="module")
def data(cache: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUNI_BENCH_CACHE", str(cache))
        config = resolve(registry.card("dataset", "spoken_digits"), None, "smoke").config
        yield registry.load("dataset", "spoken_digits")(config, "cpu")


def test_corpora_hold_pairs_and_held_out_rows_all_three(data) -> None:
    at = torch.arange(4)
    for split in data.corpora:
        names = set(split.split("+"))
        words = {words_of("text")} if "text" in names else set()
        assert set(data.rows(split, at)) == names | words
        assert set(data.raw(split, at)) == names
    for split in ("validation", "test", "fresh"):
        assert set(data.rows(split, at)) == {"text", "image", "audio", words_of("text")}


def test_features_are_standardised_over_the_training_rows(data) -> None:
    for name in ("text", "image", "audio"):
        held = [split for split in data.corpora if name in split.split("+")]
        rows = torch.cat([data.rows(split, torch.arange(data.count(split)))[name] for split in held]).double()
        torch.testing.assert_close(rows.mean(0), torch.zeros(64).double(), atol=1e-4, rtol=0)
        torch.testing.assert_close(rows.std(0), torch.ones(64).double(), atol=1e-4, rtol=0)


def test_a_feature_is_that_of_the_thing_behind_it(data) -> None:
    """Encoding a row's things anew gives its features; rendering them gives what the codecs make of the things."""
    at = torch.tensor([7, 3, 3, 100])
    rows, raw = data.rows("test", at), data.raw("test", at)
    encoded = data._codecs.encode(raw)
    for name, (mean, scale) in data._scaling.items():
        torch.testing.assert_close(rows[name], (encoded[name] - mean) / scale, atol=1e-5, rtol=1e-4)
    assert torch.equal(rows[words_of("text")], data._codecs.words(raw["text"]))
    rendered = data.render({"image": rows["image"], "text": rows[words_of("text")]}, Draws("render", rows=4))
    torch.testing.assert_close(rendered["image"], data._codecs.decode({"image": encoded["image"]})["image"])
    assert [data.digit_of(text) for text in rendered["text"]] == data.attributes("test", at)["digit"].tolist()


def test_real_things_are_the_items_with_another_caption(data) -> None:
    at = torch.arange(100)
    raw, real = data.raw("test", at), data.real("test", at)
    assert torch.equal(raw["image"], real["image"]) and torch.equal(raw["audio"], real["audio"])
    same = sum(a == b for a, b in zip(raw["text"], real["text"], strict=True))
    assert same < 5
    assert [data.digit_of(text) for text in raw["text"]] == [data.digit_of(text) for text in real["text"]]


def test_the_projector_begins_as_the_frozen_one_and_gradients_pass(data) -> None:
    model = data.language_model()
    feature = Draws("feature", rows=3).normal("x", 64).requires_grad_()
    torch.testing.assert_close(model.projector()(feature), model.project(feature), atol=1e-5, rtol=1e-4)
    model.logits(
        torch.cat([model.projector()(feature), model.embed(torch.tensor([[model.start]] * 3))], 1)
    ).sum().backward()
    assert feature.grad is not None and feature.grad.any()
    assert not any(weight.requires_grad for weight in model.network.parameters())


def test_cells_give_the_test_split_and_compare_with_another(data) -> None:
    cell = Cell("spoken_digits", ("text",), ("image",))
    assert data.split_of(cell) == "test" and data.fresh_split(cell) == "fresh"
    config = resolve(registry.card("dataset", "spoken_digits"), None, "smoke").config
    other = registry.load("dataset", "spoken_digits")(dataclasses.replace(config, unconditional_rows=140), "cpu")
    assert other.rows_of(Cell("spoken_digits", (), ("text", "image", "audio"))) == 140
    assert other.rows_of(cell) == config.evaluation_rows


@pytest.mark.slow
def test_tables_run_end_to_end_and_are_scored_again_without_generating(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    options = ["--preset", "smoke", "--seed", "0", "--runs", runs]
    methods = [word for name in ("muni", "mvae", "real", "chance") for word in ("--method", name)]
    answer = command.bench("reproduce", "table3", *options, *methods)
    assert answer.status == 0, answer.err
    assert "Table 3 protocol on spoken_digits at preset smoke" in answer.out
    frame = results_file.load(runs / "results.csv")
    refused = frame[frame["method"] == "mvae"]["status"].unique().tolist()
    assert refused == ["n/a: MVAE trains on rows of all modalities, and here rows are pairs"]
    scored = frame[frame["method"] != "mvae"]
    assert set(scored["status"]) == {"ok"} and (scored["protocol"].str.count(r"\+") <= 1).all()
    value = scored.set_index(["method", "metric", "given"])["value"]
    assert value["real", "digit_agreement", "image+audio"] == 1  # captions are read exactly
    assert value["real", "ais", "text+audio"] > 80 > 65 > value["chance", "ais", "text+audio"] > 35
    files = {path: path.stat().st_mtime_ns for path in runs.rglob("generated/**/*") if path.is_file()}
    assert any(path.suffix == ".png" for path in files) and any(path.suffix == ".wav" for path in files)
    (runs / "results.csv").unlink()
    again = command.bench("reproduce", "table3", *options, "--method", "muni")
    assert again.status == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in files} == files
    second = results_file.load(runs / "results.csv").set_index(["method", "metric", "given"])["value"]
    assert (second["muni"] == value["muni"].reindex(second["muni"].index)).all()


def use_cache(folder: str) -> None:
    os.environ["MUNI_BENCH_CACHE"] = folder


def few_rows(runs: Path, cache: Path, *patches: partial) -> Answer:
    """Two blocks from nothing, by a method that hardly trained."""
    sizes = ("updates=3", "evaluation_rows=60", "unconditional_rows=300")
    words = [word for size in sizes for word in ("--set", size)]
    command = ["run", "--method", "muni", "--dataset", "spoken_digits", "--task", "uncond"]
    started = [partial(use_cache, str(cache)), *patches]
    return bench(*command, "--preset", "smoke", "--device", "cpu", *words, "--runs", runs, patches=started)


FATAL_CALLS = [
    ("benchmark.engine.samples.write_wav", 100, die),  # most of a block's sounds are there, and no line that names them
    ("benchmark.engine.samples.Samples.append", 1, die_after),
    ("benchmark.engine.samples.Samples.read", 2, die),
    ("os.write", 1, processes.die_halfway),  # a line of results.csv
]


@pytest.mark.slow
def test_a_run_killed_while_it_generates_ends_as_one_that_was_not(tmp_path: Path, cache: Path) -> None:
    assert few_rows(tmp_path / "whole", cache).status == 0
    for function, nth, how in FATAL_CALLS:
        answer = few_rows(tmp_path / "cut", cache, partial(at_call, function, nth, how))
        assert answer.status == -signal.SIGKILL, (function, nth, answer.err)
    assert few_rows(tmp_path / "cut", cache).status == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") != []

    def things(runs: Path) -> dict[str, bytes]:
        files = contents(next(runs.rglob("generated")))
        return {name: content for name, content in files.items() if name.endswith((".png", ".wav"))}

    assert things(tmp_path / "cut") == things(tmp_path / "whole") != {}


@pytest.mark.slow
def test_without_java_captions_have_error_rows_and_the_rest_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.metrics.common import caption_tokens

    def no_java() -> str:
        raise RuntimeError("CIDEr's tokenizer needs Java")

    monkeypatch.setattr(caption_tokens, "java", no_java)
    words = ["run", "--method", "real", "--dataset", "spoken_digits", "--task", "many_to_one", "--preset", "smoke"]
    answer = command.bench(*words, "--runs", tmp_path / "runs")
    assert answer.status == 1 and "cider: error: CIDEr's tokenizer needs Java" in answer.err
    status = results_file.load(tmp_path / "runs" / "results.csv").groupby("metric")["status"].unique().map(list)
    assert "error: CIDEr's tokenizer needs Java" in status["cider"]
    assert "ok" in status["clip_score"] and "ok" in status["fid"]


def test_a_search_scores_things_of_the_validation_split(tmp_path: Path) -> None:
    """The search's score is that of what lies in its own folder, beside the validation split's texts."""
    (tmp_path / "small.toml").write_text(
        'dataset = "spoken_digits"\nseed = 7\n'
        'fixed = ["updates=4", "evaluation_rows=60", "unconditional_rows=60"]\n'
        'metrics = { one_to_one = "digit_agreement", many_to_one = "digit_agreement", coherence = "digit_agreement" }\n'
        'changes = [["learning_rate=0.001"]]\n'
    )
    search = tune.load_search("small", tmp_path)
    (line,) = tune.tune(search, ["muni"], "smoke", "cpu", tmp_path, lambda *_: None)
    assert len(list(tmp_path.glob("smoke/spoken_digits/muni/*/validation/*/text_to_image/manifest.jsonl"))) == 1
    run = run_identity.prepare(
        job_of("muni", "spoken_digits", "smoke", 7, []), tmp_path, [*search.fixed, *search.points[0]]
    )
    assert not (run.directory / "generated").exists() and run.run_id == line["run_id"]
    data = registry.load("dataset", "spoken_digits")(run.config, "cpu")
    held_out, rows = tune.on_validation(data), torch.arange(60)
    for cell in (Cell("spoken_digits", ("text",), ("image",)), Cell("spoken_digits", ("image",), ("text",))):
        assert held_out.split_of(cell) == held_out.fresh_split(cell) == "validation"
    assert held_out.raw("validation", rows)["text"] != data.raw("test", rows)["text"]
    errors = []
    for cell in tune._cells(search, "one_to_one"):
        metric = registry.load("metric", "digit_agreement")(cell, held_out)
        kept = execution.kept_things(run, data, cell, None, "validation")
        metric.update(data.raw("validation", rows), kept.read(0, 60, cell.want))
        errors.append(1 - metric.compute().value)
    assert float(line["one_to_one"]) == pytest.approx(sum(errors) / 6, rel=1e-4)
