"""The result file: one CSV line per number, appended under a lock and readable after any crash.

A line is complete when it ends in a newline. A last line without one was cut by a crash: readers ignore
it and the next append removes it, even where it looks whole, since a number that lost digits looks whole.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmark.api import SEEDS, UserError
from benchmark.files import lock, replacing, write_atomic, write_file

if TYPE_CHECKING:
    from pandas import DataFrame, Series

KEY = ("preset", "dataset", "given", "want", "method", "metric", "seed")
VERSIONS = ("method_version", "dataset_version", "metric_version", "protocol", "precision")
MEASURED = ("train_seconds", "sample_seconds", "peak_memory_mb", "parameters")
"""Columns that state a cost of the run; two equal runs differ in them, and no rule compares them."""
ANSWERED_BY, STAND_IN = "+by:", "+stand-in"
"""In `protocol`: what stands before the hash of a published checkpoint that answered, and at the end where untrained
weights in its layout answered in its place."""


@dataclass(frozen=True)
class Record:
    """One number and where it comes from.

    `dataset`: its name, and its variant behind a colon where it has any.
    `given`, `want`: modality names joined by "+"; `given` is empty for unconditional samples.
    `status`: "ok", "n/a: why" or "error: why"; `value` is None unless it is "ok", and finite then.
    `stderr`: standard error over the `n` rows, None where no formula is honest.
    `protocol`: hash of the evaluation's settings, "+" and a metric's own, ANSWERED_BY and a checkpoint's, STAND_IN.
    `sources`: hash of the code of method, dataset, metric, training and scoring.
    Raises ValueError for a row that contradicts itself.
    """

    preset: str
    dataset: str
    given: str
    want: str
    method: str
    metric: str
    seed: int
    value: float | None
    stderr: float | None
    n: int
    status: str
    method_version: int
    dataset_version: int
    metric_version: int
    protocol: str
    precision: str
    run_id: str
    sources: str
    commit: str
    torch: str
    device: str
    train_seconds: float | None = None
    sample_seconds: float | None = None
    peak_memory_mb: float | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        if not _is_status(self.status):
            raise ValueError(f"status {self.status!r} is none of 'ok', 'n/a: why', 'error: why'")
        if (self.value is None) == (self.status == "ok"):
            raise ValueError(f"status {self.status!r} does not go with value {self.value}")
        for column in _NUMBERS:
            number = getattr(self, column)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{column} is {number}")

    @property
    def key(self) -> tuple[str | int, ...]:
        return tuple(getattr(self, column) for column in KEY)


COLUMNS = tuple(field.name for field in fields(Record))
_INTEGERS = ("seed", "n", "method_version", "dataset_version", "metric_version")
_NUMBERS = ("value", "stderr", *MEASURED)  # empty where there is none
_HEADER = (",".join(COLUMNS) + "\n").encode()


_AT_ONCE = 500  # lines that are parsed together: more are not faster, since they leave the processor's cache


def _is_status(text: str) -> bool:
    return text == "ok" or text.startswith(("n/a: ", "error: "))


def shared_protocol(protocol: str) -> str:
    """The part that rows of different methods have to agree on."""
    return protocol.partition(ANSWERED_BY)[0]


def is_stand_in(protocol: str) -> bool:
    """Whether untrained weights answered, and the number says nothing of the model."""
    return protocol.endswith(STAND_IN)


def append(path: Path, records: Iterable[Record]) -> None:
    """Add rows at the end of the file, all of them or none, and wait until they are on the disk.

    Safe beside other processes that append. The file is created where it does not exist, and a last line
    that was cut by a crash is removed first. Line breaks inside a text become spaces. Raises UserError,
    with the file as it was, for a foreign header and where the file cannot be written.
    """
    lines = "".join(map(_line, records)).encode()
    if not lines:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as descriptor:
            end = _end_of_lines(descriptor, path)
            content = lines if end else _HEADER + lines
            try:
                os.ftruncate(descriptor, end)
                while content:  # one write; a second one only where the disk took a part
                    content = content[os.write(descriptor, content) :]
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
    except OSError as error:
        raise UserError(
            f"cannot append results to {path} ({error.strerror or error}): its rows are as they were; "
            "free space or permit writing, and run the same command again"
        ) from error


def read(path: Path, must_exist: bool = False) -> list[Record]:
    """The complete rows, in the order of writing; none where there is no file, unless it `must_exist`.

    Raises UserError that names the columns of a foreign header or the line that cannot be parsed.
    """
    content = b""
    with _reading(path, must_exist), path.open("rb") as file:
        content = file.read()
    columns = _parsed(content[_length_of_header(content, path) :], path, first=2)
    return [Record(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns, strict=True)]


def load(path: Path, must_exist: bool = False) -> DataFrame:
    """`read` as a frame with the columns COLUMNS; see `frame_of` for the types."""
    return Results(path).frame(must_exist)


class Results:
    """The rows of a result file for a command that asks for them again and again.

    The file is parsed once: later calls parse only what was appended since, by whichever process. A file that was
    replaced, cut or changed otherwise is parsed anew.
    """

    _frame: DataFrame | None
    _places: Mapping[str, Sequence[int]] | None  # run id -> positions of its rows in the frame
    _state: tuple[int, ...]  # of the file when it was last read
    _end: int  # of the parsed lines in the file
    _lines: int  # how many they are
    _last: bytes  # the last one of them

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def frame(self, must_exist: bool = False) -> DataFrame:
        """All rows, as `load` gives them. Raises UserError as `read` does."""
        self._update(must_exist)
        return frame_of(()) if self._frame is None else self._frame

    def of_runs(self, run_ids: Iterable[str]) -> DataFrame:
        """The rows of these runs, in the order of writing. Raises UserError as `read` does."""
        return self.frame().take(self._places_of(run_ids))

    def drop(self, run_ids: Iterable[str]) -> None:
        """Take the rows of these runs out of the file, all or none; other processes may append meanwhile.

        Raises UserError, with the file as it was, where it cannot be written, or read.
        """
        if not self.path.exists():
            return
        with replacing(self.path), _locked(self.path):
            frame = self.frame()
            places = self._places_of(run_ids)
            if not places:
                return
            dropped = set(places)
            header, *lines = self.path.read_bytes()[: self._end].split(b"\n")[:-1]
            kept = [line for place, line in enumerate(lines) if place not in dropped]
            content = b"\n".join([header, *kept, b""])
            write_atomic(self.path, content)
            # Not its size and time: another process may have added rows already.
            self._state = (*_state_of(self.path.stat())[:2], 0, 0)
        self._frame, self._places = frame.drop(frame.index[places]).reset_index(drop=True), None
        self._end, self._lines, self._last = len(content), 1 + len(kept), (kept or [header])[-1] + b"\n"

    def _places_of(self, run_ids: Iterable[str]) -> list[int]:
        """Positions of their rows in the frame, in order."""
        if self._frame is None:
            return []
        if self._places is None:
            self._places = self._frame.groupby("run_id").indices
        return sorted(place for each in set(run_ids) for place in self._places.get(each, []))

    def _forget(self) -> None:
        self._frame, self._places, self._state = None, None, ()
        self._end, self._lines, self._last = 0, 0, b""

    def _update(self, must_exist: bool) -> None:
        """Parse what is new; everything where the file is not the one that was read."""
        state: tuple[int, ...] = ()
        # Opened, though asking for its state might do: a network file system then asks its server.
        with _reading(self.path, must_exist), self.path.open("rb") as file:
            state = _state_of(os.fstat(file.fileno()))
            if state == self._state:
                return
            if not self._goes_on_in(file, state):
                self._forget()
            file.seek(self._end)
            self._add(file.read())
        if not state:
            self._forget()
        self._state = state  # last, so that the next call names a damaged line, too

    def _goes_on_in(self, file: BinaryIO, state: tuple[int, ...]) -> bool:
        """Whether the file is the one that was read, with more behind its last line."""
        if state[:2] != self._state[:2] or state[2] == self._state[2] or state[2] < self._end:
            return False
        file.seek(self._end - len(self._last))
        return file.read(len(self._last)) == self._last

    def _add(self, content: bytes) -> None:
        """Parse what stands behind the known lines."""
        import pandas

        header = 0 if self._lines else _length_of_header(content, self.path)
        lines = content.count(b"\n")
        if not lines:
            return
        frame = _frame(_parsed(content[header:], self.path, first=max(2, self._lines + 1)))
        self._frame = frame if self._frame is None else pandas.concat([self._frame, frame], ignore_index=True)
        self._places = None
        end = content.rfind(b"\n") + 1
        self._last = content[content.rfind(b"\n", 0, end - 1) + 1 : end]
        self._end, self._lines = self._end + end, self._lines + lines


def frame_of(records: Iterable[Record]) -> DataFrame:
    """One row per record: text as text (an empty `given` stays ""), counts int64, numbers float64 with NaN for none."""
    return _frame(_columns_of(records))


def _columns_of(records: Iterable[Record]) -> Sequence[Sequence[Any]]:
    return list(zip(*(vars(record).values() for record in records), strict=True)) or [()] * len(COLUMNS)


def _frame(columns: Sequence[Sequence[Any]]) -> DataFrame:
    import pandas

    return pandas.DataFrame(
        {name: pandas.Series(values, dtype=_dtype(name)) for name, values in zip(COLUMNS, columns, strict=True)}
    )


def records_of(frame: DataFrame) -> list[Record]:
    """The inverse of `frame_of`; further columns are left out."""
    return [_record(row) for row in dicts_of(frame[list(COLUMNS)])]


def dicts_of(frame: DataFrame) -> list[dict[str, Any]]:
    """Each row as a dict of plain Python values: `to_dict("records")` in a tenth of the time."""
    columns = [_listed(frame[name]) for name in frame]
    names = list(frame)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(column: Series) -> list[Any]:
    """Its plain Python values; those of a text column, which come one by one, once for all rows of a text."""
    import pandas

    if pandas.api.types.is_numeric_dtype(column.dtype):
        return column.tolist()
    codes, texts = pandas.factorize(column, use_na_sentinel=False)
    return texts.to_numpy(object)[codes].tolist()


def latest(frame: DataFrame) -> DataFrame:
    """One row per key and run: the one written last, so that a retried error is replaced by its retry.

    Rows of one key from several runs (other settings, other versions) stay: choose by `run_id`.
    """
    return frame.drop_duplicates([*KEY, "run_id"], keep="last").reset_index(drop=True)


def done_keys(frame: DataFrame, run_id: str) -> set[tuple[str | int, ...]]:
    """Keys (in the order of KEY) that the run need not compute again: a number or an n/a. Errors are tried again."""
    rows = latest(frame)
    rows = rows[(rows["run_id"] == run_id) & ~rows["status"].str.startswith("error")]
    return set(rows[list(KEY)].itertuples(index=False, name=None))


def write_sorted(path: Path, frame: DataFrame) -> None:
    """Replace the file by the frame's rows, sorted by key and run: equal rows make equal bytes.

    Raises UserError, with the file as it was, where it cannot be written.
    """
    records = sorted(records_of(frame), key=lambda record: (record.key, record.run_id))
    write_file(path, _HEADER + "".join(map(_line, records)).encode())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A descriptor of the file at `path`, alone among those who ask here; the file is made where there is none."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            lock(descriptor, path, "--runs")
            if _is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)  # gives the lock back


def _is_at(descriptor: int, path: Path) -> bool:
    """False where the file was replaced or deleted while we waited for it: rows written to it would be lost."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _end_of_lines(descriptor: int, path: Path) -> int:
    """Length of the file up to its last newline; 0 where not even the header is whole. Raises UserError."""
    head = os.pread(descriptor, 2 * len(_HEADER), 0)
    if _HEADER.startswith(head) and head != _HEADER:
        return 0
    _check_header(head.split(b"\n")[0], path)
    position = os.fstat(descriptor).st_size
    while position:
        start = max(0, position - 65536)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _check_header(line: bytes, path: Path) -> None:
    found = line.decode("utf-8-sig", "replace").rstrip("\r").split(",")
    if tuple(found) == COLUMNS:
        return
    missing = [column for column in COLUMNS if column not in found]
    foreign = [column[:40] for column in found if column not in COLUMNS]
    faults = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unexpected {', '.join(foreign)}"] * bool(foreign)
    raise UserError(
        f"{path} is no result file: its header has {'; '.join(faults) or 'the columns in another order'}; "
        "rename the file (a new one is begun) or mend its first line"
    )


