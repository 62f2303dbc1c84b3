"""A file is a registration: `baselines/mopoe.py` is the method `mopoe`. Cards are read without importing.

A name may also be the path of a user's own `.py` file, anywhere. A method's name may be followed by switches of its
card's `variants`: `muni:mixture+attached`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark import api
from benchmark.api import Card, UserError
from benchmark.config import check_fields, nearest
from benchmark.files import files_in

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or site-packages
FOLDERS = {
    "method": ("models", "baselines"),
    "dataset": ("data_prep",),
    "metric": ("benchmark/metrics",),
}
_PLUG_IN_FOLDERS = ("models", "baselines", "data_prep", "metrics")
HANDLES = {"method": "METHOD", "dataset": "DATASET", "metric": "METRIC"}
_CARDS = {"MethodCard": api.MethodCard, "DatasetCard": api.DatasetCard, "MetricCard": api.MetricCard}


@functools.cache
def index(kind: str) -> dict[str, Path]:
    """Name -> file of every plug-in of a kind. Raises UserError where two files share one name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS[kind]:
        for path in files_in(ROOT / folder, ".py"):
            if "\nCARD" not in path.read_text(encoding="utf-8"):
                continue  # a support module
            if path.stem in found:
                raise UserError(f"two files register the {kind} {path.stem!r}: {found[path.stem]} and {path}")
            found[path.stem] = path
    return found


def locate(kind: str, name: str) -> Path:
    """The file of a plug-in, by name or by path. Raises UserError with the nearest name."""
    name = base(kind, name)
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"no file {name}")
        if path.stem in index(kind) and index(kind)[path.stem] != path:
            raise UserError(f"{name}: its rows would be filed under the suite's own {kind} {path.stem!r}: rename it")
        return path
    if name not in index(kind):
        raise UserError(f"unknown {kind} {name!r}{nearest(name, index(kind))}")
    return index(kind)[name]


def base(kind: str, name: str) -> str:
    """The name without a method's switches."""
    return _parts(name)[0] if kind == "method" else name


def _parts(name: str) -> tuple[str, list[str]]:
    """A method's name or path, and its switches: a path that holds a colon is none of a switch."""
    found = re.fullmatch(r"(.+):([\w+]+)", name)
    return (found[1], found[2].split("+")) if found else (name, [])


def known(kind: str, name: str) -> bool:
    """Whether the suite has a plug-in of that name, its switches apart."""
    return base(kind, name) in index(kind)


def label(method: str) -> str:
    """A method as tables print it; one whose file is not the suite's keeps its name."""
    return str(card("method", method).label) if known("method", method) else method


def stem(name: str) -> str:
    """The name under which a plug-in's rows are filed: its own, or its file's, and a method's switches in the order of
    its card, whichever way they were written."""
    plain, switches = _parts(name)
    if switches and (plain in index("method") or plain.endswith(".py")):
        switches = _in_order(switches, card("method", plain))
    plain = Path(plain).stem if plain.endswith(".py") else plain
    return ":".join([plain, "+".join(switches)]) if switches else plain


def _in_order(switches: Sequence[str], card: Any) -> list[str]:
    order = list(card.variants)
    return sorted(switches, key=lambda switch: order.index(switch) if switch in order else len(order))


@functools.cache
def card(kind: str, name: str) -> Any:
    """The plug-in's card, read from its source without running it; a method's label names its switches."""
    path = locate(kind, name)
    found = read_card(path)
    if found.kind != kind:
        raise UserError(f"{path}: holds a {found.kind}, not a {kind}")
    if kind != "method" or not (switches := _parts(name)[1]):
        return found
    _attributes(name, found, switches)
    return replace(found, label=f"{found.label}: {', '.join(_in_order(switches, found)).replace('_', ' ')}")


def _attributes(name: str, card: Any, switches: list[str]) -> Mapping[str, Any]:
    """What the switches set. Raises UserError for an unknown one, and for two that set the same."""
    found: dict[str, Any] = {}
    for switch in switches:
        if switch not in card.variants:
            there = nearest(switch, card.variants) if card.variants else ": it has none"
            raise UserError(f"{name}: {card.label} has no variant {switch!r}{there}")
        if both := found.keys() & card.variants[switch].keys():
            raise UserError(f"{name}: its switches set {', '.join(sorted(both))} twice: leave one of them")
        found |= card.variants[switch]
    return found


def read_card(path: Path) -> Card:
    """Evaluate the literal `CARD = ...Card(...)` of a file; a dataset's recipe is whole, with what it inherits.

    Raises UserError when there is none, when it is computed, and when a field or what it is like is wrong.
    """
    return _inherited(path, _own_card(path))


def _own_card(path: Path) -> Card:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    except ValueError as error:  # of bytes that are no UTF-8, or hold a null
        raise UserError(f"{path}: not valid Python: {error}: save it as UTF-8") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "CARD" for target in node.targets):
            return _evaluate(path, node.value)
    raise UserError(f"{path}: has no CARD = MethodCard(...), DatasetCard(...) or MetricCard(...)")


