"""CoDi: its own code, shrunk, on a checkpoint with random weights, from raw inputs to outputs, and faults of both.

The drive needs its repository and a Python for it: MUNI_BENCH_REPOSITORIES names a folder with codi/repository, the
folder i-Code-V3 of a work tree, and codi/python, an executable.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines import codi, external
from baselines.external import Runner, answered
from benchmark.api import TASKS, Cell, Inapplicable, Unanswered, cells
from benchmark.runtime import Draws
from benchmark.samples import write_png, write_wav

RUNNER = external.RUNNERS / "codi.py"
WRITER = Path(__file__).parent / "runners" / "codi_tiny.py"
MODALITIES = ("text", "image", "audio")
DIRECTIONS = [cell for task in TASKS if task != "uncond" for cell in cells("things", MODALITIES, task)]
ENTRY = external.known("codi")
SETTINGS = {**ENTRY["settings"], "steps": 2, "side": 64}  # its only step, were there one, would change next to nothing
RATE = 16000
LIMITS = (1200.0, 600.0)  # seconds, on a core that others use, too
REPOSITORIES = os.environ.get("MUNI_BENCH_REPOSITORIES", "")
PLACE = Path(REPOSITORIES).expanduser() / "codi"
PRESENT = bool(REPOSITORIES) and all((PLACE / name).exists() for name in ("repository", "python"))
driven = pytest.mark.skipif(
    not PRESENT, reason="needs CoDi: MUNI_BENCH_REPOSITORIES names no folder with codi/{repository,python}"
)


def python() -> str:
    """The executable. A link to that of a virtual environment is followed once: further, it is none of that."""
    path = PLACE / "python"
    return str(path.parent / path.readlink()) if path.is_symlink() else str(path)


class Things:
    """Two rows of pictures, sounds and sentences."""

    identity, sample_rate = "things", RATE

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        rows = len(indices)
        return {
            "text": ["a dog barks", "rain on a roof"][:rows],
            "image": torch.stack([picture(row) for row in range(rows)]),
            "audio": torch.stack([sound(row) for row in range(rows)]),
        }


def picture(row: int) -> Tensor:
    return torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(row))


def sound(row: int) -> Tensor:
    return torch.sin(300 * (row + 1) * torch.arange(3 * RATE) / RATE) / 2


# ------------------------------------------------------------------------------------ without the repository


def test_what_is_known_of_it_is_what_the_suite_needs() -> None:
    assert codi.METHOD.name == "codi" and codi.CARD.label == ENTRY["label"]
    for name in ("repository", "revision", "checkpoint", "licence", "memory", "setup"):
        assert ENTRY[name], name
    assert len(ENTRY["revision"]) == 40 and any(ENTRY["revision"] in line for line in ENTRY["setup"])
    assert ENTRY["gigabytes"] > 0 and ENTRY["sample_rate"] == RATE
    assert ENTRY["seconds_to_load"] > 0 and ENTRY["seconds_per_item"] > 0
    assert set(ENTRY["settings"]).isdisjoint(external.HERE)
    guide = (external.RUNNERS.parents[1] / "docs" / "external" / "codi.md").read_text()
    for line in ENTRY["setup"]:
        assert line in guide


def test_it_answers_from_any_input_and_refuses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(DIRECTIONS) == 12 and not any(external.refusal(ENTRY, cell) for cell in DIRECTIONS)
    method = at(tmp_path, monkeypatch, "/bin/false", tmp_path, tmp_path)
    with pytest.raises(Inapplicable, match="needs an input"):
        things(method, Cell("things", (), MODALITIES))
    assert method.runner.status == 0  # nothing was asked


def test_the_runner_is_old_python_and_knows_nothing_of_the_suite() -> None:
    for path in (RUNNER, WRITER):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in imported} & {
            "benchmark",
            "baselines",
            "models",
            "data_prep",
            "tests",
        }


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The runner, of whose functions some need no more than torch."""
    monkeypatch.syspath_prepend(str(RUNNER.parent))
    spec = importlib.util.spec_from_file_location("codi_runner", RUNNER)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.register_buffer("betas", torch.ones(4))


def parts(folder: Path, module: Any, first: dict[str, Any]) -> None:
    for name in module.PARTS:
        torch.save(first if name == module.PARTS[0] else {}, folder / name)


def test_keys_that_do_not_fit_are_found_and_constants_are_no_such(tmp_path: Path, module: Any) -> None:
    whole = Small().state_dict()
    learned = {key: value for key, value in whole.items() if key != "betas"}
    parts(tmp_path, module, learned | {module.LATER[1] + "melW": torch.ones(1)})
    net = Small()
    assert module.filled(net, tmp_path, ()) == ([], [])
    assert torch.equal(net.layer.weight, whole["layer.weight"])
    parts(tmp_path, module, {"layer.weight": whole["layer.weight"], "text_branch.a": torch.ones(1)})
    missing = sorted(key for key in learned if key != "layer.weight")
    assert module.filled(net, tmp_path, ()) == (missing, ["text_branch.a"])  # statistics of the norm are among these
    assert module.filled(net, tmp_path, ("text_branch.",)) == (missing, [])
    parts(tmp_path, module, {"layer.weight": torch.ones(5)})
    with pytest.raises(module.serve.Unusable, match=r"CoDi_encoders.pth does not fit .* layer.weight"):
        module.filled(net, tmp_path, ())


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


