"""Networks that the suite trains for itself (codecs, verifiers, judges): once for a machine, kept in a file, and never
twice at once.

A file below $MUNI_BENCH_CACHE or ~/.cache/muni-bench holds the weights, their checksum and, as JSON, what they depend
on and how well they do. One that is damaged, or is about something else, is said so and made anew; a folder that takes
no files costs the cache alone.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from benchmark import registry
from benchmark.api import UserError, one_line
from benchmark.files import CACHE, cache_folder, lock, write_atomic

Say = Callable[[str], None]


class Trained(nn.Module):
    """A network with `facts`, all JSON values: what it depends on, what was measured once it was trained, and the
    checksum of its `weights`."""

    facts: dict[str, Any]


def ready(network: Trained, kind: str, key: str, facts: Mapping[str, Any], train: Callable[[], None], say: Say) -> None:
    """Fill the network from its file, or else train it and write the file.

    kind: in the plural, what the network is, for people and as the name of the folder. facts: all that the weights
    depend on; a file with others is not this network's. train: leaves the weights and the whole of `network.facts`.
    say: gets a line where something is amiss.
    """
    path = folder(kind) / f"{key}.safetensors"
    with _alone(path):
        if not _load(network, path, facts, say):
            train()
            network.facts["weights"] = checksum(network)
            _store(network, path, say)


def code_of(file: str, world: object) -> list[str]:
    """Hashes of the code behind a network, for its facts: of the file that trains it, and of the class that its rows
    come from."""
    rows = Path(inspect.getfile(type(world)))
    return [registry.sources(Path(file)), registry.sources(rows, with_card=False)]


def folder(kind: str) -> Path:
    """Where networks of a kind are kept."""
    return cache_folder() / kind


def checksum(network: nn.Module) -> str:
    """Ten hex digits of every weight."""
    content = hashlib.blake2b(digest_size=5)
    for name, tensor in sorted(network.state_dict().items()):
        content.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _load(network: Trained, path: Path, facts: Mapping[str, Any], say: Say) -> bool:
    """Whether the file had this network, which is as it was where it had not; one line where it is damaged."""
    if not path.exists():
        return False
    begun = copy.deepcopy(network.state_dict())
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads(file.metadata()["facts"])
            if any(stored[name] != value for name, value in facts.items()):
                raise ValueError("it is about something else")
            network.load_state_dict({name: file.get_tensor(name) for name in network.state_dict()})
        if stored["weights"] != checksum(network):
            raise ValueError("a weight has changed since it was written")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        say(f"{path} cannot be used ({one_line(error)}): training anew")
        network.load_state_dict(begun)
        return False
    network.facts = stored
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
        descriptor = os.open(path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(UserError):  # without locks two may train the same: the last file stays
            lock(descriptor, path, CACHE)
        yield
    finally:
        os.close(descriptor)
