"""The command `bench`. Heavy imports happen inside the commands, so that --help and list answer at once."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Two torch processes on the same cores otherwise spin at each other's barriers; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products on a GPU need

import typer

from benchmark import __version__, registry, tables
from benchmark.api import TASKS, UserError, cells
from benchmark.config import PRESETS, resolve
from benchmark.formats import FORMATS, fill_blocks, render
from benchmark.page import page_of
from benchmark.strict import known_name, read_toml

if TYPE_CHECKING:
    import pandas as pd

    from benchmark.report import Chapter, Shown
    from benchmark.runner import Outcome, Run

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
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of checkpoints and of results.csv.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a field: key=value; repeatable. See bench info.")]
MaxTime = Annotated[
    float, typer.Option("--max-time", help="Stop cleanly after so many minutes; 0: never. The same command goes on.")
]
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
    """Entry point: a UserError is one line and exit status 2, an interrupt 130."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nbench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and context.invoked_subcommand not in ("run", "reproduce"):
        raise UserError(f"bench {context.invoked_subcommand} is for one process: torchrun starts run and reproduce")
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
    for name in tables.table_files():
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
    resolved = resolve(data, card if kind == "method" else None, chosen, set_)
    print(f"{registry.stem(name)} ({kind})")
    for field, value in vars(card).items():
        if field != "recipe" and value not in ((), {}, ""):
            _print_field(field, value)
    if kind == "metric":
        return
    print(f"\nconfiguration on {registry.stem(name if kind == 'dataset' else dataset)} at preset {chosen}")
    for field, value in vars(resolved.config).items():
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
    preset = _preset(preset)
    jobs = [_job(name, dataset, preset, number, task, all_cells) for number in _seeds(seed) for name in method]
    words = ["run", "--dataset", dataset, *_words("--task", task), *["--all-cells"] * all_cells]
    away = Away(executor, max_jobs, slurm, words) if executor or slurm else None
    _carry_out(jobs, runs, set_, device, max_time, plan, fresh, away)


def _job(method: str, dataset: str, preset: str, seed: int, tasks: list[str], every_subset: bool) -> tables.Job:
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
            from benchmark.criteria import cells_of_dataset

            pairs += list(cells_of_dataset(dataset))
        else:
            pairs += [(cell, metric) for cell in cells(data, names, task, every_subset) for metric in metrics]
    return tables.job_of(method, dataset, preset, seed, pairs)


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
    preset = _preset(preset)
    known_name(format, FORMATS, "format", "--format")
    loaded = _table(table, preset)
    names = registry.card("dataset", loaded.dataset).modalities
    jobs = loaded.jobs(preset, names, method or _present(loaded), _seeds(seed) or None)
    away = Away(executor, max_jobs, slurm, ["reproduce", table]) if executor or slurm else None
    outcome = _carry_out(jobs, runs, set_, device, max_time, plan, fresh, away, quiet=True)
    if not plan:
        print(_render(loaded.only(method), _rows(runs, preset, set_, jobs), preset, format, method), end="")
        for why in _absent(loaded).values() if not method else ():
            print(f"without {why}", file=sys.stderr)
        _suggest(loaded, preset, method, _seeds(seed), runs, set_)
    if outcome and outcome.errors:
        raise typer.Exit(1)


def _suggest(
    table: tables.Table, preset: str, method: list[str], seeds: list[int], runs: Path, set_: list[str]
) -> None:
    if not method and not seeds:
        print(f"\nNext: bench claims --preset {preset}{_same(runs, set_)}   (which of the paper's claims hold here)")
        return
    first = f"{shlex.quote((method or list(table.methods))[0])} --seed {seeds[0] if seeds else 0} --preset {preset}"
    first += "" if table.dataset == "gaussian_mixture" else f" --dataset {table.dataset}"
    print(
        f"\nNext: bench reproduce {table.id} --preset {preset}{_same(runs, set_)}   (every method, every seed)"
        f"\n      bench sample --method {first}{_same(runs, set_)}   (look at what it generates)"
    )