def test_files_that_are_not_whole_or_hold_more_than_tensors_are_refused(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pth"
    monkeypatch.chdir(tmp_path)
    for content, why in [(Harmful(), "a whole file of tensors"), ({"epoch": 3}, "a table of tensors")]:
        torch.save(content, path)
        with pytest.raises(module.serve.Unusable, match=why):
            module.tensors(path)
    assert not (tmp_path / "harm").exists()
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(module.serve.Unusable, match="a whole file of tensors"):
        module.tensors(path)


@pytest.mark.parametrize("divides", [True, False])
def test_pictures_that_transformers_would_make_black_are_not(module: Any, divides: bool) -> None:
    """As transformers 4.26 does, and as 4.30 does."""

    class Prepare:
        do_rescale, image_mean, image_std = True, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]

        def __call__(self, images: list[Any]) -> dict[str, Any]:
            scale = 255 if divides and self.do_rescale else 1
            return {
                "pixel_values": [
                    (images[0] / scale - self.image_mean).transpose(2, 0, 1) / np.c_[self.image_std][:, None]
                ]
            }

    clip = SimpleNamespace(processor=SimpleNamespace(feature_extractor=Prepare()))
    assert module.levels_are_kept(clip) is not divides
    module.keep_levels(clip)
    assert module.levels_are_kept(clip) and clip.processor.feature_extractor.do_rescale is not divides


