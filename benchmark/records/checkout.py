"""Which commit the suite's own code is of: its checkout's, or what pip recorded; never that of a project around it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

from benchmark import registry
from benchmark.api import UserError


@functools.cache
def commit() -> str:
    """The suite's commit, with a + where tracked files have changes; empty where `no_commit` says why.

    As it was when first asked.
    """
    if no_commit(registry.ROOT):
        return ""
    if not (registry.ROOT / ".git").exists():
        return _recorded(registry.ROOT)
    return _git(registry.ROOT, "rev-parse", "--short=10", "HEAD") + "+" * is_dirty(registry.ROOT, "no")


def no_commit(root: Path) -> str:
    """Why the commit of the suite in `root` is not known; empty where it is."""
    if not (root / ".git").exists():
        installed = f"{root} is no git checkout, and pip recorded no commit of it"
        return "" if _recorded(root) else installed
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        _git(root, "rev-parse", "--verify", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"git cannot read the checkout {root} ({_why(error)})"
    return (
        "" if top.resolve() == root.resolve() else f"{root} belongs to the git project {top}, which is not the suite's"
    )


def is_dirty(root: Path, untracked: str = "normal") -> bool:
    """Whether the checkout at `root` has changes, or files that no commit holds where `untracked` is not "no".

    Raises UserError where git cannot tell.
    """
    try:
        return bool(_git(root, "status", "--porcelain", f"--untracked-files={untracked}"))
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot tell whether {root} is committed ({_why(error)}): run this in a git checkout"
        ) from error


def _git(root: Path, *words: str) -> str:
    """What git says of the checkout at `root`, whatever the environment says of other ones, and whoever owns it.

    Git refuses a checkout of another user, whose settings could run programs. Python runs the code of this very
    checkout, so that is no protection here; the one setting by which `status` starts a program is switched off.
    """
    settings = ("safe.directory=*", "core.fsmonitor=false")
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_" or name == "GIT_EXEC_PATH"}
    return subprocess.run(
        ["git", "-C", str(root), *(word for each in settings for word in ("-c", each)), *words],
        env=environment | {"GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(root.parent)},
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=True,
        start_new_session=True,  # Ctrl-C is for us: it would leave the row without its commit
    ).stdout.strip()


def _why(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, FileNotFoundError):
        return "git is not installed"
    return ((getattr(error, "stderr", None) or str(error)).strip().splitlines() or ["no reason given"])[0]


def _recorded(root: Path) -> str:
    """The commit that pip installed from, where it came from a repository and is what runs; empty where not."""
    try:
        installed = metadata.distribution("muni-bench")
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    here = Path(str(installed.locate_file("benchmark"))).resolve() == (root / "benchmark").resolve()
    return str(origin.get("vcs_info", {}).get("commit_id", ""))[:10] if here else ""
