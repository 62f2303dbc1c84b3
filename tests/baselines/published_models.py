"""What tests of external models share: where their repositories are, tiny checkpoints, requests, and damaged files.

A drive needs a model's repository and a Python for it: MUNI_BENCH_REPOSITORIES names a folder with NAME/repository, a
work tree, and NAME/python, an executable or a link to that of a virtual environment.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from baselines.published import adapter
from baselines.published.adapter import Runner, answered
from benchmark import registry
from benchmark.api import TASKS, Cell, cells
from benchmark.media.media_files import write_png, write_wav
from benchmark.records import results_file
from benchmark.runtime import Draws
from benchmark.tables import layout
from tests.helpers.command import bench
from tests.helpers.tiny_models_once import shared

MODALITIES = ("text", "image", "audio")
RATES = {"codi": 16000, "flowbind": 16000, "omniflow": 16000, "tangoflux": 44100, "unifiedio2": 16000}  # Hz, made
RATE = 16000  # Hz, of sounds that are given
LIMIT = 3600.0  # seconds of loading, and of an item: on a busy machine they are many
WRITERS = Path(__file__).parent / "workers"
_REPOSITORIES = Path(os.environ.get("MUNI_BENCH_REPOSITORIES", "/nowhere")).expanduser()


class Things:
    """Two rows of pictures, sounds and sentences that have little in common. seconds: of a sound."""

    identity = "things"

    def __init__(self, sample_rate: int = RATE, seconds: float = 3.0) -> None:
        self.sample_rate = sample_rate
        self._time = torch.arange(round(seconds * sample_rate)) / sample_rate

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        texts = ["a dog barks", "rain on a roof"]
        pictures = torch.stack([torch.linspace(0, 1, 40).expand(3, 40, 40), (torch.arange(40) % 2).expand(3, 40, 40)])
        noise = torch.rand(len(self._time), generator=torch.Generator().manual_seed(0))
        sounds = torch.stack([0.5 * torch.sin(2000 * self._time), noise - 0.5])
        return {"text": [texts[k] for k in indices.tolist()], "image": pictures[indices], "audio": sounds[indices]}


def thing(modality: str, row: int) -> Any:
    """One of a row of Things: a sentence, a picture (3, 40, 40) or a sound (samples,)."""
    return Things().raw("test", torch.tensor([row]))[modality][0]


# ------------------------------------------------------------------------------------------ where they are


def place(name: str) -> Path:
    return _REPOSITORIES / name


def driven(name: str) -> pytest.MarkDecorator:
    """Marks a test that needs the model's repository."""
    present = all((place(name) / each).exists() for each in ("repository", "python"))
    label = adapter.known(name)["label"]
    return pytest.mark.skipif(
        not present, reason=f"needs {label}: MUNI_BENCH_REPOSITORIES names no folder with {name}/{{repository,python}}"
    )


def python(name: str) -> str:
    """The executable. A link to that of a virtual environment is followed once: further, it is none of that."""
    path = place(name) / "python"
    return str((path.parent / path.readlink() if path.is_symlink() else path).absolute())


def write_tiny(name: str, folder: Path, directory: Path | None = None) -> None:
    """Have tests/baselines/workers/NAME_tiny.py write random weights to the folder; directory: in place of the
    repository."""
    command = [python(name), str(WRITERS / f"{name}_tiny.py"), str(folder)]
    made = subprocess.run(
        command, cwd=directory or place(name) / "repository", capture_output=True, text=True, timeout=LIMIT
    )
    assert made.returncode == 0, made.stderr[-3000:]


def tiny_checkpoint(name: str) -> Any:
    """A fixture: the folder of a module's random weights."""

    @pytest.fixture(scope="module")
    def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        write_tiny(name, folder)
        return folder

    return checkpoint


def live_runner(name: str, *scripts: Path) -> Any:
    """A fixture: the model's runner, alive for a module's tests."""

    @pytest.fixture(scope="module")
    def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
        log = tmp_path_factory.mktemp("log") / f"{name}.log"
        made = Runner([python(name), *map(str, scripts)], place(name) / "repository", log)
        yield made
        made.stop()

    return runner


MODEL = """
label = "the stand-in"
sample_rate = 4000
seconds_to_load = 20
seconds_per_item = 20
refused = { uncond = "it needs to hear something" }
directions = ["text -> image+audio", "audio -> text", "image -> text"]
settings = { steps = 5 }
"""


