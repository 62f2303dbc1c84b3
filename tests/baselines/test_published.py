"""External models: the protocol under every fault of a runner, and what becomes of what it answered."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.published import adapter
from baselines.published.adapter import Runner, answered
from baselines.published.workers import serve
from benchmark import registry
from benchmark.api import Cell, Inapplicable, UserError
from benchmark.config import PRESETS
from benchmark.runtime import Draws
from tests.baselines.published_models import RATES, put_runner

STAND_IN = Path(__file__).parent / "workers" / "stand_in.py"
OUTSIDE = [
    path for name in RATES for path in (adapter.WORKERS / f"{name}_worker.py", STAND_IN.parent / f"{name}_tiny.py")
]
ITEMS = [f"{row:06d}" for row in range(5)]


def request(want: tuple[str, ...] = ("text",), **settings: Any) -> dict[str, Any]:
    items = [{"id": name, "seed": 10 + row, "inputs": {"text": f"row {row}"}} for row, name in enumerate(ITEMS)]
    about = {"schema": 1, "model": "stand_in", "given": ["text"], "want": list(want), "device": "cpu"}
    return {**about, "checkpoint": "", "settings": settings, "items": items}


@pytest.fixture
def runner(tmp_path: Path):
    made = Runner([sys.executable, str(STAND_IN)], tmp_path, tmp_path / "log")
    yield made
    made.stop()


def ask(folder: Path, runner: Runner, asked: dict[str, Any], load: float = 20, item: float = 20, rate: int = 0) -> Any:
    return answered(folder, asked, runner, (load, item), rate, say=lambda line: None)


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers]


EXPECTED = [f"seed {10 + row} heard text row {row}" for row in range(5)]


def ids(folder: Path, status: str) -> list[str]:
    return [line["id"] for line in adapter._lines(folder) if line["status"] == status]


def test_every_item_is_answered_in_order_and_the_process_serves_the_next_request(
    tmp_path: Path, runner: Runner
) -> None:
    assert texts(ask(tmp_path / "a", runner, request())) == EXPECTED
    process = runner._process
    assert texts(ask(tmp_path / "b", runner, request())) == EXPECTED
    (first, *_) = ask(tmp_path / "c", runner, request(("image",)))
    assert first.keys() == {"image"}  # the same model, asked for something else
    assert runner._process is process and runner.status is None
    facts = json.loads((tmp_path / "b" / "environment.json").read_text())
    assert facts["schema"] == 1 and facts["missing"] == facts["unexpected"] == [] and facts["python"]
    runner.stop()
    assert runner.status == -signal.SIGKILL


@pytest.mark.parametrize("name", RATES)
def test_what_is_known_of_a_model_is_what_the_suite_needs(name: str) -> None:
    entry = adapter.known(name)
    assert registry.load("method", name).name == name and registry.card("method", name).label == entry["label"]
    for key in ("repository", "revision", "checkpoint", "licence", "memory", "setup"):
        assert entry[key], key
    assert len(entry["revision"]) == 40 and any(entry["revision"] in line for line in entry["setup"])
    assert entry["gigabytes"] > 0 and entry["sample_rate"] == RATES[name]
    assert entry["seconds_to_load"] > 0 and entry["seconds_per_item"] > 0
    assert set(entry["settings"]).isdisjoint(adapter.HERE)
    guide = (registry.ROOT / "docs" / "external" / f"{name}.md").read_text()
    for line in (
        entry["setup"] if name != "flowbind" else [f"baselines/published/workers/{name}.toml"]
    ):  # which it names instead
        assert line in guide


@pytest.mark.parametrize("path", OUTSIDE, ids=[path.stem for path in OUTSIDE])
def test_what_runs_outside_is_of_old_python_and_imports_nothing_of_the_suite(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {name.partition(".")[0] for name in imported}
    writers_may = {"data_prep"} if path.parent != adapter.WORKERS else set()
    assert names and not names & {"benchmark", "baselines", "models", "data_prep", "tests"} - writers_may


def test_what_runners_share_needs_the_standard_library_alone_and_an_old_python() -> None:
    path = adapter.WORKERS / "serve.py"
    tree = ast.parse(path.read_text(), feature_version=(3, 6))
    at_once = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_once for alias in node.names if isinstance(node, ast.Import)}
    assert names and names <= sys.stdlib_module_names and all(isinstance(node, ast.Import) for node in at_once)


def test_a_seed_is_that_of_python_numpy_and_torch() -> None:
    def drawn(seed: int) -> list[float]:
        serve.seed_all(seed)
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    first, other, again = drawn(7), drawn(8), drawn(7)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.random.set_rng_state(before[2])


def test_what_is_answered_is_not_asked_again(tmp_path: Path, runner: Runner) -> None:
    ask(tmp_path / "a", runner, request())
    runner.stop()
    silent = Runner(["/nothing"], tmp_path, tmp_path / "log")
    assert texts(ask(tmp_path / "a", silent, request())) == EXPECTED


@pytest.mark.parametrize("fault", ["crash", "cut line"])
def test_a_runner_that_dies_once_goes_on_with_the_rest(tmp_path: Path, runner: Runner, fault: str) -> None:
    assert texts(ask(tmp_path / "a", runner, request(fault=fault, at=ITEMS[2], times=1))) == EXPECTED
    assert ids(tmp_path / "a", "started").count(ITEMS[1]) == 1  # what was answered before is not repeated
    assert ids(tmp_path / "a", "started").count(ITEMS[2]) == 2


def test_an_item_at_which_it_always_dies_fails_alone(tmp_path: Path, runner: Runner) -> None:
    asked = request(fault="crash", at=ITEMS[2])
    said = r"1 of 5 items failed, first 000002: the runner ended 2 times at this item: a segmentation fault, say"
    with pytest.raises(RuntimeError, match=said):
        ask(tmp_path / "a", runner, asked)
    assert ids(tmp_path / "a", "ok") == [ITEMS[k] for k in (0, 1, 3, 4)]
    # The next command asks for that item alone.
    before = len(ids(tmp_path / "a", "started"))
    with pytest.raises(RuntimeError, match="1 of 5"):
        ask(tmp_path / "a", runner, asked)
    assert set(ids(tmp_path / "a", "started")[before - 6 :]) <= {ITEMS[2]}


def test_an_exception_is_an_error_of_its_item(tmp_path: Path, runner: Runner) -> None:
    with pytest.raises(RuntimeError, match="first 000001: RuntimeError: CUDA out of memory"):
        ask(tmp_path / "a", runner, request(fault="raise", at=ITEMS[1], times=1))
    assert texts(ask(tmp_path / "a", runner, request(fault="raise", at=ITEMS[1], times=1))) == EXPECTED


def test_an_item_that_takes_too_long_fails_alone_and_its_process_is_ended(tmp_path: Path, runner: Runner) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"1 of 5 items failed, first 000003: no answer within 1 s"):
        ask(tmp_path / "a", runner, request(fault="hang", at=ITEMS[3]), item=1)
    assert time.monotonic() - began < 20
    assert ids(tmp_path / "a", "ok") == [ITEMS[k] for k in (0, 1, 2, 4)]


def test_a_model_that_is_not_ready_in_time_or_not_whole_ends_the_request(tmp_path: Path, runner: Runner) -> None:
    with pytest.raises(RuntimeError, match="not ready within 1 s"):
        ask(tmp_path / "a", runner, request(fault="slow to load"), load=1)
    assert runner.status == -signal.SIGKILL
    with pytest.raises(RuntimeError, match=r"unusable: a partial load: 2 keys missing, 0 unexpected, such as a.weight"):
        ask(tmp_path / "b", runner, request(fault="partial load"))
    assert json.loads((tmp_path / "b" / "environment.json").read_text())["missing"] == ["a.weight", "b.weight"]
    with pytest.raises(RuntimeError, match="not the repository of the stand-in"):
        ask(tmp_path / "c", runner, request(fault="another repository"))
    gone = Runner([sys.executable, "-c", "raise SystemExit('no module named torch')"], tmp_path, tmp_path / "log")
    with pytest.raises(RuntimeError, match="ended before its first item: no module named torch"):
        ask(tmp_path / "d", gone, request())


FALSE = {
    "outside": "lies outside the request's folder",
    "absolute": "lies outside the request's folder",
    "absent file": "is not there",
    "a number": "its answer has no image",
    "no outputs": "its answer has no outputs",
    "nothing": "KeyError: 'image'",
    "unreadable": "not a whole picture",
}


@pytest.mark.parametrize(("fault", "why"), FALSE.items(), ids=FALSE)
def test_an_answer_that_is_none_is_found_and_asked_again(tmp_path: Path, runner: Runner, fault: str, why: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(RuntimeError, match=f"1 of 5 items failed, first 000001: .*{why}"):
        ask(tmp_path / "x" / "a", runner, request(("image",), fault=fault, at=ITEMS[1], times=1))
    made = ask(tmp_path / "x" / "a", runner, request(("image",), fault=fault, at=ITEMS[1], times=1))
    assert [round(float(each["image"].mean()) * 255) for each in made] == [10, 11, 12, 13, 14]


def test_a_text_of_two_lines_and_sounds_of_another_rate_or_of_no_numbers_are_refused(
    tmp_path: Path, runner: Runner
) -> None:
    with pytest.raises(RuntimeError, match="its text is not one line"):
        ask(tmp_path / "a", runner, request(fault="two lines", at=ITEMS[0], times=1))
    with pytest.raises(RuntimeError, match="its sound has 8000 Hz, and the model's have 4000"):
        ask(tmp_path / "b", runner, request(("audio",), fault="wrong rate", at=ITEMS[0]), rate=4000)
    with pytest.raises(RuntimeError, match="a sound holds NaN"):
        ask(tmp_path / "c", runner, request(("audio",), fault="NaN", at=ITEMS[0]))


def test_a_damaged_output_of_an_earlier_command_is_made_anew(tmp_path: Path, runner: Runner) -> None:
    ask(tmp_path / "a", runner, request(("audio",)))
    (tmp_path / "a" / "outputs" / "000004-audio.wav").write_bytes(b"RIFF")
    made = ask(tmp_path / "a", runner, request(("audio",)))
    assert all(each["audio"][1] == 4000 and len(each["audio"][0]) == 4000 for each in made)
    assert ids(tmp_path / "a", "started") == [ITEMS[4]]


def test_two_commands_at_once_ask_once(tmp_path: Path, runner: Runner) -> None:
    said: list[str] = []
    found: list[list[str]] = []
    other = Runner(runner.command, tmp_path, tmp_path / "other log")

    def one(each: Runner) -> None:
        found.append(texts(answered(tmp_path / "a", request(), each, (20, 20), say=said.append)))

    threads = [threading.Thread(target=one, args=[each]) for each in (runner, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.stop()
    assert found == [EXPECTED, EXPECTED] and len(said) == 1 and "waiting for it" in said[0]
    assert ids(tmp_path / "a", "ok") == ITEMS


def kill_at(item: str, folder: Path, settings: str) -> None:
    """Ask in another process, and kill it, and not its runner, when that is at an item."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.baselines.test_published import *\n"
        "folder = Path(sys.argv[2])\n"
        "runner = Runner([sys.executable, str(STAND_IN)], folder, folder / 'log')\n"
        f"ask(folder / 'a', runner, request({settings}), item=60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(STAND_IN.parents[2]), str(folder)], start_new_session=True
    )
    path = folder / "a" / "responses.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and item in ids(folder / "a", "started")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_runner_that_nobody_waits_for_ends_after_its_item(tmp_path: Path) -> None:
    kill_at(ITEMS[1], tmp_path, "fault='slow'")
    deadline = time.monotonic() + 30
    while b"nobody waits" not in (tmp_path / "log").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ids(tmp_path / "a", "ok")[:2] == ITEMS[:2] and ITEMS[4] not in ids(tmp_path / "a", "started")


