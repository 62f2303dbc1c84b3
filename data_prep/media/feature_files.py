"""Features of a whole corpus, extracted once per machine and kept as Arrow files: streamed, resumed, counted.

A corpus may be larger than memory: its items are loaded one by one and encoded a batch at a time, and what is written
goes to shards of SHARD items, named by their first item, through the package `datasets`. A shard gets its name when it
is whole and is then entered into `manifest.json` with its checksum; so a killed extraction goes on after its last whole
shard, and a shard that was cut or changed since is made anew. The folder, `features/<name>-<digest>` below
$MUNI_BENCH_CACHE or ~/.cache/muni-bench, is a function of the codec's version and of the data's checksum.

An item without features (a picture that cannot be decoded, a silent clip, a missing file) is left out, and counted in
the manifest by its reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from benchmark.api import UserError, one_line
from benchmark.config import digest
from benchmark.files import alone_in, cache_folder, write_atomic
from benchmark.fitting.network_store import Say, to_stderr

SHARD, BATCH = 4096, 256  # items per file, and per call of the encoder
EXAMPLES = 5  # names that the manifest keeps per reason
SAY_EVERY = 15.0  # seconds

Item = TypeVar("Item")
Columns = dict[str, Tensor]


class BadItem(Exception):
    """An item that has no features. reason: of what kind, a few words, by which it is counted; which: its name."""

    def __init__(self, reason: str, which: object = "") -> None:
        super().__init__(reason, which)
        self.reason, self.which = reason, str(which)


class Features:
    """The rows of a finished extraction, memory-mapped: `len`, rows at indices, or all of them.

    manifest: what manifest.json holds, `count` items, `rows` that have features, and `left out` among it.
    columns: {name: (rows, size) or (rows,), as read-only views of the files, in pieces}.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        datasets = _datasets()
        files = [str(folder / shard["file"]) for shard in manifest["shards"] if shard["rows"]]
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files]).data
        self.folder, self.manifest = folder, manifest
        self.columns = {name: [_view(piece) for piece in table.column(name).chunks] for name in table.column_names}
        self._ends = np.cumsum([len(piece) for piece in self.columns["index"]])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, indices: Tensor) -> Columns:
        """{column: (n, size) or (n,)} at row numbers (n,), on their device; `index` has the items' numbers."""
        wanted = indices.cpu().numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        piece = np.searchsorted(self._ends, wanted, side="right")
        begin = np.concatenate([[0], self._ends])
        places = [(number, np.flatnonzero(piece == number)) for number in np.unique(piece)]
        found: Columns = {}
        for name, views in self.columns.items():
            values = np.empty((len(wanted), *views[0].shape[1:]), views[0].dtype)
            for number, place in places:
                values[place] = views[number][wanted[place] - begin[number]]
            found[name] = torch.from_numpy(values).to(indices.device)
        return found

    def whole(self, device: str = "cpu") -> Columns:
        """{column: every row} on a device: as many bytes as the files have."""
        return {name: torch.from_numpy(np.concatenate(views)).to(device) for name, views in self.columns.items()}


def extract(
    name: str,
    codec: str,
    data: str,
    count: int,
    load: Callable[[int], Item | None],
    encode: Callable[[list[Item]], Columns],
    say: Say | None = None,
    shard: int = SHARD,
    batch: int = BATCH,
) -> Features:
    """The features of items 0 to `count` - 1: those on disk, and the rest extracted now.

    name: of the corpus, for people; codec, data: the codec's version and the data's checksum, which tell folders apart.
    load: an item by its number; it raises BadItem, or answers None, for one that has no features.
    encode: float or integer columns (n, size) or (n,) of a list of n items; a row that is not finite is left out. The
    column `index` (the items' numbers) is added.
    At most `batch` items and their features are held at once. say: gets a line now and then; stderr where it is None.

    Raises UserError where the package datasets is missing, the folder cannot be written, or no item has features. Other
    exceptions of `load` and `encode` pass; what was finished before them stays.
    """
    datasets = _datasets()
    say = say or to_stderr
    facts = {"name": name, "codec": codec, "data": data, "count": count, "shard": shard}
    folder = cache_folder() / "features" / f"{name}-{digest(facts)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder, lambda: say(f"{folder}: another process extracts these features: waiting for it")):
            shards = _whole_shards(folder, facts, say)
            todo = [first for first in range(0, count, shard) if first not in shards]
            if todo:
                resumed = f", {len(shards)} of {len(shards) + len(todo)} shards are there" if shards else ""
                say(f"features of {name}: extracting {count:,} items, once for this machine{resumed}")
            clock = _Clock(name, sum(min(shard, count - first) for first in todo), say)
            for first in todo:
                items = range(first, min(first + shard, count))
                shards[first] = _write(folder, items, load, encode, batch, clock, datasets)
                _keep(folder, facts, shards)
            manifest = _keep(folder, facts, shards)
    except OSError as error:
        raise UserError(
            f"features of {name} cannot be kept in {folder} ({error.strerror or error}): make room there, or set "
            "MUNI_BENCH_CACHE to another folder"
        ) from error
    if lost := describe(manifest):
        say(f"features of {name}: {lost}")
    if not manifest["rows"]:
        raise UserError(f"features of {name}: no item of {count:,} has any; see {folder / 'manifest.json'}")
    return Features(folder, manifest)


