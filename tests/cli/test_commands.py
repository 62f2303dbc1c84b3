"""The command as a user meets it: light, plain about what is wrong, and whole from a run to its tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch

from benchmark import api, config, files, registry
from benchmark.checks import doctor
from benchmark.cli import commands
from benchmark.engine import execution
from benchmark.records import checkout, results_file, run_identity, selection
from benchmark.tables import claims, render, table_file
from tests import ROOT
from tests.helpers.command import bench

TINY = {
    "updates": 20,
    "train_rows": 500,
    "evaluation_rows": 128,
    "unconditional_rows": 128,
    "probe_rows": 128,
    "batch_rows": 32,
    "prior_steps": 2,
    "decoder_steps": 2,
}
SMALL = ["--preset", "smoke", *(word for key, value in TINY.items() for word in ("--set", f"{key}={value}"))]

NOISE = """
from benchmark.api import MethodCard

CARD = MethodCard(version=1, label="pure noise", paper="none", stages=())


class Noise:
    def __init__(self, modalities, config):
        self.modalities = modalities

    def sample(self, given, want, rows, draws):
        return {each.name: each.scale * draws.normal(each.name, *each.shape)
                for each in self.modalities if each.name in want}


METHOD = Noise
"""
FIRST = "        return {"
BROKEN = NOISE.replace(FIRST, f"        raise RuntimeError('planted')\n{FIRST}")
MOODY = NOISE.replace(
    FIRST, f"        import os\n        if 'PLANTED' in os.environ:\n            raise RuntimeError('planted')\n{FIRST}"
)
HUMBLE = NOISE.replace("import MethodCard", "import Inapplicable, MethodCard").replace(
    "    def sample", "    def WHERE(self, *given):\n        raise Inapplicable('not for me')\n\n    def sample"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with two rows of table5, one seed; tests only read it."""
    runs = tmp_path_factory.mktemp("cli") / "runs"
    answer = bench("reproduce", "table5", "-m", "muni", "-m", "chance", "-s", "0", *SMALL, "--runs", runs)
    assert answer.status == 0, answer.err
    return runs


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of results/ that the commands read and write instead of the checkout's."""
    folder = tmp_path / "results"
    shutil.copytree(files.RESULTS, folder)
    shutil.rmtree(folder / "reference", ignore_errors=True)
    monkeypatch.setattr(files, "RESULTS", folder)
    return folder


@pytest.fixture
def plugin(tmp_path: Path):
    """Writes a user's own file and returns its path."""

    def write(name: str, source: str) -> Path:
        (tmp_path / name).write_text(source)
        return tmp_path / name

    return write


# Light commands.

COMMANDS = [command.name or command.callback.__name__ for command in commands.app.registered_commands]


