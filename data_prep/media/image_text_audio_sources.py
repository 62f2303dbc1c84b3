"""Where the pairs and triplets of image_text_audio come from: folders of files, or the Hugging Face hub.

Each source is a folder below `$MUNI_BENCH_DATA/image_text_audio`, in the form in which it is handed out:

| folder | rows | form | the paper's |
|---|---|---|---|
| laion_coco_aesthetic | training text+image | a manifest, `aesthetic_score` above 5 where it has one | 242 K |
| flickr30k | training text+image | `flickr_annotations_30k.csv`, `flickr30k-images/`; manifest; hub | 30 K |
| audiocaps | training text+audio | `train.csv` and `audio/`, or a manifest, or the hub | 91 K |
| vggsound | training image+audio | `vggsound.csv`, `audio/` and `frames/`, or a manifest | 184 K |
| coco | test text+image | `captions_val2014.json` and `val2014/`, or a manifest | 30,000 |
| audiocaps_test | test text+audio | `test.csv` and `audio/`, or a manifest, or the hub | 975 |
| vggsound_test | test image+audio | `vggsound.csv`, `audio/` and `frames/`, or a manifest | 15,446 |
| triplets | test triplets | AudioCaps' `test.csv`, `audio/`, `images/` made by FLUX.1-dev; manifest | 975 |

A **manifest** is `manifest.csv`, `.jsonl` or `.parquet` with the columns `id`, `caption` (a string, a list, or several
rows of one id; the first is the one that is trained on and compared with), `image` and `audio` (paths from the folder),
and perhaps `clip` (what the row was cut from, such as a YouTube id; rows of one clip are one cluster, and no clip may
be in training and test). Where `image` or `audio` is no column, the file is `images/<id>.*` or `audio/<id>.*`.

AudioCaps' and VGGSound's sounds are `audio/<YouTube id>_<start in seconds>.*` (VGGSound's start with six digits), and
VGGSound's frame, which the paper does not name, is the middle one, `frames/<YouTube id>_<start>.jpg`. VGGSound's two
sources may share one folder by a link. COCO's 30,000 of 40,504 are the first by a hash of their number, since the
paper's choice is not known.

The triplets' pictures are FLUX.1-dev's for the first caption of each of AudioCaps' test clips, named as its sound; the
paper tells neither steps nor size (diffusers' FluxPipeline: 28 steps, guidance 3.5, 1024 x 1024).

`sources.toml` beside these folders changes a source: `[flickr30k]` with `hub`, `split`, `revision` and the names of its
columns `id`, `caption`, `image`, `audio`, `clip`; and `leave_out_overlap = true` at its head.

The variant `mini` reads the folders `coco_mini` and `esc10` of the user's data folder instead: 51 pictures with
captions and 200 sounds, paired for tests. Its pairs of pictures and sounds are paired by position and mean nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmark.api import UserError, one_line
from benchmark.config import nearest
from benchmark.contents import content_hash, content_hashes
from benchmark.fitting.network_store import to_stderr
from benchmark.media import pictures
from benchmark.media.sounds import cut_short, mono, resampled
from benchmark.runtime import seed_of
from benchmark.toml_files import read_toml
from data_prep.media.data_folder import SETTING, data_folder, offline
from data_prep.media.feature_files import BadItem
from data_prep.pretrained.pretrained_codecs import package

FOLDER = "image_text_audio"
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
HIDDEN = 1e-4  # of full scale: a sound that is nowhere above -80 dB counts as silent
SECONDS = 10.0  # of a sound that is read: the clips have ten
COCO_ROWS = 30_000
LEAST_AESTHETIC = 5.0
FORMS = "data_prep/media/image_text_audio_sources.py"  # says how each folder looks
COLUMNS = ("id", "caption", "image", "audio", "clip")


class Content(Protocol):
    """A file's bytes, wherever they are. `there`: whether there are any."""

    @property
    def there(self) -> bool: ...

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class File:
    path: Path

    @property
    def there(self) -> bool:
        try:
            return self.path.is_file() and self.path.stat().st_size > 0
        except (OSError, ValueError):  # a ValueError for a name that no file can have
            return False

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes inside a dataset of the `datasets` package, which are read when they are asked for."""

    rows: Any
    row: int
    column: str
    there: bool = True

    def read(self) -> bytes:
        value = self.rows[self.row][self.column]
        return value["bytes"] or Path(value["path"]).read_bytes()


@dataclass(frozen=True, slots=True)
class Item:
    """A row: what it is called, what it was cut from, its captions, the first of which counts, and its files."""

    id: str
    clip: str
    captions: tuple[str, ...] = ()
    image: Content | None = None
    audio: Content | None = None


Reader = Callable[[Path], Iterable[Item]]


@dataclass(frozen=True)
class Source:
    """split: of the dataset; holds: modalities; rows: as in the paper, or 0; hub: its place there, and its columns."""

    name: str
    split: str
    holds: tuple[str, ...]
    rows: int
    licence: str
    reader: Reader
    hub: Mapping[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class Listing:
    """A source's rows that are there, and how many are not, by reason."""

    source: Source
    place: str
    items: list[Item]
    counts: Counter[str]

    @cached_property
    def checksum(self) -> str:
        """Of the rows' names and captions, and of what their files hold."""
        files = [each for item in self.items for each in (item.image, item.audio) if each is not None]
        hashes = _hashes(files)
        content = hashlib.blake2b(digest_size=5)
        for item in self.items:
            held = [hashes[id(each)] for each in (item.image, item.audio) if each is not None]
            content.update(json.dumps([item.id, item.clip, item.captions, held]).encode())
        return content.hexdigest()

    def in_words(self) -> str:
        """One line."""
        said = "".join(f", {count} {reason}" for reason, count in sorted(self.counts.items()))
        rows = self.source.rows
        return (
            f"{self.source.split}: {self.source.name} has {len(self.items)} rows{f' of {rows}' if rows else ''}{said}, "
            f"checksum {self.checksum}, {self.place}"
        )


