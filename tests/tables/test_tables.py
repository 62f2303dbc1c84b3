"""Tables as data: strict files, exact plans, numbers that may not meet, and pages that are pure functions."""

import dataclasses
import html
import os
import subprocess
import sys

import pandas as pd
import pytest

from benchmark.api import MethodCard, MetricCard, UserError, cells
from benchmark.files import RESULTS
from benchmark.records.job import Job, job_of
from benchmark.records.results_file import KEY
from benchmark.registry import card, index
from benchmark.tables.layout import STAND_IN, compose
from benchmark.tables.render import FORMATS, TERM_WIDTH, render
from benchmark.tables.summary import ONE_PER_COLUMN, load_paper, paper_values, summarise
from benchmark.tables.table_file import Column, load_table, table_files

MODALITIES = ("a", "b", "c")
METRICS = {
    name: MetricCard(1, name, "squared units", False, "log", ("uncond",), "mean", "", "")
    for name in ("shared_mse", "swd", "swd_w1", "uniform_expert", "energy_score", "private_swd")
}
METHODS = {
    "muni": MethodCard(1, "MUNI", "2026", deviations=("one shared recipe",)),
    "mvae": MethodCard(1, "MVAE_x", "2018", deviations=("no N(0, I) expert", "one shared recipe")),
}


def row(method="muni", given="a", want="b", metric="shared_mse", seed=0, value=1.0, **other):
    filled = {
        "preset": "cpu",
        "dataset": "gaussian_mixture",
        "given": given,
        "want": want,
        "method": method,
        "metric": metric,
        "seed": seed,
        "value": value,
        "stderr": 0.01,
        "n": 2048,
        "status": "ok",
        "method_version": 1,
        "dataset_version": 1,
        "metric_version": 1,
        "protocol": "abc",
        "precision": "bfloat16",
        "run_id": "r",
        "sources": "s",
        "commit": "c",
        "torch": "2.13",
        "device": "CPU",
        "train_seconds": 100.0,
        "sample_seconds": 1.0,
        "peak_memory_mb": 10.0,
        "parameters": 1000,
    }
    return filled | other


@pytest.fixture(scope="module")
def table():
    whole = load_table("table5", METRICS)
    return dataclasses.replace(whole, methods=("mvae", "shala", "muni"))


def measured(table, value, preset="cpu", seeds=5):
    """All rows of a table; `value(method, column, place of the cell, seed)` is a number or a status."""
    rows = []
    for column in table.columns:
        for place, cell in enumerate(column.cells(table.dataset, MODALITIES)):
            for method in table.rows:
                for seed in range(seeds):
                    found = value(method, column, place, seed)
                    extra = {"status": found, "value": float("nan")} if isinstance(found, str) else {"value": found}
                    rows.append(
                        row(
                            method,
                            "+".join(cell.given),
                            "+".join(cell.want),
                            column.metric,
                            seed,
                            preset=preset,
                            **extra,
                        )
                    )
    return pd.DataFrame(rows)


def plain(method, column, place, seed):
    if method == "shala" and column.task == "many_to_one":
        return "n/a: takes one source"
    return {"mvae": 2.0, "shala": 3.0, "muni": 1.0, "real": 0.5, "chance": 8.0}[method] + 0.01 * seed


