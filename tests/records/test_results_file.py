"""The result file: what is written is read back, and no crash, rival writer or full disk harms it."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from benchmark.api import UserError
from benchmark.records import results_file
from benchmark.records.results_file import (
    COLUMNS,
    KEY,
    MEASURED,
    VERSIONS,
    Record,
    Results,
    append,
    done_keys,
    frame_of,
    latest,
    load,
    read,
)
from tests import ROOT

ROW = Record(
    preset="smoke",
    dataset="gaussian_mixture",
    given="",
    want="x1+x2",
    method="muni",
    metric="swd",
    seed=0,
    value=0.1,
    stderr=0.01,
    n=512,
    status="ok",
    method_version=1,
    dataset_version=2,
    metric_version=3,
    protocol="ab12",
    precision="fp32",
    run_id="r1",
    sources="cd34",
    commit="0123abc",
    torch="2.13.0",
    device="x86_64 CPU, 2 threads",
    train_seconds=1.5,
    sample_seconds=0.25,
    peak_memory_mb=512.0,
    parameters=1234,
)

WRITER = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from benchmark.records.results_file import append, Record
row = Record(**{row!r})
path, method, batch, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
write = os.write
if sys.argv[5] == "slow":  # a disk that takes a part at a time, so that a kill can fall between two parts
    os.write = lambda file, content: time.sleep(0.001) or write(file, content[:1 + len(content) // 3])
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, count, batch):
    append(path, [replace(row, method=method, seed=seed, value=seed / 7) for seed in range(start, start + batch)])
    print(start + batch, flush=True)
assert "pandas" not in sys.modules and "torch" not in sys.modules
"""


def writer(path: Path, method: str, batch: int, count: int, disk: str = "fast") -> subprocess.Popen[str]:
    code = WRITER.format(root=str(ROOT), tests=str(ROOT / "tests"), row=vars(ROW))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), method, str(batch), str(count), disk],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def many(count: int, **changes: object) -> list[Record]:
    return [replace(ROW, seed=seed, value=seed / 7, **changes) for seed in range(count)]  # type: ignore[arg-type]


def test_the_columns_are_the_declared_ones_in_order():
    assert list(COLUMNS) == [
        *KEY,
        "value",
        "stderr",
        "n",
        "status",
        *VERSIONS,
        "run_id",
        "sources",
        "commit",
        "torch",
        "device",
        *MEASURED,
    ]


def test_append_then_read_gives_the_same_records_and_one_header(tmp_path):
    path = tmp_path / "runs" / "results.csv"
    awkward = replace(
        ROW,
        seed=1,
        value=None,
        stderr=None,
        n=0,
        status='error: "a, b"\nand c',
        train_seconds=None,
        sample_seconds=None,
        peak_memory_mb=None,
        parameters=None,
    )
    append(path, [ROW])
    append(path, [])
    append(path, [awkward, replace(ROW, seed=2)])
    assert read(path) == [ROW, replace(awkward, status='error: "a, b" and c'), replace(ROW, seed=2)]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert len(path.read_text().splitlines()) == 4


@settings(max_examples=50, deadline=None)
@given(value=some.floats(allow_nan=False, allow_infinity=False), text=some.text(max_size=12))
def test_every_number_and_text_survives_the_file(tmp_path_factory, value, text):
    path = tmp_path_factory.mktemp("any") / "results.csv"
    append(path, [replace(ROW, value=value, device=text)])
    (row,) = read(path)
    assert row.value == value
    assert row.device == " ".join(text.encode("utf-8", "backslashreplace").decode().splitlines())


def test_the_frame_is_typed(tmp_path):
    path = tmp_path / "results.csv"
    append(
        path,
        [
            replace(ROW, commit="0123", run_id="1e5", status="n/a: no such number", value=None, parameters=None),
            replace(ROW, seed=1, commit="NA", value=3.0),
        ],
    )
    frame = load(path)
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["given"]) == ["", ""]
    assert list(frame["commit"]) == ["0123", "NA"] and frame["run_id"][0] == "1e5"
    assert frame["seed"].dtype == "int64" and frame["value"].dtype == "float64"
    assert frame["value"].isna().tolist() == [True, False] and frame["value"][1] == 3.0
    assert results_file.records_of(frame) == read(path)
    empty = load(tmp_path / "nothing.csv")
    assert len(empty) == 0 and (empty.dtypes == frame.dtypes).all()


