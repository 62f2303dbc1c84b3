"""Networks that the suite trains are kept once for a machine: two weights, and every fault that a file may have."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from benchmark.fitting import network_store

ABOUT = {"identity": "one", "rows": 3}
BEGUN, LEARNT = (0.25, -4.0), (1.5, -2.0)


class Two(network_store.Trained):
    """Two weights; `train` sets them, once it has seen that they are as they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(BEGUN))

    def train_on(self, about: dict[str, Any]) -> None:
        assert self.values == BEGUN, "training begins where a damaged file left the weights"
        with torch.no_grad():
            self.weights.copy_(torch.tensor(LEARNT))
        self.facts = {**about, "reached": 0.5}

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(self.weights.tolist())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder of the kind."""
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    return tmp_path / "pairs"


def ready(
    said: list[str],
    key: str = "key",
    kind: str = "pairs",
    about: dict[str, Any] = ABOUT,
    train: Callable[[], None] | None = None,
) -> Two:
    """A network that is filled; "trained" is said, too, where it was trained for that."""
    network = Two()

    def plain() -> None:
        said.append("trained")
        network.train_on(about)

    network_store.ready(network, kind, key, about, train or plain, said.append)
    return network


def test_it_is_trained_once_and_read_from_its_file(folder: Path) -> None:
    said: list[str] = []
    networks = [ready(said), ready(said)]
    assert said == ["trained"]
    expected = hashlib.blake2b(b"weights" + struct.pack("<2f", *LEARNT), digest_size=5).hexdigest()
    for network in networks:
        assert network.values == LEARNT
        assert network.facts == {**ABOUT, "reached": 0.5, "weights": expected}
    with safe_open(folder / "key.safetensors", "pt") as file:
        assert json.loads(file.metadata()["facts"]) == networks[0].facts
        assert file.get_tensor("weights").tolist() == list(LEARNT)


def file_of(facts: Any, **tensors: Tensor) -> bytes:
    """A whole file, but for what it says."""
    return save(tensors or {"weights": torch.tensor(LEARNT)}, {"facts": facts if facts == "{" else json.dumps(facts)})


def without(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}


DAMAGES: dict[str, tuple[Callable[[bytes, dict[str, Any]], bytes], str]] = {  # and a part of what is said of it
    "cut": (lambda content, facts: content[: len(content) // 2], ""),
    "empty": (lambda content, facts: b"", ""),
    "a sign flipped": (lambda content, facts: content[:-1] + bytes([content[-1] ^ 0x80]), "a weight has changed since"),
    "no facts": (lambda content, facts: save({"weights": torch.tensor(LEARNT)}), ""),
    "facts that are no JSON": (lambda content, facts: file_of("{"), "Expecting property name"),
    "a fact is missing": (lambda content, facts: file_of(without(facts, "rows")), "'rows'"),
    "no checksum": (lambda content, facts: file_of(without(facts, "weights")), "'weights'"),
    "another's facts": (lambda content, facts: file_of({**facts, "identity": "two"}), "it is about something else"),
    "other names": (lambda content, facts: file_of(facts, other=torch.zeros(2)), "weights"),
    "another shape": (lambda content, facts: file_of(facts, weights=torch.zeros(3)), "size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_said_in_one_line_and_made_anew(folder: Path, damage: str) -> None:
    said: list[str] = []
    before, path = ready(said), folder / "key.safetensors"
    hurt, why = DAMAGES[damage]
    path.write_bytes(hurt(path.read_bytes(), before.facts))
    again = ready(said)
    first, line, second = said
    assert first == second == "trained"
    assert line.startswith(f"{path} cannot be used (") and line.endswith("): training anew") and "\n" not in line
    assert why in line
    assert (again.values, again.facts) == (before.values, before.facts)
    assert ready(said).values == LEARNT and len(said) == 3  # the file is whole again


def test_a_folder_in_the_files_place_is_said_and_costs_the_cache_alone(folder: Path) -> None:
    (folder / "key.safetensors").mkdir(parents=True)
    said: list[str] = []
    assert ready(said).values == LEARNT
    assert "cannot be used (" in said[0] and said[1] == "trained" and "cannot be written (" in said[2]


def test_keys_and_kinds_are_told_apart(folder: Path) -> None:
    said: list[str] = []
    for key, kind in (("key", "pairs"), ("other", "pairs"), ("key", "couples")):
        ready(said, key, kind)
    assert said == ["trained"] * 3
    files = {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*.safetensors")}
    assert files == {"pairs/key.safetensors", "pairs/other.safetensors", "couples/key.safetensors"}


def test_a_checksum_is_of_every_weight_and_of_its_name() -> None:
    def of(**weights: Tensor) -> str:
        return network_store.checksum(nn.ParameterDict(weights))

    plain = {"a": torch.tensor(LEARNT), "b": torch.zeros(3)}
    assert of(**plain) == of(**dict(reversed(plain.items())))
    others = (
        {"a": torch.tensor(LEARNT)},
        {"a": plain["a"], "c": plain["b"]},
        {**plain, "b": torch.tensor([0, 0, 1e-9])},
    )
    assert len({of(**plain), *(of(**other) for other in others)}) == 4


def test_a_folder_that_takes_no_files_costs_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "file"))
    said: list[str] = []
    for _ in range(2):
        assert ready(said).values == LEARNT
    assert [line == "trained" for line in said] == [True, False, True, False]
    assert all("cannot be written (" in line and "set MUNI_BENCH_CACHE" in line for line in said[1::2])


def test_training_that_fails_leaves_nothing_behind(folder: Path) -> None:
    def fail() -> None:
        raise RuntimeError("planted")

    said: list[str] = []
    with pytest.raises(RuntimeError, match="planted"):
        ready(said, train=fail)
    assert list(folder.glob("*.safetensors")) == []
    assert ready(said).values == LEARNT and said == ["trained"]


def test_of_two_at_once_one_trains_and_the_other_waits_for_its_file() -> None:
    said: list[str] = []
    begun, go_on, found = threading.Event(), threading.Event(), []

    def slowly(network: Two) -> None:
        begun.set()
        assert go_on.wait(30)
        said.append("trained")
        network.train_on(ABOUT)

    def first() -> None:
        network = Two()
        network_store.ready(network, "pairs", "key", ABOUT, lambda: slowly(network), said.append)
        found.append(network.values)

    def second() -> None:
        found.append(ready(said).values)

    threads = [threading.Thread(target=work, daemon=True) for work in (first, second)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    threads[1].join(0.3)  # long enough to train, were it not for the lock
    assert threads[1].is_alive() and said == []
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert said == ["trained"] and found == [LEARNT, LEARNT]


def test_the_cache_is_below_home_unless_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert network_store.folder("pairs") == tmp_path / "pairs"
    monkeypatch.delenv("MUNI_BENCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert network_store.folder("pairs") == tmp_path / ".cache" / "muni-bench" / "pairs"


def test_lines_are_for_people_not_for_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    network_store.to_stderr("a line")
    assert capsys.readouterr() == ("", "a line\n")