def _hashes(files: Iterable[Content]) -> dict[int, str]:
    """What each holds, by its `id`: the stored hash of a file, and of a row of a dataset that of all its rows.

    A file that cannot be read now is one that has no features.
    """
    found: dict[int, str] = {}
    paths: dict[int, Path] = {}
    columns: dict[tuple[int, str], str] = {}
    for each in files:
        if isinstance(each, File):
            paths[id(each)] = each.path
        elif isinstance(each, Stored):
            column = id(each.rows), each.column
            if column not in columns:
                columns[column] = _column_hash(each.rows, each.column)
            found[id(each)] = f"{columns[column]} {each.row}"
    hashes = content_hashes(paths.values(), to_stderr)
    return found | {key: str(hashes[path]) for key, path in paths.items()}


def _column_hash(rows: Any, column: str) -> str:
    """Of a dataset's column of files: of the Arrow files that hold it, or else of every row."""
    content = hashlib.sha256(column.encode())
    arrow = [Path(each["filename"]) for each in rows.cache_files]
    outside = any(chunk.field("bytes").null_count for chunk in rows.data.column(column).chunks)
    for path in arrow:
        content.update(content_hash(path).encode())
    for row in rows.select_columns([column]) if outside or not arrow else ():
        value = row[column]
        if value["bytes"] is None:
            content.update(content_hash(Path(value["path"])).encode())
        else:
            content.update(hashlib.sha256(value["bytes"]).digest())
    return content.hexdigest()


# ------------------------------------------------------------------------------------------ reading files


def picture(item: Item) -> np.ndarray:
    """(height, width, 3) uint8, see `pictures.rgb`. Raises BadItem where it cannot be read."""
    assert item.image is not None
    try:
        return pictures.read(item.image.read())
    except pictures.UnknownRange:
        raise BadItem("pictures without a known black and white", item.id) from None
    except (OSError, ValueError):
        raise BadItem("unreadable pictures", item.id) from None