@pytest.mark.parametrize(
    "change",
    [
        {"value": None},
        {"value": float("nan")},
        {"stderr": float("inf")},
        {"status": "failed"},
        {"status": "error: NaN in the loss"},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change):
    with pytest.raises(ValueError):
        replace(ROW, **change)


def test_the_last_row_of_a_key_and_run_counts_and_errors_are_tried_again():
    error = replace(ROW, value=None, status="error: NaN in the loss")
    rows = [
        error,
        ROW,
        replace(ROW, run_id="r2", value=0.5),
        replace(error, seed=1),
        replace(ROW, seed=2, value=None, status="n/a: no shared coordinates"),
    ]
    kept = latest(frame_of(rows))
    assert results_file.records_of(kept) == rows[1:]
    assert done_keys(kept, "r1") == {rows[1].key, rows[4].key}
    assert done_keys(frame_of([ROW, error]), "r1") == set()
    assert done_keys(frame_of([]), "r1") == set()


def test_a_file_cut_anywhere_is_loadable_and_appendable(tmp_path):
    path = tmp_path / "results.csv"
    append(path, many(2))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        complete = max(0, whole[:length].count(b"\n") - 1)
        assert read(path) == many(2)[:complete], length
        append(path, [replace(ROW, seed=9)])
        assert read(path) == [*many(2)[:complete], replace(ROW, seed=9)], length


def test_a_cut_tail_longer_than_a_read_block_is_removed(tmp_path):
    path = tmp_path / "results.csv"
    append(path, many(1))
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    append(path, [replace(ROW, seed=1)])
    assert [row.seed for row in read(path)] == [0, 1]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("a,b", ("missing preset", "unexpected a, b")),
        (",".join(COLUMNS).replace("stderr", "sd"), ("missing stderr;", "unexpected sd;")),
        (",".join(reversed(COLUMNS)), ("another order",)),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\n1,2\n"])
def test_a_foreign_header_is_named_and_the_file_left_alone(tmp_path, header, words, end):
    path = tmp_path / "theirs.csv"
    path.write_text(header + end)
    for action in (lambda: load(path), lambda: append(path, [ROW])):
        with pytest.raises(UserError) as error:
            action()
        assert "\n" not in str(error.value) and "theirs.csv" in str(error.value)
        assert all(word in str(error.value) for word in words)
        assert path.read_text() == header + end


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("smoke,", "smoke,more,", "26 fields instead of 25"),
        (",512,", ",many,", "n is 'many'"),
        (",0.1,", ",0.1.2,", "value is '0.1.2'"),
        (",0.1,", ",,", "does not go with"),
        (",0.1,", ",inf,", "value is inf"),
        (",1234", ",inf", "parameters is inf"),
        ('"x86_64', 'x86_"64', "threads"),
        ("smoke,", '"smoke,', "no CSV line"),
    ],
)
def test_a_broken_line_is_named_by_number(tmp_path, old, new, words):
    path = tmp_path / "results.csv"
    append(path, [ROW, ROW, ROW])
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new)
    path.write_text("".join(lines))
    if words == "threads":  # a quote inside a plain field is text: the comma after it splits the field
        words = "26 fields"
    with pytest.raises(UserError, match="line 3") as error:
        read(path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = tmp_path / "results.csv"
    append(path, many(2))
    path.write_bytes(path.read_bytes().replace(b"muni", b"mu\xffni"))
    with pytest.raises(UserError, match="line 2: no CSV line"):
        read(path)


def test_a_spreadsheets_line_ends_and_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "results.csv"
    append(path, many(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    append(path, [replace(ROW, seed=2)])
    assert [row.seed for row in read(path)] == [0, 1, 2]


def test_a_missing_file_is_empty_or_a_fault(tmp_path):
    assert read(tmp_path / "no.csv") == []
    with pytest.raises(UserError, match=r"no results at .*no\.csv"):
        load(tmp_path / "no.csv", must_exist=True)
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)


def test_writing_where_one_cannot_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    append(path, many(1))
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    for write in (
        lambda: append(path / "under_a_file.csv", [ROW]),
        lambda: append(tmp_path, [ROW]),
        lambda: results_file.write_sorted(path / "under_a_file.csv", frame_of([ROW])),
    ):
        with pytest.raises(UserError, match=r"cannot (append|write)") as error:
            write()
        assert "\n" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)  # the disk fails after the bytes were handed over
        with pytest.raises(UserError, match="Read-only file system"):
            append(path, many(3))
        with pytest.raises(UserError, match="Read-only file system"):
            results_file.write_sorted(path, frame_of(many(3)))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_a_disk_that_fills_within_a_row_leaves_no_part_of_it(tmp_path):
    path = tmp_path / "results.csv"
    append(path, many(1))
    before = path.read_bytes()
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmark.api import UserError
from benchmark.records.results_file import Record, append
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 50}, {len(before) + 50}))
try:
    append(Path({str(path)!r}), [Record(**{vars(ROW)!r})] * 3)
