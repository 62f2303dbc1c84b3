"""Methods that are other people's checkpoints. Most run in a Python of their own, and are asked by files; those that
packages of ours can load are in baselines/published/in_process.py.

`baselines/published/workers/NAME.toml` has what is known of a model: where its code and weights are, what it can
generate, its sampling settings and prompts. `external.toml` in the folder that MUNI_BENCH_EXTERNAL names says where
they are on this machine:

    [codi]
    python = "~/codi/.venv/bin/python"        # the model's own Python
    repository = "~/codi/i-Code-V3"           # its working directory
    checkpoint = "~/codi/checkpoints"         # a file or a folder
    device = "cuda"

and may change a setting: `steps = 20`. `stand_in = true` says that the checkpoint is untrained weights in the model's
layout: its rows are marked, and no preset of OWN_NUMBERS takes them. The runner
(`baselines/published/workers/NAME_worker.py`) stays alive for the blocks of a cell, and what it wrote is read as PNG,
WAV and JSON alone. A request is a folder of the cache, so a killed command goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.published.workers.serve import ENVIRONMENT, FAULT, REQUEST, RESPONSES, SCHEMA
from benchmark.api import Cell, Inapplicable, Modality, Raw, Unanswered, UserError, one_line
from benchmark.config import Config, digest, nearest
from benchmark.files import alone_in, cache_folder, expanded, files_in, folder_named, write_atomic
from benchmark.fitting.network_store import Say, to_stderr
from benchmark.media.media_files import read_png, read_wav, write_png, write_wav
from benchmark.runtime import Draws
from data_prep.media.data_folder import offline
from data_prep.pretrained.pretrained_codecs import checksum

SETTING = "MUNI_BENCH_EXTERNAL"
WORKERS = Path(__file__).with_name("workers")
HERE = ("python", "repository", "checkpoint", "device", "stand_in")  # where a model is; other keys say how it samples
OWN_NUMBERS = ("paper", "gpu")  # presets whose numbers are taken for the model's
ATTEMPTS = 2  # of an item at which the runner dies
LOOK, SAY_EVERY = 0.05, 15.0  # seconds between looks at the responses, and between lines about them


@dataclass(frozen=True)
class Place:
    """Where a model is on this machine, and how it samples. `stand_in`: its weights are untrained."""

    python: Path
    repository: Path
    checkpoint: Path
    device: str
    stand_in: bool
    settings: Mapping[str, Any]


class External:
    """A method that answers with pictures, sounds and sentences. `name`: of its runner, and of what is known of it."""

    name = ""

    def __init__(self, modalities: Sequence[Modality], config: Config) -> None:
        self.data: Any = None
        self.facts: dict[str, Any] = {}

    @classmethod
    def absent(cls) -> str:
        """Why the model cannot be asked on this machine and how to mend that, in one line; empty where it can be."""
        try:
            place_of(cls.name)
        except UserError as why:
            return str(why)
        return ""

    @classmethod
    def content(cls, config: Config) -> dict[str, str]:
        """What its checkpoint holds. Raises UserError where `absent`."""
        return {"checkpoint": checksum(place_of(cls.name).checkpoint)}

    def bind(self, data: Any) -> None:
        """Raises Inapplicable for a dataset without pictures, sounds and sentences, and UserError where `absent`."""
        if not hasattr(data, "raw"):
            raise Inapplicable("it makes pictures, sounds and sentences, and the dataset has none")
        self.data, self.place = data, place_of(self.name)
        self._holds = checksum(self.place.checkpoint)

    def sample(self, given: Any, want: Sequence[str], rows: int, draws: Draws) -> Any:
        raise Inapplicable("it makes pictures, sounds and sentences, not features")

    def things(self, cell: Cell, split: str, indices: Tensor, draws: Draws) -> Raw:
        """Raises Inapplicable for a direction that the model does not have, and Unanswered where items fail."""
        if why := refusal(known(self.name), cell):
            raise Inapplicable(why)
        seeds, real = draws.integers("seed", 2**31).tolist(), self.data.raw(split, indices)
        answers = self.answers(cell, real, seeds, [self.data.identity, split, indices.tolist()])
        return {
            name: _fitted([answer[name] for answer in answers], real[name], self.data.sample_rate) for name in cell.want
        }

    def answers(self, cell: Cell, real: Raw, seeds: Sequence[int], rows: Any) -> list[Answer]:
        """To each of the real rows, of which the cell gives some modalities. rows: what tells them from others."""
        raise NotImplementedError

    def origin(self) -> dict[str, Any]:
        """What external.toml says of what it makes, and what its checkpoint holds: known before anything is asked."""
        stand_in = {"stand_in": True} if self.place.stand_in else {}
        about = {"model": self.name, "settings": dict(self.place.settings), **stand_in}
        about |= {"repository": str(self.place.repository), "checkpoint": str(self.place.checkpoint)}
        return {**about, "holds": self._holds}

    def protocol(self) -> dict[str, Any]:
        """What its numbers depend on: settings, and the revision and checksums of what answered."""
        answered_by = {name: self.facts.get(name) for name in ("revision", "checkpoint")}
        places = ("repository", "holds")
        return {name: value for name, value in self.origin().items() if name not in places} | answered_by


class ByRunner(External):
    """One that is asked by files: see baselines/published/workers/serve.py."""

    def bind(self, data: Any) -> None:
        super().bind(data)
        log = cache_folder() / "external" / f"{self.name}.log"
        command = [str(self.place.python), str(WORKERS / f"{self.name}_worker.py")]
        self.runner = Runner(command, self.place.repository, log)
        # What was made before, and is scored now, was answered by what answered then.
        self._answered_by = cache_folder() / "external" / self.name / f"{digest(self.origin())}.json"
        if self._answered_by.exists():
            self.facts = json.loads(self._answered_by.read_text(encoding="utf-8"))

    def answers(self, cell: Cell, real: Raw, seeds: Sequence[int], rows: Any) -> list[Answer]:
        entry = known(self.name)
        about: dict[str, Any] = {"model": self.name, "given": cell.given, "want": cell.want}
        about |= {"checkpoint": str(self.place.checkpoint), "device": self.place.device}
        about |= {"settings": dict(self.place.settings)}
        folder = cache_folder() / "external" / self.name / digest([about, rows, seeds, self.origin()])
        found = answered(
            folder,
            {"schema": SCHEMA, **about, "items": list(_items(folder, cell, real, seeds, self.data.sample_rate))},
            self.runner,
            (entry["seconds_to_load"], entry["seconds_per_item"]),
            entry.get("sample_rate", 0),
        )
        self.facts = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        write_atomic(self._answered_by, json.dumps(self.facts).encode())
        shutil.rmtree(folder, ignore_errors=True)  # what was made is kept with the run
        return found


def names() -> list[str]:
    """Of all external models."""
    return [path.stem for path in files_in(WORKERS, ".toml")]


def known(name: str) -> dict[str, Any]:
    """What is known of an external model: the table of `workers/NAME.toml`."""
    return tomllib.loads((WORKERS / f"{name}.toml").read_text(encoding="utf-8"))


def refusal(entry: Mapping[str, Any], cell: Cell) -> str:
    """Why the model has no such direction; empty where it has.

    `refused` of an entry gives the reason by task; `directions` lists the only ones, as "text -> image".
    """
    asked = f"{'+'.join(cell.given)} -> {'+'.join(cell.want)}"
    if cell.task in entry.get("refused", {}):
        return str(entry["refused"][cell.task])
    if asked not in entry.get("directions", [asked]):
        return f"{entry['label']} goes {', '.join(entry['directions'])} alone"
    return ""


def place_of(name: str) -> Place:
    """Where a model is on this machine. Raises UserError, with the guide's name, where it is not, or not whole.

    Of one without a runner, Python and repository are not asked for.
    """
    entry, guide = known(name), f"docs/external/{name}.md says how to set it up"
    folder = folder_named(SETTING)
    if folder is None:
        raise UserError(f"{entry['label']} is not on this machine ({SETTING} is not set): {guide}")
    path = folder / "external.toml"
    try:
        here = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): write it, or unset {SETTING}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for other in here:
        if other not in names():
            raise UserError(f"{path}: unknown model {other!r}{nearest(other, names())}")
    if name not in here:
        raise UserError(f"{entry['label']} is not on this machine (no [{name}] in {path}): {guide}")
    settings = dict(entry.get("settings", {}))
    for key, value in here[name].items():
        if key not in (*HERE, *settings):
            raise UserError(f"{path}: [{name}] has no key {key!r}{nearest(key, (*HERE, *settings))}")
        if key not in HERE:
            settings[key] = value
    found = dict.fromkeys(("python", "repository"), Path())
    for key in ("python", "repository", "checkpoint") if (WORKERS / f"{name}_worker.py").exists() else ("checkpoint",):
        value = expanded(Path(here[name].get(key, "")))
        if key not in here[name] or not value.exists():
            raise UserError(f"{entry['label']}: {key} {value} does not exist: set it in [{name}] of {path}; {guide}")
        found[key] = value.absolute()
    device = here[name].get("device", "cuda" if torch.cuda.is_available() else "cpu")
    stand_in = here[name].get("stand_in", False)
    if not isinstance(stand_in, bool):
        raise UserError(f"{path}: [{name}] stand_in = {stand_in!r}: write true or false")
    return Place(found["python"], found["repository"], found["checkpoint"], device, stand_in, settings)


def refuse_stand_in(name: str, preset: str) -> None:
    """Raises UserError where numbers of the preset would be taken for the model's, and untrained weights answered.

    Raises UserError as `place_of`, too.
    """
    if place_of(name).stand_in and preset in OWN_NUMBERS:
        path = (folder_named(SETTING) or Path()) / "external.toml"
        raise UserError(
            f"{known(name)['label']} is a stand-in on this machine, whose numbers preset {preset} would take for the "
            f"model's: set its own checkpoint in [{name}] of {path}, without stand_in, or use preset smoke or cpu"
        )


class Runner:
    """The process of a model: started when it is needed, in a process group of its own, and alive between requests.

    command: of the process, but for the request folders, which it reads from standard input. log: takes its output.
    """

    def __init__(self, command: Sequence[str], directory: Path, log: Path) -> None:
        self.command, self.directory, self.log = list(command), directory, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def status(self) -> int | None:
        """None while it runs; the exit status of one that has ended, 0 before it was ever started."""
        return 0 if self._process is None else self._process.poll()

    def ask(self, folder: Path) -> None:
        """Name a request folder to the process, a new one where none runs."""
        if self.status is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            offline()  # sets for its packages, too, that nothing may be fetched
            with self.log.open("wb") as output:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=self.directory,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the next look finds
            self._process.stdin.write(f"{folder}\n".encode())
            self._process.stdin.flush()

    def stop(self) -> None:
        """End it, and all that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        """The last line of its output."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4096:].decode(errors="replace").split("\n")
            return next((one_line(line) for line in reversed(lines) if line.strip()), "it said nothing")
        return "it said nothing"

    def __del__(self) -> None:
        self.stop()


Answer = dict[str, Any]  # modality -> text, picture (channels, height, width), or ((samples,), rate)


def answered(
    folder: Path,
    request: Mapping[str, Any],
    runner: Runner,
    limits: tuple[float, float],
    sample_rate: int = 0,
    say: Say = to_stderr,
) -> list[Answer]:
    """The runner's answers to all items of a request, in their order; those that are in the folder are not asked again.

    limits: seconds for loading the model, and for an item. sample_rate: that its sounds must have, in Hz; any where 0.
    An item that fails is not tried again before the next command; the others go on. Raises Unanswered, naming the
    first, where any has failed, and where the runner does not come to its first item.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, lambda: say(f"{folder}: another command asks for the same: waiting for it")):
        write_atomic(folder / REQUEST, json.dumps(request).encode())
        _keep_answers(folder, request, sample_rate)
        _wait(folder, request, runner, limits, say)
        found, failed = _answers(folder, request, sample_rate)
    if failed:
        name, why = next(iter(failed.items()))
        raise Unanswered(
            f"{request['model']}: {len(failed)} of {len(request['items'])} items failed, first {name}: {why}; the same "
            "command tries them again"
        )
    return [found[item["id"]] for item in request["items"]]


