"""The report is one well-formed, inert page: the right numbers, the rows behind them, and pictures that decode."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
import wave
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark import registry
from benchmark.api import Cell, UserError
from benchmark.engine import execution
from benchmark.records import results_file, run_identity, selection
from benchmark.records.job import Job
from benchmark.report import html_report, plots
from benchmark.tables import table_file
from benchmark.tables.summary import summarise
from tests.helpers.command import bench

Image = pytest.importorskip("PIL.Image")
VOID = {"meta", "img", "br", "link", "input"}
EVIL = "<script>alert(1)</script>"
VALUES = {"muni": (1.0, 1.1, 1.2, 1.3, 1.4), "mopoe": (2.0, 2.2, 2.4, 2.6, 2.8), EVIL: (7.0,) * 5}  # of the seeds
SMALL = ["updates=100", "train_rows=500", "evaluation_rows=128", "unconditional_rows=128", "batch_rows=32"]
SET = [word for each in SMALL for word in ("--set", each)]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "headless_shell")


class Page(HTMLParser):
    """A page taken apart; raises AssertionError where an element is not closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, name, value
        self.headings: list[str] = []
        self.tables: list[list[dict[str, Any]]] = []  # rows; a row has its texts, links, classes and its body's id
        self.terms: dict[str, str] = {}
        self.words: list[str] = []
        self._body = self._term = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tbody":
            self._body = found.get("id", "")
        elif tag == "tr":
            self.tables[-1].append({"texts": [], "links": [], "classes": [], "body": self._body})
        elif tag in ("td", "th"):
            row = self.tables[-1][-1]
            row["texts"].append("")
            row["links"].append("")
            row["classes"].append(found.get("class", ""))
        elif tag == "a" and "td" in self.open:
            self.tables[-1][-1]["links"][-1] = found["href"].removeprefix("#")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1]["texts"][-1] += data
        elif {"h1", "h2", "h3"} & set(self.open[-1:]):
            self.headings[-1] += data
        elif self.open[-1:] == ["dt"]:
            self._term = data
        elif self.open[-1:] == ["dd"]:
            self.terms[self._term] = data

    def table(self, first: str) -> list[dict[str, Any]]:
        return next(table for table in self.tables if table[0]["texts"][0] == first)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def made_up(values: dict[str, tuple[float, ...]] = VALUES, step: float = 1.0) -> list[results_file.Record]:
    """Rows of Table 5 at preset cpu: each method has a value per seed, and `step` more in each further column."""
    table = table_file.load_table("table5", registry.index("metric"), "cpu")
    versions = {"method_version": 1, "dataset_version": 1, "metric_version": 1}
    facts = {"protocol": "feed", "precision": "bfloat16", "sources": "beef", "commit": "c0ffee", "torch": "2.99"}
    costs = {"device": "An abacus", "train_seconds": 12.5, "parameters": 4321}
    return [
        results_file.Record(
            preset="cpu",
            dataset="gaussian_mixture",
            given="+".join(cell.given),
            want="+".join(cell.want),
            method=method,
            metric=column.metric,
            seed=seed,
            value=value + step * place,
            stderr=0.01,
            n=2048,
            status="ok",
            run_id=f"run-{number}-{seed}",
            **versions,
            **facts,
            **costs,  # type: ignore[arg-type]
        )
        for place, column in enumerate(table.columns)
        for cell in column.cells(table.dataset, ("x1", "x2", "x3"))
        for number, (method, of_seeds) in enumerate(values.items())
        for seed, value in enumerate(of_seeds)
    ]


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where --reference reads the rows of preset cpu; none are there yet."""
    path = tmp_path / "cpu.csv"
    monkeypatch.setattr(selection, "reference_path", lambda preset: path.with_stem(preset))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the made-up rows."""
    folder = tmp_path_factory.mktemp("report")
    results_file.append(folder / "cpu.csv", made_up())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "reference_path", lambda preset: folder / f"{preset}.csv")
        written(folder / "a.html", "--reference")
    return folder / "a.html"


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page(file.read_text())