def _same(runs: Path, overrides: list[str]) -> str:
    """The options with which a further command finds the same runs."""
    words = _words("--set", overrides) + (["--runs", str(runs)] if runs != RUNS else [])
    return "".join(f" {shlex.quote(word)}" for word in words)


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
    preset = _preset(preset)
    loaded = _table(name, preset)
    rows = _reference(preset) if reference else _standard(runs, preset, set_)
    print(_render(loaded, rows, preset, format), end="")


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
    preset = _preset(preset)
    rows = _reference(preset) if reference else _standard(runs, preset, set_)
    print(_claims(rows, preset, format, table or []), end="")


def _claims(frame: pd.DataFrame, preset: str, format: str, of: Sequence[str]) -> str:
    from benchmark import claims as module

    verdicts = module.verdicts_of(frame, module.claims_about(of, preset), preset)
    return module.render_claims(verdicts, format, color=format == "term" and sys.stdout.isatty())


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
    from benchmark import report as module

    if preset:
        known_name(preset, PRESETS, "preset", "--preset")
    chapters, lacking = [], []
    for name in [preset] if preset else _presets_with_rows(runs, reference):
        try:
            chapters.append(_chapter(name, runs, set_, method, reference))
        except UserError as error:  # rows of older code alone; another preset's may be newer
            lacking.append(error)
    if not chapters:
        raise lacking[0]
    for why in lacking:
        print(f"bench: left out: {why}", file=sys.stderr)
    title = "muni-bench: the reference rows" if reference else f"muni-bench: {runs.resolve().name}"
    with _progress() as report:
        size = module.write_report(
            title, chapters, out, samples=samples, device=_device(device) if samples else "", report=report
        )
    print(f"{out}: {size / 1e6:.1f} MB, {sum(len(chapter.rows) for chapter in chapters)} rows\nNext: open {out}")


def _presets_with_rows(runs: Path, reference: bool) -> list[str]:
    if reference:
        return [name for name in PRESETS if _reference_path(name).exists()]
    found = set(_local(runs)["preset"])
    if not found:
        raise UserError(f"{runs / 'results.csv'} has no rows: run bench reproduce first")
    return [name for name in PRESETS if name in found]


def _chapter(preset: str, runs: Path, overrides: list[str], own: list[str], reference: bool) -> Chapter:
    """What the report shows of a preset: its rows' tables, with further methods that have rows, and claims."""
    from benchmark import report as module
    from benchmark.claims import claims_about, verdicts_of

    frame = _reference(preset) if reference else _standard(runs, preset, overrides, own)
    left_out = 0 if reference else int((_local(runs)["preset"] == preset).sum()) - len(frame)
    dataset_of = frame["dataset"].str.partition(":")[0]
    datasets, shown = set(dataset_of), []
    every = [_table(name, preset) for name in tables.table_files()]
    listed = {name for table in every for name in table.rows}
    for loaded in sorted(every, key=lambda table: not table.of_paper):
        measured = set(frame["method"][dataset_of == loaded.dataset])
        if not measured or (
            not loaded.of_paper and 2 * len(measured.intersection(loaded.methods)) < len(loaded.methods)
        ):
            continue  # a few methods of another table's are not this one
        further = tuple(sorted(measured - listed))
        part = _shown(replace(loaded, methods=loaded.methods + further), frame, preset, own)
        if part.summary is None or (part.summary["status"] != "missing: not run").any():
            shown.append(part)
    try:
        found = [claim for claim in claims_about((), preset) if claim.dataset in datasets]
        verdicts = verdicts_of(frame, found, preset)
    except UserError as refusal:
        verdicts = str(refusal)
    known = [] if reference else _runs_of(frame, preset, runs, overrides, own)
    return module.Chapter(preset, frame, left_out, shown, verdicts, known)


def _shown(table: tables.Table, frame: pd.DataFrame, preset: str, own: list[str]) -> Shown:
    from benchmark import report as module

    try:
        return module.Shown(table, *page_of(frame, table, preset, own))
    except UserError as refusal:
        return module.Shown(table, refused=str(refusal))