def _wait(folder: Path, request: Mapping[str, Any], runner: Runner, limits: tuple[float, float], say: Say) -> None:
    """Until every item has an answer, by the runner or, where it died or took too long, an error in its name."""
    name, total, died = request["model"], len(request["items"]), dict.fromkeys(_ids(request), 0)
    asked, heard, lines, first = False, 0, _lines(folder), len(_ended(_lines(folder)))
    began = since = said = time.monotonic()
    while _ids(request) - _ended(lines).keys():
        if asked and runner.status is not None:
            item = _open(lines)
            if runner.status == FAULT or len(lines) == heard:
                raise Unanswered(f"{name} ended before its first item: {runner.last_words()}")
            if item is not None:
                died[item] += 1
            if item is not None and died[item] == ATTEMPTS:
                _fail(folder, item, f"the runner ended {ATTEMPTS} times at this item: {runner.last_words()}")
            asked = False
        if not asked:
            asked, since, heard = True, time.monotonic(), len(_lines(folder))
            runner.ask(folder)
        time.sleep(LOOK)
        before, lines = len(lines), _lines(folder)
        now, item = time.monotonic(), _open(lines)
        since = now if len(lines) > before else since
        if now - since > limits[item is not None]:
            runner.stop()
            if item is None:
                raise Unanswered(f"{name} was not ready within {limits[0]:g} s: {runner.last_words()}")
            _fail(folder, item, f"no answer within {limits[1]:g} s")
            asked, lines = False, _lines(folder)
        if now - said > SAY_EVERY and (done := len(_ended(lines))) > first:
            said, left = now, (now - began) / (done - first) * (total - done)
            say(f"{name}: {done} of {total} items, {100 * done // total} %, {left:.0f} s left")