def written(out: Path, *words: object) -> Page:
    code, said, errors = bench("report", "--out", out, *words)
    assert code == 0, errors
    assert f"{out}: {out.stat().st_size / 1e6:.1f} MB" in said and f"Next: open {out}" in said
    return Page(out.read_text())


def test_a_number_stands_in_its_cell_and_leads_to_the_rows_behind_it(page: Page) -> None:
    assert page.headings[:3] == [
        "muni-bench: the reference rows",
        "Preset cpu",
        "Table 5 protocol at preset cpu: not comparable with the paper's numbers",
    ]
    assert page.headings[-2:] == ["Claims", "The rows behind the numbers"]
    measured = page.table("measured")
    assert measured[0]["texts"][:3] == ["measured", "1→1 align. ↓", "2→1 align. ↓"]
    muni = next(row for row in measured if row["texts"][0].startswith("MUNI") and "Hell" not in row["texts"][0])
    assert muni["texts"][1:3] == ["1.2000 ±0.0707", "2.2000 ±0.0707"]  # 0.1581 / sqrt(5)
    behind = [row for table in page.tables for row in table if row["body"] == muni["links"][2]]
    assert behind[0]["texts"] == ["MUNI, 2→1 align.: shared_mse"]
    assert [row["texts"][:3] for row in behind[1:4]] == [
        ["x1+x2 → x3", "0", "2.0"],
        ["x1+x2 → x3", "1", "2.1"],
        ["x1+x2 → x3", "2", "2.2"],
    ]
    facts = ["0.01", "2048", "run-0-1", "c0ffee", "2.99", "An abacus", "feed", "bfloat16", "1, 1, 1", "12.5"]
    assert behind[2]["texts"][3:] == facts and len(behind) == 1 + 3 * 5
    papers = next(row for row in page.table("the paper's numbers, at its own scale") if row["texts"][0] == "MVAE")
    assert papers["texts"][1] == "0.2265" and papers["links"][1] == ""
    assert page.terms["machines"] == "An abacus" and page.terms["commits"] == "c0ffee"
    assert page.terms["rows"].startswith(f"{len(made_up())}: {len(made_up())} numbers, 0 ")


def test_links_lead_to_one_place_and_nothing_comes_from_elsewhere(page: Page, file: Path) -> None:
    identities = page.values("id")
    assert len(identities) == len(set(identities)) > 100
    targets = page.values("href") + page.values("xlink:href") + page.values("clip-path")
    targets = [target.removeprefix("url(").removesuffix(")") for target in targets]
    assert targets and all(target.startswith("#") and target[1:] in identities for target in targets)
    assert all(value.startswith("data:") for value in page.values("src"))
    elements = {element for element, _, _ in page.attributes}
    assert not elements & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert any(value.startswith("default-src 'none';") and "http" not in value for value in page.values("content"))
    styles = re.findall(r"url\(([^)]*)\)|@import", file.read_text())
    assert all(style.startswith("#") for style in styles)


def test_a_method_named_as_a_script_is_text(page: Page, file: Path) -> None:
    text = file.read_text()
    assert "<script" not in text.lower() and "&lt;script&gt;alert(1)" in text
    evil = next(row for row in page.table("measured") if row["texts"][0] == EVIL)
    assert evil["texts"][1] == "7.0000 ±0.0000"
    assert EVIL in page.terms["methods"]
    assert EVIL in "".join(page.words)  # the plot's label among them


@pytest.mark.parametrize(
    ("rival", "verdict", "ratio", "of_all"), [(2.0, "holds", "0.5", "undecided"), (0.5, "fails", "2", "fails")]
)
def test_a_verdict_is_worded_and_coloured(
    tmp_path: Path, reference: Path, rival: float, verdict: str, ratio: str, of_all: str
) -> None:
    values = {"muni": VALUES["muni"], "mopoe": tuple(rival * value for value in VALUES["muni"])}
    results_file.append(reference, made_up(values, step=0))
    page = written(tmp_path / "a.html", "--reference")
    claims = page.table("verdict")
    row = next(row for row in claims if "MUNI is below MoPoE" in row["texts"][1])
    assert row["texts"][0] == row["classes"][0] == verdict
    assert f"mopoe: {verdict} ({ratio}, 95 % interval {ratio} to {ratio}; 5 seeds)" in row["texts"][4]
    several = next(row for row in claims if "lowest 2->1" in row["texts"][1])  # of whose rivals most have no rows
    assert several["classes"][0] == of_all
    style = (tmp_path / "a.html").read_text().partition("</style>")[0]
    assert all(f".{name}" in style for name in ("holds", "fails", "undecided"))


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, reference: Path, file: Path) -> None:
    results_file.append(reference, made_up())
    written(tmp_path / "b.html", "--reference")
    assert (tmp_path / "b.html").read_bytes() == file.read_bytes()