def describe(manifest: dict[str, Any]) -> str:
    """What was left out of an extraction and how many rows there are, in one line; empty where nothing was."""
    lost = manifest["left out"]
    if not lost:
        return ""
    parts = [
        f"{each['count']:,} {reason} ({', '.join(each['examples'])}{', ...' if each['count'] > EXAMPLES else ''})"
        for reason, each in lost.items()
    ]
    return f"{manifest['rows']:,} of {manifest['count']:,} items have features; left out: {'; '.join(parts)}"


def statistics(parts: Sequence[Features], column: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (size,) float32 of each dimension over the rows of all parts, in two passes of
    float64 over the files. A dimension that never varies has deviation 1, so that it can be divided by."""
    pieces = [view for part in parts for view in part.columns[column]]
    rows = sum(len(view) for view in pieces)
    mean = sum(view.sum(0, dtype=np.float64) for view in pieces) / rows
    variance = sum(np.square(view - mean).sum(0) for view in pieces) / rows
    deviation = np.where(variance > 0, np.sqrt(variance), 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


# ---------------------------------------------------------------------------------------------- shards


def _write(
    folder: Path,
    items: range,
    load: Callable[[int], Item | None],
    encode: Callable[[list[Item]], Columns],
    batch: int,
    clock: _Clock,
    datasets: Any,
) -> dict[str, Any]:
    """Write one shard, or none where no item has features, and answer its entry of the manifest."""
    lost: dict[str, dict[str, Any]] = {}
    name = f"shard-{items.start:09d}.arrow"
    temporary = folder / f".{name}.part"
    writer, rows = None, 0
    try:
        for columns in _batches(items, load, encode, batch, lost, clock):
            if writer is None:
                from datasets.arrow_writer import ArrowWriter

                writer = ArrowWriter(path=str(temporary), features=_schema(columns, datasets))
            writer.write_batch({key: values.numpy() for key, values in columns.items()})
            rows += len(columns["index"])
        if writer is not None:
            writer.finalize()
    finally:
        if writer is not None:
            writer.close()
    entry: dict[str, Any] = {"file": name, "first": items.start, "rows": rows, "left out": lost}
    if rows:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        entry |= {"bytes": temporary.stat().st_size, "sha256": _checksum(temporary)}
        temporary.replace(folder / name)
    return entry


def _batches(
    items: range,
    load: Callable[[int], Item | None],
    encode: Callable[[list[Item]], Columns],
    batch: int,
    lost: dict[str, dict[str, Any]],
    clock: _Clock,
) -> Iterator[Columns]:
    """The columns of the items that have features, a batch at a time; what is left out is entered into `lost`."""
    for first in range(items.start, items.stop, batch):
        numbers, loaded = [], []
        for number in range(first, min(first + batch, items.stop)):
            try:
                item = load(number)
                if item is None:
                    raise BadItem("missing", number)
            except BadItem as bad:
                _count(lost, bad)
            else:
                numbers.append(number)
                loaded.append(item)
        if loaded:
            columns = {name: values.detach().cpu() for name, values in encode(loaded).items()}
            columns = _finite(columns | {"index": torch.tensor(numbers)}, lost)
            if len(columns["index"]):
                yield columns
        clock.tick(min(first + batch, items.stop) - first)


def _finite(columns: Columns, lost: dict[str, dict[str, Any]]) -> Columns:
    """The rows all of whose numbers are finite. Raises ValueError where columns differ in length."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the encoder answers columns of unequal length: {lengths}")
    good = torch.stack([torch.isfinite(values).reshape(len(values), -1).all(1) for values in columns.values()]).all(0)
    for number in columns["index"][~good].tolist():
        _count(lost, BadItem("features that are not finite", number))
    return columns if good.all() else {name: values[good] for name, values in columns.items()}


