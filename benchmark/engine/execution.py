"""Jobs to rows: one run directory per job, resumed where it stands; a failure becomes a row and the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from baselines.published import adapter
from benchmark import registry
from benchmark.api import Cell, Inapplicable, Score, UserError, one_line
from benchmark.config import Config, digest
from benchmark.engine.criteria import evaluate_criteria
from benchmark.engine.evaluate import Result, evaluate_cell
from benchmark.engine.plugin_guard import NUMBERS, PROCESS, unmoved
from benchmark.engine.process_group import here
from benchmark.engine.samples import Samples
from benchmark.engine.train import CHECKPOINT, LOG, Diverged, Progress, Trainer, carry_on, load_average
from benchmark.files import is_temporary, lock, write_file
from benchmark.progress import Report
from benchmark.records import checkout, results_file
from benchmark.records.results_file import Record
from benchmark.records.run_identity import Run, folder_name, key_of, missing, sources_behind, training_id_of
from benchmark.runtime import device_name, seeded

_THREADS = torch.get_num_threads()


class Stopped(Exception):
    """The user, or else the time limit, stopped the work; the same command goes on."""

    def __init__(self, by_user: bool = False) -> None:
        super().__init__()
        self.by_user = by_user


def execute(
    runs: Iterable[Run], device: str, report: Report, max_seconds: float | None = None, fresh: bool = False
) -> list[str]:
    """Carry out runs in order; a line for each error. A run that fails leaves an error row per cell, and the next one
    starts.

    Of several processes the main one does this, and the others `follow`. Raises Stopped when interrupted or out of
    time; UserError for what only the user can mend, and before anything is run where a stand-in would answer in the
    name of a published model.
    """
    errors: list[str] = []
    runs = list(runs)
    for run in runs:
        if (name := registry.base("method", run.job.method)) in adapter.names() and (fresh or missing(run)):
            adapter.refuse_stand_in(name, run.job.preset)
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    with _stop_on_signal() as stopped, contextlib.ExitStack() as at_last:
        at_last.callback(here().dismiss)
        known: dict[str, Mapping[str, str]] = {}
        for run in runs:
            with guarded(run, device):
                stale = not fresh and _is_stale(run, known)
            if not fresh and not stale and not missing(run):
                continue
            with _alone_in(run.directory):
                _forget(run, everything=fresh)
                if stale:
                    _drop_rows(run)
                try:
                    # What is missing is asked again: another process may have worked here.
                    with guarded(run, device):
                        failed = _execute_one(run, missing(run), device, report, stopped, deadline)
                    errors += [f"{run.job.method} seed {run.job.seed}: {reason}" for reason in failed]
                except Stopped:
                    raise Stopped(by_user=stopped()) from None
                except UserError:
                    raise
                except Inapplicable as refusal:
                    _append(run, device, _without_score(run, f"n/a: {refusal}"))
                # One method's failure must not cost the others their turn.
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt) and (stopped() or _ends_at_once()):
                        raise Stopped(by_user=True) from None
                    reason = one_line(f"error: {type(error).__name__}: {error}")
                    _append(run, device, _without_score(run, reason))
                    errors.append(f"{run.job.method} seed {run.job.seed}: {reason}")
                    if not here().listening:
                        raise UserError(f"{errors[-1]}: the same command goes on without it") from error
    return errors


def follow(runs: Iterable[Run], device: str) -> None:
    """What a process beside the main one does while that executes the same runs: its share of their training.

    Raises UserError where it cannot.
    """
    by_id = {run.run_id: run for run in runs}
    with _stop_on_signal():  # the main process says when to stop
        for run_id in here().words():
            run = by_id[run_id]
            try:
                with guarded(run, device):
                    data = registry.load("dataset", run.job.dataset, run.config.own_values)(run.config, device)
                    trainer_of(run, data, device).run(lambda progress: None)
            except Diverged:
                pass  # in every process alike; the main one says so
            except UserError:
                raise
            except Exception as error:
                raise UserError(one_line(f"process {here().rank}: {type(error).__name__}: {error}")) from error


def _without_score(run: Run, reason: str) -> list[Result]:
    """A result without a score for all that is still missing."""
    return [Result(cell, metric, None, reason, None) for cell, metric in missing(run)]


def trained_method(run: Run, device: str) -> tuple[Any, Any, Progress | None]:
    """The method of a finished run with its averaged weights, its dataset, and how far training got."""
    data = registry.load("dataset", run.job.dataset, run.config.own_values)(run.config, device)
    method = build(run, data, device)
    progress = None
    if run.method_card.stages:
        progress = load_average(method, run.directory, run.training_id, run.config.updates)
    return method, data, progress


def train_only(run: Run, device: str, report: Report) -> tuple[Any, Any, Progress | None]:
    """Train a run to the end of its budget and score nothing: the method, its dataset and the progress."""
    with _alone_in(run.directory), _stop_on_signal() as stopped:
        data = _data_of(run, device)
        method, progress = _train(run, data, device, report, stopped, None)
    return method, data, progress


def machine(device: str) -> dict[str, Any]:
    """What a result says of where it was computed."""
    several = f"{here().count} x " if here().count > 1 else ""
    return {"commit": checkout.commit(), "torch": torch.__version__, "device": several + device_name(device)}


def build(run: Run, data: Any, device: str) -> Any:
    """A method with weights that are a function of the seed, told of the data where it asks to be.

    The process goes on with the threads that the configuration asks for, and on a GPU with deterministic kernels.
    """
    _settle(run.config, device)
    with seeded("init", run.job.seed):
        method = registry.load("method", run.job.method, run.config.own_values)(data.modalities, run.config)
        if hasattr(method, "bind"):
            method.bind(data)
    return method.to(device) if hasattr(method, "to") else method


@contextlib.contextmanager
def guarded(run: Run, device: str) -> Iterator[None]:
    """A run's plug-ins are at work inside: what they change of the process is put back, and said in a line."""
    _settle(run.config, device)
    files = [registry.locate("method", run.job.method), registry.locate("dataset", run.job.dataset)]
    with registry.beside(files), unmoved(NUMBERS | PROCESS, _say_changed(run)):
        yield