def test_what_only_informs_imports_nothing_slow() -> None:
    """Every --help, list and info in one fresh interpreter."""
    calls = [
        ["--help"],
        ["--version"],
        ["list"],
        ["info", "muni"],
        ["info", "swd"],
        ["info", "gaussian_mixture"],
        *([name, "--help"] for name in COMMANDS),
    ]
    code = (
        "import json, sys, time\nbefore = time.perf_counter()\nfrom benchmark.cli import commands\n"
        f"for words in {calls}:\n    sys.argv = ['bench', *words]\n"
        "    try:\n        commands.main()\n    except SystemExit as end:\n        assert not end.code, words\n"
        "slow = [name for name in ('torch', 'pandas', 'scipy', 'numpy', 'matplotlib') if name in sys.modules]\n"
        "print(json.dumps([slow, time.perf_counter() - before]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    slow, seconds = json.loads(done.stdout.splitlines()[-1])
    assert slow == []
    assert seconds < 10  # 0.8 s on an idle core, for all of them


def test_every_command_explains_itself_with_an_example() -> None:
    assert {"run", "reproduce", "doctor"} <= {*COMMANDS}
    pages = {name: bench(name, "--help").out.partition("Example: ")[2] for name in COMMANDS}
    assert [name for name, page in pages.items() if f"bench {name}" not in page] == []


def test_list_names_everything_there_is() -> None:
    out = bench("list").out
    names = [name for kind in registry.FOLDERS for name in registry.index(kind)]
    names += [*table_file.table_files(), *config.PRESETS]
    assert [name for name in names if not re.search(rf"\b{name}\b", out)] == []
    assert "muni" in names and "table5" in names


# info.


@pytest.mark.parametrize("preset", config.PRESETS)
@pytest.mark.parametrize("method", ["muni", "mmvaeplus"])
def test_info_gives_every_field_with_its_source(method: str, preset: str) -> None:
    answer = bench("info", method, "--preset", preset, "--set", "updates=7")
    lines = answer.out.partition("configuration on")[2].splitlines()[1:]
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert found.keys() == config.SETTINGS.keys() | registry.card("method", method).fields.keys()
    assert all(len(rest) == 2 and rest[1].strip() for rest in found.values())
    assert found["updates"] == ["7", "--set"]
    recipe = registry.card("dataset", "gaussian_mixture").recipe
    assert found["decoder_width"] == [str(part) for part in recipe[preset]["decoder_width"]]


def test_info_on_a_metric_and_on_a_users_file(plugin) -> None:
    assert "raw units squared" in bench("info", "shared_mse").out
    assert "pure noise" in bench("info", plugin("my_noise.py", NOISE)).out


# Bad input: one line, exit status 2, nothing written.


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "-m", "munni"], "unknown method 'munni': did you mean 'muni'?"),
    (["run", "-m", "absent.py"], "no file absent.py"),
    (["run", "-m", "muni", "-d", "gausian_mix"], "unknown dataset 'gausian_mix': did you mean 'gaussian_mixture'?"),
    (["run", "-m", "muni", "-p", "smok"], "--preset: unknown preset 'smok': did you mean 'smoke'?"),
    (["run", "-m", "muni", "-t", "one_to_on"], "--task: unknown task 'one_to_on': did you mean 'one_to_one'?"),
    (["run", "-m", "muni", "-t", "criterias"], "--task: unknown task 'criterias': did you mean 'criteria'?"),
    (["run", "-m", "shala", "-t", "many_to_one"], "shala does not support many_to_one: it supports one_to_one"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "update=3"], "no field 'update': did you mean 'updates'?"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "updates=many"], "--set updates=many: 'many' is not of type int"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "compile=2"], "--set compile=2: '2' is not of type bool"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "updates"], "--set updates: write key=value"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "updates=-1"], "updates = -1: must not be negative"),
    (["run", "-m", "mld", "-p", "smoke", "--set", "prior_steps=0"], "prior_steps = 0: must be greater than 0"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "latent_size=0"], "latent_size = 0: must be greater than 0"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "learning_rate=0"], "learning_rate = 0.0: must be greater than 0"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "precision=half"], "precision = 'half': choose float32 or bfloat16"),
    (["run", "-m", "muni", "-s", "one"], "--seed one: write a number"),
    (["run", "-m", "muni", "-s", "4-2"], "--seed 4-2: write a number"),
    (["run", "-m", "muni", "-s", "3-"], "--seed 3-: write a number"),
    (["run", "-m", "muni", "-s", "-3"], "--seed -3: write a number"),
    (["run", "-m", "muni", "-s", "1,,2"], "--seed : write a number"),
    (["run", "-m", "muni", "-s", "9223372036854775808"], "seeds end at 4294967295"),
    (["run", "-m", "muni", "-s", "0-100000000000"], "a range has 10000 at most"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "learning_rate=nan"], "learning_rate = nan: must be finite"),
    (["run", "-m", "muni", "-p", "smoke", "--set", "beta2=1.5"], "beta2 = 1.5: must be at most 1"),
    (["run", "-m", "muni", "-p", "smoke", "--slurm", "partition=gpu"], "--slurm goes with --executor slurm"),
    (["run", "-m", "muni", "-p", "smoke", "--device", "gpu0"], "--device gpu0: "),
    (["reproduce", "table66"], "unknown table 'table66': did you mean 'table6'?"),
    (["reproduce", "table5", "-m", "munni", "-p", "smoke"], "unknown method 'munni': did you mean 'muni'?"),
    (["reproduce", "table5", "-p", "cpux"], "--preset: unknown preset 'cpux': did you mean 'cpu'?"),
    (["reproduce", "table5", "-p", "smoke", "-f", "mdd"], "--format: unknown format 'mdd': did you mean 'md'?"),
    (["table", "table5", "-p", "smok"], "--preset: unknown preset 'smok': did you mean 'smoke'?"),
    (["table", "table5", "-p", "smoke"], "`bench run` writes them"),
    (["claims", "-p", "smok"], "--preset: unknown preset 'smok': did you mean 'smoke'?"),
    (["check", "-p", "smok"], "--preset: unknown preset 'smok': did you mean 'smoke'?"),
    (["sample", "-m", "munni", "-p", "smoke"], "unknown method 'munni': did you mean 'muni'?"),
    (["sample", "-m", "muni", "-p", "smoke", "--given", "x9"], "--given x9: Gaussian mixture has no such modality"),
    (["sample", "-m", "muni", "-p", "smoke"], "has no trained model: train it with: bench run --method muni"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(runs: Path, arguments: list[str], message: str) -> None:
    answer = bench(*arguments, "--runs", runs)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("bench: ") and answer.err.count("\n") == 1, answer.err
    assert message in answer.err
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["info", "mooni"], "unknown method, dataset or metric 'mooni': did you mean 'muni'?"),
    (["info", "muni", "--preset", "papper"], "--preset: unknown preset 'papper': did you mean 'paper'?"),
    (["conform", "swdd"], "'swdd'"),
    (["profile", "-m", "munni", "-p", "smoke"], "unknown method 'munni': did you mean 'muni'?"),
])  # fmt: skip
def test_bad_input_of_commands_without_runs(arguments: list[str], message: str) -> None:
    answer = bench(*arguments)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.count("\n") == 1 and message in answer.err


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "-m", "muni", "--sed", "0"], ["sample", "-m", "muni", "--rows", 0], ["nonsense"]]
)
def test_a_wrong_option_has_status_2(arguments: list[object]) -> None:
    answer = bench(*arguments)
    assert (answer.status, answer.out) == (2, "") and answer.err