def page(table, frame, preset="cpu", format="md", color=False, **cards):
    summary = summarise(frame, table, preset, MODALITIES)
    cards = {"metrics": METRICS, "methods": METHODS} | cards
    return render(compose(summary, table, load_paper(), **cards), format, color)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "swd"', 'metric = "swdd"', "unknown metric 'swdd': did you mean 'swd'?"),
        ('task = "uncond"', 'task = "uncnd"', "unknown task 'uncnd': did you mean 'uncond'?"),
        ("digits = 4", "digts = 4", "unknown key 'digts': did you mean 'digits'?"),
        ("digits = 4", 'digits = "4"', "digits = '4' is not of type int"),
        ("digits = 4\n", "", "lacks the key 'digits'"),
        ("cpu = 5", "cpu = true", "seeds: cpu = True: write a whole number from 1 to 10000"),
        ("cpu = 5", "cpu = 10001", "seeds: cpu = 10001: write a whole number from 1 to 10000"),
        ("cpu = 5", "cpuu = 5", "seeds: unknown preset 'cpuu': did you mean 'cpu'?"),
        ("cpu = 5", "cpu = 0", "cpu = 0: write a whole number"),
        ('header = "2→1 align."', 'header = "1→1 align."', "two columns have the header '1→1 align.'"),
        ("paper = { task", "paper = { taks", "paper: unknown key 'taks': did you mean 'task'?"),
        ("sanity =", 'columns = "tabel2"\nsanity =', "columns: unknown table 'tabel2'"),
        ('task = "uncond"', 'cells = [{ givn = [], want = ["a"] }]', "cells: unknown key 'givn'"),
        ("digits = 4", 'digits = 4\nbetter = "lowr"', "better: unknown direction 'lowr': did you mean 'lower'?"),
        ("digits = 4", "digits = 4\nleast = { cpuu = 0.9 }", "least: unknown key 'cpuu': did you mean 'cpu'?"),
        ("digits = 4", "digits = 4\nleast = { cpu = 1 }", "least: cpu = 1 is not of type float"),
        ('x = "uncond. fid."', 'x = "uncond. fd."', "plot: unknown column 'uncond. fd.': did you mean 'uncond. fid.'"),
        ('x = "uncond. fid."', "", "plot: lacks the key 'x'"),
        ('x = "uncond. fid."', 'z = "uncond. fid."', "plot: unknown key 'z'"),
        ('id = "table5"', 'id = "table5', "not valid TOML"),
        ('"gaussian_mixture"', '{ cpuu = "a" }', "dataset: unknown preset 'cpuu': did you mean 'cpu'?"),
        ('"gaussian_mixture"', '{ cpu = "a" }', "dataset: unknown preset 'paper': choose from cpu"),
        ('"gaussian_mixture"', "[]", "dataset = [] is not of type str | dict"),
    ],
)
def test_a_faulty_file_is_refused_by_file_and_key(tmp_path, old, new, message):
    text = (RESULTS / "tables" / "table5.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_table(tmp_path / "mine.toml", METRICS)
    assert message in str(error.value)
    assert "mine.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_table_names_the_nearest():
    with pytest.raises(UserError, match="unknown table 'tabel5': did you mean 'table5'"):
        load_table("tabel5", METRICS)


def test_a_column_may_list_its_cells():
    column = Column(header="x", metric="swd", digits=2, listed=((("a", "c"), ("b",)),))
    assert str(column.cells("d", MODALITIES)[0]) == "d: a+c -> b"
    with pytest.raises(UserError, match="no modality 'c'"):
        column.cells("d", ("a", "b"))
    factors = dataclasses.replace(column, listed=((("a",), ("factor:all",)),))
    assert factors.cells("d", ("a",))[0].want == ("factor:all",)


def test_a_table_may_take_the_columns_of_another_beside_it(tmp_path):
    mine = tmp_path / "mine.toml"
    (tmp_path / "table5.toml").write_text((RESULTS / "tables" / "table5.toml").read_text())
    text = (RESULTS / "tables" / "table6.toml").read_text()
    mine.write_text(text.replace('columns = "table2"', 'columns = "table5"').partition("[[plot]]")[0])
    assert [column.header for column in load_table(mine, METRICS).columns] == [
        column.header for column in load_table("table5", METRICS).columns
    ]
    assert load_table(mine, METRICS).columns[0].paper["table"] == "table6"  # its own numbers stand beside them


PICKS = """columns = [
  { table = "table5", headers = ["uncond. coh.", "1→1 align."] },
  { table = "table5", block = "beside", headers = ["1→1 energy"] },
]
sanity ="""


def picked(tmp_path, text):
    (tmp_path / "table5.toml").write_text((RESULTS / "tables" / "table5.toml").read_text())
    plain = (
        (RESULTS / "tables" / "table6.toml").read_text().replace('columns = "table2"\n', "").partition("[[plot]]")[0]
    )
    (tmp_path / "mine.toml").write_text(plain.replace("sanity =", text))
    return load_table(tmp_path / "mine.toml", METRICS).columns


def test_a_table_may_pick_columns_without_the_papers_numbers(tmp_path):
    found = picked(tmp_path, PICKS)
    assert [(column.header, column.block) for column in found] == [
        ("uncond. coh.", ""),
        ("1→1 align.", ""),
        ("1→1 energy", "beside"),
    ]
    assert [column.metric for column in found] == ["shared_mse", "shared_mse", "energy_score"]
    assert not any(column.paper for column in found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"1→1 energy"', '"1→1 enrgy"', "unknown column of table5 '1→1 enrgy': did you mean '1→1 energy'?"),
        ("block =", "blok =", "unknown key 'blok': did you mean 'block'?"),
        ('{ table = "table5", block', '{ table = "table55", block', "unknown table 'table55': did you mean 'table5'?"),
    ],
)
def test_a_faulty_pick_is_refused(tmp_path, old, new, message):
    with pytest.raises(UserError) as error:
        picked(tmp_path, PICKS.replace(old, new))
    assert message in str(error.value) and "mine.toml: columns" in str(error.value)