def _say_changed(run: Run) -> Callable[[str], None]:
    """Says once what plug-ins of a run changed; those that are not the suite's are named beside the method."""
    job, said = run.job, set[str]()
    asked = [("dataset", job.dataset), *(("metric", metric) for _, metric in job.scores)]
    own = [name for kind, name in asked if not registry.known(kind, name)]
    who = " or ".join(dict.fromkeys(map(registry.stem, [job.method, *own])))

    def say(changed: str) -> None:
        if changed not in said:
            print(f"bench: {who} changed {changed} for the whole process: put back", file=sys.stderr, flush=True)
        said.add(changed)

    return say


def _settle(config: Config, device: str) -> None:
    """Give the process its threads and, on a GPU, deterministic kernels: where there is none, torch warns."""
    torch.set_num_threads(config.threads or _THREADS)
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _execute_one(
    run: Run,
    todo: Sequence[tuple[Cell, str]],
    device: str,
    report: Report,
    stopped: Callable[[], bool],
    deadline: float | None,
) -> list[str]:
    """Train and score; why metrics failed that others do not depend on."""
    _forget_peak_memory(device)
    say = _say_changed(run)
    supported, refused = _split(run, todo)
    _append(run, device, refused)
    if not supported:
        return []
    failed: dict[str, None] = {}
    with unmoved(NUMBERS, say):
        data = _data_of(run, device)
    if run.method_card.needs_full_rows and hasattr(data, "corpora"):
        raise Inapplicable(f"{run.method_card.label} trains on rows of all modalities, and here rows are pairs")
    with unmoved(NUMBERS, say):
        method, progress = _train(run, data, device, report, stopped, deadline)
    what = f"{registry.stem(run.job.method)} seed {run.job.seed}: scoring"
    by_cell: dict[Cell, list[str]] = {}
    probed = {(cell, metric) for cell, metric in supported if _of_criteria(metric)}
    for cell, metric in (pair for pair in supported if pair not in probed):
        by_cell.setdefault(cell, []).append(metric)
    sampled = list(by_cell)
    total = len(sampled) + bool(probed)
    for position, cell in enumerate(sampled):
        late = deadline is not None and time.monotonic() > deadline
        if stopped() or (late and position):  # a cell at least, or a short limit would never see an end
            raise Stopped
        report(what, position, total, str(cell).partition(": ")[2])
        with unmoved(NUMBERS, say):  # each cell may be scored by a command of its own
            kept = kept_things(run, data, cell, method)
            found = evaluate_cell(method, data, cell, by_cell[cell], run.config, run.job.seed, device, kept=kept)
            results = list(found)
        _append(run, device, results, method, progress)
        reasons = (f"{result.metric}: {result.reason}" for result in results if result.score is None)
        failed |= dict.fromkeys(reason for reason in reasons if ": error: " in reason)
    if probed:
        report(what, len(sampled), total, "probes of the latents")
        with unmoved(NUMBERS, say):
            every = evaluate_criteria(method, data, run.config, device, run.job.seed, registry.stem(run.job.dataset))
            wanted = [_criterion(*each) for each in every if each[:2] in probed]
        _append(run, device, wanted, method, progress)
    report(what, total, total, "done")
    return list(failed)


