"""TangoFlux: its own code on a tiny checkpoint with random weights, from captions to sounds, and faults of both.

The drive needs its repository and a Python for it: MUNI_BENCH_REPOSITORIES names a folder with tangoflux/repository, a
work tree, and tangoflux/python, an executable.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines import external, tangoflux
from baselines.external import Runner, answered
from benchmark.api import TASKS, Cell, Inapplicable, cells
from benchmark.runtime import Draws

RUNNER = external.RUNNERS / "tangoflux.py"
TINY = Path(__file__).parent / "runners" / "tangoflux_tiny.py"
MODALITIES = ("text", "image", "audio")
T_A = Cell("things", ("text",), ("audio",))
RATE = 44100
SMALL = {"steps": 2, "seconds": 1}
REPOSITORIES = os.environ.get("MUNI_BENCH_REPOSITORIES", "")
PLACE = Path(REPOSITORIES).expanduser() / "tangoflux"
PRESENT = bool(REPOSITORIES) and all((PLACE / name).exists() for name in ("repository", "python"))
driven = pytest.mark.skipif(
    not PRESENT, reason="needs TangoFlux: MUNI_BENCH_REPOSITORIES names no folder with tangoflux/{repository,python}"
)


def python() -> str:
    """The executable. A link to that of a virtual environment is followed once: further, it is none of that."""
    path = PLACE / "python"
    return str(path.parent / path.readlink()) if path.is_symlink() else str(path)


class Things:
    """Two rows of sentences and sounds of two seconds."""

    identity, sample_rate = "things", 16000

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        rows = len(indices)
        return {
            "text": ["a dog barks", "rain on a roof"][:rows],
            "image": torch.zeros(rows, 3, 8, 8),
            "audio": torch.zeros(rows, 2 * self.sample_rate),
        }


# ------------------------------------------------------------------------------------ without the repository


def test_what_is_known_of_it_is_what_the_suite_needs() -> None:
    entry = external.known("tangoflux")
    assert tangoflux.METHOD.name == "tangoflux" and tangoflux.CARD.label == entry["label"]
    for name in ("repository", "revision", "checkpoint", "licence", "memory", "setup"):
        assert entry[name], name
    assert len(entry["revision"]) == 40 and any(entry["revision"] in line for line in entry["setup"])
    assert entry["gigabytes"] > 0 and entry["sample_rate"] == RATE
    assert entry["seconds_to_load"] > 0 and entry["seconds_per_item"] > 0
    assert entry["settings"] == {"steps": 50, "guidance": 4.5, "seconds": 10}
    guide = (external.RUNNERS.parents[1] / "docs" / "external" / "tangoflux.md").read_text()
    for line in entry["setup"]:
        assert line in guide


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_from_captions_to_sounds_alone(task: str) -> None:
    for cell in cells("things", MODALITIES, task):
        why = external.refusal(external.known("tangoflux"), cell)
        assert why == ("" if (cell.given, cell.want) == (T_A.given, T_A.want) else "TangoFlux goes text -> audio alone")


def test_refused_directions_are_not_applicable_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = at(tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    for given, want in ((("image",), ("audio",)), (("audio",), ("text",)), (("text",), ("image", "audio"))):
        with pytest.raises(Inapplicable, match="TangoFlux goes text -> audio alone"):
            things(method, Cell("things", given, want))
    assert method.runner.status == 0


def test_the_runner_is_old_python_and_knows_nothing_of_the_suite() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"benchmark", "baselines", "models", "data_prep", "tests"}
    ast.parse(TINY.read_text(), feature_version=(3, 8))


# --------------------------------------------------------------------------------------------- with it


def at(folder: Path, monkeypatch: pytest.MonkeyPatch, python: str, repository: Path, checkpoint: Path) -> Any:
    """The method, set up by an external.toml below the folder, and bound to Things."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv(external.SETTING, str(folder))
    (folder / "external.toml").write_text(
        f'[tangoflux]\npython = "{python}"\nrepository = "{repository}"\ncheckpoint = "{checkpoint}"\n'
        'device = "cpu"\n' + "".join(f"{name} = {value}\n" for name, value in SMALL.items())
    )
    method = tangoflux.METHOD((), None)  # type: ignore[arg-type]
    method.bind(Things())
    return method


