"""OmniFlow: its own code on a tiny checkpoint with random weights, from raw inputs to outputs, and faults of both.

The drive needs its repository and a Python for it: MUNI_BENCH_REPOSITORIES names a folder with omniflow/repository, a
work tree, and omniflow/python, an executable.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines import external, omniflow
from baselines.external import Runner, answered
from benchmark.api import TASKS, Cell, Inapplicable, Unanswered, cells
from benchmark.runtime import Draws
from benchmark.samples import write_png, write_wav

RUNNER = external.RUNNERS / "omniflow.py"
WRITER = Path(__file__).parent / "runners" / "omniflow_tiny.py"
MODALITIES = ("text", "image", "audio")
ONE_TO_ONE = list(cells("things", MODALITIES, "one_to_one"))
STEPS, RATE = 2, 16000
LIMIT = 3600  # seconds of loading, and of an item: on a busy machine they are many
REPOSITORIES = os.environ.get("MUNI_BENCH_REPOSITORIES", "")
PLACE = Path(REPOSITORIES).expanduser() / "omniflow"
PRESENT = bool(REPOSITORIES) and all((PLACE / name).exists() for name in ("repository", "python"))
driven = pytest.mark.skipif(
    not PRESENT, reason="needs OmniFlow: MUNI_BENCH_REPOSITORIES names no folder with omniflow/{repository,python}"
)


def python() -> str:
    """The executable. A link to that of a virtual environment is followed once: further, it is none of that."""
    path = PLACE / "python"
    return str(path.parent / path.readlink()) if path.is_symlink() else str(path)


class Things:
    """Two rows of pictures, sounds and sentences, in the sizes of a dataset."""

    identity, sample_rate = "things", 16000

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        rows = len(indices)
        time = torch.arange(3 * self.sample_rate) / self.sample_rate
        return {
            "text": ["a dog barks", "rain on a roof"][:rows],
            "image": torch.rand(rows, 3, 40, 40, generator=torch.Generator().manual_seed(0)),
            "audio": torch.stack([torch.sin(300 * (row + 1) * time) / 2 for row in range(rows)]),
        }


# ------------------------------------------------------------------------------------ without the repository


def test_what_is_known_of_it_is_what_the_suite_needs() -> None:
    entry = external.known("omniflow")
    assert omniflow.METHOD.name == "omniflow" and omniflow.CARD.label == entry["label"]
    for name in ("repository", "revision", "checkpoint", "licence", "memory", "setup"):
        assert entry[name], name
    assert len(entry["revision"]) == 40 and any(entry["revision"] in line for line in entry["setup"])
    assert entry["gigabytes"] > 0 and entry["sample_rate"] == RATE
    assert entry["seconds_to_load"] > 0 and entry["seconds_per_item"] > 0
    assert set(entry["settings"]).isdisjoint(external.HERE)
    guide = (external.RUNNERS.parents[1] / "docs" / "external" / "omniflow.md").read_text()
    for line in entry["setup"]:
        assert line in guide


@pytest.mark.parametrize("task", TASKS)
def test_it_goes_from_one_modality_to_another_alone(task: str) -> None:
    for cell in cells("things", MODALITIES, task):
        why = external.refusal(external.known("omniflow"), cell)
        assert (why == "") == (task == "one_to_one")
        assert task == "one_to_one" or "a sampler that nobody has published" in why


def test_refused_directions_are_not_applicable_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = at(tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    with pytest.raises(Inapplicable, match="takes one modality at a time"):
        things(method, Cell("things", ("text", "image"), ("audio",)))
    with pytest.raises(Inapplicable, match="makes one modality at a time"):
        things(method, Cell("things", ("text",), ("image", "audio")))
    with pytest.raises(Inapplicable, match="needs an input"):
        things(method, Cell("things", (), MODALITIES))
    assert method.runner.status == 0


def test_the_runner_is_old_python_and_knows_nothing_of_the_suite() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"benchmark", "baselines", "models", "data_prep", "tests"}
    for path in (RUNNER, WRITER):
        ast.parse(path.read_text(), feature_version=(3, 8))


# --------------------------------------------------------------------------------------------- with it


def at(folder: Path, monkeypatch: pytest.MonkeyPatch, python: str, repository: Path, checkpoint: Path) -> Any:
    """The method, set up by an external.toml below the folder, and bound to Things."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv(external.SETTING, str(folder))
    (folder / "external.toml").write_text(
        f'[omniflow]\npython = "{python}"\nrepository = "{repository}"\ncheckpoint = "{checkpoint}"\n'
        f'device = "cpu"\nsteps = {STEPS}\n'
    )
    method = omniflow.METHOD((), None)  # type: ignore[arg-type]
    method.bind(Things())
    return method