def _evaluate(path: Path, node: ast.expr) -> Card:
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if not isinstance(node, ast.Call) or name not in _CARDS or node.args:
        raise UserError(f"{path}:{node.lineno}: write CARD = MethodCard(key=value, ...) with literal values")
    try:
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except ValueError:
        raise UserError(f"{path}:{node.lineno}: CARD must hold literals only: it is read without running") from None
    try:
        card = _CARDS[name](**values)
        check_fields(card)
    except TypeError as error:
        raise UserError(f"{path}:{node.lineno}: CARD: {str(error).replace('__init__() ', '')}") from None
    except UserError as error:
        raise UserError(f"{path}:{node.lineno}: CARD: {error}") from None
    return card


def _inherited(path: Path, card: Card, heirs: tuple[Path, ...] = ()) -> Card:
    """A dataset's card with the recipe of the one that it is `like`, changed by its own.

    Raises UserError for an unknown dataset, and for one that is in turn like this one.
    """
    if not isinstance(card, api.DatasetCard) or not card.like:
        return card
    try:
        source = locate("dataset", card.like)
    except UserError as error:
        raise UserError(f"{path}: CARD: like: {error}") from None
    if source in (path, *heirs):
        raise UserError(f"{path}: CARD: like = {card.like!r}, which is like this one")
    like = _inherited(source, _own_card(source), (path, *heirs))
    if not isinstance(like, api.DatasetCard):
        raise UserError(f"{path}: CARD: like = {card.like!r} is a {like.kind}")
    return replace(card, recipe=_merged(like, card.recipe))


def _merged(like: api.DatasetCard, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe of `like` with what differs; None in `own` leaves a field or a preset out."""
    absent = {name for name, entry in (own.get("shared") or {}).items() if entry is None}
    merged: dict[str, dict[str, Any]] = {}
    for part in (*like.recipe, *(own.keys() - like.recipe.keys())):
        if part in own and own[part] is None:
            continue
        theirs = {
            name: (entry[0], f"as {like.label}: {entry[-1]}")
            for name, entry in like.recipe.get(part, {}).items()
            if name not in absent
        }
        changed = {**theirs, **own.get(part, {})}
        merged[part] = {name: entry for name, entry in changed.items() if entry is not None}
    return merged


def load(kind: str, name: str, values: Mapping[str, Any] | None = None) -> type:
    """Import the plug-in's file and return its class; with switches or fields on its card, a class of its own that has
    their attributes.

    values: of fields, others' among them; one that is not named there has the card's shared value.
    """
    plain, found = _imported(kind, name), card(kind, name)
    switched = _attributes(name, found, _parts(name)[1]) if kind == "method" else {}
    for attribute in switched:
        if not hasattr(plain, attribute):
            raise UserError(f"{locate(kind, name)}: variants: {plain.__name__} has no attribute {attribute!r}")
    for field in found.fields:
        if not _declares(plain, field):
            kind_of = type(found.fields[field]["value"]).__name__
            raise UserError(
                f"{locate(kind, name)}: fields: {plain.__name__} does not declare {field!r}: write {field}: {kind_of}"
            )
    own = {field: (values or {}).get(field, rule["value"]) for field, rule in found.fields.items()}
    if not switched and not own:
        return plain
    return type(plain.__name__, (plain,), {"__module__": plain.__module__, **switched, **own})


def _declares(plain: type, attribute: str) -> bool:
    return any(attribute in vars(each) or attribute in inspect.get_annotations(each) for each in plain.__mro__)


def _imported(kind: str, name: str) -> type:
    """The class that the plug-in's file names."""
    name = base(kind, name)
    path = locate(kind, name)
    card(kind, name)
    if name.endswith(".py"):
        module_name = f"bench_plugin_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
        specification = importlib.util.spec_from_file_location(module_name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[module_name] = module
        specification.loader.exec_module(module)
    else:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if not hasattr(module, HANDLES[kind]):
        raise UserError(f"{path}: lacks {HANDLES[kind]} = YourClass at its end")
    handle: type = getattr(module, HANDLES[kind])
    return handle


@functools.cache
def sources(path: Path, with_card: bool = True) -> str:
    """Hash of a file's code and of the code it imports that numbers depend on (see `_imports`); comments, docstrings
    and layout do not count.

    Without its card a dataset's recipe does not count: what a run uses of it is in the run's configuration.
    """
    seen: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        tree = ast.parse(current.read_text(encoding="utf-8"))
        waiting += _imports(tree)
        if current == path and not with_card:
            tree.body = [node for node in tree.body if not _assigns(node, "CARD")]
        seen[current] = ast.dump(_without_docstrings(tree))
    text = "".join(seen[key] for key in sorted(seen, key=lambda key: key.name))
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets)


def _imports(tree: ast.Module) -> list[Path]:
    """The plug-in code that a file imports: plug-ins, their support modules and how the suite's own networks are fitted
    and asked (benchmark/frozen.py); not the rest of the core."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = {name for node in froms for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))}
    stems = [ROOT / str(name).replace(".", "/") for name in names]
    paths = [path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py")]
    frozen = ROOT / "benchmark" / "frozen.py"
    return [path for path in paths if path.is_file() and (path.parent.name in _PLUG_IN_FOLDERS or path == frozen)]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