def _ids(request: Mapping[str, Any]) -> set[str]:
    return {item["id"] for item in request["items"]}


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the responses that are any."""
    path = folder / RESPONSES
    found = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        with contextlib.suppress(ValueError):
            response = json.loads(line)
            if isinstance(response, dict) and isinstance(response.get("id"), str) and "status" in response:
                found.append(response)
    return found


def _ended(lines: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last answer of every item that has one."""
    return {line["id"]: line for line in lines if line["status"] in ("ok", "error")}


def _open(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """The item that the runner is at."""
    return lines[-1]["id"] if lines and lines[-1]["status"] == "started" else None


def _fail(folder: Path, item: str, why: str) -> None:
    _write(folder, [*_lines(folder), {"id": item, "status": "error", "error": why}])


def _write(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(folder / RESPONSES, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _keep_answers(folder: Path, request: Mapping[str, Any], sample_rate: int) -> None:
    """Forget what failed, was cut off, or is not what it says: it is asked for again."""
    good, _ = _answers(folder, request, sample_rate)
    _write(folder, [line for name, line in _ended(_lines(folder)).items() if name in good])


def _answers(folder: Path, request: Mapping[str, Any], sample_rate: int) -> tuple[dict[str, Answer], dict[str, str]]:
    """By item: what was answered, and why an answer is none."""
    found, failed = {}, {}
    ended = _ended(_lines(folder))
    for name in sorted(_ids(request) & ended.keys()):
        line = ended[name]
        try:
            if line["status"] == "error":
                raise ValueError(one_line(line.get("error", "no reason given")))
            outputs = line.get("outputs")
            if not isinstance(outputs, dict):
                raise ValueError("its answer has no outputs")
            found[name] = {want: _read(folder, want, outputs.get(want), sample_rate) for want in request["want"]}
        except ValueError as why:
            failed[name] = str(why)
    return found, failed


def _read(folder: Path, modality: str, value: Any, sample_rate: int) -> Any:
    """One output. Raises ValueError where it is not what it should be."""
    if not isinstance(value, str):
        raise ValueError(f"its answer has no {modality}")
    if modality == "text":
        if value != one_line(value):
            raise ValueError("its text is not one line")
        return value
    path = folder / value
    if Path(value).is_absolute() or folder.resolve() not in path.resolve().parents:
        raise ValueError(f"its {modality} {value!r} lies outside the request's folder")
    if not path.is_file():
        raise ValueError(f"its {modality} {value!r} is not there")
    try:
        if modality == "image":
            return read_png(path)
        sound, rate = read_wav(path)
    except UserError as why:
        raise ValueError(str(why)) from None
    if sample_rate and rate != sample_rate:
        raise ValueError(f"its sound has {rate} Hz, and the model's have {sample_rate}")
    return sound, rate


def _items(folder: Path, cell: Cell, real: Raw, seeds: Sequence[int], sample_rate: int) -> Iterator[dict[str, Any]]:
    """The request's items; pictures and sounds that are given are written below the folder."""
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    for row, seed in enumerate(seeds):
        inputs: dict[str, str] = {}
        for name in cell.given:
            value = real[name][row]
            if isinstance(value, str):
                inputs[name] = one_line(value)
                continue
            inputs[name] = f"inputs/{row:06d}-{name}.{'png' if value.ndim == 3 else 'wav'}"
            path = folder / inputs[name]
            if value.ndim == 3:
                write_png(path, value.cpu())
            else:
                write_wav(path, value.cpu(), sample_rate)
        yield {"id": f"{row:06d}", "seed": seed, "inputs": inputs}


def _fitted(values: Sequence[Any], like: Any, sample_rate: int) -> Any:
    """Outputs in the form in which real ones are scored: channels, size, rate and length of the rows `like`."""
    if isinstance(like, list):
        return list(values)
    fit = picture_like if like.ndim == 4 else sound_like
    return torch.stack([fit(value, like[0], sample_rate) for value in values]).to(like.device)


def picture_like(picture: Tensor, like: Tensor, sample_rate: int = 0) -> Tensor:
    """The centre square at the size and with the channels of `like`, (channels, side, side)."""
    from data_prep.pretrained.pretrained_codecs import on_canvas

    levels = (picture.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy()
    fitted = on_canvas(np.ascontiguousarray(levels), like.shape[-1])
    return fitted if len(like) == 3 else fitted.mean(0, keepdim=True)


def sound_like(sound: tuple[Tensor, int], like: Tensor, sample_rate: int) -> Tensor:
    """A sound (any length, at its own rate) at `sample_rate`, cut or filled up with silence to the length of `like`."""
    from benchmark.media.sounds import resampled

    samples = torch.from_numpy(resampled(sound[0].numpy(), sound[1], sample_rate))[: len(like)]
    return torch.nn.functional.pad(samples, (0, len(like) - len(samples)))