@app.command()
def check(
    preset: Preset = "",
    runs: Runs = RUNS,
    rule: Annotated[str, typer.Option("--rule", help="auto, exact, paired or statistical.")] = "auto",
    tolerance: Annotated[float, typer.Option("--tolerance", help="Relative, of the paired rule.")] = 1e-6,
    set_: Set = [],
) -> None:
    """Compare fresh rows with results/reference/: exit status 0 same, 1 a number moved, 2 could not compare.

    Example: bench reproduce table5 --preset smoke && bench check --preset smoke
    """
    from benchmark import compare

    preset = _preset(preset)
    reference, fresh = _reference(preset), _standard(runs, preset, set_)
    run = reference["dataset"].isin(fresh["dataset"])  # a table is checked by itself
    verdicts = compare.compare(reference[run], fresh, _metric_cards(), rule=rule, tolerance=tolerance)
    _print_verdicts(verdicts)
    if others := sorted(set(reference["dataset"][~run])):
        print(f"not compared, since no row of it is fresh: {', '.join(others)}")
    raise typer.Exit(compare.exit_code(verdicts))


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
    from benchmark import compare

    preset = _preset(preset)
    if compare.tree_is_dirty(registry.ROOT):
        raise UserError(f"{registry.ROOT} has uncommitted changes: commit first, so that the rows name their code")
    fresh = _standard(runs, preset)
    changes = compare.bless(fresh, _reference_path(preset), reason, tables.RESULTS / "LOG.md", drop_missing)
    print(", ".join(f"{count} {name}" for name, count in changes["change"].value_counts().items()))
    print("Next: bench readme   (write the README's tables anew)")


@app.command()
def readme(check: Annotated[bool, typer.Option("--check", help="Only say whether they are current.")] = False) -> None:
    """Write the tables of README and docs anew from results/.

    Example: bench readme --check
    """
    from benchmark.files import write_atomic

    stale = 0
    for page, blocks in page_blocks().items():
        path = registry.ROOT / page
        before = path.read_text()
        after = fill_blocks(before, blocks)
        stale += before != after
        if check:
            print(f"{page}: {'current' if before == after else 'stale: run bench readme'}")
        else:
            write_atomic(path, after.encode())
    raise typer.Exit(int(check and stale > 0))


def page_blocks() -> dict[str, dict[str, str]]:
    """Page -> what stands between each pair of its markers."""
    rows = _reference("cpu")

    def table(*names: str) -> dict[str, str]:
        return {f"{name} cpu": _render(_table(name, "cpu"), rows, "cpu", "md") for name in names}

    def claims(*names: str) -> dict[str, str]:
        return {f"claims {' '.join(names)} cpu": _claims(rows, "cpu", "md", names)}

    def search(*names: str) -> dict[str, str]:
        return {f"search {name}": _search(name, "cpu") for name in names}

    return {
        "README.md": {
            **table("table5", "criteria", "table6", "table3"),
            **claims("table5"),
            **claims("table2", "table6"),
            **claims("table3", "table4", "table8", "table9"),
            **search("tuning"),
        },
        "docs/findings.md": search("budget", "long"),
        "docs/polymnist_findings.md": search("pictures_budget", "pictures_tuning", "pictures_sensitivity"),
        "docs/spoken_findings.md": table("table4", "table8", "table9") | search("spoken_tuning"),
        "docs/ablation.md": table("ablation") | claims("ablation"),
        "docs/mld.md": table("mld", "mld_mixture") | search("mld_diffusion") | claims("mld", "mld_svhn"),
        "docs/image_text_audio.md": {"weights": _weights()},
        "docs/external/README.md": {"models": _external_models()},
    }


def _weights() -> str:
    """Markdown of the models that image_text_audio loads, by role."""
    entries = read_toml(registry.ROOT / "data_prep" / "pretrained_models.toml").values()
    rows = [
        f"| {each['use']} | `{each.get('id') or each['url'].rpartition('/')[2]}`{' (gated)' * each['gated']} "
        f"| {each['licence']} | {each['gigabytes']} |"
        for each in entries
    ]
    total = sum(each["gigabytes"] for each in entries)
    return "\n".join(["| use | default | licence | GB |", "|---|---|---|---:|", *rows, f"| all | | | {total:.1f} |"])