@pytest.mark.parametrize(("change", "message"), [
    (("metric =", "metrik ="), "unknown key 'metrik': did you mean 'metric'?"),
    (('metric = "shared_mse"', 'metric = "shared_msee"'), "unknown metric 'shared_msee': did you mean 'shared_mse'?"),
    (('task = "uncond"', 'task = "unkond"'), "unknown task 'unkond': did you mean 'uncond'?"),
    (('id = "table5"', "id = "), "not valid TOML"),
])  # fmt: skip
def test_a_faulty_table_file_runs_nothing(runs: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    source = (files.RESULTS / "tables" / "table5.toml").read_text()
    assert change[0] in source
    (tmp_path / "mine.toml").write_text(source.replace(*change, 1))
    answer = bench("reproduce", tmp_path / "mine.toml", *SMALL, "--runs", runs)
    assert answer.status == 2 and message in answer.err and answer.err.count("\n") == 1
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(("source", "message"), [
    ("x = 1\n", "has no CARD"),
    ("def broken(:\n", "not valid Python"),
    (NOISE.replace("version=1", "version=int(1)"), "literals only"),
    (NOISE.replace("version=1", "varsion=1"), "unexpected keyword argument 'varsion'"),
])  # fmt: skip
def test_a_faulty_file_of_the_user_runs_nothing(runs: Path, plugin, source: str, message: str) -> None:
    answer = bench("run", "-m", plugin("mine.py", source), *SMALL, "--runs", runs)
    assert answer.status == 2 and message in answer.err and answer.err.count("\n") == 1
    assert list(runs.iterdir()) == []


def test_an_interrupt_has_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "index", mock.Mock(side_effect=KeyboardInterrupt))
    assert bench("list").status == 130


# Planning and running.


