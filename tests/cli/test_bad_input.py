"""What is wrong with files, disk or numbers costs one clear line, and harms nothing that was there."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import io
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from benchmark.records import results_file
from tests import ROOT
from tests.helpers import processes
from tests.helpers.command import Answer
from tests.helpers.processes import SMALL, at_call, bench, checkpoint_of, contents, put, rows, send

UPDATE = "benchmark.engine.train.Trainer.update"
OFTEN = (
    partial(put, "benchmark.engine.train:CHECKPOINT_SECONDS", 0.0),
    partial(put, "benchmark.engine.train:LOG_EVERY", 10),
)

STOPPED_EARLY = (partial(at_call, UPDATE, 15, partial(send, signal.SIGTERM)),)


def run(runs: Path, *more: object, patches: tuple = ()) -> Answer:
    return bench("run", "-m", "muni", "-t", "uncond", *SMALL, "--runs", runs, *more, patches=[*OFTEN, *patches])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished run, which tests only read."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    assert run(runs).status == 0
    return runs


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "runs"))


@pytest.fixture
def trained(finished: Path) -> Path:
    """A run that is trained and not yet scored."""
    (finished / "results.csv").unlink()
    return finished


def complaint(answer: Answer) -> str:
    """The one line that is no progress."""
    (line,) = (line for line in answer.err.splitlines() if not re.match(r"\S+ seed \d+: (training|scoring) ", line))
    assert line.startswith("bench: ")
    return line


def assert_refused(runs: Path, message: str, command: Callable[[], Answer]) -> None:
    """One line with the message, status 2, and every file as it was."""
    before = contents(runs)
    answer = command()
    assert answer.status == 2, answer.err
    assert message in complaint(answer)
    assert contents(runs) == before


# Checkpoints.


@pytest.mark.parametrize("kept", [0.0, 4, 8, 500, 0.5, -1])
def test_a_truncated_checkpoint(kept: float, trained: Path) -> None:
    content = checkpoint_of(trained).read_bytes()
    checkpoint_of(trained).write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert_refused(trained, "not a whole checkpoint", lambda: run(trained))


@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(100_000),
        b"not a checkpoint\n" * 1000,
        save({"model.a": torch.zeros(3)}),
        save({"model.a": torch.zeros(3)}, metadata={"run_id": "0123456789", "updates": "100"}),
    ],
    ids=["garbage", "text", "no run", "another run"],
)
def test_a_file_that_is_no_checkpoint_of_this_run(content: bytes, trained: Path) -> None:
    checkpoint_of(trained).write_bytes(content)
    message = "belongs to training" if b"model.a" in content else "not a whole checkpoint"
    assert_refused(trained, message, lambda: run(trained))


def test_the_checkpoint_of_another_seed_and_the_way_out(trained: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "other", "--seed", 1, patches=STOPPED_EARLY).status == 130
    shutil.copy(checkpoint_of(tmp_path / "other"), checkpoint_of(trained))
    assert_refused(trained, "or pass --fresh", lambda: run(trained))
    assert run(trained, "--fresh", patches=STOPPED_EARLY).status == 130


def test_a_checkpoint_with_a_flipped_bit(trained: Path) -> None:
    content = bytearray(checkpoint_of(trained).read_bytes())
    content[-100] ^= 1
    checkpoint_of(trained).write_bytes(content)
    assert_refused(trained, "its tensors are not those that were written", lambda: run(trained))


def test_a_checkpoint_begun_on_another_device(trained: Path) -> None:
    path = checkpoint_of(trained)
    with safe_open(path, framework="pt") as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert facts["device"] == "cpu"
    path.write_bytes(save(tensors, metadata=facts | {"device": "cuda"}))
    assert_refused(trained, "go on with --device cuda, or pass --fresh", lambda: run(trained))


class Vandal:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def zipped(vandal: Vandal) -> bytes:
    file = io.BytesIO()
    torch.save({"model": vandal}, file)
    return file.getvalue()


@pytest.mark.parametrize("pack", [pickle.dumps, zipped])
def test_nothing_in_a_checkpoint_is_executed(pack: Callable, trained: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = pack(Vandal(marker))
    torch.load(io.BytesIO(content), weights_only=False) if pack is zipped else pickle.loads(content)
    assert marker.exists()  # the trap works
    marker.unlink()
    checkpoint_of(trained).write_bytes(content)
    assert_refused(trained, "not a whole checkpoint", lambda: run(trained))
    assert not marker.exists()


# Results and tables.


def test_results_with_a_foreign_header(finished: Path) -> None:
    results = finished / "results.csv"
    results.write_text(results.read_text().replace("preset,dataset", "preset,corpus", 1))
    expected = "missing dataset; unexpected corpus"
    assert_refused(finished, expected, lambda: run(finished))
    assert_refused(finished, expected, lambda: run(finished, "--task", "one_to_one"))
    assert_refused(finished, expected, lambda: bench("table", "table5", "-p", "smoke", "--runs", finished))


def test_a_damaged_line_amid_the_results_is_named(finished: Path) -> None:
    lines = (finished / "results.csv").read_text().splitlines(keepends=True)
    lines[2] = lines[2][:40] + "\n"
    (finished / "results.csv").write_text("".join(lines))
    assert_refused(finished, "line 3: ", lambda: run(finished))


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_last_line_is_repaired(seed: int, whole: Path, finished: Path) -> None:
    content = (finished / "results.csv").read_bytes()
    (finished / "results.csv").write_bytes(content[: random.Random(seed).randrange(20, len(content))])
    assert run(finished).status == 0
    assert rows(finished) == rows(whole)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "swd"', 'metric = "swdd"', "did you mean 'swd'?"),
        ('header = "uncond. fid."', 'headr = "uncond. fid."', "headr"),
    ],
)
def test_a_table_file_with_a_fault(old: str, new: str, message: str, finished: Path, tmp_path: Path) -> None:
    text = (ROOT / "results" / "tables" / "table5.toml").read_text()
    assert old in text
    table = tmp_path / "mine.toml"
    table.write_text(text.replace(old, new, 1))
    for verb in ("table", "reproduce"):
        assert_refused(finished, message, lambda verb=verb: bench(verb, table, "-p", "smoke", "--runs", finished))


# The disk.


def as_anyone() -> None:
    """Give up root's right to write where nobody may."""
    if os.geteuid() == 0:
        header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
        assert ctypes.CDLL(None).capset(header, none) == 0


