"""Networks that the suite trains itself for its metrics: trained once for a machine, kept in a file, and never twice at
once.

A file below $MUNI_BENCH_CACHE or ~/.cache/muni-bench holds the weights and, as JSON, what they depend on and how well
they do. One that is damaged, or is about something else, is said so and made anew; a folder that takes no files costs
the cache alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from benchmark.files import write_atomic

Say = Callable[[str], None]


class Trained(nn.Module):
    """A network with `facts`: what it depends on, and what was measured once it was trained. All are JSON values."""

    facts: dict[str, Any]


def ready(
    network: Trained, path: Path, facts: Mapping[str, Any], train: Callable[[], None], what: str, say: Say
) -> None:
    """Fill the network from its file, or else train it and write the file.

    facts: all that the weights depend on; a file with others is not this network's. train: leaves the weights and the
    whole of `network.facts`. what: what the network is called in lines to `say`.
    """
    with _alone(path):
        if not _load(network, path, facts, what, say):
            train()
            _store(network, path, say)


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _load(network: Trained, path: Path, facts: Mapping[str, Any], what: str, say: Say) -> bool:
    """Whether the file had this network; one line where it is damaged."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads(file.metadata()["facts"])
            if any(stored[name] != value for name, value in facts.items()):
                raise ValueError("it is about something else")
            network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
            network.facts = stored
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        say(f"{path} cannot be used ({' '.join(str(error).split())}): training the {what} anew")
        return False
    return True


def _store(network: Trained, path: Path, say: Say) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        write_atomic(path, save(tensors, metadata={"facts": json.dumps(network.facts)}))
    except OSError as error:
        say(f"{path} cannot be written ({error.strerror}), so the next command trains again: set MUNI_BENCH_CACHE")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process trains, and those that wait find its file; without a lock where a folder takes no files."""
    if path.exists():
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
