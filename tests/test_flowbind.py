"""FlowBind as an external model: its repository's own code drives tiny models with random weights in every direction.

That needs a checkout of it and a Python for it: MUNI_BENCH_REPOSITORIES names a folder that holds flowbind/repository
and flowbind/python.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from baselines import external, flowbind
from benchmark.api import Cell, Inapplicable, Unanswered
from benchmark.runtime import Draws

TINY = Path(__file__).parent / "runners" / "flowbind_tiny.py"
SOURCE = external.RUNNERS / "flowbind.py"
ALL = ("text", "image", "audio")
ONE_TO_ONE = [((a,), (b,)) for a in ALL for b in ALL if a != b]
MANY = [(tuple(b for b in ALL if b != a), (a,)) for a in ALL]
DIRECTIONS = ONE_TO_ONE + MANY + [(want, given) for given, want in MANY]
FILES = ("model.pth", "config.json", "gemmae_3.pt", "clap.pt", "lightweight_audio_ae.pth")


def configure(folder: Path, python: Path | str, repository: Path, checkpoint: Path, more: str = "") -> None:
    (folder / "external.toml").write_text(
        f'[flowbind]\npython = "{python}"\nrepository = "{repository}"\n'
        f'checkpoint = "{checkpoint}"\ndevice = "cpu"\n{more}'
    )


class Things:
    """Two rows of pictures, sounds and sentences that have little in common. The sounds are of 0.64 s."""

    identity, sample_rate = "things", 8000

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        time = torch.arange(5120) / self.sample_rate
        texts = ["a photo of a dog on a beach", "rain falls"]
        pictures = torch.stack([torch.linspace(0, 1, 40).expand(3, 40, 40), (torch.arange(40) % 2).expand(3, 40, 40)])
        noise = torch.rand(5120, generator=torch.Generator().manual_seed(0))
        sounds = torch.stack([0.5 * torch.sin(2000 * time), noise - 0.5])
        return {
            "text": [texts[k] for k in indices.tolist()],
            "image": pictures[indices],
            "audio": sounds[indices],
        }


def method() -> Any:
    made = flowbind.METHOD((), None)  # type: ignore[arg-type]
    assert made.absent() == ""
    made.bind(Things())
    return made


def things(made: Any, given: tuple[str, ...], want: tuple[str, ...], run: int = 0, row: int = 0) -> dict[str, Any]:
    cell = Cell("things", given, want)
    return made.things(cell, "test", torch.tensor([row]), Draws("render", cell, run, rows=1))


# ------------------------------------------------------------------------------------------ without the repository


def test_what_is_known_of_it_is_whole() -> None:
    entry = external.known("flowbind")
    for key in ("label", "repository", "revision", "checkpoint", "licence", "gigabytes", "memory", "setup"):
        assert entry[key], key
    assert entry["sample_rate"] == 16000 and entry["seconds_to_load"] > 0 and entry["seconds_per_item"] > 0
    assert any(entry["revision"] in command for command in entry["setup"])
    assert all(not external.refusal(entry, Cell("things", given, want)) for given, want in DIRECTIONS)
    assert "no sampler without something given" in external.refusal(entry, Cell("things", (), ALL))


def test_the_runner_is_of_old_python_and_imports_nothing_of_the_suite() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"baselines", "benchmark", "data_prep", "models", "tests"}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured folder whose repository is none, with the suite's own Python and a checkpoint of empty files."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(external.SETTING, str(tmp_path))
    for name in FILES:
        (tmp_path / "weights" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "weights" / name).touch()
    (tmp_path / "repository").mkdir()
    configure(tmp_path, sys.executable, tmp_path / "repository", tmp_path / "weights")
    return tmp_path


def test_nothing_given_is_not_applicable(elsewhere: Path) -> None:
    with pytest.raises(Inapplicable, match="no distribution of its shared latent"):
        things(method(), (), ALL)


def test_another_repository_and_a_checkpoint_without_a_file_are_refused(elsewhere: Path) -> None:
    said = r"ended before its first item: unusable: .*/repository is not a checkout of .*flowbind \(it has no utils"
    with pytest.raises(Unanswered, match=said):
        things(method(), ("text",), ("image",))
    (elsewhere / "weights" / "clap.pt").unlink()
    with pytest.raises(Unanswered, match=r"unusable: clap.pt is not in .*weights: hf download yeonwoo378/flowbind"):
        things(method(), ("text",), ("image",))


# ------------------------------------------------------------------------------------------ with the repository


@pytest.fixture(scope="module")
def place() -> tuple[Path, Path]:
    """The repository, and a Python for it."""
    folder = Path(os.environ.get("MUNI_BENCH_REPOSITORIES", "/nowhere")) / "flowbind"
    repository, python = folder / "repository", folder / "python"
    if not repository.is_dir() or not python.exists():
        pytest.skip("no flowbind/repository and flowbind/python in the folder that MUNI_BENCH_REPOSITORIES names")
    if python.is_symlink():  # a Python finds its packages from where the link points to, not further
        python = folder / python.readlink()
    return repository.absolute(), python.absolute()


@pytest.fixture(scope="module")
def tiny(place: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tiny models, which the hub's cache is set to."""
    home = tmp_path_factory.mktemp("flowbind")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub(home).items():
            patch.setenv(name, value)
        made = subprocess.run([place[1], TINY, home], cwd=place[0], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    yield home
    shutil.rmtree(home)


def hub(home: Path) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def ready(place: tuple[Path, Path], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured folder with the tiny models in place of the published ones; `weights` links to the checkpoint's."""
    for name, value in {**hub(tiny), "MUNI_BENCH_CACHE": str(tmp_path), external.SETTING: str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "weights").mkdir()
    for name in FILES:
        (tmp_path / "weights" / name).symlink_to(tiny / "checkpoint" / name)
    known = external.known  # whatever else a machine is doing must not make an item too slow
    slow = {"seconds_to_load": 3600, "seconds_per_item": 3600}
    monkeypatch.setattr(external, "known", lambda name: known(name) | slow)
    configure(tmp_path, place[1], place[0], tmp_path / "weights", f'image_encoder = "{tiny}/clip.pt"\n')
    return tmp_path


@pytest.mark.slow
def test_every_direction_from_raw_inputs_to_raw_outputs(ready: Path) -> None:
    made = method()
    found = {}
    for given, want in DIRECTIONS:
        answer = things(made, given, want)
        assert set(answer) == set(want)
        for name, value in answer.items():
            found[given, want, name] = value
            if name == "text":
                assert len(value) == 1 and value[0].strip()
            elif name == "image":
                assert value.shape == (1, 3, 40, 40) and 0 <= value.min() < value.max() <= 1
            else:
                # 0.64 s of 16 kHz, as the tiny AudioLDM makes them
                assert value.shape == (1, 5120) and value.abs().max() <= 1 and value[0, -1000:].std() > 1e-4
    process = made.runner._process
    # The same seed gives the same; what is given, and the seed, change it. All of one process.
    one = things(made, ("text",), ("image",))["image"]
    torch.testing.assert_close(one, found[("text",), ("image",), "image"], atol=0, rtol=0)
    assert not torch.equal(one, things(made, ("text",), ("image",), run=1)["image"])
    assert not torch.equal(one, things(made, ("text",), ("image",), row=1)["image"])
    assert things(made, ("text",), ("text",)) != things(made, ("text",), ("text",), row=1)
    for other in ("image", "audio"):
        sounds = [things(made, (other,), ("audio",), row=row)["audio"] for row in (0, 1)]
        assert not torch.equal(*sounds)
    assert made.runner._process is process and made.runner.status is None
    facts = made.protocol()
    assert [each["file"] for each in facts["checkpoint"]] == sorted(FILES)
    assert facts["revision"] == external.known("flowbind")["revision"]
    assert facts["settings"]["flow_steps"] == 10


ARITHMETIC = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import flowbind
integrate = flowbind._utils().ode_intergrate
at = {"text": 1.0, "image": 3.0, "audio": -2.0}  # velocities at time 1; they grow from zero at time 0
flows = {name: (lambda t, x, rate=rate: rate * t * torch.ones_like(x)) for name, rate in at.items()}
model = flowbind.FlowBind(flows, {}, {}, integrate, 10)
given = {"text": torch.full((1, 768), 5.0), "audio": torch.full((1, 768), 7.0)}
found = model.translated(given, ("image", "text"))
# Euler's ten steps from 1 to 0 see the mean time 0.55, and those from 0 to 1 see 0.45.
latent = ((5 - 0.55 * 1) + (7 + 0.55 * 2)) / 2
for name, feature in found.items():
    torch.testing.assert_close(feature, torch.full((1, 768), latent + 0.45 * at[name]))
print("right")
"""


@pytest.mark.slow
def test_latents_are_averaged_between_ten_euler_steps_down_and_ten_up(place: tuple[Path, Path]) -> None:
    command = [place[1], "-c", ARITHMETIC, external.RUNNERS]
    found = subprocess.run(command, cwd=place[0], capture_output=True, text=True)
    assert found.stdout.endswith("right\n"), found.stderr[-2000:]


class Harm:
    """Unpickles by creating a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_a_partial_or_harmful_checkpoint_is_refused(ready: Path, tiny: Path) -> None:
    flows, words = ready / "weights" / "model.pth", ready / "weights" / "gemmae_3.pt"

    state = torch.load(flows, weights_only=True)
    state["model_state_dict"]["audio"]["extra"] = state["model_state_dict"]["text"].pop("out.bias")
    flows.unlink()
    torch.save(state, flows)
    with pytest.raises(Unanswered, match=r"a partial load: 1 keys missing, 1 unexpected, such as text\.out\.bias"):
        things(method(), ("text",), ("image",))

    torch.save({"model_state_dict": {}, "harm": Harm(ready / "harm")}, flows)
    with pytest.raises(Unanswered, match=r"unusable: config.json and model.pth of .* cannot be read .*Unpickling"):
        things(method(), ("text",), ("image",))
    assert not (ready / "harm").exists()

    flows.unlink()
    flows.symlink_to(tiny / "checkpoint" / "model.pth")
    state = torch.load(words, weights_only=True)
    del state["prefix_proj"]["ln.bias"]
    words.unlink()
    torch.save(state, words)
    with pytest.raises(Unanswered, match=r"unusable: the text encoder .* cannot be loaded .*ln\.bias"):
        things(method(), ("text",), ("image",))


@pytest.mark.slow
def test_weights_that_transformers_would_draw_at_random_are_refused(
    ready: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny / "hub", ready / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(ready / "hub"))
    (path,) = (ready / "hub" / "models--google--embeddinggemma-300m" / "snapshots").glob("*/model.safetensors")
    state = load_file(path)
    lacking = next(name for name in state if name.endswith("q_proj.weight"))
    save_file({name: value for name, value in state.items() if name != lacking}, path, {"format": "pt"})
    with pytest.raises(Unanswered, match=r"a partial load: 1 keys missing, 0 unexpected, such as Gemma3TextModel\."):
        things(method(), ("text",), ("image",))