def _count(lost: dict[str, dict[str, Any]], bad: BadItem) -> None:
    entry = lost.setdefault(bad.reason, {"count": 0, "examples": []})
    entry["count"] += 1
    entry["examples"] = [*entry["examples"], bad.which][:EXAMPLES]


def _schema(columns: Columns, datasets: Any) -> Any:
    """The features of a shard in the words of the package datasets."""
    found = {}
    for name, values in columns.items():
        value = datasets.Value(str(values.dtype).removeprefix("torch."))
        found[name] = datasets.Sequence(value, length=values.shape[1]) if values.ndim == 2 else value
    return datasets.Features(found)


def _view(piece: Any) -> np.ndarray:
    """(rows, size) or (rows,) of an Arrow array, in its own memory."""
    if not hasattr(piece.type, "list_size"):
        return piece.to_numpy(zero_copy_only=True)
    return piece.flatten().to_numpy(zero_copy_only=True).reshape(len(piece), piece.type.list_size)


# ---------------------------------------------------------------------------------------------- the manifest


def _keep(folder: Path, facts: dict[str, Any], shards: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Write the manifest of the shards that are whole, and answer it."""
    entries = [shards[first] for first in sorted(shards)]
    lost: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for reason, each in entry["left out"].items():
            total = lost.setdefault(reason, {"count": 0, "examples": []})
            total["count"] += each["count"]
            total["examples"] = [*total["examples"], *each["examples"]][:EXAMPLES]
    rows = sum(entry["rows"] for entry in entries)
    complete = len(entries) == math.ceil(facts["count"] / facts["shard"])
    manifest = {**facts, "complete": complete, "rows": rows, "left out": lost, "shards": entries}
    content = json.dumps(manifest, indent=1).encode()
    path = folder / "manifest.json"
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    return manifest


def _whole_shards(folder: Path, facts: dict[str, Any], say: Say) -> dict[int, dict[str, Any]]:
    """{first item: entry} of the shards that the manifest names and whose files are as they were written."""
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_bytes())
        entries = {entry["first"]: entry for entry in manifest["shards"]}
        if any(manifest[name] != value for name, value in facts.items()):
            raise ValueError("it is another corpus's")
        return {first: entry for first, entry in entries.items() if _is_whole(folder, entry, say)}
    except (ValueError, KeyError, TypeError) as error:
        say(f"{path} cannot be used ({one_line(error)}): extracting anew")
        return {}


def _is_whole(folder: Path, entry: dict[str, Any], say: Say) -> bool:
    if not entry["rows"]:
        return True
    path = folder / entry["file"]
    if not path.is_file():
        fault = "is gone"
    elif path.stat().st_size != entry["bytes"]:
        fault = f"has {path.stat().st_size:,} bytes of {entry['bytes']:,}"
    elif _checksum(path) != entry["sha256"]:
        fault = "has changed since it was written"
    else:
        return True
    say(f"{path} {fault}: extracting its items anew")
    return False


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------- the machine


class _Clock:
    """Says now and then how far an extraction is, and how long the rest takes at its pace."""

    def __init__(self, name: str, items: int, say: Say) -> None:
        self._name, self._items, self._say, self._done = name, items, say, 0
        self._started = self._said = time.monotonic()

    def tick(self, items: int) -> None:
        """So many items more are done."""
        self._done += items
        now = time.monotonic()
        if now - self._said > SAY_EVERY:
            self._said = now
            left = (now - self._started) / self._done * (self._items - self._done)
            self._say(
                f"features of {self._name}: {self._done:,} of {self._items:,} items, "
                f"{100 * self._done // self._items} %, {left:.0f} s left"
            )


def _datasets() -> Any:
    """The package datasets. Raises UserError where it is missing."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "features are kept by the package datasets, which is not installed: pip install "
            "'muni-bench[image-text-audio]', or for spoken_digits alone 'muni-bench[spoken-digits]'"
        ) from None
    return datasets