def test_a_command_that_is_killed_goes_on(tmp_path: Path, runner: Runner) -> None:
    """Another command finishes what it began."""
    kill_at(ITEMS[3], tmp_path, "fault='hang', at=ITEMS[3], times=1")
    assert texts(ask(tmp_path / "a", runner, request(fault="hang", at=ITEMS[3], times=1))) == EXPECTED
    assert ids(tmp_path / "a", "ok") == ITEMS


# ------------------------------------------------------------------------------------------ as a method


class Things:
    """Three rows of pictures, sounds and sentences."""

    identity, sample_rate = "things", 8000

    def raw(self, split: str, indices: Tensor) -> dict[str, Any]:
        rows = len(indices)
        return {
            "text": [f"row {k}\u2028of {split}" for k in indices.tolist()],
            "image": torch.linspace(0, 1, rows)[:, None, None, None].expand(rows, 1, 10, 10),
            "audio": torch.full((rows, 6000), 0.25),
        }


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(adapter.SETTING, str(tmp_path))
    checkpoint = put_runner("stand_in", tmp_path, monkeypatch)
    (tmp_path / "external.toml").write_text(
        f'[stand_in]\npython = "{sys.executable}"\nrepository = "{tmp_path}"\ncheckpoint = "{checkpoint}"\n'
    )

    class StandIn(adapter.ByRunner):
        name = "stand_in"

    made = StandIn((), None)  # type: ignore[arg-type]
    assert made.absent() == ""
    made.bind(Things())
    yield made
    made.runner.stop()