def put_runner(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tests/baselines/workers/stand_in.py as the only model that there is, of that name. Returns a file, for its
    checkpoint."""
    workers = folder / "workers"
    workers.mkdir()
    (workers / f"{name}.toml").write_text(MODEL)
    path = str(WRITERS / "stand_in.py")
    (workers / f"{name}_worker.py").write_text(f"import runpy; runpy.run_path({path!r}, run_name='__main__')")
    monkeypatch.setattr(adapter, "WORKERS", workers)
    return workers / f"{name}.toml"


# ------------------------------------------------------------------------------------------ asking


def set_up(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    python: str | Path,
    repository: Path,
    checkpoint: Path,
    **settings: Any,
) -> None:
    """An external.toml below the folder, which holds the cache, too."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv(adapter.SETTING, str(folder))
    keys = {"python": str(python), "repository": str(repository), "checkpoint": str(checkpoint), "device": "cpu"}
    lines = [f"{key} = {_toml(value)}\n" for key, value in {**keys, **settings}.items()]
    (folder / "external.toml").write_text(f"[{name}]\n{''.join(lines)}")


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def bound(name: str, data: Any = None) -> Any:
    """The method, bound to Things or to other data."""
    method: Any = registry.load("method", name)((), None)
    assert method.absent() == ""
    method.bind(data or Things())
    return method


def things(method: Any, given: Sequence[str], want: Sequence[str], rows: int = 2, first: int = 0, run: int = 0) -> Any:
    """What it answers to rows of what it is bound to, from `first` on."""
    cell = Cell("things", tuple(given), tuple(want))
    return method.things(cell, "test", torch.arange(first, first + rows), Draws("render", cell, run, rows=rows))


def ask(
    name: str,
    folder: Path,
    runner: Runner,
    cell: Cell,
    checkpoint: Path,
    asked: Sequence[tuple[int, Any]],
    **settings: Any,
) -> list[Any]:
    """Answers of a runner to seeds and what is given with each, which is of one modality, as is what is wanted."""
    (given,), (want,) = cell.given, cell.want
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    items = []
    for row, (seed, value) in enumerate(asked):
        if not isinstance(value, str):
            path = folder / "inputs" / f"{row}.{'png' if value.ndim == 3 else 'wav'}"
            write_png(path, value) if value.ndim == 3 else write_wav(path, value, RATE)
            value = f"inputs/{path.name}"
        items.append({"id": f"{row:06d}", "seed": seed, "inputs": {given: value}})
    request = {"schema": 1, "model": name, "given": [given], "want": [want], "items": items, "device": "cpu"}
    request |= {"checkpoint": str(checkpoint), "settings": {**adapter.known(name)["settings"], **settings}}
    answers = answered(folder, request, runner, (LIMIT, LIMIT), RATES[name], say=lambda line: None)
    return [answer[want] for answer in answers]


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal to the last bit."""
    if isinstance(one, tuple):
        return torch.equal(one[0], other[0])
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


# ------------------------------------------------------------------------------------------ rows of a table

DIRECTIONS = [cell for task in TASKS for cell in cells("spoken_digits", MODALITIES, task)]


def reproduced(name: str, folder: Path, *options: str) -> pd.DataFrame:
    """`bench reproduce` of a table that has the model, real rows and every direction: the table's own CSV.

    folder: of the table's file and of the runs.
    """
    columns = [
        f'[[column]]\nheader = "{cell.stem}"\nmetric = "digit_agreement"\ndigits = 4\n'
        f"cells = [{{ given = {list(cell.given)}, want = {list(cell.want)} }}]\nbetter = 'neither'\n"
        for cell in DIRECTIONS
    ]
    (folder / "own.toml").write_text(
        f'id = "own"\ntitle = "Own"\ndataset = "spoken_digits"\nmethods = []\nreferences = ["{name}"]\n'
        'sanity = ["real"]\nseeds = { smoke = 1, gpu = 1 }\n' + "".join(columns)
    )
    sizes = ["--set", "evaluation_rows=2", "--set", "unconditional_rows=2"]
    command = ["reproduce", folder / "own.toml", "--device", "cpu", "--runs", folder / "runs", *sizes]
    answer = bench(*command, "--preset", "smoke", "--format", "csv", *options)
    assert answer.status == 0, answer.err
    lines = [line for line in answer.out.splitlines() if line.startswith(("own,", "table,"))]
    return pd.read_csv(io.StringIO("\n".join(lines)), keep_default_na=False)


def share_spoken_digits(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all of these tests, whose codecs and judges are trained once; skips where packages are missing."""
    for package in ("datasets", "sklearn", "PIL"):
        pytest.importorskip(package, reason="spoken_digits needs the extra spoken-digits")
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(shared(tmp_path_factory) / "spoken-cache"))


def check_rows(name: str, folder: Path) -> pd.DataFrame:
    """A stand-in's rows from raw inputs to the table: scored and marked where it has a direction, else n/a and why.

    Returns the rows of results.csv.
    """
    table = reproduced(name, folder)
    measured = table[table["block"] == "measured"].set_index(["method", "column"])
    rows = results_file.load(folder / "runs" / "results.csv")
    own = rows[rows["method"] == name].set_index(["given", "want"])
    for cell in DIRECTIONS:
        row, shown = own.loc["+".join(cell.given), "+".join(cell.want)], measured.loc[name, cell.stem]
        if why := adapter.refusal(adapter.known(name), cell):
            assert row["status"] == shown["status"] == shown["notes"] == f"n/a: {why}"
            continue
        assert row["status"] == "ok" and row["n"] == 2 and row["protocol"].endswith(results_file.STAND_IN), row[
            "status"
        ]
        assert float(shown["value"]) == row["value"] and layout.STAND_IN in shown["notes"]
        beside = measured.loc["real", cell.stem]
        assert beside["status"] == "ok" and layout.STAND_IN not in beside["notes"]
    assert len(own) == len(DIRECTIONS)
    return rows


# ------------------------------------------------------------------------------------------ faults


def linked(checkpoint: Path, folder: Path) -> Path:
    """A folder of links to a checkpoint's files, of which some can be replaced."""
    shutil.copytree(checkpoint, folder, copy_function=os.symlink)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file of tensors holds; of a link, what it links to stays."""
    from safetensors.torch import load_file, save_file

    safe = path.suffix == ".safetensors"
    state = load_file(path) if safe else torch.load(path, weights_only=True)
    edit(state)
    replace(path)
    save_file(state, path, metadata={"format": "pt"}) if safe else torch.save(state, path)


def replace(path: Path, content: bytes | None = None) -> None:
    """Other content in place of a file or a link; none: it is gone."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)