@pytest.mark.parametrize("name", table_files())
def test_every_row_of_every_table_is_a_method(name):
    assert [card("method", row).label for row in load_table(name, index("metric")).rows]


def test_costs_are_means_over_seeds_and_cells(table):
    """Sampling is timed by cell: unconditional cells, which have another number of steps, count as any other."""
    frame = measured(table, plain)
    for seed in range(5):
        frame.loc[(frame["method"] == "muni") & (frame["seed"] == seed), "train_seconds"] = 100.0 + 10 * seed
    frame.loc[(frame["method"] == "muni") & (frame["given"] == ""), "sample_seconds"] = 4.0
    costs = page(table, frame).partition("| cost |")[2].splitlines()
    assert costs[0] == " version | parameters | training, s | peak memory, MB | sampling 1,000 rows, s |"
    unconditional = sum(column.task == "uncond" for column in table.columns)
    sampling = (4.0 * unconditional + 1.0 * (len(table.columns) - unconditional)) / len(table.columns)
    (muni,) = (line for line in costs if line.startswith("| MUNI |"))
    assert muni == f"| MUNI | 1 | 1,000 | 120 | 10 | {sampling:.2g} |"


def test_a_table_may_have_another_dataset_at_each_preset(tmp_path):
    text = (RESULTS / "tables" / "table5.toml").read_text()
    datasets = '{ cpu = "gaussian_mixture", paper = "the_real_one" }'
    (tmp_path / "mine.toml").write_text(text.replace('"gaussian_mixture"', datasets, 1))
    proper, stand_in = (load_table(tmp_path / "mine.toml", METRICS, preset) for preset in ("paper", "cpu"))
    assert (proper.dataset, proper.stand_in) == ("the_real_one", False)
    assert (stand_in.dataset, stand_in.stand_in) == ("gaussian_mixture", True)
    stand_in = dataclasses.replace(stand_in, methods=("muni",))
    text = page(stand_in, measured(stand_in, plain), format="term")
    assert "Table 5 protocol on gaussian_mixture at preset cpu: not comparable with the paper's numbers" in text


def test_every_table_in_the_repository_loads():
    for name, path in table_files().items():
        assert load_table(path, index("metric")).id == name


def test_paper_keys_of_table5_select_the_printed_numbers():
    whole, paper = load_table("table5", METRICS), load_paper()
    muni = [paper_values(paper, column).get("muni") for column in whole.columns]
    assert muni == [0.0508, 0.0414, 0.13, 0.0394, None, None, None, None, None, None]
    with pytest.raises(UserError, match="no number"):
        paper_values(paper, Column(header="x", metric="swd", digits=2, paper={"table": "table55"}))
    with pytest.raises(UserError, match="several numbers of one method"):
        paper_values(paper, Column(header="x", metric="swd", digits=2, paper={"table": "table5"}))