def _train(
    run: Run, data: Any, device: str, report: Report, stopped: Callable[[], bool], deadline: float | None
) -> tuple[Any, Progress | None]:
    """The method ready for evaluation, trained to the end of its budget. Raises Stopped before that end."""
    if not run.method_card.stages:
        return build(run, data, device), None
    trainer = trainer_of(run, data, device)
    if not trainer.progress.done:
        what = f"{registry.stem(run.job.method)} seed {run.job.seed}: training"
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        with here().calling(run.run_id, Diverged):
            trainer.run(lambda p: report(what, p.updates, p.of, f"loss {p.loss:.4f}"), stopped, left)
    if not trainer.progress.done:
        raise Stopped
    return trainer.average.eval(), trainer.progress


def trainer_of(run: Run, data: Any, device: str) -> Trainer:
    """The run's trainer, at its checkpoint, or where a shorter run of the same ended, or at the start; the run's
    directory must exist."""
    if not (run.directory / CHECKPOINT).exists():
        _carry_on(run, _identity(data), device)
    method, average = build(run, data, device), build(run, data, device)
    return Trainer(
        method, average, data, run.method_card.stages, run.config, run.job.seed, run.directory, run.training_id, device
    )


def _carry_on(run: Run, identity: str, device: str) -> None:
    """Begin where the longest run ended that differs in its number of updates alone, and has fewer.

    Methods of several stages begin anew: their stages end at shares of the whole.
    """
    if len(run.method_card.stages) != 1:
        return
    shorter: list[tuple[int, Path, str]] = []
    for path in run.directory.parent.glob(f"{folder_name(run.job, '*')}/config.json"):
        facts = _described(path)
        updates = facts.get("config", {}).get("updates", run.config.updates)
        its_id = training_id_of(replace(run.config, updates=updates), run.what)
        alike = path.parent.name == folder_name(run.job, its_id) and facts.get("identity", "") == identity
        if alike and updates < run.config.updates:
            shorter.append((updates, path.parent, its_id))
    for _, folder, its_id in sorted(shorter, reverse=True):
        if carry_on(folder, its_id, run.directory, run.training_id, device):
            return


def _split(run: Run, todo: Sequence[tuple[Cell, str]]) -> tuple[list[tuple[Cell, str]], list[Result]]:
    """What the method can do, and n/a results for the tasks that it does not support."""
    label, supported, refused = run.method_card.label, [], []
    for cell, metric in todo:
        if cell.task in run.method_card.tasks or _of_criteria(metric):
            supported.append((cell, metric))
        else:
            refused.append(Result(cell, metric, None, f"n/a: {label} does not support {cell.task}", None))
    return supported, refused


def kept_things(run: Run, data: Any, cell: Cell, method: Any, folder: str = "generated") -> Samples | None:
    """Where the cell's generated things are kept, in a folder of the run's; None where a dataset's modalities are what
    is scored. Those of a method's other `origin`, which the run does not know of, are thrown away."""
    if not hasattr(data, "render"):
        return None
    return things_of(run, cell, folder, origin=method.origin() if hasattr(method, "origin") else None)


