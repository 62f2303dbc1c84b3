"""What is asked of a method, a dataset or a metric stands in benchmark/api.py, and plug-ins answer in its words."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmark import api, registry
from tests import ROOT

FOLDERS = ("benchmark", "models", "baselines", "data_prep")
FOREIGN = "workers"  # run by other Pythons, with packages of their own
# Names by which the tree calls a plug-in: what is read of these is asked of one, without hasattr, too.
PLUG_INS = ("data", "method", "metric", "self.data", "self.method", "self.metric", "self._data", "self._world")
NO_PLUG_INS = {
    "answer.__name__": "a function of transformers",
    "answer.cache_clear": "a function of transformers",
    "error.stderr": "an exception",
    "judging.parts": "judges, whose contract is benchmark/judges/judges.py",
    "kinds[key].__name__": "a type",
    "method.label": "a card",
    "method.overrides": "a card",
    "os.sched_getaffinity": "a module",
    "piece.type.list_size": "a type of pyarrow",
    "self.downsample": "a layer of a network",
    "stream.reconfigure": "a text stream",
    "target.id": "a node of a syntax tree",
}


def protocols() -> Iterator[tuple[str, type]]:
    """(kind of plug-in, protocol) of the contract: what stands below `Method`, `Dataset` and `Metric` is of theirs."""
    kind = ""
    for name, each in vars(api).items():
        kind = {"Method": "method", "Dataset": "dataset", "Metric": "metric"}.get(name, kind)
        if getattr(each, "_is_protocol", False) and each.__module__ == api.__name__:
            yield kind, each


def members(protocol: type) -> set[str]:
    return {name for name in (*vars(protocol), *inspect.get_annotations(protocol)) if not name.startswith("_")}


CONTRACT = {name for _, protocol in protocols() for name in members(protocol)}


def asked(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(of what, for which name): every literal name of hasattr and getattr, and what is read of a plug-in."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[thing, ast.Constant(value=str(name)), *_]):
                yield ast.unparse(thing), name
            case ast.Attribute(value=(ast.Name() | ast.Attribute(value=ast.Name(id="self"))) as thing, attr=name):
                if ast.unparse(thing) in PLUG_INS:
                    yield ast.unparse(thing), name


@functools.cache
def questions(root: Path) -> list[tuple[Path, str, str]]:
    """(file, of what, for which name), of the whole tree."""
    return [
        (path.relative_to(root), thing, name)
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.py"))
        if FOREIGN not in path.parts
        for thing, name in asked(ast.parse(path.read_text()))
    ]


def faults(root: Path) -> list[str]:
    """One line per name that is asked for and stands nowhere."""
    return [
        f"{path}: {thing}.{name} stands in no protocol of benchmark/api.py"
        for path, thing, name in questions(root)
        if name not in CONTRACT and f"{thing}.{name}" not in NO_PLUG_INS and not known_elsewhere(thing, name)
    ]


def known_elsewhere(thing: str, name: str) -> bool:
    """A method's part of an nn.Module, and a private attribute, which a class alone asks of itself."""
    return name.startswith("_") or (thing.endswith("method") and hasattr(nn.Module, name))


def test_every_name_that_is_asked_of_a_plug_in_stands_in_the_contract() -> None:
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def of(data):\n    return hasattr(data, 'novel')", ["data.novel"]),
        ("def of(method):\n    return getattr(method, 'novel', None)", ["method.novel"]),
        ("class Of:\n    def rows(self):\n        return self._data.novel", ["self._data.novel"]),
        ("def of(anything):\n    return hasattr(anything, 'novel')", ["anything.novel"]),
        ("def of(data):\n    return hasattr(data, 'parameters')", ["data.parameters"]),
        ("def of(data, method, name):\n    return hasattr(data, 'raw'), method.parameters(), hasattr(data, name)", []),
        ("def of(error):\n    return getattr(error, 'stderr', None)", []),
    ],
)
def test_a_planted_hook_is_found(tmp_path: Path, source: str, found: list[str]) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/planted.py").write_text(source)
    assert faults(tmp_path) == [
        f"models/planted.py: {each} stands in no protocol of benchmark/api.py" for each in found
    ]


def test_nothing_stands_there_that_nobody_asks_for() -> None:
    """Neither in the contract nor among what is no plug-in."""
    text = "".join(path.read_text() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    named = {name for _, _, name in questions(ROOT)} | set(re.findall(r"\.(\w+)\b", text))
    assert CONTRACT - named == set()
    assert NO_PLUG_INS.keys() - {f"{thing}.{name}" for _, thing, name in questions(ROOT)} == set()


def wants(function: Any) -> list[str]:
    """The names of a function's parameters that a caller has to give."""
    given = inspect.signature(function).parameters.values()
    return [each.name for each in given if each.name not in ("self", "cls") and each.default is each.empty]


def differing(kind: str, plug_in: type) -> list[str]:
    """Where the calls of a plug-in take other parameters than the contract says."""
    calls = [
        (call, getattr(protocol, call))
        for of, protocol in protocols()
        if of == kind
        for call in sorted(members(protocol))
        if callable(getattr(protocol, call, None)) and callable(getattr(plug_in, call, None))
    ]
    return [
        f"{call}({', '.join(found)}), not ({', '.join(stated)})"
        for call, contract in calls
        if (found := wants(getattr(plug_in, call))) != (stated := wants(contract))
    ]


@pytest.mark.parametrize("kind", ["method", "dataset", "metric"])
def test_plug_ins_take_what_the_contract_says(kind: str) -> None:
    found = {name: differing(kind, registry.load(kind, name)) for name in registry.index(kind)}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_a_plug_in_that_takes_something_else_is_found() -> None:
    class Planted:
        @classmethod
        def protocol(cls, data: Any, cell: Any) -> dict[str, Any]:
            return {}

        def things(self, cell: Any, split: str, indices: Any) -> dict[str, Any]:
            return {}

        def infer(self, given: Any, draws: Any, sharp: bool = False) -> Any:
            return given

    assert differing("method", Planted) == [
        "things(cell, split, indices), not (cell, split, indices, draws)",
        "protocol(data, cell), not ()",
    ]
    assert differing("metric", Planted) == ["protocol(data, cell), not (data)"]
