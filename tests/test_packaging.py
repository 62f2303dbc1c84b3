"""What an installation contains, what pins it, and how little the light commands import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker

from tests import ROOT
from tests.helpers.command import bench

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What the paper's image-text-audio track needs must never reach the core.
HEAVY = {"torchvision", "torchaudio", "transformers", "diffusers", "datasets", "matplotlib", "accelerate", "submitit"}
HEAVY |= {"scikit-image", "skimage", "scikit-learn", "sklearn", "pillow", "PIL"}  # distributions and their modules
SLOW = {"torch", "pandas", "scipy", "numpy", "jinja2"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement(text: str) -> str:
    return normal(re.split(r"[<>=!~\[; ]", text, maxsplit=1)[0])


def pins(text: str) -> dict[str, str]:
    """Name -> version of a constraints file, for this Python. Raises ValueError for a line that is no exact pin."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)(; .+)?", line)
            holds = match and (not match[3] or Marker(match[3][2:]).evaluate())
            if not match or (holds and normal(match[1]) in found):
                raise ValueError(f"line {number}: {line!r} is not one exact pin")
            if holds:
                found[normal(match[1])] = match[2]
    return found


def unpacked(root: Path, settings: dict) -> list[str]:
    """Python files, templates, settings and result tables under `root` that a wheel would leave out."""
    packages = {name for name in settings["packages"] if name not in settings["package-dir"]}
    files = [path for folder in {name.split(".")[0] for name in packages} for path in (root / folder).rglob("*")]
    sources = [path for path in files if path.suffix == ".py"]
    missing = [path for path in sources if ".".join(path.relative_to(root).parent.parts) not in packages]
    taken = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in (root / settings["package-dir"].get(package, package.replace(".", "/"))).glob(pattern)
    }
    files += (root / "results").rglob("*")
    missing += [path for path in files if path.suffix in {".csv", ".jinja", ".toml"} and path not in taken]
    return sorted(path.relative_to(root).as_posix() for path in missing)


def test_constraints_pin_every_dependency() -> None:
    pinned = pins((ROOT / "constraints.txt").read_text())
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    wanted = {requirement(text) for group in groups for text in group} - {"muni-bench"}
    assert wanted - pinned.keys() == set()
    assert pinned["torch"] == "2.13.0"


@pytest.mark.parametrize("line", ["torch>=2", "torch @ file:///torch.whl", "-e .", "torch==2.13.0+cpu", "a==1\nA==1"])
def test_a_loose_or_local_pin_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="is not one exact pin"):
        pins(line)


def interpreter(tmp_path: Path, version: str) -> Path:
    """A program that is asked only whether it is a Python that the suite takes, as this one with another version."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.version_info = {version}\nexec(sys.argv[2])\nsys.exit(9)\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 14, 0), None])
def test_make_says_at_once_which_python_it_needs(tmp_path: Path, version: tuple[int, ...] | None) -> None:
    python = interpreter(tmp_path, str(version)) if version else tmp_path / "absent"
    words = ["make", "quickstart", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode and not (tmp_path / "venv").exists()
    assert f"{python} is no Python 3.11 to 3.13: make quickstart PYTHON=" in done.stdout
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_ranges_stay_open_and_the_core_small() -> None:
    core = PROJECT["project"]["dependencies"]
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", text) for text in core)
    assert {requirement(text) for text in core} & HEAVY == set()


def test_a_wheel_holds_every_module_template_and_table() -> None:
    assert unpacked(ROOT, PROJECT["tool"]["setuptools"]) == []


@pytest.mark.parametrize(
    "path",
    [
        "benchmark/novel/part.py",
        "models/deep/net.py",
        "benchmark/novel/page.html.jinja",
        "baselines/settings.toml",
        "results/tables/old/table9.toml",
    ],
)
def test_a_file_outside_the_listed_packages_is_found(tmp_path: Path, path: str) -> None:
    for present in (path, "benchmark/api.py", "results/paper.csv", "results/tables/table5.toml"):
        (tmp_path / present).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / present).touch()
    assert unpacked(tmp_path, PROJECT["tool"]["setuptools"]) == [path]


def loaded_by(code: str, unwanted: set[str]) -> set[str]:
    """The unwanted modules that a fresh interpreter holds after running `code`."""
    report = (
        f"\nimport json, sys\nprint('\\n' + json.dumps([name for name in {sorted(unwanted)} if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code + report], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def command(*arguments: str) -> str:
    return (
        f"import sys\nfrom benchmark.cli.commands import main\nsys.argv = ['bench', *{list(arguments)}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def spelled(text: str) -> dict[str, set[str]]:
    """Commands that a script or page gives to `bench`, each with its long options."""
    found: dict[str, set[str]] = {}
    for name, rest in re.findall(r"(?:^|[`/])bench\"? ([a-z][a-z-]*)([^`\n]*)", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    return found


def test_spelled_commands_are_found() -> None:
    text = (
        '\t$(BIN)/bench reproduce $* --preset $(P)\n"$core/bench" run --max-time 3\nSee `bench list`.\nbench run --seed'
    )
    assert spelled(text) == {"reproduce": {"--preset"}, "run": {"--max-time", "--seed"}, "list": set()}


def test_scripts_and_pages_use_commands_and_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no option is cut
    pages = [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / ".github/workflows/ci.yml", *sorted(ROOT.glob("*.md"))]
    for name, options in spelled("\n".join(page.read_text() for page in pages)).items():
        answer = bench(name, "--help")
        assert answer.status == 0, f"bench {name}: {answer.err}"
        assert [option for option in sorted(options) if option not in answer.out] == [], f"bench {name}"


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_light_commands_import_nothing_slow(arguments: list[str]) -> None:
    assert loaded_by(command(*arguments), SLOW | HEAVY) == set()


def test_a_slow_import_is_seen() -> None:
    assert loaded_by("import numpy", SLOW) == {"numpy"}


def test_the_whole_core_imports_none_of_the_extras() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("benchmark", "models", "baselines", "data_prep")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stem not in {"__init__", "__main__"}
        and (path.parent.name != "workers" or path.stem == "serve")  # other Pythons run them
    ]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules)
    assert loaded_by(code, HEAVY) == set()


def test_ci_ends_with_a_fresh_smoke_run_and_its_check() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^smoke:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    assert [
        next(word for word in ("rm -rf", "reproduce table5", "check") if word in line)
        for line in recipe[1].splitlines()
    ] == ["rm -rf", "reproduce table5", "check"]
    stages = re.findall(r"^make .*", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert stages[-1].startswith("make smoke")


def test_every_recipe_has_three_lines_at_most() -> None:
    recipes = re.findall(r"^[^\s#].*:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(recipes) >= 8
    assert all(recipe.count("\n") <= 3 for recipe in recipes)
