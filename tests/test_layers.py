"""Lower layers never import higher ones, and plug-ins are reached by name through the registry alone."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

# From low to high: a module imports its own layer and those before it. `benchmark` itself holds the version only.
LAYERS = (
    {"benchmark", "benchmark.api"},
    {
        f"benchmark.{name}"
        for name in ("config", "files", "progress", "registry", "templates", "terminal", "toml_files", "contents")
    },
    {"benchmark.records"},
    {"benchmark.tables"},
    {"benchmark.media", "benchmark.runtime", "models"},
    {"benchmark.fitting"},
    {"data_prep"},
    {"benchmark.judges"},
    {"benchmark.metrics", "baselines"},
    {"benchmark.engine"},
    {"benchmark.checks"},
    {"benchmark.report"},
    {"benchmark.cli"},
)
LIGHT = 3  # the layers from 1 to this one list, read and print: they import no torch
FOLDERS = ("benchmark", "models", "baselines", "data_prep")
PLUGIN_FOLDERS = ("models", "baselines", "data_prep", "benchmark.metrics")
PLUGIN_MAY_IMPORT = ("benchmark.api", "benchmark.runtime", "benchmark.config", "benchmark.media", "torch", "numpy")
SLOW = {"torch", "pandas", "scipy", "numpy", "matplotlib", "jinja2"}


def faults(root: Path) -> list[str]:
    """One line per broken rule in the tree under `root`."""
    trees = {path: ast.parse(path.read_text()) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}
    modules = {path: module_name(root, path) for path in trees}
    plugins = {modules[path] for path, tree in trees.items() if is_plugin(modules[path], tree)}
    return [
        f"{path.relative_to(root)}:{line} {fault}"
        for path, tree in trees.items()
        for line, fault in module_faults(modules[path], tree, plugins)
    ]


def module_faults(module: str, tree: ast.Module, plugins: set[str]) -> Iterator[tuple[int, str]]:
    layer = layer_of(module)
    if module not in LAYERS[0] and not any(in_any(module, names) for names in LAYERS[1:]):
        yield 1, f"{module} has no layer: enter it in LAYERS"
        return
    for line, name, on_import in imports(module, tree):
        top = name.split(".")[0]
        if layer_of(name) > layer:
            yield line, f"{module} imports {name}, of a higher layer"
        if in_any(name, plugins):
            yield line, f"{module} imports the plug-in {name}: ask the registry for it"
        elif module in plugins and not plugin_may_import(module, name):
            yield line, f"the plug-in {module} imports {name}"
        if layer == 0 and top not in sys.stdlib_module_names and top != "benchmark":
            yield line, f"{module} imports {name}: the contract needs the standard library only"
        if 1 <= layer <= LIGHT and top == "torch":
            yield line, f"{module} imports torch"
        light = 1 <= layer <= LIGHT or in_any(module, {"benchmark.cli"})
        if light and on_import and (top in SLOW or LIGHT < layer_of(name) < layer_of("benchmark.cli")):
            yield line, f"{module} imports {name} at once: do it in the function that needs it"
    if module not in plugins and module.startswith("benchmark"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in plugins:
                yield node.lineno, f"{module} spells out the plug-in {node.value}: ask the registry for it"


def layer_of(name: str) -> int:
    """The layer of the longest known prefix of a dotted name; 0 for what is not ours."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for layer, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return layer
    return 0


def imports(module: str, tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, whether it runs on import of the module), without what only a type checker sees."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, on_import = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, on_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            source = base if node.level else node.module
            yield from ((node.lineno, f"{source}.{alias.name}", on_import) for alias in node.names)
        inside = on_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        skipped = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
        waiting += [(child, inside) for child in ast.iter_child_nodes(node) if child not in skipped]


def is_plugin(module: str, tree: ast.Module) -> bool:
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return module.startswith(PLUGIN_FOLDERS) and any(ast.unparse(target) == "CARD" for target in targets)


def plugin_may_import(module: str, name: str) -> bool:
    """The contract, torch, numpy, the standard library, `models`, and support modules beside the plug-in."""
    own_folder = module.rpartition(".")[0]
    allowed = {*PLUGIN_MAY_IMPORT, "models", own_folder} | ({"benchmark.judges"} if "metrics" in own_folder else set())
    return in_any(name, allowed) or name.split(".")[0] in sys.stdlib_module_names


