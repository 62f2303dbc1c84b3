"""FlowBind as an external model: its repository's own code drives tiny models with random weights in every direction.

tests/baselines/published_models.py says what that needs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.published import adapter
from benchmark.api import Cell, Inapplicable, Unanswered
from tests.baselines.published_models import (
    MODALITIES,
    Things,
    bound,
    change,
    check_rows,
    driven,
    linked,
    place,
    python,
    replace,
    set_up,
    share_spoken_digits,
    write_tiny,
)
from tests.baselines.published_models import things as things_of

ONE_TO_ONE = [((a,), (b,)) for a in MODALITIES for b in MODALITIES if a != b]
MANY = [(tuple(b for b in MODALITIES if b != a), (a,)) for a in MODALITIES]
DIRECTIONS = ONE_TO_ONE + MANY + [(want, given) for given, want in MANY]
FILES = ("model.pth", "config.json", "gemmae_3.pt", "clap.pt", "lightweight_audio_ae.pth")
needs_flowbind = driven("flowbind")


def method() -> Any:
    """Bound to rows whose sounds are as long as those of the tiny AudioLDM."""
    return bound("flowbind", Things(sample_rate=8000, seconds=0.64))


def things(made: Any, given: tuple[str, ...], want: tuple[str, ...], run: int = 0, row: int = 0) -> dict[str, Any]:
    return things_of(made, given, want, rows=1, first=row, run=run)


# ------------------------------------------------------------------------------------------ without the repository


def test_it_goes_from_anything_but_nothing() -> None:
    entry = adapter.known("flowbind")
    assert all(not adapter.refusal(entry, Cell("things", given, want)) for given, want in DIRECTIONS)
    assert "no sampler without something given" in adapter.refusal(entry, Cell("things", (), MODALITIES))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured folder whose repository is none, with the suite's own Python and a checkpoint of empty files."""
    for name in FILES:
        (tmp_path / "weights" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "weights" / name).touch()
    (tmp_path / "repository").mkdir()
    set_up("flowbind", tmp_path, monkeypatch, sys.executable, tmp_path / "repository", tmp_path / "weights")
    return tmp_path


def test_nothing_given_is_not_applicable(elsewhere: Path) -> None:
    with pytest.raises(Inapplicable, match="no distribution of its shared latent"):
        things(method(), (), MODALITIES)


def test_another_repository_and_a_checkpoint_without_a_file_are_refused(elsewhere: Path) -> None:
    said = r"ended before its first item: unusable: .*/repository is not a checkout of .*flowbind \(it has no utils"
    with pytest.raises(Unanswered, match=said):
        things(method(), ("text",), ("image",))
    (elsewhere / "weights" / "clap.pt").unlink()
    with pytest.raises(Unanswered, match=r"unusable: clap.pt is not in .*weights: hf download yeonwoo378/flowbind"):
        things(method(), ("text",), ("image",))


# ------------------------------------------------------------------------------------------ with the repository


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of tiny models, which the hub's cache is set to."""
    home = tmp_path_factory.mktemp("flowbind")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub(home).items():
            patch.setenv(name, value)
        write_tiny("flowbind", home)
    yield home
    shutil.rmtree(home)


def hub(home: Path) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def ready(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured folder with the tiny models in place of the published ones; `weights` links to the checkpoint's."""
    for name, value in hub(tiny).items():
        monkeypatch.setenv(name, value)
    weights = linked(tiny / "checkpoint", tmp_path / "weights")
    known = adapter.known  # whatever else a machine is doing must not make an item too slow
    slow = {"seconds_to_load": 3600, "seconds_per_item": 3600}
    monkeypatch.setattr(adapter, "known", lambda name: known(name) | slow)
    repository, encoder = place("flowbind") / "repository", str(tiny / "clip.pt")
    set_up("flowbind", tmp_path, monkeypatch, python("flowbind"), repository, weights, image_encoder=encoder)
    return tmp_path


@needs_flowbind
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
    assert facts["revision"] == adapter.known("flowbind")["revision"]
    assert facts["settings"]["flow_steps"] == 10


@needs_flowbind
@pytest.mark.slow
def test_random_weights_come_to_rows_of_a_table(
    ready: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ready / "external.toml"
    path.write_text(path.read_text() + "stand_in = true\nflow_steps = 2\n")
    share_spoken_digits(tmp_path_factory, monkeypatch)
    check_rows("flowbind", ready)


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


@needs_flowbind
@pytest.mark.slow
def test_latents_are_averaged_between_ten_euler_steps_down_and_ten_up() -> None:
    command = [python("flowbind"), "-c", ARITHMETIC, adapter.WORKERS]
    found = subprocess.run(command, cwd=place("flowbind") / "repository", capture_output=True, text=True)
    assert found.stdout.endswith("right\n"), found.stderr[-2000:]


class Harm:
    """Unpickles by creating a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@needs_flowbind
@pytest.mark.slow
def test_a_partial_or_harmful_checkpoint_is_refused(ready: Path, tiny: Path) -> None:
    flows, words = ready / "weights" / "model.pth", ready / "weights" / "gemmae_3.pt"

    def misplace(state: dict[str, Any]) -> None:
        state["model_state_dict"]["audio"]["extra"] = state["model_state_dict"]["text"].pop("out.bias")

    change(flows, misplace)
    with pytest.raises(Unanswered, match=r"a partial load: 1 keys missing, 1 unexpected, such as text\.out\.bias"):
        things(method(), ("text",), ("image",))

    torch.save({"model_state_dict": {}, "harm": Harm(ready / "harm")}, flows)
    with pytest.raises(Unanswered, match=r"unusable: config.json and model.pth of .* cannot be read .*Unpickling"):
        things(method(), ("text",), ("image",))
    assert not (ready / "harm").exists()

    replace(flows)
    flows.symlink_to(tiny / "checkpoint" / "model.pth")
    change(words, lambda state: state["prefix_proj"].pop("ln.bias"))
    with pytest.raises(Unanswered, match=r"unusable: the text encoder .* cannot be loaded .*ln\.bias"):
        things(method(), ("text",), ("image",))


@needs_flowbind
@pytest.mark.slow
def test_weights_that_transformers_would_draw_at_random_are_refused(
    ready: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny / "hub", ready / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(ready / "hub"))
    (path,) = (ready / "hub" / "models--google--embeddinggemma-300m" / "snapshots").glob("*/model.safetensors")
    change(path, lambda state: state.pop(next(name for name in state if name.endswith("q_proj.weight"))))
    with pytest.raises(Unanswered, match=r"a partial load: 1 keys missing, 0 unexpected, such as Gemma3TextModel\."):
        things(method(), ("text",), ("image",))