# ------------------------------------------------------------------------------------------------ plan


def test_jobs_ask_each_metric_on_its_columns_cells_only(table):
    jobs = table.jobs("cpu", MODALITIES)
    assert [job.method for job in jobs[:5]] == ["mvae", "shala", "muni", "real", "chance"]
    assert [job.seed for job in jobs] == [seed for seed in range(5) for _ in range(5)]
    asked = {(cell.task, metric) for cell, metric in jobs[0].scores}
    assert asked == {(column.task, column.metric) for column in table.columns}
    assert len(jobs[0].scores) == 6 * 4 + 3 * 3 + 3
    with pytest.raises(UserError, match="no seeds for preset 'cpuu': did you mean 'cpu'"):
        table.jobs("cpuu", MODALITIES)


def test_a_part_of_a_table_and_a_users_own_method(table):
    part = table.only(["muni", "folder/mine.py", "chance"])
    assert (part.methods, part.sanity) == (("muni", "mine"), ("chance",))
    assert table.only([]) == table
    jobs = table.jobs("cpu", MODALITIES, ["folder/mine.py"], [7, 3])
    assert [(job.method, job.seed) for job in jobs] == [("folder/mine.py", 7), ("folder/mine.py", 3)]
    assert jobs[0].scores == table.jobs("cpu", MODALITIES)[0].scores
    frame = measured(table.only(["mine"]), lambda *_: 1.5)
    assert "| mine | **1.5000 ±0.0000** |" in page(table.only(["mine"]), frame)


def test_a_job_is_a_product_without_its_skipped_pairs():
    a, b = tuple(cells("d", ("a", "b"), "one_to_one"))
    assert Job("m", "d", "cpu", 0, (a, b), ("x", "y"), frozenset({(a, "y")})).scores == ((a, "x"), (b, "x"), (b, "y"))


# ------------------------------------------------------------------------------------------------ numbers


def test_means_are_over_cells_then_seeds(table):
    frame = measured(table, lambda method, column, place, seed: place + 10.0 * seed, seeds=3)
    found = summarise(frame, table, "cpu", MODALITIES).iloc[0]
    assert found["value"] == pytest.approx(2.5 + 10.0)  # cells 0..5, seeds 0, 10, 20
    assert found["stderr"] == pytest.approx(10 / 3**0.5)
    assert (found["stderr_over"], found["seeds"], found["note"]) == ("seeds", "0-2", "3 of 5 seeds")


def test_one_seed_keeps_the_error_over_rows_and_says_so(table):
    frame = measured(table, plain, seeds=1)
    found = summarise(frame, table, "cpu", MODALITIES).iloc[0]
    assert (found["stderr"], found["stderr_over"]) == (pytest.approx(0.01), "rows")
    whole = measured(table, plain)
    mixed = whole[(whole["method"] != "muni") | (whole["seed"] == 0)]
    assert "Mean over cells. One seed: ± is the standard error over rows" in page(table, frame)
    assert "4. 1 of 5 seeds\n5. One seed: ± is the standard error over rows" in page(table, mixed)
    assert "One seed" not in page(table, whole)


def test_an_incomplete_seed_is_left_out_and_disclosed(table):
    frame = measured(table, lambda method, column, place, seed: float(seed))
    error = (frame["method"] == "muni") & (frame["seed"] == 4) & (frame["given"] == "a") & (frame["want"] == "b")
    frame.loc[error, ["status", "value"]] = ["error: NaN in the loss", float("nan")]
    gone = (frame["method"] == "muni") & (frame["seed"] == 3) & (frame["given"] == "a") & (frame["want"] == "b")
    summary = summarise(frame[~gone], table, "cpu", MODALITIES)
    found = summary[(summary["method"] == "muni") & (summary["column"] == "1→1 align.")].iloc[0]
    assert found["value"] == pytest.approx(1.0)  # seeds 0, 1, 2
    assert found["note"] == "3 of 5 seeds: missing: 1 of 6 cells (seeds 3); error: NaN in the loss (seeds 4)"
    assert found["note"] in page(table, frame[~gone]).replace("\\_", "_")