except UserError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"cannot append results to {path} (File too large)") and said.count("\n") == 1
    assert path.read_bytes() == before
    append(path, [replace(ROW, seed=1)])
    assert [row.seed for row in read(path)] == [0, 1]


def test_an_append_waits_for_the_lock_and_follows_a_replaced_file(tmp_path):
    path, other = tmp_path / "results.csv", tmp_path / "other.csv"
    append(path, many(1))
    append(other, many(2))
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=append, args=(path, [replace(ROW, seed=7)]))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and len(read(path)) == 1
        os.replace(other, path)
    thread.join(10)
    assert [row.seed for row in read(path)] == [0, 1, 7]


def test_two_processes_lose_and_duplicate_no_row(tmp_path):
    path = tmp_path / "results.csv"
    writers = [writer(path, "a", 1, 300), writer(path, "b", 4, 400)]
    for process in writers:
        start(process)
    assert [process.communicate(timeout=60)[0].count("\n") for process in writers] == [300, 100]
    assert [process.returncode for process in writers] == [0, 0]
    rows = read(path)
    assert [row for row in rows if row.method == "a"] == many(300, method="a")
    assert [row for row in rows if row.method == "b"] == many(400, method="b")
    assert len(rows) == 700
    turns = sum(one.method != two.method for one, two in pairwise(rows))
    assert turns >= 2, "one writer came after the other, so the test tested nothing"


def test_a_killed_writer_loses_no_row_that_it_reported(tmp_path):
    path = tmp_path / "results.csv"
    rng = random.Random(0)
    known: list[Record] = []
    cuts = 0
    for trial in range(12):
        process = writer(path, f"m{trial}", 20, 100_000, disk="slow")
        start(process)
        assert process.stdout is not None
        reported = [int(process.stdout.readline()) for _ in range(rng.randrange(4))]
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        reported += map(int, process.communicate()[0].split())
        rows = read(path)
        new = rows[len(known) :]
        assert rows[: len(known)] == known, "an older row was harmed"
        assert new == many(len(new), method=f"m{trial}") and len(new) >= max(reported, default=0)
        cuts += path.exists() and not path.read_bytes().endswith(b"\n")
        known = rows
    assert cuts >= 2, "no kill fell within an append, so the test tested nothing"
    append(path, [ROW])
    assert read(path) == [*known, ROW]


def test_sorted_writing_is_stable_and_quotes_what_needs_it(tmp_path):
    rows = [*many(12), replace(ROW, method="mvae", device='a "b", c')]
    for name, order in (("one.csv", rows), ("two.csv", rows[::-1])):
        results_file.write_sorted(tmp_path / name, frame_of(order))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert [row.seed for row in read(tmp_path / "one.csv")] == [*range(12), 0]
    assert read(tmp_path / "one.csv") == rows
    results_file.write_sorted(tmp_path / "two.csv", load(tmp_path / "one.csv"))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_reading_and_appending_import_no_pandas():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        "import benchmark.records.results_file, benchmark.records.regression\n"
        "print([name for name in ('pandas', 'scipy', 'numpy', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_frame_keeps_integers_beyond_the_missing_ones():
    frame = frame_of([ROW, replace(ROW, seed=1, parameters=None)])
    assert frame["parameters"][0] == 1234 and pandas.isna(frame["parameters"][1])
    assert [row.parameters for row in results_file.records_of(frame)] == [1234, None]


def test_a_number_that_no_table_can_hold_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append(path, [ROW, replace(ROW, seed=4294967295)])
    path.write_text(path.read_text().replace("4294967295", str(2**63)))
    with pytest.raises(UserError, match=rf"line 3: seed is {2**63}, which is too large: mend or delete that line"):
        load(path)


