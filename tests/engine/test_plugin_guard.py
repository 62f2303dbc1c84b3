"""What plug-ins change of the process, and of the tensors they are given, reaches no other plug-in."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark import api, registry
from benchmark.api import Cell
from benchmark.engine import evaluate, execution, plugin_guard
from benchmark.engine.samples import Samples
from benchmark.records import results_file, run_identity
from benchmark.records.job import job_of
from tests.helpers.command import bench
from tests.helpers.processes import SMALL, rows

PLUGIN = """
import torch
from torch import nn

from benchmark.api import MethodCard

CARD = MethodCard(version=1, label="Mine", paper="none", tasks=("one_to_one", "uncond"))


class Mine(nn.Module):
    def __init__(self, modalities, config):
        super().__init__()
        self.modalities = modalities
        self.inner = nn.Linear(64, 64, bias=False)
        self.outer = nn.Linear(64, 64, bias=False)
        BUILD

    def loss(self, batch, stage, draws):
        LOSS
        x = torch.cat([(batch[m.name] - m.center) / m.scale for m in self.modalities if m.name in batch])
        loss = (self.outer(torch.tanh(self.inner(x))) - x).square().mean()
        return loss, {"loss": loss.detach()}

    def sample(self, given, want, rows, draws):
        SAMPLE
        chosen = [m for m in self.modalities if m.name in want]
        return {m.name: self.outer(draws.normal(m.name, 64)) * m.scale + m.center for m in chosen}