def sound(item: Item, rate: int) -> tuple[np.ndarray, bool]:
    """(samples,) float32 of the first SECONDS at `rate` Hz, the channels as one (see `mono`); and whether it was
    resampled.

    Raises BadItem where it cannot be read, is cut short, has no samples, or is silent.
    """
    soundfile = package("soundfile")
    assert item.audio is not None
    try:
        content = item.audio.read()
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            own = file.samplerate
            samples = mono(file.read(round(SECONDS * own), dtype="float32", always_2d=True))
            whole = not cut_short(content) and (file.format != "FLAC" or _ends(file))
    except (OSError, RuntimeError, TypeError, ValueError):  # libsndfile's own error is a RuntimeError
        raise BadItem("unreadable sounds", item.id) from None
    if not whole:
        raise BadItem("sounds that are cut short", item.id)
    if not len(samples):
        raise BadItem("sounds without a sample", item.id)
    if not np.isfinite(samples).all():
        raise BadItem("sounds that are not finite", item.id)
    if np.abs(samples).max() < HIDDEN:
        raise BadItem("silent sounds", item.id)
    return np.clip(resampled(samples, own, rate), -1, 1), own != rate


def _ends(file: Any) -> bool:
    """Whether an open sound has the last sample that its header names."""
    try:
        file.seek(max(0, file.frames - 1))
        return len(file.read(1)) == min(1, file.frames)
    except RuntimeError:
        return False


# ------------------------------------------------------------------------------------------ forms of folders


def _first(folder: Path, stem: str, suffixes: Sequence[str]) -> File:
    """The file of this name, whatever its suffix, in small letters or capitals; the first that it could be where there
    is none."""
    paths = [folder / f"{stem}{write(suffix)}" for write in (str.lower, str.upper) for suffix in suffixes]
    return File(next((path for path in paths if path.is_file()), paths[0]))


def _named(folder: Path, row: Mapping[str, Any], column: str, key: str) -> File:
    if row.get(column):
        return File(folder / str(row[column]))
    return _first(folder / ("images" if column == "image" else column), key, PICTURES if column == "image" else SOUNDS)


Row = tuple[str, dict[str, Any]]  # where it stands, for people, and what it says


def _lines(path: Path) -> Any:
    """A text file, open. What is not UTF-8 becomes lone surrogates, which `_checked` finds and names with its row; a
    mark of UTF-8 at its start is no part of its text."""
    return path.open(newline="", encoding="utf-8-sig", errors="surrogateescape")


def _table(path: Path, header: bool = True) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV file, each with where it ends: dicts, or without a `header` lists."""
    with _lines(path) as file:
        reader: Any = csv.DictReader(file) if header else csv.reader(file)
        try:
            for row in reader:
                if row:
                    yield f"{path}, line {reader.line_num}", _checked(row, f"{path}, line {reader.line_num}")
        except csv.Error as error:  # a field above 131,072 characters, which is what an open quote swallows
            raise UserError(f"{path}, before line {reader.line_num + 1}: {error}: is a quote not closed?") from None


def _checked(row: Any, where: str) -> Any:
    """The row. Raises UserError for bytes that are not UTF-8, and for halves of a surrogate pair."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds {error.object[error.start]!a}, which is no character: write UTF-8") from None
    return row


