"""The command `bench`. Heavy imports happen inside the commands, so that --help and list answer at once."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

# Two torch processes on the same cores otherwise spin at each other's barriers; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products on a GPU need

import typer

from benchmark import __version__, registry, terminal
from benchmark.api import SEEDS, TASKS, UserError, cells
from benchmark.config import PRESETS, default_preset, resolve
from benchmark.files import expanded, folder_named
from benchmark.progress import progress
from benchmark.records import run_identity
from benchmark.records.job import Job, job_of
from benchmark.tables.layout import page_of
from benchmark.tables.render import FORMATS, render
from benchmark.tables.table_file import MOST_SEEDS, Table, load_table, table_files
from benchmark.toml_files import known_name, read_toml

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.records.run_identity import Run
    from benchmark.records.selection import Settings

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Benchmark of any-to-any multimodal generative models: train, sample, score, and print the paper's tables.",
    epilog="Start with: bench reproduce table5 --method muni --seed 0. Completion: bench --install-completion.",
)

Methods = Annotated[
    list[str],
    typer.Option("--method", "-m", help="Name, or path of your own .py file; NAME:SWITCH for a variant; repeatable."),
]
Dataset = Annotated[str, typer.Option("--dataset", "-d", help="Name, or path of your own .py file.")]
Preset = Annotated[
    str, typer.Option("--preset", "-p", help=f"One of {', '.join(PRESETS)}; default: gpu with a GPU, else cpu.")
]
Seeds = Annotated[list[str], typer.Option("--seed", "-s", help="0, 0-4 or 0,2,5; repeatable.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, max=SEEDS[-1])]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of checkpoints and of results.csv.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a field: key=value; repeatable. See bench info.")]


def _not_negative(value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is not a number from 0 on")
    return value


MaxTime = Annotated[
    float,
    typer.Option(
        "--max-time",
        help="Stop cleanly after so many minutes; 0: never. The same command goes on.",
        callback=_not_negative,
    ),
]
Tolerance = Annotated[float, typer.Option("--tolerance", help="Relative, of the paired rule.", callback=_not_negative)]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would run, and stop.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what these runs have and start again.")]
ExecutorName = Annotated[
    str,
    typer.Option("--executor", help="local or slurm: submit each run as a job through submitit, and wait for all."),
]
MaxJobs = Annotated[
    int, typer.Option("--max-jobs", help="At work or queued at once; default: one a GPU or core, on SLURM all.", min=0)
]
Slurm = Annotated[
    list[str], typer.Option("--slurm", help="Of each job, as sbatch has it: partition=gpu, time=600; repeatable.")
]
Format = Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")]
Reference = Annotated[
    bool, typer.Option("--reference", help="Read the committed rows of results/reference/ instead of your own.")
]
RUNS = Path("runs")


def main() -> None:
    """Entry point: a UserError is one line and exit status 2, an interrupt 130; output that is lost 2, or 141 where
    its reader has gone (`bench list | head -1`)."""
    with terminal.streams() as (out, _):
        status = _status()
        out.flush()
        if isinstance(out.fault, BrokenPipeError):
            status = terminal.LOST
        elif out.fault is not None:
            print(
                f"bench: the output is lost ({out.fault.strerror}); what the command writes elsewhere is there: free "
                "space, and run the same command again",
                file=sys.stderr,
            )
            status = 2
    sys.exit(status)


def _at_home(word: str) -> str:
    """`--runs=~/runs` with the home folder: there the shell leaves the `~` alone."""
    option, path = re.fullmatch(r"(--[\w-]+=|)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    return option + str(expanded(Path(path))) if re.match(r"~[\w.-]*/|~$", path) else word


def _status() -> int | str | None:
    """Carry out the command; its exit status."""
    try:
        app([_at_home(word) for word in sys.argv[1:]], standalone_mode=True)
    except SystemExit as end:
        return end.code
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    folder = folder_named("MUNI_BENCH_DATA")
    if folder and not folder.is_dir():
        raise UserError(f"MUNI_BENCH_DATA={folder}: no such folder: name the one that holds the data, or unset it")
    from data_prep.media.data_folder import offline

    offline()  # before a package of the hub is imported, which reads its variables then
    if version:
        print(f"muni-bench {__version__}")
        raise typer.Exit


@app.command("list")
def list_command() -> None:
    """Methods, datasets, metrics, tables and presets.

    Example: bench list
    """
    for kind in registry.FOLDERS:
        print(f"{kind}s")
        for name in sorted(registry.index(kind)):
            card = registry.card(kind, name)
            print(f"  {name:20} {card.label:26} {_aside(kind, card)}")
    print("tables")
    for name in table_files():
        print(f"  {name:20} bench reproduce {name}")
    print(f"tasks\n  {', '.join(TASKS)}, criteria\npresets\n  {', '.join(PRESETS)}")


def _aside(kind: str, card: Any) -> str:
    if kind == "metric":
        return f"{card.units}, {'higher' if card.higher_is_better else 'lower'} is better"
    return card.paper if len(card.paper) < 62 else card.paper[:59] + "..."


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A method, dataset or metric, or the path of your own.")],
    preset: Preset = "",
    dataset: Dataset = "gaussian_mixture",
    set_: Set = [],
) -> None:
    """A plug-in's card, and every field of its configuration with its source.

    Example: bench info muni --preset paper
    """
    kind = _kind_of(name)
    card = registry.card(kind, name)
    data = card if kind == "dataset" else registry.card("dataset", dataset)
    chosen = _preset(preset)
    metrics = {registry.stem(name): card} if kind == "metric" else {}
    resolved = resolve(data, card if kind == "method" else None, chosen, set_, metrics)
    print(f"{registry.stem(name)} ({kind})")
    for field, value in vars(card).items():
        if field not in ("recipe", "fields") and value not in ((), {}, ""):
            _print_field(field, value)
    if kind == "metric" and not card.fields:
        return
    print(f"\nconfiguration on {registry.stem(name if kind == 'dataset' else dataset)} at preset {chosen}")
    values = {name: resolved.config.own_values[name] for name in card.fields} if metrics else resolved.config.values()
    for field, value in values.items():
        shown = "none" if value == "" else str(value)
        print(f"  {field:20} {shown:>10}   {resolved.source[field]}")


def _print_field(field: str, value: Any) -> None:
    if isinstance(value, tuple) and value and isinstance(value[0], str) and max(map(len, value)) > 20:
        print(f"  {field}:")
        for item in value:
            print(f"    - {item}")
    else:
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        print(f"  {field}: {shown}")


def _kind_of(name: str) -> str:
    if ".py" in name:
        return registry.read_card(registry.locate("method", name)).kind
    for kind in registry.FOLDERS:
        if registry.known(kind, name):
            return kind
    known = [each for kind in registry.FOLDERS for each in registry.index(kind)]
    raise UserError(f"unknown method, dataset or metric {name!r}{registry.nearest(name, known)}")


@app.command()
def run(
    method: Methods,
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            "-t",
            help="one_to_one, many_to_one, "
            "one_to_many, uncond or criteria; repeatable; default: all that the method supports.",
        ),
    ] = [],
    dataset: Dataset = "gaussian_mixture",
    preset: Preset = "",
    seed: Seeds = ["0"],
    device: Device = "",
    set_: Set = [],
    max_time: MaxTime = 0,
    runs: Runs = RUNS,
    plan: Plan = False,
    fresh: Fresh = False,
    all_cells: Annotated[bool, typer.Option("--all-cells", help="many_to_one from every subset.")] = False,
    executor: ExecutorName = "",
    max_jobs: MaxJobs = 0,
    slurm: Slurm = [],
) -> None:
    """Train methods, sample every cell of the tasks and score it. Resumes where it stopped.

    Example: bench run --method muni --method mopoe --task uncond --seed 0-4
    """
    from benchmark.records.selection import Settings

    settings = Settings(preset=_preset(preset), runs=runs, overrides=set_)
    numbers = _seeds(seed)
    registry.check_together(method, dataset)
    jobs = [_job(name, dataset, settings.preset, number, task, all_cells) for number in numbers for name in method]
    prepared = [settings.prepare(job) for job in jobs]
    if plan:
        return _print_plan(prepared)
    words = ["run", "--dataset", dataset, *_words("--task", task), *["--all-cells"] * all_cells]
    work = Work(device=device, minutes=max_time, fresh=fresh, executor=executor, most=max_jobs, slurm=slurm)
    errors = _carry_out(prepared, settings, work, words)
    _print_means(prepared, settings)
    if errors:
        raise typer.Exit(1)


def _job(method: str, dataset: str, preset: str, seed: int, tasks: list[str], every_subset: bool) -> Job:
    card = registry.card("method", method)
    for task in tasks:
        known_name(task, (*TASKS, "criteria"), "task", "--task")
        if task in TASKS and task not in card.tasks:
            raise UserError(f"{method} does not support {task}: it supports {', '.join(card.tasks)}")
    data_card, data = registry.card("dataset", dataset), registry.stem(dataset)
    names, kinds = data_card.modalities, data_card.holds
    fitting = [name for name in registry.index("metric") if kinds.issuperset(registry.card("metric", name).needs)]
    pairs = []
    for task in tasks or card.tasks:
        metrics = [name for name in fitting if task in registry.card("metric", name).tasks]
        if task == "criteria":
            from benchmark.engine.criteria import cells_of_dataset

            pairs += list(cells_of_dataset(dataset))
        else:
            pairs += [(cell, metric) for cell in cells(data, names, task, every_subset) for metric in metrics]
    return job_of(method, dataset, preset, seed, pairs)


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="A table's name, or the path of your own .toml.")],
    method: Methods = [],
    preset: Preset = "",
    seed: Seeds = [],
    device: Device = "",
    set_: Set = [],
    max_time: MaxTime = 0,
    runs: Runs = RUNS,
    plan: Plan = False,
    fresh: Fresh = False,
    format: Format = "term",
    executor: ExecutorName = "",
    max_jobs: MaxJobs = 0,
    slurm: Slurm = [],
) -> None:
    """Run what a table lacks, resume what stopped, and print it beside the paper's numbers.

    Example: bench reproduce table5 --preset cpu
    """
    from benchmark.records.selection import Settings, local, rows_of

    settings = Settings(preset=_preset(preset), runs=runs, overrides=set_, own=method)
    known_name(format, FORMATS, "format", "--format")
    loaded, seeds = _table(table, settings.preset), _seeds(seed)
    registry.check_together(method, loaded.dataset)
    names = registry.card("dataset", loaded.dataset).modalities
    jobs = loaded.jobs(settings.preset, names, method or _present(loaded), seeds or None)
    prepared = [settings.prepare(job) for job in jobs]
    if plan:
        return _print_plan(prepared)
    work = Work(device=device, minutes=max_time, fresh=fresh, executor=executor, most=max_jobs, slurm=slurm)
    errors = _carry_out(prepared, settings, work, ["reproduce", table])
    _print_table(loaded.only(method), rows_of(prepared, local(settings.results)), settings, format)
    for why in _absent(loaded).values() if not method else ():
        print(f"without {why}", file=sys.stderr)
    _suggest(loaded, settings, seeds, sys.stdout if format == "term" else sys.stderr)
    if errors:
        raise typer.Exit(1)


def _suggest(table: Table, settings: Settings, seeds: list[int], file: TextIO) -> None:
    same = _same(settings)
    if not settings.own and not seeds:
        print(f"\nNext: bench claims {same}   (which of the paper's claims hold here)", file=file)
        return
    first = f"{shlex.quote((settings.own or table.methods)[0])} --seed {seeds[0] if seeds else 0}"
    data = [] if table.dataset == "gaussian_mixture" else ["--dataset", table.dataset]
    print(
        f"\nNext: bench reproduce {table.id} {same}   (every method, every seed)"
        f"\n      bench sample --method {first} {_same(settings, *data)}   (look at what it generates)",
        file=file,
    )


def _same(settings: Settings, *more: str) -> str:
    """The options with which a further command finds the same runs."""
    words = ["--preset", settings.preset, *more, *_words("--set", settings.overrides)]
    words += ["--runs", str(settings.runs)] if settings.runs != RUNS else []
    return shlex.join(words)


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="A table's name, or the path of your own .toml.")],
    preset: Preset = "",
    format: Format = "term",
    set_: Set = [],
    runs: Runs = RUNS,
    reference: Reference = False,
) -> None:
    """Print a table from the rows there are of the preset's recipe (or with --set), without running anything.

    Example: bench table table5 --preset cpu --reference --format md
    """
    from benchmark.records.selection import Settings

    settings = Settings(preset=_preset(preset), runs=runs, overrides=set_, reference=reference)
    loaded = _table(name, settings.preset)
    _print_table(loaded, settings.rows(), settings, format)


def _print_table(table: Table, rows: pd.DataFrame, settings: Settings, format: str) -> None:
    _, page = page_of(rows, table, settings.preset, settings.own)
    print(render(page, format, color=terminal.shows_color(sys.stdout)), end="")


@app.command()
def claims(
    table: Annotated[list[str] | None, typer.Argument(help="Of these tables of the paper alone; default: all.")] = None,
    preset: Preset = "",
    format: Annotated[str, typer.Option("--format", "-f", help="term or md.")] = "term",
    set_: Set = [],
    runs: Runs = RUNS,
    reference: Reference = False,
) -> None:
    """Whether the paper's claims hold on the rows there are: holds, fails or undecided, with intervals.

    Example: bench claims table5 --preset cpu --reference
    """
    from benchmark.records.selection import Settings
    from benchmark.tables import claims as module

    preset = _preset(preset)
    rows = Settings(preset=preset, runs=runs, overrides=set_, reference=reference).rows()
    verdicts = module.verdicts_of(rows, module.claims_about(table or (), preset), preset)
    print(module.render_claims(verdicts, format, color=terminal.shows_color(sys.stdout)), end="")


@app.command("report")
def report_command(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("report.html"),
    method: Methods = [],
    preset: Annotated[
        str, typer.Option("--preset", "-p", help=f"One of {', '.join(PRESETS)}; default: each that has rows.")
    ] = "",
    samples: Annotated[bool, typer.Option(help="Show what finished runs generate.")] = True,
    device: Device = "",
    set_: Set = [],
    runs: Runs = RUNS,
    reference: Reference = False,
) -> None:
    """One HTML file of a results folder: tables, claims, curves, samples, and the rows behind every number.

    A method of your own is shown where --method names its file.

    Example: bench report --preset cpu --out report.html
    """
    from benchmark.records.results_file import Results
    from benchmark.records.selection import Settings, presets_with_rows
    from benchmark.report import html_report as module

    if preset:
        known_name(preset, PRESETS, "preset", "--preset")
    chapters, lacking, rows = [], [], Results(runs / "results.csv")
    for name in [preset] if preset else presets_with_rows(rows, reference):
        settings = Settings(preset=name, runs=runs, overrides=set_, own=method, reference=reference, shared=rows)
        try:
            chapters.append(module.chapter_of(settings))
        except UserError as error:  # rows of older code alone; another preset's may be newer
            lacking.append(error)
    if not chapters:
        raise lacking[0]
    for why in lacking:
        print(f"bench: left out: {why}", file=sys.stderr)
    title = "muni-bench: the reference rows" if reference else f"muni-bench: {runs.resolve().name}"
    with progress() as report:
        size = module.write_report(
            title, chapters, out, samples=samples, device=_device(device) if samples else "", report=report
        )
    print(f"{out}: {size / 1e6:.1f} MB, {sum(len(chapter.rows) for chapter in chapters)} rows\nNext: open {out}")


@app.command()
def check(
    preset: Preset = "",
    runs: Runs = RUNS,
    rule: Annotated[str, typer.Option("--rule", help="auto, exact, paired or statistical.")] = "auto",
    tolerance: Tolerance = 1e-6,
    set_: Set = [],
) -> None:
    """Compare fresh rows with results/reference/: exit status 0 same, 1 a number moved, 2 could not compare.

    Example: bench reproduce table5 --preset smoke && bench check --preset smoke
    """
    from benchmark.records import regression
    from benchmark.records.selection import Settings, reference

    preset = _preset(preset)
    committed, fresh = reference(preset), Settings(preset=preset, runs=runs, overrides=set_).rows()
    run = committed["dataset"].isin(fresh["dataset"])  # a table is checked by itself
    cards = {name: registry.card("metric", name) for name in registry.index("metric")}
    verdicts = regression.compare(committed[run], fresh, cards, rule=rule, tolerance=tolerance)
    _print_verdicts(verdicts)
    if others := sorted(set(committed["dataset"][~run])):
        print(f"not compared, since no row of it is fresh: {', '.join(others)}")
    raise typer.Exit(regression.exit_code(verdicts))


def _print_verdicts(verdicts: pd.DataFrame) -> None:
    counts = verdicts["verdict"].value_counts()
    for _, row in verdicts[verdicts["verdict"] != "same"].head(40).iterrows():
        print(
            f"{row['verdict']:12} {row['method']:15} {row['metric']:18} {row['given'] or 'nothing'} -> {row['want']}: "
            f"{row['reference']:.6g} -> {row['fresh']:.6g} ({row['shift']:+.1f} sd, p {row['p']:.2g}; {row['rule']}) "
            f"{row['message']}"
        )
    print(", ".join(f"{count} {name}" for name, count in counts.items()))


@app.command()
def bless(
    reason: Annotated[str, typer.Option("--reason", help="Why the numbers change; kept in results/LOG.md.")],
    preset: Preset = "",
    runs: Runs = RUNS,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Take out reference rows that have no fresh one.")
    ] = False,
) -> None:
    """Make your rows the reference that bench check and the README's tables read.

    Example: bench bless --preset cpu --reason "first measurement"
    """
    from benchmark.files import RESULTS
    from benchmark.records import checkout, regression
    from benchmark.records.selection import Settings, reference_path

    preset = _preset(preset)
    if checkout.is_dirty(registry.ROOT):
        raise UserError(f"{registry.ROOT} has uncommitted changes: commit first, so that the rows name their code")
    fresh = Settings(preset=preset, runs=runs).rows()
    changes = regression.bless(fresh, reference_path(preset), reason, RESULTS / "LOG.md", drop_missing)
    print(", ".join(f"{count} {name}" for name, count in changes["change"].value_counts().items()))
    print("Next: bench readme   (write the README's tables anew)")


@app.command()
def readme(check: Annotated[bool, typer.Option("--check", help="Only say whether they are current.")] = False) -> None:
    """Write the tables of README and docs anew from results/.

    Example: bench readme --check
    """
    from benchmark.files import write_file
    from benchmark.report.documents import fill_blocks, page_blocks

    stale = 0
    for page, blocks in page_blocks().items():
        path = registry.ROOT / page
        before = path.read_text(encoding="utf-8")
        after = fill_blocks(before, blocks)
        stale += before != after
        if check:
            print(f"{page}: {'current' if before == after else 'stale: run bench readme'}")
        else:
            write_file(path, after.encode())
    raise typer.Exit(int(check and stale > 0))


@app.command()
def sample(
    method: Annotated[str, typer.Option("--method", "-m", help="Name, or path of your own .py file.")],
    given: Annotated[str, typer.Option("--given", help="Modalities joined by +; empty: from nothing.")] = "",
    rows: Annotated[int | None, typer.Option("--rows", help="How many; default: 256 at most.", min=1)] = None,
    dataset: Dataset = "gaussian_mixture",
    preset: Preset = "",
    seed: Seed = 0,
    device: Device = "",
    set_: Set = [],
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option("--out", help="Folder; default: beside the run's checkpoint.")] = Path(),
) -> None:
    """Write what a trained model generates, as a safetensors file, and as a picture with the extra "plots".

    Example: bench sample --method muni --given x1+x2 --preset cpu
    """
    from benchmark.records.selection import Settings
    from benchmark.report import sample_plots

    settings = Settings(preset=_preset(preset), runs=runs, overrides=set_)
    prepared = settings.prepare(job_of(method, dataset, settings.preset, seed, []))
    folder = prepared.directory / "samples" if out == Path() else out
    for line in sample_plots.write_samples(
        prepared, tuple(filter(None, given.split("+"))), rows, _device(device), folder
    ):
        print(line)


@app.command()
def sheets(
    method: Methods = [],
    dataset: Dataset = "spoken_digits",
    preset: Preset = "",
    seed: Seed = 0,
    items: Annotated[int, typer.Option("--items", help="Rows of a sheet.", min=1)] = 6,
    device: Device = "",
    set_: Set = [],
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sheets and of the page.")] = Path("sheets"),
) -> None:
    """Sheets to look at and a page to listen to: what is given, what is real, what each trained method makes of it.

    Example: bench sheets --dataset spoken_digits --preset cpu
    """
    from benchmark.records.selection import Settings
    from benchmark.report import listening_sheets as module

    settings = Settings(preset=_preset(preset), runs=runs, overrides=set_)
    registry.check_together(method, dataset)
    names = registry.card("dataset", dataset).modalities
    asked = [cell for task in TASKS for cell in cells(registry.stem(dataset), names, task)]
    chosen = method or [name for name in registry.index("method") if registry.card("method", name).stages]
    found = [settings.prepare(job_of(name, dataset, settings.preset, seed, [])) for name in chosen]
    with progress() as report:
        lines = module.write_sheets(found, asked, items, _device(device), out, report)
    print("\n".join(lines))


@app.command("tiny-models")
def tiny_models(
    folder: Annotated[Path, typer.Argument(help="A folder to make; then set MUNI_BENCH_MODELS to it.")],
) -> None:
    """Write tiny, untrained models of every class that image_text_audio loads: its whole path without any weights.

    Example: bench tiny-models ~/tiny && MUNI_BENCH_MODELS=~/tiny bench run --method muni --dataset image_text_audio \
    --preset smoke
    """
    from benchmark.judges import pretrained_judges
    from data_prep.pretrained import tiny_models as module

    module.write(folder, pretrained_judges.tiny(module.SHRINK))
    print(f"tiny models of every class: {folder}\nNext: export MUNI_BENCH_MODELS={folder}")


@app.command()
def conform(
    name: Annotated[str, typer.Argument(help="A method, dataset or metric, or the path of your own file.")],
    dataset: Dataset = "",
) -> None:
    """The conformance suite on one plug-in, a method or metric on a dataset: what each of its kind has to hold.

    Example: bench conform my_method.py
    """
    from benchmark.checks.conform import conform as checks

    failed = 0
    for found in checks(None, name, dataset):
        mark = {True: "ok", False: "FAILED", None: "skipped"}[found.passed]
        print(f"{mark:8} {found.name}" + (f": {found.message}" if found.message and found.passed is not True else ""))
        failed += found.passed is False
    print(f"\n{registry.stem(name)}: " + ("conforms" if not failed else f"{failed} checks failed"))
    raise typer.Exit(1 if failed else 0)


@app.command()
def profile(
    method: Methods = ["muni"],
    dataset: Dataset = "gaussian_mixture",
    preset: Preset = "",
    device: Device = "",
    set_: Set = [],
    to_loss: Annotated[
        float, typer.Option("--to-loss", help="Also train until the validation reconstruction loss is this low.")
    ] = 0,
) -> None:
    """Time of a training step and of sampling as a ratio to its floor: the same matrix products alone, in one run.

    Example: bench profile --method muni --preset cpu
    """
    from benchmark.checks.profile import profile_method

    for name in method:
        for line in profile_method(name, dataset, _preset(preset), set_, _device(device), to_loss):
            print(line)


@app.command()
def tune(
    search: Annotated[str, typer.Argument(help="A search: results/NAME.toml.")] = "tuning",
    method: Methods = [],
    preset: Preset = "",
    device: Device = "",
    runs: Runs = RUNS / "tuning",
) -> None:
    """The same search for every method, on the validation split; its trials land in results/NAME.csv.

    Example: bench tune tuning --preset cpu
    """
    from benchmark.engine import tune as module

    preset, found = _preset(preset), module.load_search(search)
    every = [name for name in registry.index("method") if registry.card("method", name).stages]
    methods = method or list(found.methods) or every
    registry.check_together(methods, found.dataset)
    with _stoppable(), progress() as report:
        lines = list(module.tune(found, methods, preset, _device(device), runs, report))
    print(module.render(found, lines, preset))
    print("Next: bench readme   (write the tables of README and docs anew)")


@app.command()
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file again that rows depend on, and name what changed.")
    ] = False,
) -> None:
    """What is here and what is missing, which cells that blocks, and the command that mends it.

    Example: bench doctor
    """
    from benchmark.checks.doctor import findings

    problems = 0
    for finding in findings(RUNS, verify):
        print(f"{finding.mark:8} {finding.what}" + (f"\n{'':8} -> {finding.mend}" if finding.mend else ""))
        problems += finding.mark == "problem"
    raise typer.Exit(1 if problems else 0)


# Shared by the commands.


@dataclass(frozen=True, kw_only=True)
class Work:
    """How runs are carried out: here on a device, or away as jobs of an executor, `most` at once."""

    device: str
    minutes: float
    fresh: bool
    executor: str
    most: int
    slurm: list[str]


def _print_plan(prepared: list[Run]) -> None:

    for each in prepared:
        todo = run_identity.missing(each)
        print(
            f"{each.job.method:16} seed {each.job.seed}  {len(todo):4} of {len(each.job.scores)} numbers missing  "
            f"{each.config.updates} updates  {each.directory}"
        )


def _carry_out(prepared: list[Run], settings: Settings, work: Work, command: list[str]) -> list[str]:
    """Run what lacks numbers; print and return what failed, a line each. `command`: how a job's command line begins."""
    errors = _away(prepared, settings, work, command) if work.executor or work.slurm else _here(prepared, work)
    for error in errors:
        print(f"bench: {error}", file=sys.stderr)
    return errors