def _external_models() -> str:
    """Markdown of what the external models can generate."""
    folder = registry.ROOT / "baselines" / "runners"
    rows = []
    for path in sorted(folder.glob("*.toml")):
        known = read_toml(path)
        refused = known.get("refused", {})
        tasks = [task for task in TASKS if task not in refused]
        does = ", ".join(known.get("directions", [task.replace("_", " ") for task in tasks]))
        reasons = "; ".join(f"{task.replace('_', ' ')}: {why}" for task, why in refused.items())
        rows.append(f"| [{known['label']}]({path.stem}.md) | {does} | {reasons} | {known['gigabytes']} |")
    return "\n".join(["| model | makes | and not | GB |", "|---|---|---|---:|", *rows])


def _search(name: str, preset: str) -> str:
    from benchmark import tune as module

    found = module.load_search(name)
    return module.render(found, module.read_lines(found.lines), preset)


@app.command()
def sample(
    method: Annotated[str, typer.Option("--method", "-m", help="Name, or path of your own .py file.")],
    given: Annotated[str, typer.Option("--given", help="Modalities joined by +; empty: from nothing.")] = "",
    rows: Annotated[int | None, typer.Option("--rows", help="How many; default: 256 at most.", min=1)] = None,
    dataset: Dataset = "gaussian_mixture",
    preset: Preset = "",
    seed: Annotated[int, typer.Option("--seed", "-s")] = 0,
    device: Device = "",
    set_: Set = [],
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option("--out", help="Folder; default: beside the run's checkpoint.")] = Path(),
) -> None:
    """Write what a trained model generates, as a safetensors file, and as a picture with the extra "plots".

    Example: bench sample --method muni --given x1+x2 --preset cpu
    """
    from benchmark import show

    preset = _preset(preset)
    prepared = _prepared(method, dataset, preset, seed, runs, set_)
    folder = prepared.directory / "samples" if out == Path() else out
    for line in show.write_samples(prepared, tuple(filter(None, given.split("+"))), rows, _device(device), folder):
        print(line)


@app.command()
def sheets(
    method: Methods = [],
    dataset: Dataset = "spoken_digits",
    preset: Preset = "",
    seed: Annotated[int, typer.Option("--seed", "-s")] = 0,
    items: Annotated[int, typer.Option("--items", help="Rows of a sheet.", min=1)] = 6,
    device: Device = "",
    set_: Set = [],
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sheets and of the page.")] = Path("sheets"),
) -> None:
    """Sheets to look at and a page to listen to: what is given, what is real, what each trained method makes of it.

    Example: bench sheets --dataset spoken_digits --preset cpu
    """
    from benchmark import sheets as module
    from benchmark.doctor import install_command

    if find_spec("matplotlib") is None:
        raise UserError(f"no sheets: matplotlib is not installed: {install_command('plots')}")
    preset = _preset(preset)
    names = registry.card("dataset", dataset).modalities
    asked = [cell for task in TASKS for cell in cells(registry.stem(dataset), names, task)]
    chosen = method or [name for name in registry.index("method") if registry.card("method", name).stages]
    found = [_prepared(name, dataset, preset, seed, runs, set_) for name in chosen]
    with _progress() as report:
        lines = module.write_sheets(found, asked, items, _device(device), out, report)
    print("\n".join(lines))


def _prepared(name: str, dataset: str, preset: str, seed: int, runs: Path, overrides: list[str]) -> Run:
    from benchmark import runner

    return runner.prepare(tables.job_of(name, dataset, preset, seed, []), runs, overrides)


