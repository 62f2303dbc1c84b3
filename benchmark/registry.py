"""A file is a registration: `baselines/mopoe.py` is the method `mopoe`. Cards are read without importing.

A name may also be the path of a user's own `.py` file, anywhere. A method's name may be followed by switches of its
card's `variants`: `muni:mixture+attached`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
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
# Where code lies that numbers depend on, besides the core's files that benchmark/records/run_identity.py names.
_HASHED = (
    "models",
    "baselines",
    "data_prep",
    "benchmark/media",
    "benchmark/metrics",
    "benchmark/judges",
    "benchmark/fitting/frozen_network.py",
)
HANDLES = {"method": "METHOD", "dataset": "DATASET", "metric": "METRIC"}
_CARDS = {"MethodCard": api.MethodCard, "DatasetCard": api.DatasetCard, "MetricCard": api.MetricCard}


@functools.cache
def index(kind: str) -> dict[str, Path]:
    """Name -> file of every plug-in of a kind. Raises UserError where two files share one name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS[kind]:
        for path in files_in(ROOT / folder, ".py"):
            if b"\nCARD" not in path.read_bytes():
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
    for node in _tree(path).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "CARD" for target in node.targets):
            return _evaluate(path, node.value)
    raise UserError(f"{path}: has no CARD = MethodCard(...), DatasetCard(...) or MetricCard(...)")


def _tree(path: Path) -> ast.Module:
    """Of a file in the encoding that it states, with a mark of UTF-8 at its start or without. Raises UserError."""
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        if error.lineno and "codec" not in error.msg:
            raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
        raise UserError(f"{path}: not valid Python: {error.msg}: save it as UTF-8") from None
    except ValueError as error:  # of bytes that hold a null
        raise UserError(f"{path}: not valid Python: {error}: save it as UTF-8") from None


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
        with beside([path]):
            try:
                specification.loader.exec_module(module)
            except ModuleNotFoundError as error:
                if moved := _moved(error.name or ""):
                    raise UserError(f"{path}: {error.name} is now {moved}: rename the import") from error
                raise
    else:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if not hasattr(module, HANDLES[kind]):
        raise UserError(f"{path}: lacks {HANDLES[kind]} = YourClass at its end")
    handle: type = getattr(module, HANDLES[kind])
    return handle


def _moved(module: str) -> str:
    """Where a module of the suite that is imported by an older name lies now; empty where that is unknown."""
    folder, _, last = module.rpartition(".")
    found = sorted((ROOT / folder.replace(".", "/")).rglob(f"{last}.py")) if folder and last else []
    return ".".join(found[0].relative_to(ROOT).with_suffix("").parts) if len(found) == 1 else ""


def check_together(methods: Sequence[str], dataset: str) -> None:
    """Raises UserError where rows or modules of two of a command's plug-ins would be taken for each other's."""
    files = {locate("method", name): name for name in methods if base("method", name).endswith(".py")}
    stems: dict[str, str] = {}
    for path, name in files.items():
        if (other := stems.setdefault(path.stem, name)) != name:
            raise UserError(f"{other} and {name}: their rows would be filed under one name: rename one of them")
    if dataset.endswith(".py"):
        files[locate("dataset", dataset)] = dataset
    modules: dict[str, tuple[Path, str]] = {}
    for path, name in files.items():
        for module, file in _own_modules(path).items():
            found, other = modules.setdefault(module, (file, name))
            if found != file:
                raise UserError(
                    f"{other} imports {module} from {found}, and {name} from {file}: run each in a command of its own, "
                    "or rename one of the two"
                )


@contextlib.contextmanager
def beside(paths: Sequence[Path]) -> Iterator[None]:
    """Inside, users' plug-ins find the modules that lie beside them; after all others, so that none is hidden."""
    added = [str(_root(path)) for path in paths if not _is_ours(path)]
    sys.path += added
    try:
        yield
    finally:
        for folder in added:
            sys.path.reverse()
            if folder in sys.path:
                sys.path.remove(folder)
            sys.path.reverse()