def test_the_plot_has_a_point_with_errors_and_a_name_per_method(tmp_path: Path, reference: Path) -> None:
    pytest.importorskip("matplotlib")
    table = table_file.load_table("table5", registry.index("metric"), "cpu")
    frame = results_file.frame_of(made_up({name: VALUES[name] for name in ("muni", "mopoe")}))
    shown = html_report.Shown(table, summarise(frame, table, "cpu", ("x1", "x2", "x3")))
    looks = {"muni": html_report.Look("#112233", "-", "o"), "mopoe": html_report.Look("#445566", "-", "o")}
    (ax,) = html_report._scatter(shown, "uncond. fid.", "uncond. coh.", looks).axes
    assert ax.get_xlabel() == "uncond. fid. ↓" and ax.get_xscale() == "log"
    found = {tuple(np.round([*line.get_xdata(), *line.get_ydata()], 6)) for line in ax.lines}
    assert {(3.2, 4.2), (4.4, 5.4)} <= found  # means of the seeds, in the third column and in the fourth
    error = math.sqrt(0.025 / 5)
    spans = [each.get_segments()[0] for each in ax.collections]
    assert any(np.allclose(span, [(3.2 - error, 4.2), (3.2 + error, 4.2)]) for span in spans)
    assert [text.get_text() for text in ax.texts] == ["MUNI", "MoPoE"]


def test_drawings_share_a_page() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    figure.subplots().plot([0, 1], [0, 1], color=html_report.INK)
    one, two = (Page(html_report._plot(f"drawing <{name}>", lambda: figure, "a note")) for name in "ab")
    assert len(one.values("id")) > 10 and not set(one.values("id")) & set(two.values("id"))
    assert one.values("aria-label") == ["drawing <a>"]
    assert {name for _, name, value in one.attributes if "//" in value} == {"xmlns", "xmlns:xlink"}  # names, no sources
    assert any("stroke: currentColor" in style for style in one.values("style"))


def test_names_of_close_points_do_not_lie_on_each_other() -> None:
    figures = pytest.importorskip("matplotlib.figure")
    ax = figures.Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    html_report._name_points(ax, {"one": (0.5, 0.5), "two": (0.5, 0.501), "far": (0.5, 0.9)})
    lifts = {text.get_text(): text.xy[1] + text.xyann[1] / 72 * ax.figure.dpi / ax.bbox.height for text in ax.texts}
    assert lifts["two"] - lifts["one"] > 0.9 * 13 / ax.bbox.height
    assert lifts["far"] - 0.9 == pytest.approx(lifts["one"] - 0.5)