@pytest.mark.parametrize(
    "command", [["run", "-m", "muni", "-m", "chance"], ["reproduce", "table5", "-m", "muni", "-m", "chance"]]
)
def test_a_plan_writes_nothing(runs: Path, command: list[str]) -> None:
    answer = bench(*command, "--seed", "0-1,4", *SMALL, "--runs", runs, "--plan")
    assert answer.status == 0
    rows = [line.split() for line in answer.out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [(name, seed) for seed in "014" for name in ("muni", "chance")]
    assert all(row[3] == row[5] != "0" for row in rows)  # all numbers are missing
    assert list(runs.iterdir()) == []


def test_a_plan_counts_what_is_there(finished: Path) -> None:
    out = bench("reproduce", "table5", "-m", "muni", "-s", "0-1", *SMALL, "--runs", finished, "--plan").out
    assert [line.split()[3] == "0" for line in out.splitlines()] == [True, False]


def test_seeds() -> None:
    assert commands._seeds(["0-2", "5,7", "1"]) == [0, 1, 2, 5, 7]


def test_a_table_shows_the_mean_of_its_rows_in_every_format(finished: Path) -> None:
    values = [
        row.value
        for row in results_file.read(finished / "results.csv")
        if (row.method, row.metric, row.want.count("+"), row.given.count("x")) == ("muni", "shared_mse", 0, 1)
    ]
    assert len(values) == 6
    shown = f"{statistics.fmean(values):.4f}"
    answers = {name: bench("table", "table5", *SMALL, "-f", name, "--runs", finished) for name in render.FORMATS}
    assert {answer.status for answer in answers.values()} == {0}
    assert [name for name, answer in answers.items() if name != "csv" and shown not in answer.out] == []
    lines = list(csv.DictReader(io.StringIO(answers["csv"].out)))
    assert any(
        math.isclose(float(number), statistics.fmean(values), rel_tol=1e-9)
        for line in lines
        for number in line.values()
        if re.fullmatch(r"-?\d+\.\d+", number or "")
    )
    assert all("mvae" in answer.out.lower() for answer in answers.values())  # rows without numbers are not left out


def test_what_is_finished_is_not_run_again(finished: Path) -> None:
    before = (finished / "results.csv").read_bytes()
    answer = bench("reproduce", "table5", "-m", "muni", "-m", "chance", "-s", "0", *SMALL, "--runs", finished)
    assert answer.status == 0
    assert "training" not in answer.err and "scoring" not in answer.err
    assert (finished / "results.csv").read_bytes() == before


def test_the_commands_that_are_suggested_work(finished: Path) -> None:
    out = bench("reproduce", "table5", "-m", "muni", "-s", "0", *SMALL, "--runs", finished).out
    suggested = re.findall(r"bench (sample .*?|reproduce .*?)   \(", out)
    assert len(suggested) == 2
    for line in suggested:
        words = line.split()
        assert bench(*words, *(["--plan"] if words[0] == "reproduce" else ["--rows", 4])).status == 0, line
    out = bench("run", "-m", "muni", "-t", "uncond", *SMALL, "--runs", finished).out
    assert "MUNI" in bench(*out.rpartition("Next: bench ")[2].split()).out


def test_sample_writes_beside_the_run_or_where_it_is_told(finished: Path, tmp_path: Path) -> None:
    answer = bench(
        "sample", "-m", "muni", *SMALL, "--runs", finished, "--given", "x1+x2", "--rows", 4, "--out", tmp_path
    )
    assert answer.status == 0
    assert (tmp_path / "x1+x2_to_x3.safetensors").exists()
    bench("sample", "-m", "chance", *SMALL, "--runs", finished, "--rows", 4)
    assert len(list(finished.glob("smoke/*/chance/*/samples/nothing_to_*.safetensors"))) == 1


def test_claims_without_enough_seeds_are_undecided(finished: Path) -> None:
    count = len(claims.load_claims(registry.index("metric")))
    for name in ("term", "md"):
        answer = bench("claims", *SMALL, "-f", name, "--runs", finished)
        assert answer.status == 0
        assert f"{count} claims at preset smoke: 0 holds, 0 fails, {count} undecided" in answer.out
    for chosen in (["table5"], ["table2", "table6"]):
        of_them = sum(claim.table in chosen for claim in claims.load_claims(registry.index("metric")))
        assert 0 < of_them < count
        assert f"{of_them} claims at" in bench("claims", *chosen, *SMALL, "--runs", finished).out
    wrong = bench("claims", "tabel5", *SMALL, "--runs", finished)
    assert wrong.status == 2 and "unknown table with claims 'tabel5': did you mean 'table5'?" in wrong.err


def test_max_time_stops_cleanly_and_the_same_command_goes_on(runs: Path) -> None:
    command = ["run", "-m", "muni", "-t", "uncond", *SMALL, "--set", "updates=100", "--runs", runs]
    stopped = bench(*command, "--max-time", 1e-6)
    assert stopped.status == 0 and "the same command goes on" in stopped.err
    assert not (runs / "results.csv").exists()
    gone_on = bench(*command)
    assert gone_on.status == 0 and "training 100 %" in gone_on.err
    assert {row.status for row in results_file.read(runs / "results.csv")} == {"ok"}


def test_fresh_starts_again_and_counts_each_number_once(runs: Path) -> None:
    command = ["run", "-m", "chance", "-t", "uncond", *SMALL, "--runs", runs]
    first, again = bench(*command), bench(*command, "--fresh")
    assert first.out == again.out and "mean of 1" in again.out
    rows = results_file.read(runs / "results.csv")
    assert len(rows) == len({row.key for row in rows})


def test_a_time_limit_shorter_than_the_set_up_still_comes_to_an_end(runs: Path) -> None:
    command = ["run", "-m", "chance", "-t", "one_to_one", *SMALL, "--runs", runs, "--max-time", 1e-6]
    for call in range(1, 7):  # a cell each
        answer = bench(*command)
        assert (answer.status, "stopped" in answer.err) == (0, call < 6)
        assert len({(row.given, row.want) for row in results_file.read(runs / "results.csv")}) == call


def test_tables_and_claims_leave_out_other_settings(finished: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    frame = results_file.load(finished / "results.csv")
    foreign = frame.assign(run_id="0123456789", seed=frame["seed"] + 1, value=1e6)
    results_file.append(runs / "results.csv", results_file.records_of(frame) + results_file.records_of(foreign))
    for command in (["table", "table5"], ["claims"]):
        shown = bench(*command, *SMALL, "--runs", runs)
        assert (shown.status, shown.out) == (0, bench(*command, *SMALL, "--runs", finished).out)
        assert bench(*command, "--preset", "smoke", "--runs", runs).status == 2  # nothing of the plain recipe


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The file of each line that is parsed."""
    real, found = results_file._parsed, []

    def count(content: bytes, path: Path, first: int) -> object:
        found.extend([path] * content.count(b"\n"))
        return real(content, path, first)

    monkeypatch.setattr(results_file, "_parsed", count)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "table5", "--plan"],
        ["reproduce", "table5", "-m", "muni", "-m", "chance", "-s", "0"],
        ["run", "-m", "muni", "-s", "0-9", "--plan"],
        ["table", "table5"],
        ["claims"],
        ["check"],
        ["report", "--no-samples", "--out", "page.html"],
    ],
)
def test_a_command_parses_each_row_once(
    words: list[str], finished: Path, results: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = results_file.load(finished / "results.csv")
    results_file.write_sorted(results / "reference" / "smoke.csv", rows)
    monkeypatch.chdir(tmp_path)
    parsed.clear()
    assert bench(*words, *SMALL, "--runs", finished).status == 0
    assert parsed.count(finished / "results.csv") == len(rows)
    assert parsed.count(results / "reference" / "smoke.csv") == (len(rows) if words[0] == "check" else 0)


def test_a_running_command_parses_each_row_once_and_sees_those_of_others(
    runs: Path, parsed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "-m", "real", "-m", "chance", "-t", "uncond", *SMALL, "--runs", runs]
    assert bench(*command).status == 0
    lines = len(results_file.read(runs / "results.csv"))
    shutil.copy(runs / "results.csv", runs / "others.csv")
    (runs / "results.csv").unlink()
    executed = []

    def execute(run: run_identity.Run, *arguments: object) -> list[str]:
        executed.append(run.job.method)
        shutil.copy(runs / "others.csv", runs / "results.csv")  # another process writes what both runs lack
        return []

    parsed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(execution, "_execute_one", execute)
        assert bench(*command).status == 0
    assert executed == ["real"] and len(parsed) == lines
    parsed.clear()
    assert bench(*command, "--fresh").status == 0
    assert len(parsed) == 2 * lines  # the old ones and the new ones


def test_fresh_rows_take_the_place_of_old_ones_from_the_start(runs: Path) -> None:
    command = ["run", "-m", "chance", "-t", "one_to_one", *SMALL, "--runs", runs]
    assert bench(*command).status == 0
    stopped = bench(*command, "--fresh", "--max-time", 1e-6)
    assert "without --fresh, goes on" in stopped.err
    assert len({row.given for row in results_file.read(runs / "results.csv")}) == 1  # a cell of the new ones
    assert bench(*command).status == 0
    assert (
        len(results_file.read(runs / "results.csv"))
        == len({row.key for row in results_file.read(runs / "results.csv")})
        > 0
    )


def test_a_newer_metric_is_scored_again_and_nothing_is_trained_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", "-m", "muni", "-t", "uncond", *SMALL, "--runs", runs]
    assert bench(*command).status == 0
    before = results_file.read(runs / "results.csv")
    real = registry.sources
    swd = registry.locate("metric", "swd")
    monkeypatch.setattr(
        registry, "sources", lambda path, **options: real(path, **options) + ("x" if path == swd else "")
    )
    again = bench(*command)
    assert again.status == 0 and "training" not in again.err
    added = results_file.read(runs / "results.csv")[len(before) :]
    assert {row.metric for row in added} == {"swd"} and {row.run_id for row in added} == {before[0].run_id}


@pytest.mark.parametrize(
    ("file", "trains", "scores"),
    [
        ("benchmark/engine/train.py", True, True),
        ("benchmark/runtime.py", True, True),
        ("benchmark/engine/evaluate.py", False, True),
        ("benchmark/engine/criteria.py", False, True),
        ("benchmark/report/sample_plots.py", False, False),
    ],
)
def test_a_run_and_its_rows_name_the_core_code_behind_them(
    file: str, trains: bool, scores: bool, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = api.Cell("gaussian_mixture", ("x1",), ("x2",))
    job = table_file.job_of("muni", "gaussian_mixture", "smoke", 0, [(cell, "shared_mse")])
    before = run_identity.prepare(job, finished, SMALL[3::2])
    assert run_identity.missing(before) == []
    real, changed = registry.sources, ROOT / file
    monkeypatch.setattr(registry, "sources", lambda path, **card: real(path, **card) + "x" * (path == changed))
    after = run_identity.prepare(job, finished, SMALL[3::2])
    assert (after.run_id != before.run_id, run_identity.missing(after) != []) == (trains, scores)


@pytest.mark.parametrize("field", config.SETTINGS)
def test_only_what_scoring_alone_asks_for_leaves_the_training_as_it_is(field: str, tmp_path: Path) -> None:
    job = table_file.job_of("muni", "gaussian_mixture", "smoke", 0, [])
    value = getattr(run_identity.prepare(job, tmp_path).config, field)
    words = {"beta2": 0.9, "precision": "bfloat16", "variant": "x", "verifier": "segformer", "audio_decoder": "flow"}
    changed = words.get(field) or {bool: not value}.get(type(value), value + 1)
    first, other = (run_identity.prepare(job, tmp_path, sets) for sets in ([], [f"{field}={changed}"]))
    assert first.run_id != other.run_id
    assert (first.directory == other.directory) == (field in config.marked("scoring"))


def test_a_model_is_trained_once_and_sampled_in_several_ways(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    words = ["reproduce", "table5", "-m", "muni", "-s", "0", *SMALL, "--runs", tmp_path / "runs"]
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.safetensors")}
    assert bench(*words, "--set", "decoder_steps=3").status == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.safetensors")} == trained


def test_a_datasets_card_is_no_code_and_its_class_is(tmp_path: Path) -> None:
    path = registry.locate("dataset", "gaussian_mixture")
    found = []
    for number, (old, new) in enumerate(
        [("", ""), ('label="', 'label="another '), ("COMPONENTS = 64", "COMPONENTS = 32")]
    ):
        copy = tmp_path / str(number) / path.name
        copy.parent.mkdir()
        assert old in path.read_text()
        copy.write_text(path.read_text().replace(old, new, 1))
        found.append((registry.sources(copy, with_card=False), registry.sources(copy)))
    assert found[0][0] == found[1][0] != found[2][0]
    assert found[0][1] != found[1][1]


def test_a_stopped_search_says_how_to_go_on(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise execution.Stopped(by_user=True)

    monkeypatch.setattr(execution, "train_only", interrupted)
    answer = bench("tune", "-m", "muni", "--preset", "smoke", "--runs", runs)
    assert answer.status == 130 and "the same command goes on" in answer.err


# A user's own file, and methods that fail.


def test_a_file_named_like_a_method_of_the_suite_is_refused(runs: Path, plugin) -> None:
    answer = bench("run", "-m", plugin("muni.py", NOISE), "-t", "uncond", *SMALL, "--runs", runs)
    assert answer.status == 2 and "rename it" in answer.err


def test_a_users_file_runs_and_stands_in_the_table_by_its_path_alone(runs: Path, plugin) -> None:
    path = plugin("my_noise.py", NOISE)
    answer = bench("run", "-m", path, "-t", "uncond", *SMALL, "--runs", runs)
    assert answer.status == 0, answer.err
    rows = {row.metric: row for row in results_file.read(runs / "results.csv")}
    assert {row.method for row in rows.values()} == {"my_noise"}
    # Independent N(0, s^2) rows: the mean squared difference is 2 s^2.
    scale = 1 + 4.4**2
    assert rows["shared_mse"].value == pytest.approx(2 * scale, rel=0.1)
    table = bench("reproduce", "table5", "-m", path, *SMALL, "--runs", runs)
    assert table.status == 0 and "pure noise" in table.out


def test_a_cell_that_is_asked_for_samples_and_for_probes_gets_both(runs: Path) -> None:
    assert bench("run", "-m", "muni", "-t", "uncond", "-t", "criteria", *SMALL, "--runs", runs).status == 0
    found = results_file.load(runs / "results.csv")
    of_nothing = found[found["given"].eq("") & found["status"].eq("ok")]
    assert set(of_nothing["metric"]) == {"swd", "swd_w1", "shared_mse", "private_swd", "residual_dependence"}
    assert (found["metric"] == "probe_mlp").sum() == 7 * 7


def test_a_failing_method_leaves_error_rows_and_costs_the_others_nothing(runs: Path, plugin) -> None:
    path = plugin("broken.py", BROKEN)
    answer = bench("run", "-m", path, "-m", "chance", "-t", "uncond", *SMALL, "--runs", runs)
    assert answer.status == 1
    assert answer.err.count("RuntimeError: planted") == 1
    rows = results_file.read(runs / "results.csv")
    assert {row.status for row in rows if row.method == "broken"} == {"error: RuntimeError: planted"}
    assert {row.status for row in rows if row.method == "chance"} == {"ok"}
    # Mended under the same name, its rows are tried again.
    plugin("broken.py", NOISE)
    registry.card.cache_clear(), registry.sources.cache_clear()
    assert bench("run", "-m", path, "-t", "uncond", *SMALL, "--runs", runs).status == 0


def test_an_error_after_fresh_takes_the_place_of_the_older_rows(runs: Path, plugin) -> None:
    command = ["run", "-m", plugin("moody.py", MOODY), "-t", "uncond", *SMALL, "--runs", runs]
    assert bench(*command).status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED", "1")
        assert bench(*command, "--fresh").status == 1
    latest = results_file.latest(results_file.load(runs / "results.csv"))
    assert set(latest["status"]) == {"error: RuntimeError: planted"}
    assert bench(*command).status == 0
    assert set(results_file.latest(results_file.load(runs / "results.csv"))["status"]) == {"ok"}


@pytest.mark.parametrize("where", ["sample", "bind"])
def test_what_a_method_says_it_cannot_do_is_not_an_error(where: str, runs: Path, plugin) -> None:
    source = HUMBLE.replace("    def sample", "    def ignored") if where == "sample" else HUMBLE
    path = plugin("humble.py", source.replace("WHERE", where))
    answer = bench("run", "-m", path, "-t", "uncond", *SMALL, "--runs", runs)
    assert answer.status == 0, answer.err
    assert {row.status for row in results_file.read(runs / "results.csv")} == {"n/a: not for me"}


def test_reproduce_says_which_row_failed(runs: Path, plugin) -> None:
    path = plugin("broken.py", BROKEN)
    answer = bench("reproduce", "table5", "-m", "chance", "-m", path, "-s", 0, *SMALL, "--runs", runs)
    assert answer.status == 1
    assert "RuntimeError: planted" in answer.err and "chance" in answer.out and "RuntimeError" in answer.out


def test_a_table_survives_the_loss_of_a_methods_file(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {name: path for name, path in registry.index("method").items() if name not in ("mvae", "muni")}
    real = registry.index
    monkeypatch.setattr(registry, "index", lambda kind: methods if kind == "method" else real(kind))
    shown = bench("table", "table5", *SMALL, "--runs", finished)
    assert shown.status == 0 and "muni" in shown.out
    plan = bench("reproduce", "table5", *SMALL, "--runs", finished, "--plan")
    assert plan.status == 0 and "mvae, muni" in plan.err
    assert "chance" in plan.out and not re.search(r"^muni ", plan.out, re.MULTILINE)


# Regression.


def test_check_is_0_for_the_same_1_for_a_moved_number_and_2_without_a_reference(finished: Path, results: Path) -> None:
    without = bench("check", "-p", "smoke", "--runs", finished)
    assert without.status == 2 and "bench bless --preset smoke makes them" in without.err
    frame = results_file.load(finished / "results.csv")
    results_file.write_sorted(results / "reference" / "smoke.csv", frame)
    overrides = SMALL[2:]
    same = bench("check", "-p", "smoke", "--runs", finished, *overrides)
    assert (same.status, same.out) == (0, f"{len(frame)} same\n")
    other = frame.assign(dataset="another")  # a table is checked by itself, and what is left out is named
    results_file.write_sorted(results / "reference" / "smoke.csv", pd.concat([frame, other]))
    alone = bench("check", "-p", "smoke", "--runs", finished, *overrides)
    assert (alone.status, alone.out) == (
        0,
        f"{len(frame)} same\nnot compared, since no row of it is fresh: another\n",
    )
    row = frame.index[(frame["method"] == "muni") & (frame["metric"] == "swd")][0]
    frame.loc[row, "value"] *= 1.05
    results_file.write_sorted(results / "reference" / "smoke.csv", frame)
    moved = bench("check", "-p", "smoke", "--runs", finished, *overrides)
    assert moved.status == 1
    assert "swd" in moved.out and f"{len(frame) - 1} same" in moved.out
    assert bench("check", "-p", "cpu", "--runs", finished).status == 2
    assert bench("check", "-p", "smoke", "--runs", finished, "--rule", "guess").status == 2


def test_a_preset_without_rows_is_one_line(finished: Path) -> None:
    answer = bench("table", "table5", "-p", "gpu", "--runs", finished)
    assert answer.status == 2 and "no rows of preset gpu by this code and these settings" in answer.err


def test_bless_writes_the_reference_and_why_but_only_from_committed_code(
    finished: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bless", "-p", "smoke", "--reason", "first rows", "--runs", finished]
    monkeypatch.setattr(checkout, "is_dirty", lambda root: True)
    refused = bench(*command)
    assert refused.status == 2 and "commit first" in refused.err
    assert not (results / "reference").exists()
    monkeypatch.setattr(checkout, "is_dirty", lambda root: False)
    # A commit with changes is refused too: give the rows the name of a clean one.
    clean = [
        record.__class__(**vars(record) | {"commit": "0123456789"})
        for record in results_file.read(finished / "results.csv")
    ]
    runs = results.parent / "clean"
    results_file.append(runs / "results.csv", clean)
    refused = bench(*command[:-1], runs)
    assert refused.status == 2 and "no rows of preset smoke by this code" in refused.err  # --set made other runs
    monkeypatch.setattr(selection, "Settings", partial(selection.Settings, overrides=SMALL[3::2]))
    answer = bench(*command[:-1], runs)
    assert answer.status == 0, answer.err
    monkeypatch.undo()
    monkeypatch.setattr(files, "RESULTS", results)
    assert len(results_file.read(results / "reference" / "smoke.csv")) == len(clean)
    assert "first rows" in (results / "LOG.md").read_text()
    assert bench("check", "-p", "smoke", "--runs", runs, *SMALL[2:]).status == 0


# conform and doctor.


def test_conform_reports_faults_with_status_1(plugin) -> None:
    assert "shared_mse: conforms" in bench("conform", "shared_mse").out
    answer = bench("conform", plugin("broken.py", BROKEN))
    assert answer.status == 1
    assert "FAILED" in answer.out and "planted" in answer.out


def test_doctor_finds_no_problem_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    answer = bench("doctor")
    found = {line.split(maxsplit=1)[0] for line in answer.out.splitlines()}
    assert answer.status == 0, answer.out
    assert found <= {"ok", "missing", "->"}
    assert f"torch {torch.__version__}" in answer.out
    assert list(tmp_path.iterdir()) == []  # it tried to write and left nothing


def found(check) -> list[doctor.Finding]:
    return list(check())


def test_doctor_names_missing_packages_what_they_block_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: package not in ("matplotlib", "laion-clap"))
    seen = {finding.what.split('"')[1]: finding for finding in found(doctor._extras)}
    assert {name: finding.mark for name, finding in seen.items()} == {
        "plots": "missing",
        "polymnist": "ok",
        "spoken-digits": "ok",
        "image-text-audio": "missing",
        "scale": "ok",
        "dev": "ok",
    }
    assert seen["plots"].what == 'extra "plots": matplotlib; blocks the pictures of bench sample'
    assert (
        seen["image-text-audio"].what == 'extra "image-text-audio": laion-clap; blocks every cell of image_text_audio'
    )
    assert f"pip install -c {ROOT / 'constraints.txt'} -e '{ROOT}[plots]'" in seen["plots"].mend


def test_doctor_reads_the_extras_of_an_installation_without_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wheel has no pyproject.toml; what pip recorded says the same."""
    here = doctor._requirements()
    lines = ["torch>=2.6", *(f"{name}>=1; extra == '{extra}'" for extra, names in here.items() for name in names)]
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor._requirements() == here
    assert here["plots"] == ["matplotlib"] and "open_clip_torch" in here["image-text-audio"]
    origin = mock.Mock(read_text=lambda name: '{"url": "file:///src/muni-bench"}')
    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: origin)
    assert doctor.install_command("plots").endswith("-m pip install 'muni-bench[plots] @ file:///src/muni-bench'")


def test_doctor_sees_a_foreign_package_of_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [finding.mark for finding in found(doctor._packages)] == ["ok"]
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
        monkeypatch.delitem(sys.modules, name)
    (problem,) = found(doctor._packages)
    assert problem.mark == "problem" and f"'models' that Python finds is {tmp_path / 'models'}" in problem.what


def test_doctor_sees_a_runs_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for runs in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):  # where root cannot write either
        marks = [finding.mark for finding in doctor._runs(runs)]
        assert marks == ["problem"], runs