def things_of(run: Run, cell: Cell, folder: str = "generated", read_only: bool = False, origin: Any = None) -> Samples:
    """The generated things of a cell that are kept in a folder of the run's; `read_only` as in `Samples`."""
    about = {"cell": str(cell), "method": run.job.method, "seed": run.job.seed, "run_id": run.run_id}
    about |= {} if origin is None else {"origin": origin}
    return Samples(run.directory / folder / run.run_id / cell.stem, about, read_only)


def _of_criteria(metric: str) -> bool:
    """Whether a number comes from the latents of all subsets together, and not from the samples of its cell."""
    return "criteria" in registry.card("metric", metric).tasks


def _criterion(cell: Cell, metric: str, found: Score | str) -> Result:
    return (
        Result(cell, metric, None, f"n/a: {found}", None)
        if isinstance(found, str)
        else Result(cell, metric, found, None, None)
    )


def _append(
    run: Run, device: str, results: Sequence[Result], method: Any = None, progress: Progress | None = None
) -> None:
    parameters = sum(weight.numel() for weight in method.parameters()) if hasattr(method, "parameters") else None
    answered_by = method.protocol() if hasattr(method, "protocol") else {}
    measured = {
        "train_seconds": round(progress.seconds, 1) if progress else None,
        "peak_memory_mb": round(_peak_memory_mb(device)),
        "parameters": parameters,
    }
    results_file.append(run.results, [_record(run, device, result, measured, answered_by) for result in results])


def _record(
    run: Run, device: str, result: Result, measured: Mapping[str, Any], answered_by: Mapping[str, Any]
) -> Record:
    score, status = result.score, "ok"
    if result.reason is not None:
        status = result.reason if result.reason.startswith(("n/a: ", "error: ")) else f"n/a: {result.reason}"
    keys = dict(zip(results_file.KEY, key_of(run, result.cell, result.metric), strict=True))
    return Record(
        **keys,  # type: ignore[arg-type]
        value=score.value if score else None,
        stderr=score.stderr if score else None,
        n=score.n if score else 0,
        status=status,
        method_version=run.method_card.version,
        dataset_version=run.dataset_card.version,
        metric_version=registry.card("metric", result.metric).version,
        protocol=_protocol(run, result, answered_by if score else {}),
        precision=run.config.precision,
        run_id=run.row_id(result.metric),
        sources=sources_behind(run, result.metric),
        **machine(device),
        sample_seconds=None if result.sample_seconds is None else round(result.sample_seconds, 4),
        **measured,
    )


def _protocol(run: Run, result: Result, answered_by: Mapping[str, Any]) -> str:
    """What the number depends on: the evaluation's settings, the metric's own, and a checkpoint that is not ours."""
    parts, stated = [run.config.protocol()], result.protocol
    if changed := run.config.changed(registry.stem(result.metric)):
        stated = {"protocol": stated, "fields": changed}
    parts += [f"+{digest(stated)}"] * bool(stated)
    parts += [f"{results_file.ANSWERED_BY}{digest(answered_by)}"] * bool(answered_by)
    parts += [results_file.STAND_IN] * bool(answered_by.get("stand_in"))
    return "".join(parts)


def _data_of(run: Run, device: str) -> Any:
    """The run's dataset; config.json says what this run is. Raises UserError where the run began on other data.

    The training id in the directory's name is the description's hash, but for the fields that only scoring asks for,
    which are as the last command had them, and for the identity of data that the user may exchange.
    """
    data = registry.load("dataset", run.job.dataset, run.config.own_values)(run.config, device)
    path, identity = run.directory / "config.json", _identity(data)
    _refuse_other_data(run, _described(path).get("identity", identity), identity)
    facts = {
        "method": run.job.method,
        "dataset": run.job.dataset,
        "preset": run.job.preset,
        "seed": run.job.seed,
        "training_id": run.training_id,
        "sources": run.sources,
        "device": device,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "identity": identity,
        "content": dict(_described(path).get("content", {})) | _content(run),
        "config": run.config.values(),
    }
    write_file(path, (json.dumps(facts, indent=2) + "\n").encode())
    return data


def _refuse_other_data(run: Run, before: str, now: str) -> None:
    if before != now:
        raise UserError(
            f"{run.directory}: begun on the data {before}, and they are {now} now: put the former back, or pass "
            "--fresh to start this run again"
        )


