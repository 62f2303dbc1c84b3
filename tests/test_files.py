"""A file is replaced whole or stays as it was, whatever goes wrong while it is written; modes, links, locks, homes."""

import ast
import errno
import fcntl
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmark import files
from benchmark.api import UserError
from benchmark.engine import execution
from benchmark.files import write_atomic, write_file
from benchmark.records import results_file
from tests import ROOT
from tests.records.test_results_file import ROW


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_and_its_folder_are_made_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "a" / "b", b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"new"
    results_file.append(tmp_path / "results.csv", [ROW])
    with files.alone_in(tmp_path, waiting=pytest.fail), execution._alone_in(tmp_path / "run"):
        pass
    made = ("a/b", "results.csv", "lock", "run/lock")
    assert {name: mode(tmp_path / name) for name in made} == dict.fromkeys(made, 0o666 & ~umask)
    results_file.Results(tmp_path / "results.csv").drop([ROW.run_id])
    assert mode(tmp_path / "results.csv") == 0o666 & ~umask
    assert mode(tmp_path / "a") == 0o777 & ~umask


def test_a_file_that_is_replaced_keeps_its_mode_and_group(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o660)
    if os.getuid() == 0:
        os.chown(path, -1, 4711)
    group = path.stat().st_gid
    write_atomic(path, b"new")
    assert (path.read_bytes(), mode(path), path.stat().st_gid) == (b"new", 0o660, group)


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "rows.csv", tmp_path / "results.csv"
    link.symlink_to(Path("far") / "rows.csv")
    write_atomic(link, b"")  # it pointed at nothing
    target.unlink()
    results_file.append(link, [ROW])
    results_file.append(link, [ROW.__class__(**vars(ROW) | {"run_id": "other"})])
    results_file.Results(link).drop(["other"])
    assert link.is_symlink() and results_file.read(target) == [ROW]
    assert {path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())} == {"far", link.name, target.name}


# Locks.

LOCKED: dict[str, Callable[[Path], object]] = {
    "rows": lambda folder: results_file.append(folder / "results.csv", [ROW]),
    "a run": lambda folder: execution._alone_in(folder).__enter__(),
    "who works on a run": lambda folder: execution.holder(folder),
    "the cache": lambda folder: files.alone_in(folder, waiting=pytest.fail).__enter__(),
}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("what", LOCKED)
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, code: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot lock files \(.*: name a folder .* with (--runs|MUNI_BENCH_CACHE)"):
        LOCKED[what](tmp_path)


def test_only_one_module_locks_and_sets_modes() -> None:
    """So that each lock says what to do where there is none, and each file has the umask's mode."""
    paths = [
        path for folder in ("benchmark", "baselines", "data_prep", "models") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {
        path.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("flock", "lockf", "chmod", "fchmod", "mkstemp")
    }
    assert len(paths) > 50 and named == {"files.py"}


# Homes.


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has a number and no account."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "MUNI_BENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_user_without_a_home_is_told_which_variable_mends_it(
    homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"HOME is not set and user .* set HOME or MUNI_BENCH_CACHE to a folder"):
        files.cache_folder()
    with pytest.raises(UserError, match="~/runs: no home folder for ~: write the whole path, or set HOME"):
        files.expanded(Path("~/runs"))
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path


def test_a_variable_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from data_prep.media import data_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MUNI_BENCH_CACHE", "~/cache")
    monkeypatch.setenv("MUNI_BENCH_DATA", "~/data")
    assert files.cache_folder() == tmp_path / "cache"
    assert data_folder.data_folder("mnist") == tmp_path / "data" / "mnist"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match=rf"cannot write {path} \(No space left on device\): it is as it was; do this"):
        write_file(path, b"new", "do this")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