def things(method: Any, given: tuple[str, ...], want: tuple[str, ...]) -> dict[str, Any]:
    cell = Cell("things", given, want)
    return method.things(cell, "test", torch.arange(3), Draws("render", cell, 0, rows=3))


def test_outputs_come_in_the_form_of_real_rows(method: Any, tmp_path: Path) -> None:
    made = things(method, ("text",), ("image", "audio"))
    cell = Cell("things", ("text",), ("image", "audio"))
    seeds = Draws("render", cell, 0, rows=3).integers("seed", 2**31)
    assert made["image"].shape == (3, 1, 10, 10)
    torch.testing.assert_close(made["image"][:, 0, 0, 0] * 255, (seeds % 256).float())
    # 4000 samples of 4000 Hz are a second: 8000 of 8000 Hz, of which real rows have 6000.
    assert made["audio"].shape == (3, 6000)
    torch.testing.assert_close(made["audio"][:, 1000:5000].mean(1), torch.full((3,), 0.5), atol=2e-3, rtol=0)
    assert not list((tmp_path / "cache" / "external" / "stand_in").glob("*/outputs"))
    facts = method.protocol()
    assert facts["settings"] == {"steps": 5} and [each["file"] for each in facts["checkpoint"]] == ["stand_in.toml"]


def test_what_is_given_reaches_the_model(method: Any) -> None:
    (first, *_) = things(method, ("audio",), ("text",))["text"]
    assert first.endswith("heard audio 6000 samples of 8000 Hz")
    (first, *_) = things(method, ("image",), ("text",))["text"]
    assert first.endswith("heard image inputs/000000-image.png")