def test_a_sound_is_heard_from_its_beginning(tmp_path: Path, module: Any) -> None:
    write_wav(tmp_path / "a.wav", sound(0), RATE)
    assert module.heard(str(tmp_path / "a.wav"), 10).shape == (1, 3 * RATE)
    torch.testing.assert_close(module.heard(str(tmp_path / "a.wav"), 0.5)[0], sound(0)[: RATE // 2], atol=1e-4, rtol=0)


# Of what the runner finds before it loads anything.
@pytest.mark.parametrize(
    ("lacks", "settings", "why"),
    [
        (
            "core",
            {},
            r"is not CoDi's code \(it has no core.*model_module_infer.py\): set repository to the folder i-Code-V3",
        ),
        ("CoDi_text_diffuser.pth", {}, "has no CoDi_text_diffuser.pth; docs/external/codi.md"),
        ("clip-vit-large-patch14/vocab.json", {}, r"has no clip-vit-large-patch14.vocab.json"),
        ("", {"guidance": 1}, "at guidance = 1 the repository's code fails"),
    ],
)
def test_what_cannot_be_it_is_refused(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch, lacks: str, settings: dict[str, Any], why: str
) -> None:
    files = [module.SOURCE, "configs/model/codi.yaml", *module.PARTS]
    for name in [*files, *(f"{module.CLIP}/{name}" for name in module.CLIP_FILES)]:
        if not lacks or not name.startswith(lacks):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(module.serve.Unusable, match=why):
        module.check({**SETTINGS, **settings}, str(tmp_path))


# --------------------------------------------------------------------------------------------- with it


def at(folder: Path, monkeypatch: pytest.MonkeyPatch, python: str, repository: Path, checkpoint: Path) -> Any:
    """The method, set up by an external.toml below the folder, and bound to Things."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(folder / "cache"))
    monkeypatch.setenv(external.SETTING, str(folder))
    (folder / "external.toml").write_text(
        f'[codi]\npython = "{python}"\nrepository = "{repository}"\ncheckpoint = "{checkpoint}"\n'
        f'device = "cpu"\nsteps = {SETTINGS["steps"]}\nside = {SETTINGS["side"]}\n'
    )
    method = codi.METHOD((), None)  # type: ignore[arg-type]
    method.bind(Things())
    return method


def things(method: Any, cell: Cell, rows: int = 1) -> dict[str, Any]:
    return method.things(cell, "test", torch.arange(rows), Draws("render", cell, 0, rows=rows))


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with repository/ and checkpoint/."""
    folder = tmp_path_factory.mktemp("codi")
    command = [python(), str(WRITER), str(folder)]
    subprocess.run(command, cwd=PLACE / "repository", check=True, timeout=LIMITS[0], stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def runner(tiny: Path) -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        one_thread(monkeypatch)
        made = Runner([python(), str(RUNNER)], tiny / "repository", tiny / "log")
        yield made
        made.stop()


@driven
@pytest.mark.slow
@pytest.mark.parametrize("cell", DIRECTIONS, ids=lambda cell: cell.stem)
def test_every_direction_from_raw_inputs_to_outputs(
    cell: Cell, tiny: Path, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = at(tmp_path, monkeypatch, python(), tiny / "repository", tiny / "checkpoint")
    method.runner = runner  # one process for all directions
    made = things(method, cell)
    assert made.keys() == set(cell.want)
    if "text" in made:
        (line,) = made["text"]
        assert line and line == " ".join(line.split())
    if "image" in made:
        assert made["image"].shape == (1, 3, 40, 40) and made["image"].min() >= 0 and made["image"].max() <= 1
        assert made["image"].std() > 0.01
    if "audio" in made:
        assert made["audio"].shape == (1, 3 * RATE) and made["audio"].abs().max() <= 1
        assert made["audio"].std() > 1e-4
    facts = method.facts
    assert facts["missing"] == facts["unexpected"] == [] and facts["packages"]["transformers"]
    assert {"CoDi_encoders.pth", "clip-vit-large-patch14/vocab.json"} <= {each["file"] for each in facts["checkpoint"]}
    assert method.protocol()["settings"] == SETTINGS


def asked(folder: Path, tiny: Path, given: str, want: str, items: list[tuple[int, Any]]) -> dict[str, Any]:
    """A request for items of a seed and an input each, whose files are written below the folder."""
    (folder / "inputs").mkdir(parents=True)
    found = []
    for row, (seed, value) in enumerate(items):
        path = value
        if given == "image":
            path = f"inputs/{row}.png"
            write_png(folder / path, value)
        elif given == "audio":
            path = f"inputs/{row}.wav"
            write_wav(folder / path, value, RATE)
        found.append({"id": str(row), "seed": seed, "inputs": {given: path}})
    about = {"schema": 1, "model": "codi", "given": [given], "want": [want], "device": "cpu"}
    return {**about, "checkpoint": str(tiny / "checkpoint"), "settings": SETTINGS, "items": found}


@driven
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "want", "one", "other"),
    [
        ("text", "image", "a dog barks", "rain on a roof"),
        ("image", "audio", picture(0), picture(0).flip(0)),
        ("audio", "image", sound(0), sound(5)),
    ],
    ids=["text", "image", "audio"],
)
def test_an_answer_hangs_on_its_input_and_its_seed_alone(
    tmp_path: Path, tiny: Path, runner: Runner, given: str, want: str, one: Any, other: Any
) -> None:
    request = asked(tmp_path / "a", tiny, given, want, [(7, one), (7, other), (8, one), (7, one)])
    answers = answered(tmp_path / "a", request, runner, LIMITS, RATE, say=lambda line: None)
    first, second, third, again = (answer[want][0] for answer in answers)  # of a picture, its first channel
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, third)


@driven
@pytest.mark.slow
def test_a_sound_is_as_long_as_its_latent_and_at_its_rate(tmp_path: Path, tiny: Path, runner: Runner) -> None:
    request = asked(tmp_path / "a", tiny, "text", "audio", [(7, "a dog barks")])
    ((samples, rate),) = (
        answer["audio"] for answer in answered(tmp_path / "a", request, runner, LIMITS, RATE, say=lambda line: None)
    )
    assert rate == RATE and abs(len(samples) - 10.24 * RATE) < 200


@driven
@pytest.mark.slow
def test_a_part_of_a_checkpoint_is_refused(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_thread(monkeypatch)
    damaged = tmp_path / "checkpoint"
    damaged.mkdir()
    for path in (tiny / "checkpoint").iterdir():
        (damaged / path.name).symlink_to(path)
    name = "CoDi_audio_diffuser_m.pth"
    weights = torch.load(damaged / name, weights_only=True)
    lost = sorted(weights)[3]
    weights["text_branch.a"] = weights.pop(lost)
    (damaged / name).unlink()
    torch.save(weights, damaged / name)
    request = asked(tmp_path / "a", tiny, "text", "image", [(7, "a dog")]) | {"checkpoint": str(damaged)}
    runner = Runner([python(), str(RUNNER)], tiny / "repository", tmp_path / "log")
    said = f"unusable: a partial load: 1 keys missing, 1 unexpected, such as {lost}"
    with pytest.raises(Unanswered, match=said):
        answered(tmp_path / "a", request, runner, LIMITS, RATE, say=lambda line: None)
    facts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert facts["missing"] == [lost] and facts["unexpected"] == ["text_branch.a"]


@driven
@pytest.mark.slow
def test_another_repository_is_refused(tmp_path: Path, tiny: Path) -> None:
    request = asked(tmp_path / "a", tiny, "text", "image", [(7, "a dog")])
    runner = Runner([python(), str(RUNNER)], tmp_path, tmp_path / "log")
    with pytest.raises(Unanswered, match=r"unusable: .* is not CoDi's code"):
        answered(tmp_path / "a", request, runner, LIMITS, RATE, say=lambda line: None)