def test_doctor_sees_a_full_disk_and_foreign_rows(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: mock.Mock(free=2**20))
    assert [finding.mark for finding in doctor._runs(runs)] == ["problem"]
    (runs / "results.csv").write_text("a,b\n1,2\n")
    last = list(doctor.findings(runs))
    assert any(finding.mark == "problem" and "is no result file" in finding.what for finding in last)


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    seen = list(doctor.findings(runs))
    assert any(finding.mark == "problem" and "torch" in finding.what for finding in seen)
    assert seen[-1].what.startswith("git commit") or "git" in seen[-1].what
    assert any("plots" in finding.what for finding in seen)


def test_doctor_flags_bfloat16_that_costs_more_than_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 0.03, 0, 0.3])  # one product of each, in seconds
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
    slow = doctor._bfloat16("cpu")
    assert slow.mark == "missing" and "takes 10 times as long" in slow.what and slow.mend
    ticks = iter([0, 0.03, 0, 0.026])
    fast = doctor._bfloat16("cpu")
    assert (fast.mark, fast.mend) == ("ok", "")


def test_doctor_without_a_checkout_says_what_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "no_commit", lambda root: "the reason")
    (missing,) = found(doctor._git)
    assert missing.mark == "missing" and "git commit: the reason; blocks bench bless" in missing.what


