"""Randomness by purpose, and the facts of the machine."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def seed_of(*purpose: object) -> int:
    """A 63-bit seed that is a function of the purpose's words and numbers alone, on every machine.

    Torch's generator on a GPU keeps all of it, the one on a CPU the last 32 bits. So two purposes share their random
    numbers there with a chance of 2**-32: docs/findings.md says what that comes to in a run.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Draws:
    """Random numbers for `rows` rows as a function of (purpose, name of the draw, block of rows).

    The k-th draw of one name differs from the first, and draws of other names do not move it. Rows
    come in blocks of `block`, each with a generator of its own, so neither the batch size nor the
    number of rows changes what a row gets; `first_row` is where these rows begin.

    `share`, (rank, shares): rows are dealt out like cards, and these are the rank-th player's: every shares-th row. So
    the whole's first rows are spread evenly, too, where they are treated apart.
    """

    def __init__(
        self,
        *purpose: object,
        rows: int,
        device: str | torch.device = "cpu",
        block: int = 256,
        first_row: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if first_row % block:
            raise ValueError(f"first_row {first_row} is not a multiple of the block of {block} rows")
        self._rank, self.shares = share
        if rows % self.shares:
            raise ValueError(f"{rows} rows cannot be dealt out evenly to {self.shares}")
        self._whole, self.rows, self.device = rows, rows // self.shares, torch.device(device)
        self._purpose, self._block, self._first = purpose, block, first_row // block
        self._generator = torch.Generator(self.device)
        self._calls: dict[str, int] = {}

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal, (rows of the share, *shape)."""
        return self._draw(name, lambda n: torch.randn(n, *shape, generator=self._generator, device=self.device))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform on [0, 1), (rows, *shape)."""
        return self._draw(name, lambda n: torch.rand(n, *shape, generator=self._generator, device=self.device))

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """Uniform int64 in [0, high), (rows, *shape)."""
        return self._draw(
            name, lambda n: torch.randint(high, (n, *shape), generator=self._generator, device=self.device)
        )

    def _draw(self, name, sample) -> Tensor:
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        parts = []
        for start in range(0, self._whole, self._block):
            block = self._first + start // self._block
            self._generator.manual_seed(seed_of(*self._purpose, name, call, block))
            whole = sample(self._block)  # a short last block draws the same numbers as a full one
            parts.append(whole[(self._rank - start) % self.shares : self._whole - start : self.shares])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def copied(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows in memory of their own: a plug-in may change what it is given, and keep what it has answered."""
    return {name: x.clone() if isinstance(x, Tensor) else list(x) for name, x in rows.items()}


@contextlib.contextmanager
def seeded(*purpose: object) -> Iterator[None]:
    """Torch's global generator is a function of the purpose inside, and as it was before outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed_of(*purpose))
        yield


def device_name(device: str) -> str:
    """The device in words, as a result row states it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """The processor's model, where the system says; machines of one name and vector width compute alike."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{platform.machine()} CPU"