METHOD = Mine
"""


def write(folder: Path, name: str = "mine.py", **parts: str) -> str:
    text = PLUGIN
    for part in ("BUILD", "LOSS", "SAMPLE"):
        text = text.replace(part, parts.get(part.lower(), "pass"))
    (folder / name).write_text(text)
    registry.card.cache_clear(), registry.sources.cache_clear()
    return str(folder / name)


# ------------------------------------------------------------------------------------------ the process

# What a plug-in may do, and how its line names that.
CHANGES = {
    "torch.set_default_dtype(torch.float64)": "torch's default dtype",
    "torch.set_default_device('meta')": "torch's default device",
    "torch.set_grad_enabled(False)": "torch's grad mode",
    "mode = torch.inference_mode(); mode.__enter__()": "torch's inference mode",
    "torch.set_num_threads(2)": "torch's threads",
    "torch.use_deterministic_algorithms(True, warn_only=True)": "torch's deterministic algorithms",
    "torch.set_flush_denormal(True)": "torch's subnormal numbers",
    "torch.set_float32_matmul_precision('medium')": "torch's float32_matmul_precision",
    "torch.set_autocast_enabled('cpu', True)": "autocast",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'": "torch.backends.mkldnn.matmul.fp32_precision",
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark",
    "torch.backends.cuda.enable_flash_sdp(False)": "torch.backends.cuda.enable_flash_sdp",
    "torch.manual_seed(0)": "torch's generator",
    "__import__('numpy').random.seed(0)": "numpy's generator",
    "__import__('numpy').seterr(all='raise')": "numpy's treatment of errors",
    "__import__('random').seed(0)": "Python's generator",
    "__import__('decimal').getcontext().prec = 3": "decimal's context",
    "__import__('locale').setlocale(__import__('locale').LC_ALL, 'C')": "the locale",
    "__import__('os').chdir('/')": "the working folder",
    "__import__('os').environ.update(PLANTED='1')": "the environment",
    "__import__('os').umask(0o077)": "the mask of new files' modes",
    "__import__('sys').path.insert(0, '/planted')": "sys.path",
    "setattr(__import__('sys'), 'stdout', None)": "standard output",
    "__import__('sys').setrecursionlimit(5000)": "the limit of recursion",
    "__import__('signal').signal(10, print)": "handlers of signals",
    "__import__('signal').alarm(1000)": "an alarm",
    "__import__('gc').disable()": "garbage collection",
    "__import__('warnings').simplefilter('error')": "",  # libraries do so when they are imported: put back in silence
}
EVERY = plugin_guard.NUMBERS | plugin_guard.PROCESS


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_plug_in_changes_is_put_back_and_named(change: str) -> None:
    said: list[str] = []
    namespace = {"torch": torch}
    with plugin_guard.unmoved(EVERY, print):  # of the test itself
        before = {name: kept.get() for name, kept in EVERY.items()}
        if "locale" in change:
            import locale

            locale.setlocale(locale.LC_ALL, "C.UTF-8")
            before["the locale"] = locale.setlocale(locale.LC_ALL)
        with plugin_guard.unmoved(EVERY, said.append):
            exec(change, namespace)
        after = {name: kept.get() for name, kept in EVERY.items()}
    assert [name for name in EVERY if after[name] != before[name]] == []
    assert CHANGES[change] in "".join(said) and bool(said) == bool(CHANGES[change])


def test_every_setting_that_is_kept_is_tried() -> None:
    tried = " ".join(CHANGES.values())
    rest = {name for name in EVERY if name not in tried and not name.startswith("torch.backends.")}
    assert rest == {
        "the GPUs' generators",
        "torch's anomaly mode",
        "torch.utils.deterministic.fill_uninitialized_memory",
        "standard error",
        "filters of warnings",
    }


@pytest.mark.parametrize("where", ["build", "loss", "sample"])
def test_the_next_method_gets_the_number_that_it_gets_alone(where: str, tmp_path: Path) -> None:
    """The first one changes the default dtype, seeds and threads, goes elsewhere, and leaves another environment."""
    from tests.helpers.processes import bench

    changes = ("manual_seed(3)", "set_default_dtype(torch.float64)", "set_num_threads(2)")
    text = "; ".join([*(f"torch.{each}" for each in changes), "__import__('os').chdir('/')"])
    text += "; __import__('os').environ.update(MUNI_BENCH_CACHE='/nowhere')"
    if where == "loss":
        text = text.replace("; torch.set_default_dtype(torch.float64)", "")
    path = write(tmp_path, **{where: text})
    words = ["-t", "uncond", *SMALL, "--set", "updates=10", "--runs"]
    assert bench("run", "-m", "chance", *words, tmp_path / "alone").status == 0
    answer = bench("run", "-m", path, "-m", "chance", *words, tmp_path / "runs")
    assert "bench: mine changed " in answer.err and "the working folder" in answer.err
    assert "the environment" in answer.err
    found = [row for row in rows(tmp_path / "runs") if "chance" in row]
    assert found == rows(tmp_path / "alone") != []


def test_a_plug_in_that_goes_elsewhere_does_not_move_relative_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "away").mkdir()
    write(tmp_path, loss=f"__import__('os').chdir({str(tmp_path / 'away')!r})")
    answer = bench("run", "-m", "mine.py", "-t", "uncond", *SMALL, "--set", "updates=10", "--runs", "mine")
    assert answer.status == 0, answer.err
    assert Path.cwd() == tmp_path and list((tmp_path / "away").iterdir()) == []
    assert {record.status for record in results_file.read(tmp_path / "mine" / "results.csv")} == {"ok"}


@pytest.mark.parametrize("end", ["SystemExit(3)", "KeyboardInterrupt", "GeneratorExit", "BaseException('planted')"])
def test_a_plug_in_that_asks_to_end_the_command_has_error_rows_and_the_others_go_on(end: str, tmp_path: Path) -> None:
    path = write(tmp_path, sample=f"raise {end}")
    words = ["-t", "uncond", *SMALL, "--set", "updates=10", "--runs", tmp_path / "runs"]
    answer = bench("run", "-m", path, "-m", "chance", *words)
    assert answer.status == 1, answer.err
    found = list(results_file.read(tmp_path / "runs" / "results.csv"))
    name = re.split(r"\W", end)[0]
    assert all(row.status.startswith("error: ") and name in row.status for row in found if row.method == "mine")
    assert {row.status for row in found if row.method == "chance"} == {"ok"}
    assert {row.method for row in found} == {"mine", "chance"}


# ------------------------------------------------------------------------------------------ tensors


def destroy(x: Any) -> None:
    """Whatever tensors a plug-in was given, or has answered, hold something else."""
    if isinstance(x, Tensor):
        with torch.no_grad():
            x.fill_(1) if x.dtype == torch.int64 else x.fill_(float("nan"))
    elif isinstance(x, dict):
        for each in x.values():
            destroy(each)
    elif isinstance(x, list):
        x[:] = ["destroyed"] * len(x)


def fresh(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    if isinstance(x, tuple):
        return tuple(map(fresh, x))
    return {name: fresh(each) for name, each in x.items()} if isinstance(x, dict) else x


def destroying(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call works on copies, and then destroys what it was given, and what it answered the time before."""
    answered: list[Any] = []

    def destroys(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = fresh(call(self, *map(fresh, arguments), **options))
        if call.__name__ not in ("loss", "rows", "raw"):  # a loss has a graph; rows have the same test below
            for each in answered:
                destroy(each)
            answered[:] = [answer]
        for each in arguments:
            destroy(each)
        return answer

    return destroys


def storing(call: Callable[..., Any]) -> Callable[..., Any]:
    """The dataset answers the same question with the same tensors, as one that keeps its rows does."""
    kept: dict[Any, Any] = {}

    def stores(self: Any, split: str, indices: Tensor) -> Any:
        key = split, tuple(indices.tolist())
        destroy(indices)
        if key not in kept:
            kept[key] = call(self, split, torch.tensor(key[1]))
        return kept[key]

    return stores


# Calls of the contract that take a tensor -> the test below that destroys it.
MIXTURE = ("loss", "sample", "infer", "decode", "update", "rows", "factors", "conditional")
THINGS = ("things", "raw", "render")
OF_PLUG_INS = ("real", "clusters")  # plug-ins alone ask these, with indices of their own


def test_every_call_with_a_tensor_is_known() -> None:
    """Of the contract: what takes rows, latents or indices."""
    found = set()
    for each in vars(api).values():
        if getattr(each, "_is_protocol", False):
            for name, call in vars(each).items():
                if inspect.isfunction(call) and re.search(
                    r"Tensor|Batch|Raw", str(inspect.signature(call)).split("->")[0]
                ):
                    found.add(name)
    assert found == {*MIXTURE, *THINGS, *OF_PLUG_INS}


def scored(method: str, folder: Path) -> dict[tuple[Any, ...], Any]:
    card = registry.card("dataset", "gaussian_mixture")
    names, data = card.modalities, "gaussian_mixture"
    pairs = [(Cell(data, names[:1], names[1:2]), metric) for metric in ("shared_mse", "energy_score")]
    pairs += [(Cell(data, (), names), metric) for metric in ("swd", "shared_mse")]
    if method == "muni":
        from benchmark.engine.criteria import cells_of_dataset

        pairs += list(cells_of_dataset(data))
    sizes = ("updates=4", "train_rows=256", "evaluation_rows=64", "unconditional_rows=128", "probe_rows=64")
    more = ("batch_rows=16", "prior_steps=2", "decoder_steps=2")
    run = run_identity.prepare(job_of(method, data, "smoke", 0, pairs), folder, [*sizes, *more])
    execution.execute([run], "cpu", lambda *words: None)
    found = {record.key: (record.value, record.status) for record in results_file.read(run.results)}
    assert len(found) == len(pairs) and {status for _, status in found.values()} == {"ok"}, found
    return found


@pytest.mark.parametrize("method", ["muni", "real"])
def test_plug_ins_may_destroy_the_tensors_they_get(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(method, tmp_path / "whole")
    world: Any = registry.load("dataset", "gaussian_mixture")
    monkeypatch.setattr(world, "rows", storing(world.rows))
    for name in ("factors", "conditional"):
        monkeypatch.setattr(world, name, destroying(getattr(world, name)))
    plug_in = registry.load("method", method)
    for name in ("loss", "sample", "infer", "decode"):
        if hasattr(plug_in, name):
            monkeypatch.setattr(plug_in, name, destroying(getattr(plug_in, name)))
    for name in ("shared_mse", "energy_score", "swd", "residual_dependence", "probe_linear", "probe_mlp"):
        metric: Any = registry.load("metric", name)
        if "update" in vars(metric) or name in ("shared_mse", "swd"):
            monkeypatch.setattr(metric, "update", destroying(metric.update))
    assert scored(method, tmp_path / "destroyed") == whole


class Things:
    """A world of pictures, a method that answers features, one that makes pictures, and a metric."""

    modalities = (api.Modality("image", (2,)), api.Modality("audio", (2,)))
    sample_rate = 8000
    stored = torch.arange(24.0).view(6, 1, 2, 2) / 24

    def __init__(self) -> None:
        self.seen: list[float] = []

    def rows_of(self, cell: Cell) -> int:
        return 6

    def split_of(self, cell: Cell) -> str:
        return "test"

    def rows(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        found = {"image": self.stored.flatten(1)[indices, :2], "audio": self.stored.flatten(1)[indices, 2:]}
        destroy(indices)
        return found

    def raw(self, split: str, indices: Tensor) -> dict[str, Tensor]:
        destroy(indices)
        return {"image": self.stored}  # what it keeps, and no copy

    def render(self, generated: dict[str, Tensor], draws: Any) -> dict[str, Tensor]:
        made = {"image": generated["image"].sum(1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).sigmoid()}
        destroy(generated)
        return made

    def sample(self, given: dict[str, Tensor], want: Any, rows: int, draws: Any) -> dict[str, Tensor]:
        made = {"image": given["audio"] * 2}
        destroy(given)
        return made

    def update(self, real: dict[str, Tensor], generated: dict[str, Tensor]) -> None:
        self.seen += [float(real["image"].sum()), float(generated["image"].sum())]
        destroy(real), destroy(generated)

    def compute(self) -> api.Score:
        return api.Score(0.0, None, 6)


class Maker(Things):
    def things(self, cell: Cell, split: str, indices: Tensor, draws: Any) -> dict[str, Tensor]:
        made = {"image": self.stored[indices]}
        destroy(indices)
        return made


@pytest.mark.parametrize("method", [Things(), Maker()])
def test_plug_ins_may_destroy_things(method: Things, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Things, "stored", Things.stored.clone())
    first, second, before = Things(), Things(), Things.stored.clone()
    monkeypatch.setattr(evaluate, "metrics_of", lambda *words: ({"first": first, "second": second}, []))
    cell, config = Cell("things", ("audio",), ("image",)), SimpleNamespace(precision="float32")
    kept = Samples(tmp_path / "kept", {})
    found = list(evaluate.evaluate_cell(method, Things(), cell, [], config, 0, "cpu", kept=kept))  # type: ignore[arg-type]
    assert [each.score for each in found] == [api.Score(0.0, None, 6)] * 2
    assert first.seen == second.seen and all(map(math.isfinite, first.seen))
    assert torch.equal(Things.stored, before)