def _here(prepared: list[Run], work: Work) -> list[str]:
    """Run in this process; where it is one of several beside the main one, follow that and exit."""
    from benchmark.engine import execution
    from benchmark.engine.process_group import here

    device = _shared_device(work.device)
    if not here().main:
        execution.follow(prepared, device)
        raise typer.Exit
    again = "the same command, without --fresh," if work.fresh else "the same command"
    with _stoppable(again), progress() as report:
        return execution.execute(prepared, device, report, 60 * work.minutes or None, work.fresh)


def _away(prepared: list[Run], settings: Settings, work: Work, command: list[str]) -> list[str]:
    """Submit a job for each run that lacks numbers, and wait for all."""
    from benchmark.engine.process_group import started

    if started() > 1:
        raise UserError(
            "torchrun and --executor do not go together: start bench itself, which submits a job for each run"
        )
    if work.fresh:
        raise UserError("--fresh and --executor do not go together: a job that is queued again would start anew")
    if find_spec("submitit") is None:
        from benchmark.checks.doctor import install_command

        raise UserError(f"--executor {work.executor}: submitit is missing: {install_command('scale')}")
    from benchmark.engine import executors

    executor = executors.Executor(work.executor, settings.runs, work.slurm)
    of_run = [["--method", run.job.method, "--preset", run.job.preset, "--seed", str(run.job.seed)] for run in prepared]
    more = [*_words("--set", settings.overrides), *_words("--device", filter(None, [work.device]))]
    more += ["--runs", str(settings.runs), *_words("--max-time", [str(work.minutes)] if work.minutes else [])]
    commands = [[sys.executable, "-m", "benchmark.cli.commands", *command, *words, *more] for words in of_run]
    try:
        with progress() as report:
            return executors.carry_out(prepared, commands, executor, work.most, report)
    except executors.Left as left:
        print(f"bench: {left}", file=sys.stderr)
        raise typer.Exit(130) from None