@pytest.mark.parametrize("words", [["check", "--tolerance"], ["run", "-m", "muni", "--max-time"]])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_a_limit_is_a_number_from_0_on(runs: Path, words: list[str], value: str) -> None:
    answer = bench(*words, value, "-p", "smoke", "--runs", runs)
    assert answer.status == 2 and "is not a number from 0 on" in answer.err and not list(runs.iterdir())


FAILS = """
from benchmark.api import MethodCard

CARD = MethodCard(version=1, label="Fails", paper="none", stages=(("joint", 1.0),))

import torch


class Fails(torch.nn.Module):
    def __init__(self, modalities, config):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def loss(self, batch, stage, draws):
        raise RuntimeError("on purpose")

    def sample(self, given, want, rows, draws):
        raise RuntimeError("never asked")


METHOD = Fails
"""


def test_a_method_that_fails_in_training_costs_no_other_its_turn(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    words = ["-m", tmp_path / "fails.py", "-m", "chance", "--task", "uncond", "-p", "smoke", "--runs", runs]
    answer = bench("run", *words)
    assert answer.status == 1 and "fails.py seed 0: error: RuntimeError: on purpose" in answer.err
    rows = results_file.read(runs / "results.csv")
    assert {row.method: row.status for row in rows} == {"fails": "error: RuntimeError: on purpose", "chance": "ok"}


def test_a_full_disk_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(execution.os, "getpid", full)
    answer = bench("run", "-m", "chance", "--task", "uncond", "-p", "smoke", "--runs", runs)
    assert answer.status == 2 and "cannot write there (No space left on device): free space" in answer.err


def test_a_folder_of_data_that_is_not_there_is_one_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNI_BENCH_DATA", str(runs / "nowhere"))
    answer = bench("run", "-m", "real", "--dataset", "polymnist", "-p", "cpu", "--runs", runs)
    assert answer.status == 2 and answer.err == (
        f"bench: MUNI_BENCH_DATA={runs / 'nowhere'}: no such folder: name the one that holds the data, or unset it\n"
    )


def test_a_tilde_is_the_home_folder_in_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin) -> None:
    plugin("mine.py", NOISE)
    (tmp_path / "table.toml").write_text((files.RESULTS / "tables" / "table5.toml").read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MUNI_BENCH_DATA", "~")
    answer = bench("run", "-m", "~/mine.py", "-t", "uncond", *SMALL, "--runs=~/runs")
    assert answer.status == 0 and f"Rows: {tmp_path}/runs/results.csv" in answer.out, answer.err
    assert bench("reproduce", "~/table.toml", "--method=~/mine.py", *SMALL, "--runs=~/runs", "--plan").status == 0
    lost = bench("table", "table5", "--runs=~nobody-has-this-name/runs")
    assert (lost.status, lost.out) == (2, "") and "no home folder for ~nobody-has-this-name" in lost.err
    assert commands._at_home("--reason=~5 % less") == "--reason=~5 % less"
