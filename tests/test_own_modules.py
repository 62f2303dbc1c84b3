"""The code behind a user's file: what it imports that is the user's own, wherever that lies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmark import registry
from benchmark.api import UserError
from benchmark.records import results_file
from benchmark.records.job import job_of
from benchmark.records.run_identity import prepare
from tests.helpers.command import bench
from tests.helpers.processes import SMALL

PLUGIN = """
from benchmark.api import MethodCard
IMPORT

CARD = MethodCard(version=1, label="Mine", paper="none", tasks=("uncond",), stages=())


class Mine:
    def __init__(self, modalities, config):
        self.modalities = modalities

    def sample(self, given, want, rows, draws):
        return {m.name: SCALE * draws.normal(m.name, *m.shape) for m in self.modalities}


METHOD = Mine
"""


def plant(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for cached in (registry.card, registry.sources):
        cached.cache_clear()


def run_id(path: Path, runs: Path) -> str:
    registry.sources.cache_clear()
    return prepare(job_of(str(path), "gaussian_mixture", "smoke", 0, []), runs).run_id


# The plug-in's line -> the files beside it, of which each moves the number.
IMPORTS = {
    "from helper import SCALE": {"helper.py": "SCALE = 1.0\n"},
    "import helper; SCALE = helper.SCALE": {"helper.py": "SCALE = 1.0\n"},
    "from pkg.sampler import SCALE": {"pkg/__init__.py": "", "pkg/sampler.py": "SCALE = 1.0\n"},
    "from pkg import SCALE": {"pkg/__init__.py": "from .sampler import SCALE\n", "pkg/sampler.py": "SCALE = 1.0\n"},
    "import pkg.sampler as s; SCALE = s.SCALE": {
        "pkg/sampler.py": "from pkg.deep.x import SCALE\n",
        "pkg/deep/x.py": "SCALE = 1.0\n",
    },
    "from one import SCALE": {
        "one.py": "from two import SCALE\n",
        "two.py": "from three import SCALE\n",
        "three.py": "SCALE = 1\n",
    },
    "import importlib; SCALE = importlib.import_module('late').SCALE": {"late.py": "SCALE = 1.0\n"},
}


@pytest.mark.parametrize("line", IMPORTS)
def test_every_module_of_the_users_own_counts(line: str, tmp_path: Path) -> None:
    path, files = tmp_path / "mine.py", IMPORTS[line]
    plant(tmp_path, {**files, "mine.py": PLUGIN.replace("IMPORT", line), "other.py": "SCALE = 3\n"})
    before = run_id(path, tmp_path)
    plant(tmp_path, {"other.py": "SCALE = 4\n"})
    assert run_id(path, tmp_path) == before  # nobody imports it
    for name, text in files.items():
        plant(tmp_path, {name: text + "# a comment\n"})
        assert run_id(path, tmp_path) == before
        plant(tmp_path, {name: text + "OTHER = 2\n"})
        assert run_id(path, tmp_path) != before
        plant(tmp_path, {name: text})
    assert run_id(path, tmp_path) == before


def test_a_module_of_the_plug_ins_package_and_one_on_the_path_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(
        tmp_path,
        {
            "pkg/__init__.py": "",
            "pkg/inner/__init__.py": "",
            "pkg/inner/mine.py": PLUGIN.replace("IMPORT", "from pkg.scale import SCALE\nimport elsewhere_planted"),
            "pkg/scale.py": "SCALE = 1.0\n",
            "path/elsewhere_planted.py": "X = 1\n",
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    path = tmp_path / "pkg/inner/mine.py"
    ids = [run_id(path, tmp_path)]
    for name in ("pkg/scale.py", "path/elsewhere_planted.py", "pkg/__init__.py"):
        plant(tmp_path, {name: "SCALE = X = 2\n"})
        ids.append(run_id(path, tmp_path))
    assert len(set(ids)) == 4


def test_a_run_with_a_module_that_was_edited_is_another_run(tmp_path: Path, runs: Path) -> None:
    from tests.helpers.processes import bench

    plant(
        tmp_path,
        {"mine.py": PLUGIN.replace("IMPORT", "from scale_planted import SCALE"), "scale_planted.py": "SCALE = 1.0\n"},
    )
    words = ["run", "-m", tmp_path / "mine.py", *SMALL, "--runs", runs]
    values = []
    for scale in (1.0, 10.0):  # of other lengths: Python's own cache goes by seconds and sizes
        plant(tmp_path, {"scale_planted.py": f"SCALE = {scale}\n"})
        answer = bench(*words)
        assert answer.status == 0 and "changed" not in answer.err, answer.err
        found = results_file.load(runs / "results.csv")
        values.append(float(found[found["metric"] == "shared_mse"]["value"].iloc[-1]))
    assert values[1] == pytest.approx(100 * values[0])


def test_installed_packages_and_python_are_no_module_of_the_users(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "mine.py": PLUGIN.replace(
                "IMPORT", "import json, numpy, torch.nn\nfrom models.components import latent\nSCALE = 1"
            )
        },
    )
    found = registry._behind(tmp_path / "mine.py")
    assert tmp_path / "mine.py" in found
    assert all(registry._is_ours(path) for path in found if path != tmp_path / "mine.py")
    assert any(path.name == "latent.py" for path in found)


def test_a_broken_module_of_the_users_is_one_line(tmp_path: Path) -> None:
    plant(tmp_path, {"mine.py": PLUGIN.replace("IMPORT", "from helper import SCALE"), "helper.py": "def (:\n"})
    with pytest.raises(UserError, match=r"helper\.py:1: not valid Python"):
        run_id(tmp_path / "mine.py", tmp_path)


def test_a_file_with_a_mark_of_utf8_is_read(tmp_path: Path, runs: Path) -> None:
    plant(tmp_path, {"mine.py": "\ufeff" + PLUGIN.replace("IMPORT", "SCALE = 1")})
    answer = bench("run", "-m", tmp_path / "mine.py", *SMALL, "--runs", runs)
    assert answer.status == 0, answer.err


def test_a_file_in_the_encoding_that_it_states_is_read(tmp_path: Path) -> None:
    text = "# -*- coding: latin-1 -*-\n" + PLUGIN.replace("IMPORT", "SCALE = 1").replace("none", "caf\u00e9")
    (tmp_path / "latin_planted.py").write_bytes(text.encode("latin-1"))
    assert registry.card("method", str(tmp_path / "latin_planted.py")).paper == "caf\u00e9"


@pytest.mark.parametrize("command", [["run"], ["reproduce", "table5"]])
def test_two_plug_ins_of_one_file_name_are_refused_before_anything_runs(
    command: list[str], tmp_path: Path, runs: Path
) -> None:
    text = PLUGIN.replace("IMPORT", "SCALE = 1")
    plant(tmp_path, {"a/mine.py": text, "b/mine.py": text})
    answer = bench(*command, "-m", tmp_path / "a/mine.py", "-m", tmp_path / "b/mine.py", *SMALL, "--runs", runs)
    assert answer.status == 2 and "filed under one name: rename one of them" in answer.err
    assert list(runs.iterdir()) == []


def test_one_file_by_two_paths_is_one_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {"mine.py": PLUGIN.replace("IMPORT", "SCALE = 1")})
    monkeypatch.chdir(tmp_path)
    registry.check_together(["mine.py", "./mine.py", str(tmp_path / "mine.py"), "muni"], "gaussian_mixture")


def test_two_modules_of_one_name_are_refused(tmp_path: Path, runs: Path) -> None:
    """Python would give the second plug-in the first one's."""
    text = PLUGIN.replace("IMPORT", "from helper import SCALE")
    plant(tmp_path, {"a/one.py": text, "b/two.py": text, "a/helper.py": "SCALE = 1\n", "b/helper.py": "SCALE = 2\n"})
    answer = bench("run", "-m", tmp_path / "a/one.py", "-m", tmp_path / "b/two.py", *SMALL, "--runs", runs)
    assert answer.status == 2 and "imports helper from" in answer.err
    plant(tmp_path, {"a/two.py": text})
    registry.check_together([str(tmp_path / "a/one.py"), str(tmp_path / "a/two.py")], "gaussian_mixture")
    assert "helper" not in sys.modules