def in_any(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def test_the_tree_keeps_the_layers() -> None:
    assert faults(ROOT) == []


def test_the_rules_see_the_whole_tree() -> None:
    """An empty list of faults means something only if the files were found and told apart."""
    trees = {module_name(ROOT, path): ast.parse(path.read_text()) for path in (ROOT / "models").rglob("*.py")}
    assert is_plugin("models.muni", trees["models.muni"])
    assert not is_plugin("models.components.latent", trees["models.components.latent"])
    assert "benchmark.api.MethodCard" in {name for _, name, _ in imports("models.muni", trees["models.muni"])}


CARD = "CARD = MethodCard(version=1)\n"


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("benchmark/api.py", "import numpy", "the standard library only"),
        ("benchmark/api.py", "from benchmark import runtime", "of a higher layer"),
        ("benchmark/records/results_file.py", "def read():\n    import benchmark.runtime", "of a higher layer"),
        (
            "benchmark/records/results_file.py",
            "def run():\n    from ..engine.execution import run",
            "imports benchmark.engine.execution.run, of a higher layer",
        ),
        ("benchmark/records/results_file.py", "import pandas as pd", "at once"),
        (
            "benchmark/records/regression.py",
            "def test():\n    import torch",
            "benchmark.records.regression imports torch",
        ),
        ("benchmark/runtime.py", "from benchmark.engine.train import train", "of a higher layer"),
        (
            "benchmark/engine/train.py",
            "try:\n    import benchmark.cli.commands\nexcept ImportError: pass",
            "of a higher layer",
        ),
        ("benchmark/cli/commands.py", "import benchmark.engine.execution", "at once"),
        ("benchmark/cli/commands.py", "from scipy import stats", "at once"),
        ("benchmark/novel.py", "import torch", "benchmark.novel has no layer"),
        ("benchmark/engine/execution.py", "from baselines import planted", "the plug-in baselines.planted"),
        ("benchmark/engine/execution.py", "import baselines.planted as method", "the plug-in baselines.planted"),
        ("benchmark/engine/execution.py", "load('baselines.planted')", "spells out the plug-in baselines.planted"),
        ("models/components/latent.py", "from benchmark.engine.evaluate import score", "of a higher layer"),
        ("benchmark/checks/doctor.py", "import baselines.planted", "the plug-in baselines.planted"),
        ("baselines/other.py", CARD + "from baselines.planted import Planted", "the plug-in baselines.planted"),
        ("baselines/other.py", CARD + "from benchmark.registry import load", "baselines.other imports benchmark.regis"),
        ("baselines/other.py", CARD + "def loss():\n    import pandas", "the plug-in baselines.other imports pandas"),
        ("benchmark/metrics/other.py", CARD + "import data_prep.worlds", "imports data_prep.worlds"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, fault: str) -> None:
    plant(tmp_path, "baselines/planted.py", CARD)
    plant(tmp_path, path, source)
    found = faults(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(path)
    assert re.search(re.escape(fault), found[0])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("benchmark/api.py", "if TYPE_CHECKING:\n    from benchmark.runtime import Draws\n    import torch"),
        (
            "benchmark/records/results_file.py",
            "def read():\n    import pandas\n    from benchmark.config import nearest",
        ),
        ("benchmark/cli/commands.py", "def run():\n    import benchmark.engine.execution\n    import torch"),
        (
            "benchmark/engine/execution.py",
            "import torch\nfrom benchmark import __version__\n"
            "from benchmark.engine import train\nkinds = ('baselines', 'models')",
        ),
        (
            "baselines/other.py",
            CARD + "import math\nfrom models.components.latent import LatentModel\nimport torch.nn as nn",
        ),
        ("data_prep/other.py", CARD + "from data_prep.worlds import Mixture\nfrom benchmark.config import Config"),
    ],
)
def test_what_is_allowed_is_no_fault(tmp_path: Path, path: str, source: str) -> None:
    plant(tmp_path, path, source)
    assert faults(tmp_path) == []


def plant(root: Path, path: str, source: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(source)