def things(method: Any, cell: Cell) -> dict[str, Any]:
    return method.things(cell, "test", torch.arange(2), Draws("render", cell, 0, rows=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("omniflow") / "checkpoint"
    command = [python(), str(WRITER), str(folder)]
    subprocess.run(command, cwd=PLACE / "repository", check=True, timeout=LIMIT, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    log = tmp_path_factory.mktemp("log") / "omniflow.log"
    made = Runner([python(), str(RUNNER)], PLACE / "repository", log)
    yield made
    made.stop()


def ask(
    folder: Path,
    runner: Runner,
    cell: Cell,
    checkpoint: Path,
    rows: Sequence[int] = (0,),
    seeds: Sequence[int] = (7,),
    **settings: Any,
) -> list[Any]:
    """Answers to rows of Things, each with its seed."""
    raw = Things().raw("test", torch.arange(2))
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    items = []
    for k, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        inputs = {"text": raw["text"][row], "image": f"inputs/{row}.png", "audio": f"inputs/{row}.wav"}
        write_png(folder / inputs["image"], raw["image"][row])
        write_wav(folder / inputs["audio"], raw["audio"][row], Things.sample_rate)
        items.append({"id": f"{k:06d}", "seed": seed, "inputs": {name: inputs[name] for name in cell.given}})
    about = {"schema": 1, "model": "omniflow", "given": list(cell.given), "want": list(cell.want), "items": items}
    about["settings"] = {**external.known("omniflow")["settings"], "steps": STEPS, **settings}
    asked = {**about, "checkpoint": str(checkpoint), "device": "cpu"}
    return [
        answer[cell.want[0]] for answer in answered(folder, asked, runner, (LIMIT, LIMIT), RATE, say=lambda line: None)
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return torch.equal(one[0], other[0])
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@driven
@pytest.mark.slow
@pytest.mark.parametrize("cell", ONE_TO_ONE, ids=str)
def test_every_direction_from_raw_inputs_to_outputs_by_its_seed_alone(
    cell: Cell, tmp_path: Path, runner: Runner, checkpoint: Path
) -> None:
    made, reseeded, again, of_another = ask(tmp_path, runner, cell, checkpoint, (0, 0, 0, 1), (7, 8, 7, 7))
    if cell.want == ("image",):
        assert made.shape == (3, 512, 512) and 0 <= made.min() < made.max() <= 1
    elif cell.want == ("audio",):
        samples, rate = made
        assert rate == RATE and samples.shape == (163840,) and samples.abs().max() > 0
    else:
        assert made and set(made) <= set("abcdefghijklmnopqrstuvwxyz▁ ")
    assert same(made, again) and not same(made, reseeded) and not same(made, of_another)


@driven
@pytest.mark.slow
def test_the_method_answers_in_the_form_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    method = at(tmp_path, monkeypatch, python(), PLACE / "repository", checkpoint)
    try:
        made = things(method, Cell("things", ("image",), ("audio",)))
        assert made["audio"].shape == (2, 3 * Things.sample_rate)
        assert len(things(method, Cell("things", ("audio",), ("text",)))["text"]) == 2
    finally:
        method.runner.stop()
    facts = method.protocol()
    assert facts["settings"]["steps"] == STEPS and len(facts["revision"]) == 40
    files = {each["file"] for each in facts["checkpoint"]}
    assert {"transformer/diffusion_pytorch_model.bin", "hub/audioldm2/vocoder/config.json"} <= files


@driven
@pytest.mark.slow
def test_averaged_weights_are_used_where_they_are_asked_for(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """Here they are halves: another picture comes of the same seed."""
    halved = copied(checkpoint, tmp_path / "checkpoint")
    averages = halved / "transformer" / "ema_transformer.pt"
    change(averages, "state['shadow_params'] = [each / 2 for each in state['shadow_params']]")
    cell = Cell("things", ("text",), ("image",))
    plain, averaged = (
        ask(tmp_path / str(flag), runner, cell, halved, averaged_weights=flag)[0] for flag in (False, True)
    )
    assert not torch.equal(plain, averaged)
    short = copied(halved, tmp_path / "short")  # of the same folder, the model that is loaded would answer
    change(short / "transformer" / "ema_transformer.pt", "state['shadow_params'].pop()")
    with pytest.raises(Unanswered, match=r"unusable: .*ema_transformer.pt: its \d+ tensors are not of"):
        ask(tmp_path / "short answers", runner, cell, short, averaged_weights=True)


REMOVED = {
    "transformer": ("transformer/diffusion_pytorch_model.bin", "transformer_blocks.1.attn.to_aud_out.weight"),
    "hub/audioldm2/vocoder": ("hub/audioldm2/vocoder/model.safetensors", "conv_post.weight"),
    "hub/LanguageBind_Audio_FT": ("hub/LanguageBind_Audio_FT/model.safetensors", "visual_projection.weight"),
    "hub/flan-t5-large": ("hub/flan-t5-large/model.safetensors", "encoder.final_layer_norm.weight"),
}
ADDED = {
    "transformer": "transformer/diffusion_pytorch_model.bin",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


@driven
@pytest.mark.slow
def test_a_partial_load_is_refused_with_every_key_of_it(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    """One key is removed from four models, and one of no model is added to three."""
    damaged = copied(checkpoint, tmp_path / "checkpoint")
    for file, key in REMOVED.values():
        change(damaged / file, f"del state[{key!r}]")
    for file in ADDED.values():
        change(damaged / file, "state['stranger'] = torch.zeros(1)")
    with pytest.raises(Unanswered, match="unusable: a partial load: 4 keys missing, 3 unexpected, such as "):
        ask(tmp_path / "a", runner, ONE_TO_ONE[0], damaged)
    facts = json.loads((tmp_path / "a" / external.ENVIRONMENT).read_text())
    assert set(facts["missing"]) == {f"{part}: {key}" for part, (_, key) in REMOVED.items()}
    assert set(facts["unexpected"]) == {f"{part}: stranger" for part in ADDED}


@driven
@pytest.mark.slow
def test_a_checkpoint_or_a_repository_that_is_none_is_refused(tmp_path: Path, runner: Runner, checkpoint: Path) -> None:
    cell = ONE_TO_ONE[0]
    half = copied(checkpoint, tmp_path / "checkpoint")
    shutil.rmtree(half / "hub" / "flan-t5-large")
    with pytest.raises(Unanswered, match=r"unusable: .* has no hub/flan-t5-large: docs/external/omniflow.md"):
        ask(tmp_path / "a", runner, cell, half)
    with pytest.raises(Unanswered, match=r"unusable: guidance_audio is 1: .* only above 1"):
        ask(tmp_path / "b", runner, cell, checkpoint, guidance_audio=1)
    elsewhere = Runner(runner.command, tmp_path, tmp_path / "log")
    with pytest.raises(Unanswered, match=r"unusable: .* is not OmniFlow's repository"):
        ask(tmp_path / "c", elsewhere, cell, checkpoint)


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def change(path: Path, code: str) -> None:
    """Change the tensors of a file, which are `state`."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        state = load_file(path)
        exec(code, {"state": state, "torch": torch})
        save_file(state, path, metadata={"format": "pt"})
        return
    state = torch.load(path, weights_only=True)
    exec(code, {"state": state, "torch": torch})
    torch.save(state, path)