def _is_stale(run: Run, known: dict[str, Mapping[str, str]]) -> bool:
    """Whether the run's rows were read by other judges, or answered by another checkpoint, than are on this machine.

    known: what was found before, by dataset, method and configuration. Raises UserError for other data. Files that are
    gone say nothing: the rows stay.
    """
    before = _described(run.directory / "config.json").get("content", {})
    if not before:
        return False
    key = digest([run.job.dataset, run.job.method, run.config.values()])
    if key not in known:
        known[key] = _content(run)
    now = {name: found for name, found in known[key].items() if name in before}
    _refuse_other_data(run, before.get("identity", ""), now.pop("identity", before.get("identity", "")))
    return any(before[name] != found for name, found in now.items())


def _content(run: Run) -> dict[str, str]:
    """What the files of the run's dataset and method hold now, as far as they are there."""
    found: dict[str, str] = {}
    for kind, name in (("dataset", run.job.dataset), ("method", run.job.method)):
        plug_in = registry.load(kind, name, run.config.own_values)
        if hasattr(plug_in, "content"):
            with contextlib.suppress(Exception):  # what is amiss, making the dataset or asking the method tells
                found |= plug_in.content(run.config)
    return found


def _identity(data: Any) -> str:
    """What a dataset's rows depend on besides configuration and code; empty where that is nothing."""
    return str(getattr(data, "identity", ""))


def _described(path: Path) -> Mapping[str, Any]:
    """What a config.json says; nothing where it is damaged or lacking: the next command writes it anew."""
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(facts, dict):
            return facts
    return {}


def _forget(run: Run, everything: bool) -> None:
    """Remove the temporary files that a killed process left, or everything that is ours but the lock, rows included.

    What others put there stays: a notebook's checkpoints, a file browser's notes, `lost+found`.
    """
    if everything:
        _drop_rows(run)
    try:
        for path in run.directory.iterdir():
            if everything and path.name in _OURS and path.is_dir():
                shutil.rmtree(path)
            elif is_temporary(path) or (everything and path.name in _OURS):
                path.unlink()
    except OSError as error:
        raise UserError(_unwritable(run.directory, error)) from None


def _drop_rows(run: Run) -> None:
    run.rows.drop({run.run_id, *map(run.row_id, run.job.metrics)})


_LOCK = "lock"
# What `--fresh` removes from a run's directory: all that is written there, by `bench tune` and `bench sample`, too.
_OURS = (CHECKPOINT, LOG, "config.json", "job.json", "generated", "validation", "samples")


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold the run directory. Raises UserError when another process works in it or it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _LOCK).open("ab", buffering=0)
    except OSError as error:
        raise UserError(_unwritable(directory, error)) from None
    with file:
        try:
            lock(file.fileno(), Path(file.name), "--runs", wait=False)
        except BlockingIOError:
            raise UserError(f"{directory}: another process is working on this run: wait for it, or stop it") from None
        try:
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        except OSError as error:
            raise UserError(_unwritable(directory, error)) from None
        try:
            yield
        finally:
            file.truncate(0)


def _unwritable(directory: Path, error: OSError) -> str:
    return f"{directory}: cannot write there ({error.strerror}): free space, or name another folder with --runs"


def holder(directory: Path) -> str:
    """The number of the process that works in a run directory; empty where none does."""
    with contextlib.suppress(OSError), (directory / _LOCK).open(encoding="utf-8") as file:
        try:
            lock(file.fileno(), directory / _LOCK, "--runs", wait=False, shared=True)
        except BlockingIOError:
            return file.read() or "unknown"
    return ""


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks to stop at the next whole step; a second one stops at once.

    A job of submitit's is asked by SIGTERM or SIGUSR2, before its time ends or another takes its place; Ctrl-C is meant
    for the process that waits for it.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR2 if "SUBMITIT_EXECUTOR" in os.environ else signal.SIGINT)
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in numbers}
    except ValueError:  # not in the main thread: somebody else handles signals
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends_at_once() -> bool:
    """Whether Ctrl-C is no request, as in a job of submitit's: an interrupt is the user's then, and no plug-in's."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _forget_peak_memory(device: str) -> None:
    """The peak is a run's, not that of all runs of the process before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_bytes(b"5")  # Linux: resets VmHWM


def _peak_memory_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return float(status.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