def test_cells_without_numbers_carry_their_reason(table):
    frame = measured(table, plain)
    summary = summarise(frame[frame["method"] != "mvae"], table, "cpu", MODALITIES).set_index(["method", "column"])
    assert summary.loc[("shala", "2→1 align."), "status"] == "n/a: takes one source"
    assert summary.loc[("mvae", "2→1 align."), "status"] == "missing: not run"
    text = page(table, frame[frame["method"] != "mvae"], format="term")
    assert "n/a: takes one source" in text
    assert "missing: not run" in text


@pytest.mark.parametrize("name", [name for name in ONE_PER_COLUMN if name not in KEY] + ["method_version"])
def test_rows_of_different_versions_never_meet(table, name):
    frame = measured(table, plain)
    changed = (frame["method"] == "muni") & (frame["seed"] == 2)
    frame[name] = frame[name].astype(object)
    frame.loc[changed, name] = "other"
    with pytest.raises(UserError, match=f"{name} .* and other .muni seed 2. cannot share a column"):
        summarise(frame, table, "cpu", MODALITIES)


def test_methods_have_versions_of_their_own_and_presets_do_not_mix(table):
    frame = measured(table, plain)
    frame.loc[frame["method"] == "muni", "method_version"] = 7
    alone = summarise(frame, table, "cpu", MODALITIES)
    assert alone["value"].iloc[2] == pytest.approx(1.02)
    both = pd.concat([frame, measured(table, lambda *_: 100.0, preset="gpu")])
    pd.testing.assert_frame_equal(summarise(both, table, "cpu", MODALITIES), alone)


def test_other_peoples_checkpoints_stand_beside_ours_and_one_method_has_one_of_them(table):
    """What answered stands behind what all rows of a column share."""
    frame = measured(table, plain)
    shared, theirs = frame["protocol"], frame["method"] == "muni"
    frame.loc[theirs, "protocol"] += "+by:aaa"
    beside = summarise(frame, table, "cpu", MODALITIES)
    frame.loc[:, "protocol"] = shared.where(~theirs, "other+by:aaa")
    with pytest.raises(UserError, match=r"protocol abc .* and other\+by:aaa .* cannot share a column"):
        summarise(frame, table, "cpu", MODALITIES)
    frame.loc[:, "protocol"] = shared
    pd.testing.assert_series_equal(beside["value"], summarise(frame, table, "cpu", MODALITIES)["value"])
    frame.loc[theirs & (frame["seed"] == 2), "protocol"] += "+by:aaa+stand-in"
    with pytest.raises(UserError, match=r"protocol abc .* and abc\+by:aaa\+stand-in .muni seed 2. cannot share"):
        summarise(frame, table, "cpu", MODALITIES)


def test_a_stand_in_is_marked_in_every_format_and_is_neither_the_best_nor_a_ratio(table):
    frame = measured(table, lambda method, *_: {"muni": 0.5, "real": 0.1, "chance": 3.0}.get(method, 1.0))
    plainly = page(table, frame, format="csv")
    best = [line for line in plainly.splitlines() if line.startswith("table5,cpu,measured,muni,")]
    assert all(line.split(",")[8] == "1" for line in best) and "ratio to the chance row,muni," in plainly
    frame.loc[frame["method"] == "muni", "protocol"] += "+by:aaa+stand-in"
    lines = page(table, frame, format="csv").splitlines()
    ours = [line for line in lines if line.startswith("table5,cpu,measured,muni,")]
    assert ours and all(line.split(",")[8] == "0" and STAND_IN in line for line in ours)
    assert not any(line.startswith("table5,cpu,ratio to the chance row,muni,") for line in lines)
    assert all(",muni," in line for line in lines if STAND_IN in line)
    for format in ("term", "md", "html", "tex"):
        text = html.unescape(page(table, frame, format=format))
        assert text.count(STAND_IN) == 1 and STAND_IN not in page(table, measured(table, plain), format=format)


