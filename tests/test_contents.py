"""Files are known by what they hold: read once, read again where they changed, and all of them by `--verify`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmark import contents
from benchmark.api import Cell, UserError
from benchmark.checks import doctor
from benchmark.contents import content_hash, content_hashes, folder_hash
from benchmark.engine import execution
from benchmark.records import results_file, run_identity
from benchmark.records.job import job_of
from data_prep.pretrained import pretrained_codecs

OLD = 1_600_000_000.0  # seconds: long before a test run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "contents"


def put(path: Path, content: bytes, modified: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified, modified))
    return path


def test_a_file_is_read_once_and_again_where_size_time_or_inode_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, path = [], put(tmp_path / "a", b"one")
    real = contents._read
    monkeypatch.setattr(contents, "_read", lambda path: read.append(path.name) or real(path))
    first = content_hash(path)
    assert content_hash(path) == first and read == ["a"]
    found = [first]
    for change in (
        lambda: put(path, b"three"),
        lambda: put(path, b"other", OLD + 1),  # of the same size
        lambda: put(tmp_path / "b", b"again", OLD + 1).replace(path),  # of the same size and time
    ):
        change()
        found += [content_hash(path)]
        assert content_hash(path) == found[-1]
    assert len(set(found)) == 4 and read == ["a"] * 4


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path) -> None:
    """It may change again within one tick of the clock, which neither size nor time would show."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before, state = content_hash(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content_hash(path) != before


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"folder": 1, "files": {"a": [1]}}', None])
def test_a_damaged_or_read_only_store_costs_reading(tmp_path: Path, cache: Path, damage: bytes | None) -> None:
    path = put(tmp_path / "a", b"one")
    known = content_hash(path)
    if damage is None:
        shutil.rmtree(cache)
        cache.write_text("a file in the place of the folder")
    else:
        next(cache.iterdir()).write_bytes(damage)
    assert content_hash(path) == known


def test_what_cannot_be_read_is_said_and_hides_no_other(tmp_path: Path) -> None:
    found = content_hashes([put(tmp_path / "a", b"one"), tmp_path / "gone"])
    assert isinstance(found[tmp_path / "gone"], FileNotFoundError) and len(str(found[tmp_path / "a"])) == 64
    with pytest.raises(FileNotFoundError):
        content_hash(tmp_path / "gone")


def test_a_folder_is_its_names_and_every_byte_but_no_hidden_file(tmp_path: Path) -> None:
    """A checksum of pieces missed a change between them."""
    folder = tmp_path / "model"
    put(folder / "config.json", b"{}")
    large = bytearray(5_000_000)
    put(folder / "model.safetensors", large)
    seen = [pretrained_codecs.checksum(folder)]
    put(folder / ".cache" / "when.metadata", b"now")
    assert folder_hash(folder)[:10] == seen[0]
    large[1_000_001] = 1
    put(folder / "model.safetensors", large, OLD + 1)
    seen.append(pretrained_codecs.checksum(folder))
    (folder / "config.json").rename(folder / "other.json")
    seen.append(pretrained_codecs.checksum(folder))
    assert len(set(seen)) == 3
    with pytest.raises(UserError, match=r"gone cannot be read \(No such file or directory\): get it anew"):
        pretrained_codecs.checksum(folder / "gone")


def test_verify_finds_what_changed_behind_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, gone = put(tmp_path / "data" / "a", b"one"), put(tmp_path / "data" / "b", b"two")
    before = content_hash(path), content_hash(gone)
    gone.unlink()
    assert [each.mark for each in doctor._contents()] == ["ok"]
    put(path, b"bad")  # in its place
    assert content_hash(path) == before[0]
    (found,) = doctor._contents()
    assert found.mark == "problem" and "1 of 1 files hold something else" in found.what and found.what.endswith("a")
    assert content_hash(path) != before[0]
    (found,) = doctor._contents()
    assert found.mark == "ok" and found.what.endswith("data: 1 files hold what they held before")


def test_a_file_of_the_hub_that_is_another_than_its_name_says_is_refused(tmp_path: Path) -> None:
    """The hub's cache names contents by their hash, which nothing checks when it is read."""
    import hashlib

    weights, config = b"weights", b"{}"
    named = {
        "model.safetensors": (hashlib.sha256(weights).hexdigest(), weights),
        "config.json": (hashlib.sha1(b"blob 2\0" + config).hexdigest(), config),
    }
    snapshot = tmp_path / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    for name, (blob, content) in named.items():
        put(tmp_path / "blobs" / blob, content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    assert pretrained_codecs._whole("judge_clip", snapshot) == snapshot
    for name, (blob, content) in named.items():
        put(tmp_path / "blobs" / blob, content.upper() + b" ")
        with pytest.raises(UserError, match=rf"judge_clip: .*{name} is not what the hub handed out: remove .*{blob}"):
            pretrained_codecs._whole("judge_clip", snapshot)
        put(tmp_path / "blobs" / blob, content)


# ------------------------------------------------------------------------------------------ rows of an earlier command

DATASET = """
import os
from pathlib import Path
import torch
from benchmark.api import DatasetCard, Modality
CARD = DatasetCard(version=1, label="files", paper="none", modalities=("a", "b"), kinds=("vector", "vector"),
                   notes=(), recipe={recipe})

class Files:
    def __init__(self, config, device="cpu"):
        self.modalities = tuple(Modality(name, (2,), kind="vector") for name in ("a", "b"))
        self.identity = self.content(config)["identity"]
        self._rows = [float(self.identity[-1])] * 2
    @classmethod
    def content(cls, config):
        folder = Path(os.environ["FILES"])
        return {{name: (folder / name).read_text() for name in ("identity", "judge")}}
    def count(self, split):
        return 64
    def rows_of(self, cell):
        return 32
    def rows(self, split, indices):
        x = indices.float()[:, None] * torch.tensor(self._rows)
        return {{"a": x, "b": -x}}

DATASET = Files
"""


def test_rows_of_other_files_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark import registry

    recipe = registry.card("dataset", "gaussian_mixture").recipe
    (tmp_path / "files.py").write_text(DATASET.format(recipe=repr(dict(recipe))))
    monkeypatch.setenv("FILES", str(tmp_path))
    (tmp_path / "identity").write_text("rows 1")
    (tmp_path / "judge").write_text("judge 1")
    dataset = str(tmp_path / "files.py")
    job = job_of("real", dataset, "smoke", 0, [(Cell("files", ("a",), ("b",)), "swd")])

    def run(**fresh: bool) -> list[str]:
        prepared = run_identity.prepare(job, tmp_path / "runs")
        scored = []
        monkeypatch.setattr(execution, "_execute_one", lambda *each: scored.append("scored") or execute(*each))
        assert execution.execute([prepared], "cpu", lambda *_: None, **fresh) == []
        assert len(results_file.load(prepared.results)) == 1
        return scored

    execute = execution._execute_one
    assert (run(), run()) == (["scored"], [])
    (tmp_path / "judge").write_text("judge 2")
    assert (run(), run()) == (["scored"], [])
    (tmp_path / "identity").write_text("rows 2")
    with pytest.raises(UserError, match="begun on the data rows 1, and they are rows 2 now: put the former back"):
        run()
    assert (run(fresh=True), run()) == (["scored"], [])
    stored = json.loads((run_identity.prepare(job, tmp_path / "runs").directory / "config.json").read_text())
    assert stored["content"] == {"identity": "rows 2", "judge": "judge 2"}