def _manifest_rows(path: Path) -> Iterator[Row]:
    if path.suffix == ".csv":
        yield from _table(path)
    elif path.suffix == ".jsonl":
        with _lines(path) as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{where}: not JSON: {one_line(error)}") from None
                if not isinstance(row, dict):
                    raise UserError(f"{where}: {one_line(line)[:60]} is no object of columns")
                yield where, _checked(row, where)
    else:
        number = 0
        for batch in package("pyarrow.parquet").ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def manifest(holds: Sequence[str]) -> Reader:
    """Reads the folder's own manifest."""

    def read(folder: Path) -> Iterator[Item]:
        paths = [folder / f"manifest{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
        path = next(filter(Path.is_file, paths), None)
        if path is None:
            raise UserError(f"{folder} has neither the files of its own form ({FORMS}) nor a manifest.csv")
        for where, row in _manifest_rows(path):
            if row.get("id") is None:
                raise UserError(f"{where}: a row without an id: its columns are {', '.join(map(str, row))}")
            if row.get("aesthetic_score") and _number(row, "aesthetic_score", where) <= LEAST_AESTHETIC:
                continue
            key = str(row["id"])
            yield Item(
                key,
                str(row.get("clip") or key),
                _captions(row.get("caption"), where) if "text" in holds else (),
                _named(folder, row, "image", key) if "image" in holds else None,
                _named(folder, row, "audio", key) if "audio" in holds else None,
            )

    return read


def _number(row: Mapping[str, Any], column: str, where: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise UserError(f"{where}: {column} is {row[column]!r}, which is no number") from None


def _captions(value: Any, where: str) -> tuple[str, ...]:
    """Of a sentence, several, or none; a whole number is a sentence, since tables make one of "1984".

    Raises UserError for what is nothing of that.
    """
    several = value if isinstance(value, list | tuple) else [value]
    found = []
    for each in several:
        if each is None or (isinstance(each, float) and math.isnan(each)):  # how tables write that there is none
            each = ""
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise UserError(f"{where}: the caption {one_line(repr(each))[:60]} is no text")
        found.append(str(each))
    return tuple(found)


def flickr30k(folder: Path) -> Iterable[Item]:
    """The annotations that the hub hands out beside its pictures."""
    path = folder / "flickr_annotations_30k.csv"
    if not path.is_file():
        return manifest(("text", "image"))(folder)
    return [
        Item(
            row["filename"],
            f"flickr:{row['filename']}",
            _captions(json.loads(row["raw"]), where),
            File(folder / "flickr30k-images" / row["filename"]),
        )
        for where, row in _table(path)
    ]


def coco(annotations: str, pictures: str, rows: int) -> Reader:
    """MS-COCO's captions file and its folder of pictures; `rows` of them, the first by a hash of their number."""

    def read(folder: Path) -> Iterable[Item]:
        path = folder / annotations
        if not path.is_file():
            return manifest(("text", "image"))(folder)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        captions: dict[int, list[str]] = {}
        for annotation in sorted(content["annotations"], key=lambda each: each["id"]):
            where = f"{path}, annotation {annotation['id']}"
            _checked(annotation["caption"], where)
            captions.setdefault(annotation["image_id"], []).extend(_captions(annotation["caption"], where))
        chosen = sorted(content["images"], key=lambda each: seed_of("coco", each["id"]))[:rows]
        return [
            Item(
                str(each["id"]),
                f"coco:{each['id']}",
                tuple(captions[each["id"]]),
                File(folder / pictures / each["file_name"]),
            )
            for each in chosen
            if each["id"] in captions
        ]

    return read


def audiocaps(table: str, pictures: bool = False) -> Reader:
    """AudioCaps' table: captions of one clip, in their order, are captions of one row."""

    def read(folder: Path) -> Iterable[Item]:
        path = folder / table
        if not path.is_file():
            return manifest(("text", "audio", *(("image",) if pictures else ())))(folder)
        captions: dict[tuple[str, str], list[str]] = {}
        for where, row in _table(path):
            captions.setdefault((row["youtube_id"], row["start_time"]), []).extend(_captions(row["caption"], where))
        return [
            Item(
                f"{clip}_{start}",
                f"youtube:{clip}",
                tuple(found),
                _first(folder / "images", f"{clip}_{start}", PICTURES) if pictures else None,
                _first(folder / "audio", f"{clip}_{start}", SOUNDS),
            )
            for (clip, start), found in captions.items()
        ]

    return read


def vggsound(split: str) -> Reader:
    """VGGSound's table of clips, starts, labels and splits, which has no header."""

    def read(folder: Path) -> Iterable[Item]:
        path = folder / "vggsound.csv"
        if not path.is_file():
            return manifest(("image", "audio"))(folder)
        rows = [row for _, row in _table(path, header=False) if row[3] == split]
        names = [(clip, f"{clip}_{int(start):06d}") for clip, start, *_ in rows]
        return [
            Item(
                name,
                f"youtube:{clip}",
                image=_first(folder / "frames", name, PICTURES),
                audio=_first(folder / "audio", name, SOUNDS),
            )
            for clip, name in names
        ]

    return read


SOURCES = (
    Source(
        "laion_coco_aesthetic",
        "text+image",
        ("text", "image"),
        241_873,
        "captions CC BY 4.0; the pictures are their owners'",
        manifest(("text", "image")),
    ),
    Source(
        "flickr30k",
        "text+image",
        ("text", "image"),
        30_830,
        "research and education only",
        flickr30k,
        {"hub": "lmms-lab/flickr30k", "split": "test", "id": "filename", "caption": "caption", "image": "image"},
    ),
    Source(
        "audiocaps",
        "text+audio",
        ("text", "audio"),
        91_028,
        "captions MIT; the sounds are YouTube's users'",
        audiocaps("train.csv"),
        {
            "hub": "OpenSound/AudioCaps",
            "split": "train",
            "id": "youtube_id",  # so that its captions are those of one row
            "caption": "caption",
            "audio": "audio",
            "clip": "youtube_id",
        },
    ),
    Source(
        "vggsound",
        "image+audio",
        ("image", "audio"),
        183_449,
        "table CC BY 4.0; the clips are YouTube's users'",
        vggsound("train"),
    ),
    Source(
        "coco",
        "coco",
        ("text", "image"),
        COCO_ROWS,
        "captions CC BY 4.0; the pictures are Flickr's users'",
        coco("captions_val2014.json", "val2014", COCO_ROWS),
    ),
    Source(
        "audiocaps_test",
        "audiocaps",
        ("text", "audio"),
        975,
        "captions MIT; the sounds are YouTube's users'",
        audiocaps("test.csv"),
        {
            "hub": "OpenSound/AudioCaps",
            "split": "test",
            "id": "youtube_id",  # so that its captions are those of one row
            "caption": "caption",
            "audio": "audio",
            "clip": "youtube_id",
        },
    ),
    Source(
        "vggsound_test",
        "vggsound",
        ("image", "audio"),
        15_446,
        "table CC BY 4.0; the clips are YouTube's users'",
        vggsound("test"),
    ),
    Source(
        "triplets",
        "triplets",
        ("text", "image", "audio"),
        975,
        "pictures: FLUX.1-dev's non-commercial licence; the rest as AudioCaps",
        audiocaps("test.csv", pictures=True),
    ),
)


# ------------------------------------------------------------------------------------------ the small stand-in


def _pictures(part: str) -> Callable[[Path], list[Item]]:
    """The pictures of one part of coco_mini, once per caption, which then stands first; captions of all pictures take
    turns."""
    read = coco(f"captions_{part}2017.json", f"{part}2017", COCO_ROWS)

    def rows(folder: Path) -> list[Item]:
        items = list(read(folder / "coco_mini"))
        return [
            Item(f"{item.id}-{number}", item.clip, item.captions[number:] + item.captions[:number], item.image)
            for number in range(min(len(item.captions) for item in items))
            for item in items
        ]

    return rows


def _clips(folds: Sequence[int], parity: int | None = None) -> Callable[[Path], list[Item]]:
    """ESC-10's clips of some folds, captioned by their class; classes take turns. parity: every other clip of each."""

    def rows(folder: Path) -> list[Item]:
        seen: Counter[tuple[str, str]] = Counter()
        found = []
        for _, row in _table(folder / "esc10" / "manifest.csv"):
            number = seen[row["class"], row["fold"]]
            seen[row["class"], row["fold"]] += 1
            if int(row["fold"]) in folds and parity in (None, number % 2):
                clip = f"freesound:{Path(row['path']).stem.split('-')[1]}"
                caption = f"the sound of {row['class'].lower()}"
                item = Item(row["path"], clip, (caption,), audio=File(folder / "esc10" / row["path"]))
                found.append(((number, row["fold"], row["class"]), item))
        return [item for _, item in sorted(found, key=lambda each: each[0])]

    return rows


def _beside(pictures: Callable[[Path], list[Item]], clips: Callable[[Path], list[Item]], captions: bool) -> Reader:
    """40 pictures and sounds by position: pairs, or with the pictures' captions triplets."""
    return lambda folder: [
        Item(f"{a.id} {b.id}", f"{a.clip} {b.clip}", a.captions if captions else (), a.image, b.audio)
        for a, b in zip(pictures(folder)[:40], clips(folder), strict=False)
    ]


# 130 rows of captions with pictures, and with sounds, since a Fréchet distance asks for 128; as few as serve of others.
_TRAINING, _TEST = _pictures("val"), _pictures("train")
_SOUNDS = _clips((2, 3, 4, 5))
_FREE = "CC BY and CC BY-SA pictures, CC0 and CC BY sounds"
MINI = (
    Source("mini_text_image", "text+image", ("text", "image"), 0, _FREE, _TRAINING),
    Source("mini_text_audio", "text+audio", ("text", "audio"), 0, _FREE, _clips((1,), 0)),
    Source("mini_image_audio", "image+audio", ("image", "audio"), 0, _FREE, _beside(_TRAINING, _clips((1,), 1), False)),
    Source("mini_coco", "coco", ("text", "image"), 0, _FREE, _TEST),
    Source("mini_audiocaps", "audiocaps", ("text", "audio"), 0, _FREE, lambda folder: _SOUNDS(folder)[:130]),
    Source("mini_vggsound", "vggsound", ("image", "audio"), 0, _FREE, _beside(_TEST, _SOUNDS, False)),
    Source("mini_triplets", "triplets", ("text", "image", "audio"), 0, _FREE, _beside(_TEST, _SOUNDS, True)),
)


# ------------------------------------------------------------------------------------------ listing


def listings(variant: str) -> list[Listing]:
    """Every source of a variant, `paper` or `mini`, as far as its files are there.

    Raises UserError where a source is missing, has no rows, or shares a clip with one of the other kind.
    """
    root = data_folder("" if variant == "mini" else FOLDER)
    if root is None:
        raise UserError(f"{SETTING} is not set: set it to the folder that holds {FOLDER}/")
    changes = _changes(root / "sources.toml") if variant == "paper" else {}
    leave_out = changes.pop("leave_out_overlap", False)
    found = [
        listing(source, root if variant == "mini" else root / source.name, changes.get(source.name, {}))
        for source in (MINI if variant == "mini" else SOURCES)
    ]
    return without_overlap(found, leave_out)


def _changes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    changes = read_toml(path)
    names = {source.name for source in SOURCES}
    for name, change in changes.items():
        if name != "leave_out_overlap" and name not in names:
            raise UserError(f"{path}: unknown source {name!r}{nearest(name, names)}")
        known = {"hub", "split", "revision", *COLUMNS}
        if wrong := [key for key in (change if isinstance(change, dict) else {}) if key not in known]:
            raise UserError(f"{path}: [{name}] has no key {wrong[0]!r}{nearest(wrong[0], known)}")
    return changes


def listing(source: Source, folder: Path, change: Mapping[str, str]) -> Listing:
    """The source's rows that are there: of its folder, or else of the hub. Raises UserError where there are none."""
    hub = {**source.hub, **change}
    if folder.is_dir() and "hub" not in change:
        items, place = _read(source, folder), str(folder)
    elif "hub" in hub:
        items, place = _hub_items(source, hub, folder), f"{hub['hub']} on the hub"
    else:
        raise UserError(f"{source.name}: no folder {folder}: put its files there ({FORMS})")
    kept, counts = _present(items, source)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "its table is empty"
        raise UserError(f"{source.name}: {place} has no usable row ({reasons}): put its files there")
    return Listing(source, place, kept, counts)


def _read(source: Source, folder: Path) -> Iterable[Item]:
    try:
        return list(source.reader(folder))
    except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        fault = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{source.name}: {folder} is not of the form that {FORMS} states ({fault})") from None


def _present(items: Iterable[Item], source: Source) -> tuple[list[Item], Counter[str]]:
    """The rows whose files are there and whose captions say something, one per id; the others counted by reason."""
    kept: dict[str, Item] = {}
    counts: Counter[str] = Counter()
    for item in items:
        captions = tuple(filter(None, map(one_line, item.captions)))
        if any(text != text.strip() or len(text.splitlines()) > 1 for text in item.captions):
            counts["captions whose white space was mended"] += 1
        if item.id in kept:  # further captions of a row
            before = kept[item.id]
            if captions and "text" in source.holds:
                kept[item.id] = Item(item.id, before.clip, before.captions + captions, before.image, before.audio)
            else:
                counts["repeated"] += 1
            continue
        if "text" in source.holds and not captions:
            counts["without a caption"] += 1
            continue
        if missing := [name for name in ("image", "audio") if name in source.holds and not _there(item, name)]:
            counts[f"without their {missing[0]}"] += 1
            continue
        kept[item.id] = Item(item.id, item.clip, captions, item.image, item.audio)
    return list(kept.values()), counts


def _there(item: Item, name: str) -> bool:
    content: Content | None = getattr(item, name)
    return content is not None and content.there


def without_overlap(found: Sequence[Listing], leave_out: bool) -> list[Listing]:
    """The listings, none of whose training rows is of a clip that a test has.

    leave_out: whether such training rows are left out and counted. Raises UserError, with their number, where they are
    not.
    """
    tests = [each for each in found if "+" not in each.source.split]
    tested = {clip for each in tests for item in each.items for clip in item.clip.split()}
    checked = []
    for each in (each for each in found if each not in tests):
        shared = [item for item in each.items if not tested.isdisjoint(item.clip.split())]
        if shared and not leave_out:
            raise UserError(
                f"{each.source.name}: {len(shared)} of its {len(each.items)} training rows are of clips that a test "
                f"has, such as {shared[0].clip}: leave them out with leave_out_overlap = true in sources.toml"
            )
        if shared:
            gone = {item.id for item in shared}
            counts = each.counts + Counter({"left out, since a test has their clip": len(shared)})
            each = Listing(each.source, each.place, [item for item in each.items if item.id not in gone], counts)
        checked.append(each)
    return [*checked, *tests]


def _hub_items(source: Source, hub: Mapping[str, str], folder: Path) -> Iterator[Item]:
    """Rows of a dataset of the hub, whose pictures and sounds are not decoded yet."""
    offline()
    datasets = package("datasets")
    column = {name: hub.get(name, name) for name in COLUMNS}
    files = [name for name in ("image", "audio") if name in source.holds]
    said = ["id", *(["caption"] if "text" in source.holds else []), *(["clip"] if "clip" in hub else [])]
    try:
        rows = datasets.load_dataset(hub["hub"], split=hub.get("split", "train"), revision=hub.get("revision"))
        if lacking := [column[name] for name in (*said, *files) if column[name] not in rows.column_names]:
            raise KeyError(f"no column {lacking[0]}: it has {', '.join(rows.column_names)}")
        for name, kind in (("image", datasets.Image), ("audio", datasets.Audio)):
            if name in files:
                rows = rows.cast_column(column[name], kind(decode=False))
        spoken = rows.select_columns([column[name] for name in said])
    except Exception as error:  # of the network, the hub or the columns: all mean the same to the user
        raise UserError(
            f"{source.name}: no folder {folder}, and {hub['hub']} cannot be had from the hub "
            f"({type(error).__name__}: {one_line(error)[:160]}): put its files there"
        ) from None
    for number, row in enumerate(spoken):
        key = str(row[column["id"]])
        stored = {name: Stored(rows, number, column[name]) for name in files}
        clip = f"youtube:{row[column['clip']]}" if "clip" in said else f"{source.name}:{key}"
        where = f"{hub['hub']}, row {number + 1}"
        captions = _captions(row[column["caption"]], where) if "caption" in said else ()
        yield Item(key, clip, captions, stored.get("image"), stored.get("audio"))
