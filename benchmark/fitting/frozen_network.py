"""What the suite's own networks (verifier, judges, codecs) share: how they are fitted, and how they answer once frozen.

Numbers depend on this code, as they do not on the rest of the core that keeps such networks: `registry.sources` hashes
it with every plug-in code that imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

SAY_EVERY = 15.0  # seconds between two lines of how far a training is

Rows = TypeVar("Rows", Tensor, list[str], Tensor | list[str])
Answer = TypeVar("Answer")


def fit(
    name: str,
    network: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    updates: int,
    rate: float,
    warm: float,
    decay: float,
    say: Callable[[str], None],
) -> None:
    """Minimise `loss(update)`, the loss of the batch of each update from 0 on, by AdamW.

    rate: at its highest; it rises from zero for the share `warm` of the updates, and falls to zero. decay: of weights.
    say: gets "NAME: 40 %, 12 s left" now and then.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    started = said = time.monotonic()
    for update in range(updates):
        done = (update + 0.5) / updates
        for group in optimizer.param_groups:
            group["lr"] = rate * min(done / warm, (1 - done) / (1 - warm))
        optimizer.zero_grad(set_to_none=True)
        loss(update).backward()
        optimizer.step()
        if (now := time.monotonic()) - said > SAY_EVERY:
            left, said = (now - started) / (update + 1) * (updates - update - 1), now
            say(f"{name}: {100 * (update + 1) // updates} %, {left:.0f} s left")


def chunks(rows: Rows, size: int) -> Iterator[tuple[Rows, int]]:
    """The rows, always `size` at a time so that no number depends on the batch, and how many of them are theirs: zeros,
    or sentences without a word, fill the last chunk up. Of no rows, one chunk that is all filling."""
    for start in range(0, max(len(rows), 1), size):
        chunk = rows[start : start + size]
        lacking = size - len(chunk)
        if isinstance(chunk, list):
            yield chunk + [""] * lacking, len(chunk)
        else:
            yield functional.pad(chunk, (0, 0) * (chunk.ndim - 1) + (0, lacking)), len(chunk)


def in_chunks(work: Callable[[Rows], Tensor], rows: Rows, size: int) -> Tensor:
    """What `work` answers for `chunks` of the rows, (rows, ...), without what comes of the filling."""
    return torch.cat([work(chunk)[:count] for chunk, count in chunks(rows, size)])


class OncePerTensor:
    """Answers for tensors, each worked out once until its tensor changes, and kept as long as the tensor: several
    metrics see one block of pictures or sounds."""

    def __init__(self) -> None:
        self._kept: Any = WeakTensorKeyDictionary()  # tensor -> (its version, the answer)

    def __call__(self, name: str, things: Tensor, work: Callable[[Tensor], Answer]) -> Answer:
        """What `work` answers for the things. Raises ValueError with their name where any is not finite."""
        version = 0 if things.is_inference() else things._version
        kept = self._kept.get(things)
        if kept is None or kept[0] != version:
            if not torch.isfinite(things).all():
                raise ValueError(f"{name} holds NaN or infinite values")
            kept = self._kept[things] = (version, work(things))
        return kept[1]