def _line(record: Record) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(_text(column, value) for column, value in vars(record).items())
    return line.getvalue()


def _text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in _INTEGERS or column == "parameters":
        return str(int(value))
    if column in _NUMBERS:
        return repr(float(value))  # the shortest text that reads back as the same number
    return " ".join(value.splitlines()).encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _reading(path: Path, must_exist: bool) -> Iterator[None]:
    """Leaves what is inside where there is no file. Raises UserError where it `must_exist`, or cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        if must_exist:
            raise UserError(f"no results at {path}: `bench run` writes them") from error
    except OSError as error:
        raise UserError(
            f"cannot read results from {path} ({error.strerror}): permit reading or name another file"
        ) from error


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _length_of_header(content: bytes, path: Path) -> int:
    """0 where it is not whole. Raises UserError for a foreign one."""
    length = content.find(b"\n") + 1
    if length or not _HEADER.startswith(content):
        _check_header(content[: length - 1] if length else content, path)
    return length


def _parsed(content: bytes, path: Path, first: int) -> list[list[Any]]:
    """The values of whole lines, by column; `first`: the number of the first line.

    Raises UserError that names the line that cannot be parsed.
    """
    columns: list[list[Any]] = [[] for _ in COLUMNS]
    lines = content.split(b"\n")[:-1]  # behind the last newline is nothing, or a line that was cut
    for start in range(0, len(lines), _AT_ONCE):
        some = lines[start : start + _AT_ONCE]
        try:
            values = _values([line.decode().rstrip("\r") for line in some])
        except (ValueError, OverflowError, csv.Error):  # which of them, and why, is found out one by one
            values = _columns_of(_parse(line, path, number) for number, line in enumerate(some, first + start))
        for column, more in zip(columns, values, strict=True):
            column.extend(more)
    return columns


def _values(lines: Sequence[str]) -> Sequence[Sequence[Any]]:
    """What `_parse` makes of the lines, by column, in a tenth of the time. Raises an error where it may refuse one."""
    rows = list(csv.reader(lines, strict=True))
    if len(rows) != len(lines):
        raise ValueError("a quote runs over the end of its line")
    values: dict[str, list[Any]] = {
        column: list(map(sys.intern, texts))  # rows repeat their texts
        for column, texts in zip(COLUMNS, zip(*rows, strict=True), strict=True)
    }
    for column in _INTEGERS:
        values[column] = list(map(int, values[column]))
        if max(map(abs, values[column])) >= 2**63:
            raise ValueError("too large")
    if not all(seed in SEEDS for seed in set(values["seed"])):
        raise ValueError("no seed")
    for column in _NUMBERS:
        values[column] = [float(text) if text else None for text in values[column]]
        if not math.isfinite(sum(filter(None, values[column]))):
            raise ValueError("not finite")
    values["parameters"] = [None if number is None else int(number) for number in values["parameters"]]
    if not all(map(_is_status, set(values["status"]))):
        raise ValueError("no status")
    if any(
        (status == "ok") == (value is None) for status, value in zip(values["status"], values["value"], strict=True)
    ):
        raise ValueError("a status that does not go with its value")
    return list(values.values())


def _parse(line: bytes, path: Path, number: int) -> Record:
    where = f"{path}, line {number}"
    mend = "mend or delete that line"
    try:
        values = next(csv.reader([line.decode().rstrip("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where}: no CSV line ({error}): {mend}") from error
    if len(values) != len(COLUMNS):
        raise UserError(f"{where}: {len(values)} fields instead of {len(COLUMNS)}: {mend}")
    row: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    for column, convert in [*((c, int) for c in _INTEGERS), *((c, float) for c in _NUMBERS)]:
        try:
            row[column] = None if column in _NUMBERS and row[column] == "" else convert(row[column])
        except ValueError as error:
            raise UserError(f"{where}: {column} is {row[column]!r}, not a number: {mend}") from error
    try:
        return _record(row)
    except ValueError as error:
        raise UserError(f"{where}: {error}: {mend}") from error


def _record(row: dict[str, Any]) -> Record:
    """A record of plain Python numbers, with None for NaN."""
    for column in _INTEGERS:
        row[column] = int(row[column])
        if abs(row[column]) >= 2**63:
            raise ValueError(f"{column} is {row[column]}, which is too large")
    for column in _NUMBERS:
        if row[column] is not None:
            row[column] = None if math.isnan(row[column]) else float(row[column])
    if row["seed"] not in SEEDS:
        raise ValueError(f"seed is {row['seed']}, and seeds are from 0 to {SEEDS[-1]}")
    if row["parameters"] is not None and math.isfinite(row["parameters"]):
        row["parameters"] = int(row["parameters"])
    return Record(**row)


def _dtype(column: str) -> str:
    return "int64" if column in _INTEGERS else "float64" if column in _NUMBERS else "str"