def _words(option: str, values: Iterable[str]) -> list[str]:
    """Words of a command that give an option each of the values."""
    return [word for value in values for word in (option, value)]


@contextmanager
def _stoppable(again: str = "the same command") -> Iterator[None]:
    """Turns a stop into a line that says how to go on, and its exit status: 130 of the user's, 0 of a time limit."""
    from benchmark.engine.execution import Stopped

    try:
        yield
    except Stopped as stopped:
        print(f"bench: stopped; {again} goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130 if stopped.by_user else 0) from None


def _print_means(prepared: list[Run], settings: Settings) -> None:
    """A line per method, task and metric: mean over cells and seeds."""
    from benchmark.api import Cell
    from benchmark.records.results_file import KEY, dicts_of
    from benchmark.records.selection import rows_of

    rows = rows_of(prepared, settings.results.frame())
    found: dict[tuple[str, str, str], dict[tuple[str | int, ...], float]] = {}
    for row in dicts_of(rows[rows["status"] == "ok"]):
        cell = Cell("", tuple(filter(None, row["given"].split("+"))), tuple(row["want"].split("+")))
        task = "criteria" if row["want"].startswith("factor:") else cell.task
        key = tuple(row[column] for column in KEY)
        found.setdefault((row["method"], task, row["metric"]), {})[key] = row["value"]
    for (method, task, metric), values in found.items():
        print(f"{method:16} {task:12} {metric:20} {sum(values.values()) / len(values):10.4f}   mean of {len(values)}")
    print(f"\nRows: {settings.results.path}")
    dataset = registry.stem(prepared[0].job.dataset)
    for name, path in table_files().items():
        if name.startswith("table") and read_toml(path)["dataset"] == dataset:
            print(f"Next: bench table {name} {_same(settings)}")


def _table(name: str, preset: str) -> Table:
    return load_table(name, registry.index("metric"), preset)


def _present(table: Table) -> list[str]:
    """The table's rows, but for methods whose file is gone and references that this machine lacks."""
    gone = [name for name in table.rows if not registry.known("method", name)]
    if gone:
        print(f"bench: {table.id} names {', '.join(gone)}, of which there is no file: left out", file=sys.stderr)
    absent = {*gone, *_absent(table)}
    return [name for name in table.rows if name not in absent]


def _absent(table: Table) -> dict[str, str]:
    """References of the table that this machine lacks, with a line each on how to get them."""
    loaded: dict[str, Any] = {
        name: registry.load("method", name) for name in table.references if registry.known("method", name)
    }
    return {name: why for name, method in loaded.items() if (why := method.absent())}


def _seeds(texts: list[str]) -> list[int]:
    """["0-2", "5,7"] -> [0, 1, 2, 5, 7]. Raises UserError for anything else."""
    seeds: list[int] = []
    for part in (part for text in texts for part in text.split(",")):
        low, _, high = part.partition("-")
        numbers = range(int(low), int(high or low) + 1) if low.isdecimal() and (high or low).isdecimal() else range(0)
        if not numbers or part.endswith("-"):
            raise UserError(f"--seed {part}: write a number, a range such as 0-4, or a list such as 0,2,5")
        if numbers[-1] not in SEEDS or numbers[-1] - numbers[0] >= MOST_SEEDS:
            raise UserError(f"--seed {part}: seeds end at {SEEDS[-1]}, and a range has {MOST_SEEDS} at most")
        seeds += numbers
    return list(dict.fromkeys(seeds))


def _preset(name: str) -> str:
    if name:
        known_name(name, PRESETS, "preset", "--preset")
    return name or default_preset()


def _shared_device(name: str) -> str:
    """The device of this process among those that torchrun started, which it meets; or of the only one."""
    from benchmark.engine import process_group

    if (count := process_group.started()) == 1:
        return _device(name)
    if find_spec("accelerate") is None:
        from benchmark.checks.doctor import install_command

        raise UserError(f"no {count} processes: accelerate is missing: {install_command('scale')}")
    return process_group.join(name)


def _device(name: str) -> str:
    import torch

    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


if __name__ == "__main__":
    main()