@functools.cache
def sources(path: Path, with_card: bool = True) -> str:
    """Hash of a file's code and of the code it imports that numbers depend on (see `_imports`); comments, docstrings
    and layout do not count.

    Without its card a dataset's recipe does not count: what a run uses of it is in the run's configuration.
    """
    texts = []
    for current, tree in sorted(_behind(path).items(), key=lambda item: item[0].name):
        if tree is None:
            texts.append(hashlib.blake2b(current.read_bytes(), digest_size=16).hexdigest())
            continue
        if current == path and not with_card:
            tree.body = [node for node in tree.body if not _assigns(node, "CARD")]
        texts.append(ast.dump(_without_docstrings(tree)))
    return hashlib.blake2b("".join(texts).encode(), digest_size=5).hexdigest()


def _behind(path: Path) -> dict[Path, ast.Module | None]:
    """The file and all that it imports that numbers depend on, and theirs; None for what is no Python."""
    seen: dict[Path, ast.Module | None] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        tree = seen[current] = _tree(current) if current.suffix == ".py" else None
        if tree is not None:
            waiting += _imports(tree)
            waiting += [] if _is_ours(current) else _own_imports(current, tree, path)
    return seen


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == name for each in node.targets)


def _imports(tree: ast.Module) -> list[Path]:
    """The suite's code that a file imports: plug-ins, their support modules and how the suite's own networks are fitted
    and asked (benchmark/fitting/frozen_network.py); not the rest of the core."""
    stems = [ROOT / name.replace(".", "/") for level, name in _names(tree) if not level]
    paths = [path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py")]
    return [path for path in paths if path.is_file() and any(path.is_relative_to(ROOT / place) for place in _HASHED)]


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(dots before it, dotted name) of all that a file imports, and may import."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((0, alias.name) for alias in node.names)
            case ast.ImportFrom():
                yield node.level, node.module or ""
                yield from ((node.level, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                if call in ("import_module", "__import__"):
                    yield len(name) - len(name.lstrip(".")), name.lstrip(".")


# What a user's file imports that is the user's own: it lies beside the plug-in, in its package or elsewhere on
# the path, and is neither the suite's nor Python's, nor of an installed package.


def _own_imports(path: Path, tree: ast.Module, plug_in: Path) -> list[Path]:
    found: list[Path] = []
    for level, name in _names(tree):
        parts = name.split(".") if name else []
        if level:
            found += _files_of(path.parents[level - 1], parts)
        elif folder := _folder_of(parts[0], plug_in):
            found += _files_of(folder, parts)
    return [file for file in found if not _is_ours(file)]


def _own_modules(path: Path) -> dict[str, Path]:
    """First part of a module's name -> its file or folder, of a plug-in's own modules."""
    names = {
        name.split(".")[0]
        for file, tree in _behind(path).items()
        if tree is not None and not _is_ours(file)
        for level, name in _names(tree)
        if not level
    }
    return {name: folder / name for name in names if (folder := _folder_of(name, path))}


def _root(path: Path) -> Path:
    """The folder from which a file is imported: its own, or that of the outermost package around it."""
    folder = path.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _folder_of(name: str, plug_in: Path) -> Path | None:
    """The folder in which a plug-in finds a module or package that is the user's own."""
    root = _root(plug_in)
    if name == plug_in.relative_to(root).parts[0]:
        return root  # its own package
    if name in sys.stdlib_module_names:
        return None
    spec = _spec(name, root)
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])] if spec else []
    place = next((Path(each).resolve() for each in places if Path(each).exists()), None)
    return None if place is None or _is_ours(place) or _is_installed(place) else place.parent


def _spec(name: str, root: Path) -> Any:
    """Where an import would find a module, were it not imported yet."""
    importlib.invalidate_caches()
    with beside([root / "plug_in.py"]):
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        return next((spec for spec in specs if spec is not None), None)


def _is_installed(path: Path) -> bool:
    standard = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or any(map(path.is_relative_to, standard))


def _is_ours(path: Path) -> bool:
    return any(path.is_relative_to(ROOT / folder) for folder in ("benchmark", "models", "baselines", "data_prep"))


def _files_of(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Files that are run where a dotted name is imported from a folder: of every package on the way, and the module."""
    found: list[Path] = []
    for part in parts:
        found += [folder / f"{part}.py", folder / part / "__init__.py", *folder.glob(f"{part}.*.so")]
        folder = folder / part
    return [path for path in found if path.is_file()]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