@pytest.mark.parametrize("which", ["seed0-*", "."])
def test_a_folder_that_is_read_only(which: str, trained: Path) -> None:
    folder = next(trained.rglob(which)) if which != "." else trained
    folder.chmod(0o555)
    message = "cannot append results" if which == "." else "config.json (Permission denied)"
    try:
        assert_refused(trained, message, lambda: run(trained, patches=(as_anyone,)))
        if which == ".":
            message = "cannot write there (Permission denied): free space, or name another folder with --runs"
            assert_refused(trained, message, lambda: run(trained / "deeper", patches=(as_anyone,)))
    finally:
        folder.chmod(0o755)


def test_a_file_in_the_place_of_a_folder_and_a_folder_in_the_place_of_a_file(trained: Path) -> None:
    (trained / "file").touch()
    assert_refused(trained, "Not a directory", lambda: run(trained / "file"))
    (trained / "results.csv").mkdir()
    assert_refused(trained, "Is a directory", lambda: run(trained))


HALF = (partial(at_call, "os.write", 1, processes.write_half), partial(at_call, "os.write", 2, processes.disk_full))


@pytest.mark.parametrize(
    "faults",
    [
        (partial(at_call, "os.write", 1, processes.disk_full),),
        HALF,
        (partial(at_call, "os.fsync", 2, processes.disk_full),),  # the first is that of config.json
    ],
    ids=["nothing fits", "half fits", "not flushed"],
)
def test_a_full_disk_while_rows_are_appended(faults: tuple, finished: Path) -> None:
    more = ("--task", "one_to_one")
    there = rows(finished)
    assert_refused(finished, "No space left on device", lambda: run(finished, *more, patches=faults))
    assert run(finished, *more).status == 0
    assert len(rows(finished)) == len(there) + 6 * 6 and set(there) < set(rows(finished))


def small_files() -> None:
    """No file may have more than 100,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


FULL = [
    (small_files, "checkpoint.safetensors (File too large)"),
    (partial(at_call, "os.fsync", 3, processes.disk_full), "checkpoint.safetensors (No space left on device)"),
    (partial(at_call, "os.fsync", 2, processes.disk_full), "train.jsonl (No space left on device)"),
    (partial(at_call, "os.fsync", 1, processes.disk_full), "config.json (No space left on device)"),
]


def test_a_full_disk_while_a_run_is_saved(whole: Path, runs: Path) -> None:
    assert run(runs, patches=STOPPED_EARLY).status == 130
    before = contents(runs)
    for fault, message in FULL:
        answer = run(runs, patches=(fault,))
        assert answer.status == 2
        assert message in complaint(answer)
        after = contents(runs)
        assert after.keys() == before.keys()  # no row, no temporary file
        assert all(after[name] == before[name] for name in before if not name.endswith("train.jsonl"))
    assert run(runs).status == 0
    assert rows(runs) == rows(whole)
    logs = [checkpoint_of(folder).with_name("train.jsonl").read_bytes() for folder in (runs, whole)]
    assert logs[0] == logs[1]


def test_what_others_leave_in_a_run_is_let_alone(trained: Path) -> None:
    folder = checkpoint_of(trained).parent
    strays = [".ipynb_checkpoints/a.json", "lost+found/b", "__pycache__/c"]
    for name in strays:
        (folder / name).parent.mkdir()
        (folder / name).touch()
    for name in (".DS_Store", "._config.json", ".config.json.0a1b2c3d"):
        (folder / name).touch()
    for place in (trained, folder.parent, folder.parents[1]):
        (place / ".ipynb_checkpoints").mkdir(exist_ok=True)
    for more in ((), ("--fresh",)):
        assert run(trained, *more).status == 0
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there == {
        *strays,
        ".DS_Store",
        "._config.json",
        "checkpoint.safetensors",
        "config.json",
        "lock",
        "train.jsonl",
    }


def test_two_runs_in_one_directory(trained: Path) -> None:
    with checkpoint_of(trained).with_name("lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(trained, "another process is working on this run", lambda: run(trained))
    assert run(trained).status == 0


# Numbers.

MINE = """
import torch
from benchmark.api import MethodCard
from models.muni import MUNI