def test_one_key_has_one_number_and_an_error_gives_way(table):
    frame = measured(table, plain)
    again = frame[frame["method"] == "muni"].head(1)
    with pytest.raises(UserError, match=r"cpu: two rows for muni seed 0, a -> b, shared_mse \(runs r and r\)"):
        summarise(pd.concat([frame, again]), table, "cpu", MODALITIES)
    tried = pd.concat([frame, again.assign(status="error: disk full", value=float("nan"))])
    before, after = (summarise(rows, table, "cpu", MODALITIES) for rows in (frame, tried))
    pd.testing.assert_frame_equal(after, before)


# ------------------------------------------------------------------------------------------------ conditions


@pytest.fixture(scope="module")
def conditioned(table):
    """The table with a condition: `energy_score` of at least 0.9, but for smoke."""
    least = dict.fromkeys(("cpu", "gpu", "paper"), 0.9)
    condition = Column(header="ruler on real rows", metric="energy_score", digits=3, task="one_to_one", least=least)
    columns = (*(column for column in table.columns if column.metric != "energy_score"), condition)
    return dataclasses.replace(table, columns=columns)


def ruled(table, value, preset="cpu"):
    return measured(table, lambda *place: value if place[1].least else plain(*place), preset)


def test_a_condition_that_is_met_is_stated_and_is_no_column(conditioned):
    for format in ("term", "md", "html", "tex"):
        text = page(conditioned, ruled(conditioned, 0.95), format=format).replace("\n", " ")
        assert "ruler on real rows 0.950 (6 cells of 2048 rows; at least 0.9)." in text
        assert text.count("ruler") == 1
        assert "energy" not in text
    assert "ruler" not in page(conditioned, ruled(conditioned, 0.95), format="csv")
    asked = {metric for job in conditioned.jobs("cpu", MODALITIES) for _, metric in job.scores}
    assert "energy_score" in asked


@pytest.mark.parametrize("format", FORMATS)
def test_a_condition_that_is_not_met_refuses_the_table(conditioned, format):
    refusal = r"table5 is refused: ruler on real rows 0.800 \(6 cells of 2048 rows; at least 0.9\): what mends it is in"
    with pytest.raises(UserError, match=refusal + " bench info energy_score"):
        page(conditioned, ruled(conditioned, 0.8), format=format)
    frame = ruled(conditioned, 0.95)
    one = (frame["method"] == "muni") & (frame["metric"] == "energy_score")
    frame.loc[one, "value"] = 0.8  # the least of any method counts
    with pytest.raises(UserError, match="table5 is refused"):
        page(conditioned, frame, format=format)


def test_a_preset_without_a_bound_states_the_number_and_goes_on(conditioned):
    text = page(conditioned, ruled(conditioned, 0.2, "smoke"), "smoke")
    assert "ruler on real rows 0.200 (6 cells of 2048 rows; no bound at preset smoke)." in text


def test_a_condition_that_was_not_measured_is_said(conditioned):
    frame = ruled(conditioned, 0.95)
    assert "ruler on real rows: not measured." in page(conditioned, frame[frame["metric"] != "energy_score"])


def test_the_tables_of_labels_have_the_same_columns_and_the_papers_numbers():
    names = ("image1", "image2", "image3", "digit", "quadrant")
    paper, tables = load_paper(), [load_table(name, index("metric")) for name in ("table2", "table6")]
    for table in tables:
        printed = {column.header: paper_values(paper, column) for column in table.columns if column.paper}
        assert [values["muni"] for values in printed.values()] == [0.9131, 0.9999, 0.9346, 0.4841]
        assert ["shala" in values for values in printed.values()] == [table.id == "table6" and k != 2 for k in range(4)]
        assert {column.metric for column in table.columns if column.least} == {"verifier_accuracy"}
        assert [column.least["cpu"] for column in table.columns if column.least] == [0.97, 0.999]
    plain = [tuple(dataclasses.replace(column, paper={}) for column in table.columns) for table in tables]
    assert plain[0] == plain[1]
    first, second = (table.jobs("cpu", names, ["muni"], [0])[0].scores for table in tables)
    assert first == second  # Table 2 costs nothing after Table 6


