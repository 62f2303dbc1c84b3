"""What every kind of network that the suite trains must do with benchmark/fitting/network_store.py, whose own faults
are planted in tests/fitting/test_network_store.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmark import registry
from benchmark.fitting.network_store import Say, Trained, checksum


def weight_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def check_kept(
    make: Callable[[Any, Say], Trained],
    worlds: Sequence[Any],
    module: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of the worlds, no two of which may share a network, trains one, once for this process and machine; another's
    file is refused in a line, and other code trains anew.

    make: the world's network, as the module has it, which keeps those of this process in `_known` and trains by
    `_train`. folder: where files of the kind are kept, empty as yet.
    """
    networks: list[Trained] = []
    files: list[Path] = []
    for world in worlds:
        networks.append(make(world, str))
        (new,) = set(folder.glob("*.safetensors")) - set(files)
        files.append(new)
    assert make(worlds[0], pytest.fail) is networks[0]
    module._known.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_train", None)  # whoever trains now fails
        for world, network in zip(worlds, networks, strict=True):
            again = make(world, pytest.fail)
            assert again is not network
            assert (checksum(again), again.facts) == (checksum(network), network.facts)
    module._known.clear()
    files[0].write_bytes(files[1].read_bytes())
    said: list[str] = []
    assert checksum(make(worlds[0], said.append)) == checksum(networks[0])
    assert said[0] == f"{files[0]} cannot be used (it is about something else): training anew"
    module._known.clear()
    with monkeypatch.context() as patch:
        patch.setattr(registry, "sources", lambda path, with_card=True: "other code")
        make(worlds[0], str)
    assert len(weight_files(folder)) == len(worlds) + 1