def test_without_matplotlib_a_line_says_so(tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results_file.append(reference, made_up())
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    page = written(tmp_path / "a.html", "--reference")
    assert any(re.match("No plot: matplotlib is not installed: .*pip install", words) for words in page.words)
    assert not [element for element, _, _ in page.attributes if element == "svg"]


def test_what_is_refused_says_why(tmp_path: Path, reference: Path) -> None:
    """Two protocols in one column, of which no table and no claim may be made."""
    rows = [row for row in made_up() if row.metric != "swd"]
    odd = [results_file.Record(**vars(row) | {"protocol": "other"}) for row in made_up() if row.metric == "swd"]
    odd[0] = results_file.Record(**vars(odd[0]) | {"protocol": "feed"})
    results_file.append(reference, rows + odd)
    page = written(tmp_path / "a.html", "--reference")
    assert any(word.startswith("swd: protocol") and "cannot share a column" in word for word in page.words)
    assert page.headings[2] == "Table 5" and not any(table[0]["texts"][0] == "measured" for table in page.tables)
    (behind,) = (table for table in page.tables if table[0]["texts"][0] == "cell")  # they are rows of no table now
    assert sum(len(row["texts"]) > 1 for row in behind[1:]) == len(rows + odd)


def test_bad_input_is_one_line(tmp_path: Path, reference: Path) -> None:
    results_file.append(reference, made_up())
    out = tmp_path / "a.html"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "results.csv").write_text(",".join(results_file.COLUMNS) + "\n")
    for words, message in (
        (("--runs", tmp_path / "none"), "no results at"),
        (("--runs", tmp_path / "empty"), "has no rows: run bench reproduce first"),
        (("--reference", "--preset", "cpuu"), "--preset: unknown preset 'cpuu': did you mean 'cpu'?"),
        (("--reference", "--preset", "gpu"), "no reference rows of preset gpu"),
    ):
        code, _, errors = bench("report", "--out", out, *words)
        assert code == 2 and message in errors and errors.count("\n") == 1 and not out.exists()
    code, _, errors = bench("report", "--reference", "--no-samples", "--out", tmp_path)
    assert code == 2 and f"cannot write {tmp_path} " in errors and "--out" in errors


# Runs on this machine: curves and samples.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a small trained run, a user's own method, and rows of another recipe at two presets."""
    base = tmp_path_factory.mktemp("report")
    own = base / "noisy.py"
    own.write_text(
        "from benchmark.api import MethodCard\n"
        "CARD = MethodCard(version=1, label='pure noise', paper='none', stages=())\n"
        "class Noise:\n"
        "    def __init__(self, modalities, config):\n"
        "        self.modalities = modalities\n"
        "    def sample(self, given, want, rows, draws):\n"
        "        return {each.name: each.scale * draws.normal(each.name, *each.shape)\n"
        "                for each in self.modalities if each.name in want}\n"
        "METHOD = Noise\n"
    )
    cell = (Cell("gaussian_mixture", (), ("x1", "x2", "x3")),)
    jobs = [Job(name, "gaussian_mixture", "smoke", 0, cell, ("swd", "shared_mse")) for name in ("muni", str(own))]
    assert (
        execution.execute([run_identity.prepare(job, base / "runs", SMALL) for job in jobs], "cpu", lambda *_: None)
        == []
    )
    (first, *_) = results_file.read(base / "runs" / "results.csv")
    further = [{"run_id": "another"}, {"run_id": "another", "preset": "cpu"}]
    results_file.append(base / "runs" / "results.csv", [results_file.Record(**vars(first) | each) for each in further])
    return base