@app.command("tiny-models")
def tiny_models(
    folder: Annotated[Path, typer.Argument(help="A folder to make; then set MUNI_BENCH_MODELS to it.")],
) -> None:
    """Write tiny, untrained models of every class that image_text_audio loads: its whole path without any weights.

    Example: bench tiny-models ~/tiny && MUNI_BENCH_MODELS=~/tiny bench run --method muni --dataset image_text_audio \
    --preset smoke
    """
    from benchmark.metrics import pretrained
    from data_prep import tiny_models as module

    module.write(folder, pretrained.tiny(module.SHRINK))
    print(f"tiny models of every class: {folder}\nNext: export MUNI_BENCH_MODELS={folder}")


@app.command()
def conform(
    name: Annotated[str, typer.Argument(help="A method, dataset or metric, or the path of your own file.")],
    dataset: Dataset = "",
) -> None:
    """The conformance suite on one plug-in, a method or metric on a dataset: what each of its kind has to hold.

    Example: bench conform my_method.py
    """
    from benchmark.conform import conform as checks

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
    from benchmark.profile import profile_method

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
    from benchmark import tune as module

    preset, found = _preset(preset), module.load_search(search)
    every = [name for name in registry.index("method") if registry.card("method", name).stages]
    methods = method or list(found.methods) or every
    with _stoppable(), _progress() as report:
        lines = list(module.tune(found, methods, preset, _device(device), runs, report))
    print(module.render(found, lines, preset))
    print("Next: bench readme   (write the tables of README and docs anew)")


@app.command()
def doctor() -> None:
    """What is here and what is missing, which cells that blocks, and the command that mends it.

    Example: bench doctor
    """
    from benchmark.doctor import findings

    problems = 0
    for finding in findings(RUNS):
        print(f"{finding.mark:8} {finding.what}" + (f"\n{'':8} -> {finding.mend}" if finding.mend else ""))
        problems += finding.mark == "problem"
    raise typer.Exit(1 if problems else 0)


# Shared by the commands.


def _carry_out(
    jobs: list[tables.Job],
    runs: Path,
    overrides: list[str],
    device: str,
    max_minutes: float,
    plan: bool,
    fresh: bool,
    away: Away | None = None,
    quiet: bool = False,
) -> Outcome | None:
    """Run jobs with progress, here or `away`; say what would run with `plan`; print the rows' means unless `quiet`."""
    from benchmark import runner
    from benchmark.processes import here

    prepared = [runner.prepare(job, runs, overrides) for job in jobs]
    if plan:
        for each in prepared:
            todo = runner.missing(each)
            print(
                f"{each.job.method:16} seed {each.job.seed}  {len(todo):4} of {len(each.job.scores)} numbers missing  "
                f"{each.config.updates} updates  {each.directory}"
            )
        return None
    if away is None:
        device = _device(device)
        if not here().main:
            runner.follow(prepared, device)
            raise typer.Exit
        with _stoppable("the same command, without --fresh," if fresh else "the same command"), _progress() as report:
            outcome = runner.execute(prepared, device, report, 60 * max_minutes or None, fresh)
    else:
        if fresh:
            raise UserError("--fresh and --executor do not go together: a job that is queued again would start anew")
        more = [*_words("--set", overrides), *_words("--device", filter(None, [device])), "--runs", str(runs)]
        more += _words("--max-time", [str(max_minutes)] if max_minutes else [])
        outcome = _submit(prepared, away, runs, more)
    for error in outcome.errors:
        print(f"bench: {error}", file=sys.stderr)
    if not quiet:
        _print_means(prepared, runs, overrides)
        if outcome.errors:
            raise typer.Exit(1)
    return outcome


@dataclass(frozen=True)
class Away:
    """Where runs are carried out as jobs: by which executor, how many at once, and the words of a job's command."""

    executor: str
    most: int
    slurm: list[str]
    words: list[str]