def test_short_sounds_are_filled_up_and_pictures_cut_to_their_square() -> None:
    like = torch.zeros(8)
    assert adapter.sound_like((torch.ones(3), 4000), like, 4000).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    wide = torch.zeros(3, 4, 8)
    wide[:, :, 2:6] = 1
    assert adapter.picture_like(wide, torch.zeros(3, 4, 4)).eq(1).all()


def test_directions_that_a_model_lacks_are_not_applicable(method: Any) -> None:
    with pytest.raises(Inapplicable, match="it needs to hear something"):
        things(method, (), ("text", "image", "audio"))
    with pytest.raises(
        Inapplicable, match=r"the stand-in goes text -> image\+audio, audio -> text, image -> text alone"
    ):
        things(method, ("text",), ("image",))
    with pytest.raises(Inapplicable, match="not features"):
        method.sample({}, ("image",), 1, None)
    with pytest.raises(Inapplicable, match="the dataset has none"):
        method.bind(object())


def test_a_model_that_is_not_set_up_says_what_lacks(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "external.toml"
    whole = path.read_text()
    for text, why in {
        whole.replace("python =", "pyton ="): r"\[stand_in\] has no key 'pyton': did you mean 'python'",
        whole + "stand_in = 1\n": r"\[stand_in\] stand_in = 1: write true or false",
        whole.replace("[stand_in]", "[stand_on]"): "unknown model 'stand_on'",
        whole.replace(sys.executable, "/nowhere/python"): "python /nowhere/python does not exist",
        "": r"no \[stand_in\] in .*docs/external/stand_in.md",
        "a = ": "external.toml: ",
    }.items():
        path.write_text(text)
        assert len(method.absent().splitlines()) == 1
        with pytest.raises(UserError, match=why):
            adapter.place_of("stand_in")
    path.unlink()
    assert "cannot be read" in method.absent()
    monkeypatch.delenv(adapter.SETTING)
    assert "is not on this machine (MUNI_BENCH_EXTERNAL is not set): docs/external/stand_in.md" in method.absent()


def test_a_stand_in_has_a_protocol_of_its_own_and_is_refused_where_numbers_are_the_models(
    method: Any, tmp_path: Path
) -> None:
    before, path = method.protocol(), tmp_path / "external.toml"
    for preset in PRESETS:
        adapter.refuse_stand_in("stand_in", preset)
    path.write_text(path.read_text() + "stand_in = true\n")
    method.bind(Things())
    assert method.protocol() == before | {"stand_in": True} and method.origin()["checkpoint"].endswith("stand_in.toml")
    for preset in PRESETS:
        if preset in ("paper", "gpu"):
            with pytest.raises(
                UserError, match=rf"the stand-in is a stand-in .* preset {preset} would take .*external"
            ):
                adapter.refuse_stand_in("stand_in", preset)
        else:
            adapter.refuse_stand_in("stand_in", preset)


def test_settings_can_be_changed_and_reach_the_runner(method: Any, tmp_path: Path) -> None:
    path = tmp_path / "external.toml"
    path.write_text(path.read_text() + "steps = 9\ndevice = 'cuda:1'\n")
    place = adapter.place_of("stand_in")
    assert place.settings == {"steps": 9} and place.device == "cuda:1"


def test_a_checkpoint_that_was_replaced_is_another_origin(method: Any, tmp_path: Path) -> None:
    """By a file of the same name and size: what the former made is not scored in the name of the new one."""
    checkpoint = Path(adapter.place_of("stand_in").checkpoint)
    before, content = (method.origin(), type(method).content(None)), checkpoint.read_bytes()
    checkpoint.write_bytes(content.replace(b"4000", b"4001", 1) if b"4000" in content else content[::-1])
    method.bind(Things())
    assert method.origin() != before[0] and type(method).content(None) != before[1]
    assert method.protocol().keys() == {"model", "settings", "checkpoint", "revision"}