CARD = MethodCard(version=1, label="mine", paper="none")


class Mine(MUNI):
    def __init__(self, modalities, config):
        super().__init__(modalities, config)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def loss(self, batch, stage, draws):
        loss, parts = super().loss(batch, stage, draws)
        self.seen += 1
        {fault}
        return loss, parts


METHOD = Mine
"""
LOSS = MINE.format(fault="loss = loss * float('nan') if self.seen == 34 else loss")
GRADIENT = MINE.format(fault="self.seen == 40 and loss.register_hook(lambda gradient: gradient * float('nan'))")
SAMPLES = MINE.format(fault="").replace(
    "\n\nMETHOD",
    """
    def sample(self, given, want, rows, draws):
        generated = super().sample(given, want, rows, draws)
        generated[want[-1]][rows // 2, 3] = float("inf")
        return generated


METHOD""",
)


@pytest.mark.parametrize(
    ("source", "reason", "updates"),
    [
        (LOSS, "Diverged: the loss is not finite between updates 31 and 40", 30),
        (GRADIENT, "Diverged: a weight is not finite after update 40", 30),
        (SAMPLES, "ValueError: sample() returned 'x3' that is not finite for gaussian_mixture: nothing", 100),
    ],
    ids=["loss", "gradient", "samples"],
)
def test_a_number_that_is_not_finite(source: str, reason: str, updates: int, runs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(source)
    for _ in range(2):  # the second time from the last good state
        answer = bench("run", "-m", mine, "-m", "chance", "-t", "uncond", *SMALL, "--runs", runs, patches=OFTEN)
        assert answer.status == 1
        assert f"seed 0: error: {reason}" in complaint(answer)
        status = {
            (row.method, row.status.startswith(f"error: {reason}")) for row in results_file.read(runs / "results.csv")
        }
        assert status == {("mine", True), ("chance", False)}
        assert all(row.status == "ok" for row in results_file.read(runs / "results.csv") if row.method == "chance")
        state = load_file(checkpoint_of(runs))
        assert state["model.seen"] == updates
        assert all(tensor.isfinite().all() for tensor in state.values())


# Ctrl-C; what the first one does is tested with the resume.


def test_a_second_ctrl_c_stops_at_once_and_leaves_what_can_be_resumed(whole: Path, runs: Path) -> None:
    impatient = tuple(partial(at_call, UPDATE, nth, partial(send, signal.SIGINT)) for nth in (14, 15))
    answer = run(runs, patches=impatient)
    assert answer.status == 130
    assert complaint(answer) == "bench: stopped; the same command goes on where it stopped"
    assert not (runs / "results.csv").exists()
    assert run(runs).status == 0
    assert rows(runs) == rows(whole)


# Nothing that is loaded can execute code.

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "numpy.load", "np.load", "pandas.read_pickle",
                   "pd.read_pickle", "torch.hub.load", "os.system", "os.popen"}  # fmt: skip


# What makes a call safe that otherwise is not: published weights of some models exist as such files alone.
HARMLESS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def risks(source: str) -> Iterator[str]:
    """What could execute code that was read as data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{each.name}" for each in node.names}
            yield from names if str(node.module).split(".")[0] in FORBIDDEN_MODULES else names & FORBIDDEN_CALLS
        elif isinstance(node, ast.Call):
            given = {each.arg: getattr(each.value, "value", None) for each in node.keywords}
            key, safe = HARMLESS.get(name := ast.unparse(node.func), ("", True))
            if name in FORBIDDEN_CALLS and given.get(key) is not safe:
                yield name
            yield from (
                each for each in ("allow_pickle", "shell", "trust_remote_code") if given.get(each, False) is not False
            )


def test_no_code_of_ours_can_execute_what_it_loads() -> None:
    files = [path for name in ("benchmark", "models", "baselines", "data_prep") for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 30
    assert [f"{path}: {risk}" for path in files for risk in risks(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as read",
        "import yaml",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=maybe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "from torch import load",
        "numpy.load(path)",
        "savez(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(risks(source)) != []


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "network.compile()",
        "re.compile(text)",
        "json.load(file)",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
    ],
)
def test_the_search_leaves_alone(source: str) -> None:
    assert list(risks(source)) == []
