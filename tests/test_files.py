"""A file is replaced whole or stays as it was, whatever goes wrong while it is written."""

import os
from pathlib import Path

import pytest

from benchmark.api import UserError
from benchmark.files import write_atomic, write_file


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b", b"new")
    assert (tmp_path / "a" / "b").read_bytes() == b"new"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o644  # others read it, as what `open` makes


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
