"""The commit of a row is the suite's own, whatever git project the command runs in and whoever owns the checkout."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from benchmark import registry
from benchmark.api import UserError
from benchmark.records import checkout


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    checkout.commit.cache_clear()
    yield
    checkout.commit.cache_clear()


def project(folder: Path) -> str:
    """A git project with a commit, whose name is answered."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("1")
    as_me = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", str(folder)]):
        subprocess.run(["git", "-C", str(folder), *as_me, *words], check=True)
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the suite's, inside another project, which the command runs in."""
    project(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr(registry, "ROOT", tmp_path / "other" / "suite")
    registry.ROOT.mkdir()
    return registry.ROOT


def test_an_installation_inside_another_project_has_no_commit(suite: Path) -> None:
    assert checkout.commit() == ""
    assert checkout.no_commit(suite) == f"{suite} is no git checkout, and pip recorded no commit of it"
    (suite / ".git").mkdir()  # damaged: git itself would go on to the project around it
    checkout.commit.cache_clear()
    assert checkout.commit() == "" and "not a git repository" in checkout.no_commit(suite)


def test_the_environment_of_another_project_is_no_matter(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = project(suite)
    monkeypatch.setenv("GIT_DIR", str(suite.parent / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(suite.parent))
    monkeypatch.setenv("GIT_INDEX_FILE", str(suite / "no-index"))
    assert (checkout.commit(), checkout.no_commit(suite)) == (commit, "")
    (suite / "file").write_text("2")
    checkout.commit.cache_clear()
    assert checkout.commit() == f"{commit}+"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: gives a checkout to another user")
def test_a_checkout_of_another_owner_is_read(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = project(suite)
    for path in (suite, *suite.rglob("*")):
        os.chown(path, 4711, 4711)
    plain = subprocess.run(
        ["git", "-C", str(suite), "status"], capture_output=True, text=True, env={"HOME": "/"} | PATH
    )
    assert "dubious ownership" in plain.stderr
    monkeypatch.setenv("HOME", "/")
    assert (checkout.commit(), checkout.no_commit(suite)) == (commit, "")


PATH = {"PATH": os.environ["PATH"]}


def test_a_checkout_that_git_cannot_read_says_why(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(suite)], check=True)  # without a commit
    assert checkout.commit() == "" and "git cannot read the checkout" in checkout.no_commit(suite)
    monkeypatch.setenv("PATH", "/nowhere")
    assert checkout.no_commit(suite) == f"git cannot read the checkout {suite} (git is not installed)"


def test_an_installation_from_a_repository_has_the_commit_that_pip_recorded(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = '{"url": "https://host/suite", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}'
    installed = mock.Mock(read_text=lambda name: facts, locate_file=lambda name: suite / name)
    monkeypatch.setattr(checkout.metadata, "distribution", lambda name: installed)
    assert (checkout.commit(), checkout.no_commit(suite)) == ("0123456789", "")
    checkout.commit.cache_clear()
    installed.locate_file = lambda name: suite.parent / name  # another installation than the one that runs
    assert checkout.commit() == ""


def test_a_dirty_tree_is_seen(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="git checkout"):
        checkout.is_dirty(tmp_path)
    project(tmp_path)
    assert not checkout.is_dirty(tmp_path)
    (tmp_path / "new.py").touch()
    assert checkout.is_dirty(tmp_path) and not checkout.is_dirty(tmp_path, "no")