# ------------------------------------------------------------------------------------------------ pages


def test_other_presets_are_titled_so_and_have_no_difference(table):
    text = page(table, measured(table, plain))
    assert "Table 5 protocol at preset cpu: not comparable with the paper's numbers" in text
    assert "difference" not in text.replace("difference.", "")  # the caption's word for ties
    assert "the paper's numbers, at its own scale" in text
    assert "| MUNI | 0.0508 | 0.0414 | 0.1300 | 0.0394 |" in text


def test_preset_paper_shows_the_difference(table):
    text = page(table, measured(table, plain, preset="paper", seeds=1), "paper")
    assert "not comparable" not in text
    assert "| 0.0508 | +0.9492 |" in text
    assert "| 0.2265 | +1.7735 |" in text


def test_references_are_among_the_measured_where_they_have_rows_and_always_beside_the_papers(table):
    """A reference without rows takes no line of dashes; an imported row has the paper's numbers alone."""
    whole = dataclasses.replace(table, methods=("muni",), references=("mvae",), imported={"shala": "ShaLa (imported)"})
    assert whole.rows == ("muni", "mvae", "real", "chance")
    for has, frame in {
        False: measured(dataclasses.replace(whole, references=()), plain),
        True: measured(whole, plain),
    }.items():
        ours, _, papers = page(whole, frame).partition("the paper's numbers, at its own scale")
        assert ("| MVAE" in ours) is has and "shala" not in ours and "imported" not in ours
        assert "| MVAE\\_x | 0.2265" in papers and "| ShaLa (imported) | 7.2122" in papers
        assert "mvae" in [job.method for job in whole.jobs("cpu", MODALITIES)]
    beside = page(whole, measured(whole, plain, preset="paper", seeds=1), "paper")
    (line,) = [line for line in beside.splitlines() if line.startswith("| ShaLa (imported)")]
    assert line.startswith("| ShaLa (imported) | — | 7.2122 | — |")
    assert whole.only(["muni"]).rows == ("muni",) and not whole.only(["muni"]).imported
    assert whole.only(["mvae"]).rows == ("mvae",)


def test_best_is_bold_with_ties_inside_one_error_and_without_sanity_rows(table):
    def close(method, column, place, seed):
        return {"mvae": 1.005, "shala": 1.2, "muni": 1.0, "real": 0.0, "chance": 8.0}[method] + 0.01 * seed

    lines = page(table, measured(table, close)).splitlines()
    line = {
        name: next(line for line in lines if line.startswith(f"| {name}"))
        for name in ("MVAE", "MUNI", "shala", "*real")
    }
    assert "**1.0200 ±0.0071**" in line["MUNI"]
    assert "**1.0250 ±0.0071**" in line["MVAE"]
    assert "**" not in line["shala"] and "**" not in line["*real"]
    text = page(table, measured(table, lambda *where: close(*where) + 0.01 * (where[0] == "mvae")))
    assert "**1.0200 ±0.0071**" in text and "| 1.0350 ±0.0071 |" in text  # 0.015 apart, error 0.010
    rising = METRICS | {"shared_mse": dataclasses.replace(METRICS["shared_mse"], higher_is_better=True)}
    text = page(table, measured(table, close), metrics=rising)
    assert "**1.2200 ±0.0071**" in text
    assert "1→1 align. ↑" in text and "uncond. fid. ↓" in text
    neither = dataclasses.replace(
        table, columns=tuple(dataclasses.replace(column, better="neither", paper={}) for column in table.columns)
    )
    text = page(neither, measured(table, close))
    assert "| 1→1 align. |" in text and "**1.0200" not in text
    assert text.startswith("**Table 5 at preset cpu**") and "the paper's numbers" not in text


def test_ratio_to_chance(table):
    text = page(table, measured(table, plain))
    block = text[text.index("ratio to the chance row") :]
    assert "| MUNI | 0.13 |" in block  # 1.02 / 8.02
    assert "| shala | 0.38 | — |" in block