def test_a_folder_of_runs_has_curves_and_samples(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ("--runs", folder / "runs", "--method", folder / "noisy.py", "--device", "cpu", *SET)
    page = written(tmp_path / "a.html", *words)
    assert page.headings[:2] == ["muni-bench: runs", "Preset smoke"] and page.headings[-3:-1] == [
        "Training on Gaussian mixture",
        "Samples of Gaussian mixture",
    ]
    assert page.terms["left out"].startswith("1 rows of this preset, of other settings")
    assert any(row["texts"][0] == "pure noise" for row in page.table("measured"))
    assert {"loss", "reconstruction", "prior", "entropy", "updates"} <= set(page.words)
    (source,) = page.values("src")
    picture = decoded(source, "image/png")
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG" and image.width == round((2.8 * 4 + 0.2) * html_report.SAMPLES_DPI)
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    plain = written(tmp_path / "b.html", *words, "--no-samples")  # nor the preset whose rows are all of older code
    assert plain.values("src") == [] and "Training on Gaussian mixture" in plain.headings


def test_a_curve_is_what_was_logged() -> None:
    pytest.importorskip("matplotlib")
    run = run_identity.prepare(Job("muni", "gaussian_mixture", "smoke", 0, (), ()), Path("runs"))
    curve = [{"update": 50, "loss": 3.0}, {"update": 100, "loss": 2.0, "prior": 0.5}]
    figure = html_report._draw_curves([(run, curve), (run, curve[:1])], {"muni": html_report.Look("#112233", "-", "o")})
    assert [ax.get_title() for ax in figure.axes] == ["loss", "prior"]
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines] for ax in figure.axes]
    assert drawn == [[([50, 100], [3.0, 2.0]), ([50], [3.0])], [([100], [0.5])]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MUNI"]


def test_a_damaged_log_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")
    (log,) = (tmp_path / "runs").rglob("train.jsonl")
    log.write_text("{")
    code, _, errors = bench("report", "--runs", tmp_path / "runs", "--out", tmp_path / "a.html", "--no-samples", *SET)
    assert (
        code == 2
        and f"bench: {log}, line 1: no line of a training curve" in errors
        and not (tmp_path / "a.html").exists()
    )


def decoded(source: str, kind: str) -> bytes:
    head, _, content = source.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(content, validate=True)


class World:
    """A dataset of things whose real ones are not here."""

    def __init__(self, config: Any, device: str) -> None:
        raise UserError("no <recordings> here")

    def render(self) -> None: ...


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run_identity.Run:
    """A run that kept two rows of one direction."""
    monkeypatch.setattr(registry, "load", lambda kind, name, own=(): World)
    run = run_identity.prepare(Job("muni", "spoken_digits", "smoke", 0, (), ()), tmp_path / "runs")
    cell = Cell("spoken_digits", (), ("text", "image", "audio"))
    raw = {
        "text": ["a <b>nine</b>", "two"],
        "image": torch.stack([torch.full((1, 4, 6), shade) for shade in (0.2, 0.8)]),
        "audio": torch.stack([torch.linspace(-1, 1, 800), torch.zeros(800)]),
    }
    execution.things_of(run, cell).append(raw, 8000, 0.5)
    return run


def test_kept_things_are_shown_and_played_from_the_page(spoken: run_identity.Run) -> None:
    before = {path: path.read_bytes() for path in spoken.directory.rglob("*") if path.is_file()}
    (section,) = html_report._samples([spoken], "cpu", lambda *_: None)
    page = Page(section.body)
    assert section.title == f"Samples of {spoken.dataset_card.label}"
    assert "Without the real ones: no <recordings> here" in page.words and "a <b>nine</b>" in page.words
    assert [row["texts"] for row in page.tables[0]] == [["MUNI, seed 0"], ["a <b>nine</b>"], ["two"]]
    pictures, sounds = page.values("src")[::2], page.values("src")[1::2]
    for source, shade in zip(pictures, (51, 204), strict=True):
        with Image.open(io.BytesIO(decoded(source, "image/png"))) as image:
            assert image.size == (6, 4) and np.unique(np.asarray(image)).tolist() == [shade]
    with wave.open(io.BytesIO(decoded(sounds[0], "audio/wav"))) as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getsampwidth()) == (8000, 800, 2)
        levels = np.frombuffer(sound.readframes(800), "<i2")
    assert levels[0] == -levels[-1] == -(2**15 - 1)
    assert {path: path.read_bytes() for path in spoken.directory.rglob("*") if path.is_file()} == before


def test_a_report_removes_nothing(spoken: run_identity.Run) -> None:
    (manifest,) = spoken.directory.rglob("manifest.jsonl")
    manifest.write_text("{")
    (section,) = html_report._samples([spoken], "cpu", lambda *_: None)
    assert "Nothing that was generated is kept here" in section.body
    assert manifest.read_text() == "{" and len(list(manifest.parent.glob("*/*"))) == 4


# In a browser.


def inked(picture: Path) -> float:
    """The share of pixels that are not of the commonest colour."""
    with Image.open(picture) as image:
        levels = np.asarray(image.convert("L"))
    return float((levels != np.bincount(levels.ravel()).argmax()).mean())


def test_a_blank_picture_counts_as_one(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), "white").save(tmp_path / "blank.png")
    assert inked(tmp_path / "blank.png") == 0


def test_a_browser_shows_the_page(tmp_path: Path, file: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    shot = tmp_path / "a.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", file.as_uri()]
    subprocess.run([browser, *options, *where], check=True, capture_output=True, timeout=90)
    assert 0.01 < inked(shot) < 0.5