def things(method: Any, cell: Cell) -> dict[str, Any]:
    return method.things(cell, "test", torch.arange(2), Draws("render", cell, 0, rows=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tangoflux") / "checkpoint"
    command = [python(), str(TINY), str(folder)]
    subprocess.run(command, cwd=PLACE / "repository", check=True, timeout=600, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    log = tmp_path_factory.mktemp("log") / "tangoflux.log"
    made = Runner([python(), str(TINY), str(RUNNER)], PLACE / "repository", log)
    yield made
    made.stop()


def ask(
    folder: Path, runner: Runner, checkpoint: Path, asked: tuple[tuple[int, str], ...] = ((7, "rain"),), **settings: Any
) -> list[Any]:
    """Sounds of seeds and captions."""
    items = [{"id": f"{row:06d}", "seed": seed, "inputs": {"text": text}} for row, (seed, text) in enumerate(asked)]
    about = {"schema": 1, "model": "tangoflux", "given": ["text"], "want": ["audio"], "items": items}
    settings = {**external.known("tangoflux")["settings"], **SMALL, **settings}
    request = {**about, "checkpoint": str(checkpoint), "device": "cpu", "settings": settings}
    return [each["audio"] for each in answered(folder, request, runner, (600, 600), RATE, say=lambda line: None)]


@driven
@pytest.mark.slow
def test_sounds_of_captions_by_their_seed_alone(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """The public class makes every sound of the same noise: a runner that forgets it gives two seeds one sound."""
    asked = ((7, "a dog barks"), (8, "a dog barks"), (7, "rain on a roof"), (7, "a dog barks"))
    (made, rate), (other, _), (rain, _), (again, _) = ask(tmp_path, runner, checkpoint, asked)
    assert rate == RATE and made.shape == (RATE,) and 0 < made.abs().max() < 1
    assert torch.equal(made, again) and not torch.equal(made, other) and not torch.equal(made, rain)
    ((guided, _),) = ask(tmp_path / "guided", runner, checkpoint, asked[:1], guidance=9.0)
    assert not torch.equal(guided, made)


@driven
@pytest.mark.slow
def test_the_method_answers_in_the_form_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    shrinking = tmp_path / "python"
    shrinking.write_text(f'#!/bin/sh\nexec "{python()}" "{TINY}" "$@"\n')
    shrinking.chmod(0o755)
    method = at(tmp_path, monkeypatch, str(shrinking), PLACE / "repository", checkpoint)
    try:
        made = things(method, T_A)["audio"]
    finally:
        method.runner.stop()
    # A second of 44,100 Hz in two, at the dataset's own rate.
    assert made.shape == (2, 2 * Things.sample_rate)
    assert made[:, : Things.sample_rate].abs().amax(1).min() > 0 and made[:, Things.sample_rate + 200 :].eq(0).all()
    facts = method.protocol()
    assert facts["settings"] == {**SMALL, "guidance": 4.5} and len(facts["revision"]) == 40
    files = {each["file"] for each in facts["checkpoint"]}
    assert {"tangoflux.safetensors", "vae.safetensors", "flan-t5-large/model.safetensors"} <= files


FAULTS = {
    "a missing key": (
        "tangoflux.safetensors",
        "del state['transformer.transformer_blocks.0.attn.to_q.weight']; state['stranger'] = torch.zeros(1)",
        "a partial load: 1 keys missing, 1 unexpected, such as tangoflux: transformer.transformer_blocks.0.attn.to_q",
    ),
    "no words": (
        "tangoflux.safetensors",
        "del state['text_encoder.shared.weight']",
        "a partial load: 2 keys missing, 0 unexpected, such as tangoflux: text_encoder.",
    ),
    "half an autoencoder": (
        "vae.safetensors",
        "del state['decoder.conv2.weight_v']",
        "a partial load: 1 keys missing, 0 unexpected, such as vae: decoder.conv2.weight_v",
    ),
    "another size": (
        "tangoflux.safetensors",
        "state['fc.0.weight'] = torch.zeros(3, 3)",
        r".* cannot be loaded \(.*size mismatch for fc.0.weight",
    ),
}


@driven
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused(
    fault: str, tmp_path: Path, runner: Runner, checkpoint: Path
) -> None:
    from safetensors.torch import load_file, save_file

    name, code, why = FAULTS[fault]
    damaged = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, damaged)
    state = load_file(damaged / name)
    exec(code, {"state": state, "torch": torch})
    save_file(state, damaged / name)
    with pytest.raises(RuntimeError, match=f"unusable: {why}"):
        ask(tmp_path / "a", runner, damaged)


def test_what_is_not_as_it_should_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Any Python can say so."""
    repository, half = tmp_path / "repository", tmp_path / "half"
    (half / "flan-t5-large").mkdir(parents=True)
    repository.mkdir()

    def refused(why: str, **settings: Any) -> None:
        runner = Runner([sys.executable, str(RUNNER)], repository, tmp_path / "log")
        with pytest.raises(RuntimeError, match=f"unusable: {why}"):
            ask(tmp_path / "request", runner, half, **settings)

    refused(
        r".*/repository is not TangoFlux's repository \(it has no tangoflux/model.py\): .*docs/external/tangoflux.md"
    )
    (repository / "tangoflux").mkdir()
    (repository / "tangoflux" / "model.py").touch()
    for name in ("config.json", "tangoflux.safetensors", "vae.safetensors"):
        refused(f".*/half has no {name}: docs/external/tangoflux.md")
        (half / name).write_text("{}")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        refused(f".*/half has no flan-t5-large/{name}")
        (half / "flan-t5-large" / name).touch()
    refused("guidance is 1.0: .* only above 1", guidance=1.0)
    refused("seconds is 40: TangoFlux makes sounds of 1 to 30 s", seconds=40)