# The rows that a command asks for again and again.


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines each parse had."""
    real, found = results_file._parsed, []

    def count(content: bytes, *arguments: Any, **options: Any) -> Any:
        found.append(content.count(b"\n"))
        return real(content, *arguments, **options)

    monkeypatch.setattr(results_file, "_parsed", count)
    return found


def test_rows_are_parsed_once_and_then_those_that_anybody_added(tmp_path: Path, parsed: list[int]) -> None:
    path = tmp_path / "results.csv"
    rows = Results(path)
    assert len(rows.frame()) == 0 and len(rows.of_runs(["r1"])) == 0
    append(path, many(3))
    for _ in range(3):
        assert results_file.records_of(rows.frame()) == many(3)
    append(path, many(2, run_id="r2"))
    assert [len(rows.of_runs([run_id])) for run_id in ("r1", "r2", "r3")] == [3, 2, 0]
    with path.open("ab") as file:
        file.write(b"smoke,cut by a cra")
    assert len(rows.frame()) == 5
    append(path, [replace(ROW, seed=9)])
    assert results_file.records_of(rows.frame()) == read(path) and len(rows.frame()) == 6
    assert sum(parsed) == 6 + 6  # each once, and all by `read`


def edit(path: Path, old: bytes, new: bytes) -> None:
    """As an editor that writes into the same file."""
    with path.open("r+b") as file:
        content = file.read().replace(old, new)
        file.seek(0)
        file.truncate()
        file.write(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: results_file.write_sorted(path, frame_of(many(9))),  # another file in its place
        lambda path: edit(path, b",0.1,", b",0.2,"),  # of the same length
        lambda path: edit(path, b",muni,", b",mopoe,"),  # of another, with more than before
        lambda path: os.truncate(path, path.read_bytes()[:-1].rfind(b"\n") + 1),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), append(path, many(2))),
    ],
)
def test_a_file_that_was_changed_otherwise_is_parsed_anew(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "results.csv"
    rows = Results(path)
    append(path, [ROW, *many(3)])
    assert len(rows.frame()) == 4
    change(path)
    assert results_file.records_of(rows.frame()) == read(path)
    append(path, [replace(ROW, seed=8)])
    assert results_file.records_of(rows.frame()) == read(path)


def test_a_damaged_line_is_named_whenever_the_rows_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append(path, many(4))
    rows = Results(path)
    assert len(rows.frame()) == 4
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines(keepends=True)[-1].replace(b",512,", b",many,"))
    append(path, [ROW])
    for ask in (rows.frame, lambda: rows.of_runs(["r1"]), lambda: rows.drop(["r1"])):
        with pytest.raises(UserError, match="line 6: n is 'many'"):
            ask()
    edit(path, b",many,", b",512,")
    assert len(rows.frame()) == 6


def test_a_dropped_run_leaves_the_others_as_they_are_written(tmp_path: Path, parsed: list[int]) -> None:
    path = tmp_path / "results.csv"
    rows = Results(path)
    rows.drop(["r1"])
    assert not path.exists()
    append(path, [*many(2), *many(3, run_id="r2"), replace(ROW, seed=7)])
    lines = path.read_bytes().splitlines(keepends=True)
    rows.drop(["nobody"])
    assert path.read_bytes() == b"".join(lines)
    rows.drop(["r1"])
    assert path.read_bytes() == b"".join([lines[0], *lines[3:6]])
    append(path, [replace(ROW, seed=9)])
    assert [len(rows.of_runs([run_id])) for run_id in ("r1", "r2")] == [1, 3]
    rows.drop(["r2", "r1", "nobody"])
    assert path.read_bytes() == lines[0] and len(rows.frame()) == 0
    append(path, many(1))
    assert len(rows.of_runs(["r1"])) == 1
    assert sum(parsed) == 6 + 1 + 1, "rows were parsed twice"


@settings(max_examples=150, deadline=None)
@given(place=some.integers(0, 10**6), length=some.integers(0, 3), damage=some.text('",\r\n 0.ainf-é', max_size=3))
def test_many_lines_at_once_are_read_as_strictly_as_one_by_one(place: int, length: int, damage: str) -> None:
    lines = [results_file._line(row) for row in (ROW, replace(ROW, value=None, status='n/a: "a", b'), *many(2))]
    content = "".join(lines)
    place %= len(content)
    damaged = (content[:place] + damage + content[place + length :]).encode()

    def answer(at_once: int) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results_file, "_AT_ONCE", at_once)
            if at_once == 1:  # the strict way alone
                patch.setattr(results_file, "_values", lambda lines: (_ for _ in ()).throw(ValueError()))
            try:
                return results_file._parsed(damaged, Path("results.csv"), first=2)
            except UserError as error:
                return str(error)

    assert answer(500) == answer(1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_named_by_line(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "results.csv"
    append(path, [replace(ROW, seed=seed)])
    with pytest.raises(UserError, match=rf"line 2: seed is {seed}, and seeds are from 0 to 4294967295: mend"):
        load(path)
