"""Generated things on disk: pictures as PNG, sounds as WAV, sentences as text, in blocks of rows, with a manifest.

What a method generates is scored from here, so that it can be looked at, listened to, scored again without generating
it again, and come from another program. A folder holds `manifest.jsonl`, one line per row in order, and the files that
the lines name. A row counts when its line is there, and lines are written after the files they name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.api import Raw, one_line
from benchmark.files import write_atomic
from benchmark.media.media_files import read_png, read_wav, write_png, write_wav

MANIFEST, ABOUT = "manifest.jsonl", "about.json"


class Samples:
    """The rows of one cell in a folder, as far as they are generated. `about`: what they are a function of.

    Rows of a folder that is about something else, or is damaged, are not there, and thrown away unless `read_only`:
    then `about` may be a part of what the folder is about.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], read_only: bool = False) -> None:
        self.folder, self.about = folder, dict(about)
        self._lines = self._read_lines(read_only)
        if not self._lines and not read_only:
            shutil.rmtree(folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def seconds(self) -> float:
        """Spent on generating the rows that are here."""
        return sum(line["seconds"] for line in self._lines)

    def append(self, raw: Raw, sample_rate: int, seconds: float) -> None:
        """Add the next rows, whose generation took so long."""
        first, count = len(self), len(next(iter(raw.values())))
        lines: list[dict[str, Any]] = [{"row": first + k, "seconds": seconds / count} for k in range(count)]
        for name, values in raw.items():
            if isinstance(values, list):
                for line, text in zip(lines, values, strict=True):
                    line[name] = one_line(text)
                continue
            picture = values.ndim == 4
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for line, value in zip(lines, values.cpu(), strict=True):
                file = f"{name}/{line['row']:06d}.{'png' if picture else 'wav'}"
                line[name] = {"file": file}
                if picture:
                    write_png(self.folder / file, value)
                else:
                    write_wav(self.folder / file, value, sample_rate)
        if not first:
            write_atomic(self.folder / ABOUT, (json.dumps(self.about, indent=2) + "\n").encode())
        self._lines += lines
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines)
        write_atomic(self.folder / MANIFEST, text.encode())

    def read(self, start: int, count: int, names: Sequence[str], device: str = "cpu") -> Raw:
        """Rows from `start` on. Raises UserError, naming the file, where one is lacking or cannot be read."""
        lines = self._lines[start : start + count]
        raw: Raw = {}
        for name in names:
            values = [line[name] for line in lines]
            if isinstance(values[0], str):
                raw[name] = values
            else:
                raw[name] = torch.stack([self._file(value["file"]) for value in values]).to(device)
        return raw

    @property
    def sample_rate(self) -> int:
        """Of the sounds, in Hz; 0 where there are none. Raises UserError where the first one cannot be read."""
        files = [value["file"] for value in self._lines[0].values() if isinstance(value, dict)] if self._lines else []
        return next((read_wav(self.folder / file)[1] for file in files if file.endswith(".wav")), 0)

    def _file(self, name: str) -> Tensor:
        path = self.folder / name
        return read_png(path) if path.suffix == ".png" else read_wav(path)[0]

    def _read_lines(self, read_only: bool) -> list[dict[str, Any]]:
        try:
            about = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
            if read_only:  # a reader need not know all that they are a function of
                about = {name: about[name] for name in self.about if name in about}
            if about == self.about:
                return [json.loads(line) for line in (self.folder / MANIFEST).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            pass
        return []