def test_terminal_fits_and_colours_only_when_told(table):
    for preset, seeds in (("cpu", 5), ("paper", 1)):
        text = page(table, measured(table, plain, preset=preset, seeds=seeds), preset, "term")
        assert max(map(len, text.splitlines())) <= TERM_WIDTH
        assert "\x1b" not in text
        assert "…" not in text
        assert ("1.0200 ±0.0071*" if preset == "cpu" else "1.0000 ±0.0100*") in text
    assert "\x1b[1m" in page(table, measured(table, plain), format="term", color=True)


def test_deviations_are_footnotes_numbered_once(table):
    text = page(table, measured(table, plain))
    assert "| MVAE\\_x<sup>1,2</sup> |" in text
    assert "| MUNI<sup>2</sup> |" in text
    assert "\n1. no N(0, I) expert\n2. one shared recipe\n" in text


def test_caption_states_preset_seeds_versions_and_cost(table):
    text = page(table, measured(table, plain), format="html", notes=["lost numbers are assumed"])
    for part in (
        "Preset cpu; seeds 0-4; 2048 rows per cell; gaussian_mixture v1; shared_mse v1",
        "Protocol abc",
        "bfloat16",
        "torch 2.13",
        "lost numbers are assumed",
        "<td>1,000</td><td>100</td>",
    ):
        assert part in text


@pytest.mark.parametrize("format", FORMATS)
def test_same_input_gives_the_same_bytes(table, format):
    frame = measured(table, plain)
    shuffled = frame.sample(frac=1, random_state=1)
    assert page(table, frame, format=format) == page(table, shuffled, format=format)
    changed = frame.assign(value=frame["value"] + (frame["method"] == "muni"))
    assert page(table, frame, format=format) != page(table, changed, format=format)


def test_the_environment_does_not_change_the_bytes(table, monkeypatch):
    before = page(table, measured(table, plain), format="term")
    for name, value in (("COLUMNS", "40"), ("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    assert page(table, measured(table, plain), format="term") == before


def test_csv_holds_full_precision_and_reads_back(table, tmp_path):
    frame = measured(table, lambda method, column, place, seed: 1 / 3, preset="paper", seeds=1)
    (tmp_path / "x.csv").write_text(page(table, frame, "paper", "csv"))
    found = pd.read_csv(tmp_path / "x.csv")
    ours = found[(found["method"] == "muni") & (found["column"] == "1→1 align. ↓")]
    assert ours["value"].tolist() == [1 / 3]
    gap = found[(found["method"] == "muni") & (found["column"] == "2→1 align. ↓ difference")]
    assert float(gap["value"].iloc[0]) == pytest.approx(1 / 3 - 0.0414)


def test_latex_and_html_escape(table):
    latex = page(table, measured(table, plain), format="tex")
    assert r"MVAE\_x" in latex and r"1$\to$1 align. $\downarrow$" in latex and r"\textbf{1.0200 $\pm$0.0071}" in latex
    assert latex.count("{") == latex.count("}")
    assert not [character for character in latex if ord(character) > 127]
    sneaky = METHODS | {"muni": MethodCard(1, "<b>&", "")}
    text = page(table, measured(table, plain), format="html", methods=sneaky)
    assert "<td>&lt;b&gt;&amp;</td>" in text


def test_unknown_format(table):
    with pytest.raises(UserError, match="unknown format 'htm': did you mean 'html'"):
        page(table, measured(table, plain), format="htm")


def test_import_brings_no_heavy_library():
    heavy = "{'torch', 'pandas', 'scipy', 'numpy', 'rich'}"
    code = f"import sys, benchmark.tables.render, benchmark.tables.claims; assert not {heavy} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=RESULTS.parent,
        env={**os.environ, "PYTHONPATH": str(RESULTS.parent)},
    )


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, "1"])
def test_a_seed_that_the_generator_does_not_tell_from_another_is_refused(seed):
    with pytest.raises(UserError, match=r"muni: seed .*: write a whole number from 0 to 4294967295"):
        job_of("muni", "gaussian_mixture", "smoke", seed, [])
    assert job_of("muni", "gaussian_mixture", "smoke", 2**32 - 1, []).seed == 2**32 - 1