def _submit(prepared: list[Run], away: Away, runs: Path, more: list[str]) -> Outcome:
    """Submit what lacks numbers and wait for it."""
    known_name(away.executor, ("local", "slurm"), "executor", "--executor")
    if find_spec("submitit") is None:
        from benchmark.doctor import install_command

        raise UserError(f"--executor {away.executor}: submitit is missing: {install_command('scale')}")
    from benchmark import executors

    executor = executors.Executor(away.executor, runs, away.slurm)
    of_run = [["--method", run.job.method, "--preset", run.job.preset, "--seed", str(run.job.seed)] for run in prepared]
    commands = [[sys.executable, "-m", "benchmark.cli", *away.words, *words, *more] for words in of_run]
    try:
        with _progress() as report:
            return executors.carry_out(prepared, commands, executor, away.most, report)
    except executors.Left as left:
        print(f"bench: {left}", file=sys.stderr)
        raise typer.Exit(130) from None


def _words(option: str, values: Iterable[str]) -> list[str]:
    """Words of a command that give an option each of the values."""
    return [word for value in values for word in (option, value)]


@contextmanager
def _stoppable(again: str = "the same command") -> Iterator[None]:
    """Turns a stop into a line that says how to go on, and its exit status: 130 of the user's, 0 of a time limit."""
    from benchmark.runner import Stopped

    try:
        yield
    except Stopped as stopped:
        print(f"bench: stopped; {again} goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130 if stopped.by_user else 0) from None


def _print_means(prepared: list[Run], runs: Path, overrides: list[str]) -> None:
    """A line per method, task and metric: mean over cells and seeds."""
    from benchmark import records
    from benchmark.api import Cell

    ids = {each.run_id for each in prepared}
    found: dict[tuple[str, str, str], dict[tuple[str | int, ...], float]] = {}
    for record in records.read(runs / "results.csv"):
        if record.run_id in ids and record.value is not None:
            cell = Cell("", tuple(filter(None, record.given.split("+"))), tuple(record.want.split("+")))
            task = "criteria" if record.want.startswith("factor:") else cell.task
            found.setdefault((record.method, task, record.metric), {})[record.key] = record.value
    for (method, task, metric), values in found.items():
        print(f"{method:16} {task:12} {metric:20} {sum(values.values()) / len(values):10.4f}   mean of {len(values)}")
    again = f"--preset {prepared[0].job.preset}{_same(runs, overrides)}"
    print(f"\nRows: {runs / 'results.csv'}")
    dataset = registry.stem(prepared[0].job.dataset)
    for name, path in tables.table_files().items():
        if name.startswith("table") and read_toml(path)["dataset"] == dataset:
            print(f"Next: bench table {name} {again}")


def _rows(runs: Path, preset: str, overrides: list[str], jobs: list[tables.Job]) -> pd.DataFrame:
    """The rows of exactly these runs: an override or changed code makes other runs, which are left out."""
    from benchmark import records, runner

    ids = {runner.prepare(job, runs, overrides).run_id for job in jobs}
    frame = records.latest(_local(runs))
    return frame[frame["run_id"].isin(ids)]


def _local(runs: Path) -> pd.DataFrame:
    from benchmark import records

    return records.latest(records.load(runs / "results.csv", must_exist=True))


def _standard(runs: Path, preset: str, overrides: Sequence[str] = (), own: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a preset's recipe by the code as it is now: other overrides and older code made other runs.

    `own`: files of the user's methods. Raises UserError where there are none.
    """
    frame = _local(runs)
    frame = frame[frame["preset"] == preset]
    frame = frame[frame["run_id"].isin({run.run_id for run in _runs_of(frame, preset, runs, overrides, own)})]
    if frame.empty:
        raise UserError(
            f"{runs / 'results.csv'} has no rows of preset {preset} by this code and these settings: "
            "run bench reproduce first"
        )
    return frame


def _runs_of(
    frame: pd.DataFrame, preset: str, runs: Path, overrides: Sequence[str], own: Sequence[str] = ()
) -> list[Run]:
    """The runs that the rows' methods, datasets and seeds would make now; `own`: files of the user's methods."""
    from benchmark import runner

    own_names = {registry.stem(name): name for name in own}
    jobs = frame[["method", "dataset", "seed"]]
    jobs = jobs.assign(dataset=jobs["dataset"].str.partition(":")[0]).drop_duplicates().itertuples(index=False)
    return [
        runner.prepare(
            tables.job_of(own_names.get(job.method, job.method), job.dataset, preset, job.seed, []), runs, overrides
        )
        for job in jobs
        if (job.method in own_names or registry.known("method", job.method))
        and job.dataset in registry.index("dataset")
    ]


def _reference_path(preset: str) -> Path:
    return tables.RESULTS / "reference" / f"{preset}.csv"


def _reference(preset: str) -> pd.DataFrame:
    from benchmark import records

    if not _reference_path(preset).exists():
        raise UserError(f"no reference rows of preset {preset}: bench bless --preset {preset} makes them from yours")
    return records.load(_reference_path(preset), must_exist=True)


def _table(name: str, preset: str) -> tables.Table:
    return tables.load_table(name, registry.index("metric"), preset)


def _present(table: tables.Table) -> list[str]:
    """The table's rows, but for methods whose file is gone and references that this machine lacks."""
    gone = [name for name in table.rows if not registry.known("method", name)]
    if gone:
        print(f"bench: {table.id} names {', '.join(gone)}, of which there is no file: left out", file=sys.stderr)
    absent = {*gone, *_absent(table)}
    return [name for name in table.rows if name not in absent]


def _absent(table: tables.Table) -> dict[str, str]:
    """References of the table that this machine lacks, with a line each on how to get them."""
    loaded: dict[str, Any] = {
        name: registry.load("method", name) for name in table.references if registry.known("method", name)
    }
    return {name: why for name, method in loaded.items() if (why := method.absent())}


def _render(table: tables.Table, frame: pd.DataFrame, preset: str, format: str, own: Sequence[str] = ()) -> str:
    """`own`: methods that may be paths of a user's files."""
    _, page = page_of(frame, table, preset, own)
    return render(page, format, color=format == "term" and sys.stdout.isatty())


def _metric_cards() -> dict[str, Any]:
    return {name: registry.card("metric", name) for name in registry.index("metric")}


def _seeds(texts: list[str]) -> list[int]:
    """["0-2", "5,7"] -> [0, 1, 2, 5, 7]. Raises UserError for anything else."""
    seeds: list[int] = []
    for part in (part for text in texts for part in text.split(",")):
        low, _, high = part.partition("-")
        numbers = range(int(low), int(high or low) + 1) if low.isdecimal() and (high or low).isdecimal() else ()
        if not numbers or part.endswith("-"):
            raise UserError(f"--seed {part}: write a number, a range such as 0-4, or a list such as 0,2,5")
        seeds += numbers
    return list(dict.fromkeys(seeds))


def _preset(name: str) -> str:
    """The default is gpu where there is one; asked of the driver's files, since torch takes a second to import."""
    if name:
        known_name(name, PRESETS, "preset", "--preset")
    return name or ("gpu" if any(Path("/dev").glob("nvidia[0-9]*")) else "cpu")


def _device(name: str) -> str:
    import torch

    from benchmark import processes

    if processes.started() > 1:
        if find_spec("accelerate") is None:
            from benchmark.doctor import install_command

            raise UserError(f"no {processes.started()} processes: accelerate is missing: {install_command('scale')}")
        return processes.join(name)
    if not name:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def _progress() -> Iterator[Callable[[str, float, float, str], None]]:
    """A bar with the time left on a terminal; elsewhere a line at each tenth of the way."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _tenths
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, Any] = {}

        def report(what: str, done: float, of: float, detail: str) -> None:
            if what not in bars:
                for bar in bars.values():
                    progress.update(bar, visible=False)
                bars[what] = progress.add_task(what, total=of, detail=detail)
            progress.update(bars[what], completed=done, detail=detail)

        yield report


_said: dict[str, int] = {}


def _tenths(what: str, done: float, of: float, detail: str) -> None:
    tenth = int(10 * done / of) if of else 10
    if _said.get(what) != tenth:
        _said[what] = tenth
        print(f"{what} {100 * done / of if of else 100:.0f} % {detail}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
