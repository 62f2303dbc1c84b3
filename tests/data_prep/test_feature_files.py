"""Features of a corpus: exact, counted, resumed after a kill, made anew where a file was damaged, never held whole."""

import gc
import json
import re
import sys
import threading
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmark.api import UserError
from data_prep.media import feature_files
from data_prep.media.feature_files import BadItem

pytest.importorskip("datasets", reason="features are kept by the package datasets")

COUNT, SHARD, BATCH = 100, 30, 8
VECTORS = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(0))


class Corpus:
    """COUNT vectors with their numbers as words; `loaded` are the items that were asked for."""

    def __init__(self, bad=(), fails_at=None):
        self.bad, self.fails_at, self.loaded, self.encoded = set(bad), fails_at, [], []

    def load(self, number):
        self.loaded.append(number)
        if number == self.fails_at:
            raise KeyboardInterrupt
        if number in self.bad:
            raise BadItem("silent clips", f"{number}.wav")
        return number

    def encode(self, numbers):
        self.encoded.append(len(numbers))
        rows = torch.tensor(numbers)
        return {"audio": VECTORS[rows], "words": rows[:, None] * torch.tensor([1, -1]), "length": rows.float() / 2}

    def extract(self, say=lambda line: None, **changes):
        arguments = {"name": "corpus", "codec": "c1", "data": "d1", "count": COUNT, "shard": SHARD, "batch": BATCH}
        return feature_files.extract(load=self.load, encode=self.encode, say=say, **(arguments | changes))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    return tmp_path


def same(one, other):
    first, second = one.whole(), other.whole()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    return True


def shards(found):
    return sorted(found.folder.glob("*.arrow"))


# ------------------------------------------------------------------------------------------ content


def test_every_row_is_what_the_encoder_said():
    corpus = Corpus()
    found = corpus.extract()
    assert len(found) == COUNT and len(shards(found)) == 4
    whole = found.whole()
    assert torch.equal(whole["audio"], VECTORS)
    assert torch.equal(whole["index"], torch.arange(COUNT))
    assert torch.equal(whole["words"], torch.arange(COUNT)[:, None] * torch.tensor([1, -1]))
    assert torch.equal(whole["length"], torch.arange(COUNT) / 2)
    assert {name: x.dtype for name, x in whole.items()} == {
        "audio": torch.float32,
        "words": torch.int64,
        "length": torch.float32,
        "index": torch.int64,
    }
    assert corpus.loaded == list(range(COUNT))
    assert max(corpus.encoded) == BATCH


def test_rows_in_any_order_across_shards():
    found = Corpus(bad={0, 29, 30, 99}).extract()
    kept = torch.tensor([number for number in range(COUNT) if number not in (0, 29, 30, 99)])
    order = torch.cat([torch.randperm(len(found), generator=torch.Generator().manual_seed(1)), torch.tensor([5, 5, 0])])
    rows = found.rows(order)
    assert torch.equal(rows["index"], kept[order])
    assert torch.equal(rows["audio"], VECTORS[kept[order]])
    assert torch.equal(rows["words"][:, 1], -kept[order])
    assert found.rows(order[:0])["audio"].shape == (0, 5)
    for beyond in (-1, len(found)):
        with pytest.raises(IndexError, match=f"of {len(found)}"):
            found.rows(torch.tensor([0, beyond]))


def test_rows_are_mapped_and_not_held():
    found = Corpus().extract()
    for views in found.columns.values():
        assert all(not view.flags.owndata and not view.flags.writeable for view in views)
    rows = found.rows(torch.arange(3))
    rows["audio"].zero_()
    assert torch.equal(found.rows(torch.arange(3))["audio"], VECTORS[:3])


def test_columns_of_unequal_length_are_a_mistake():
    corpus = Corpus()
    corpus.encode = lambda numbers: {"audio": VECTORS[: len(numbers) + 1]}
    with pytest.raises(ValueError, match="unequal length"):
        corpus.extract()


# ------------------------------------------------------------------------------------------ what has no features


def test_bad_items_are_left_out_and_counted_by_their_reason():
    corpus, lines = Corpus(bad={*range(10, 20), 64}), []
    load, encode = corpus.load, corpus.encode
    corpus.load = lambda number: None if number in (3, 4) else load(number)

    def encode_badly(numbers):
        columns = encode(numbers)
        columns["audio"] = torch.where(torch.tensor(numbers)[:, None] == 50, torch.nan, columns["audio"])
        return columns

    corpus.encode = encode_badly
    found = corpus.extract(say=lines.append)
    gone = {3, 4, 50, 64, *range(10, 20)}
    assert set(found.whole()["index"].tolist()) == set(range(COUNT)) - gone
    assert found.manifest["rows"] == len(found) == COUNT - len(gone)
    assert found.manifest["count"] == COUNT
    assert found.manifest["left out"] == {
        "missing": {"count": 2, "examples": ["3", "4"]},
        "silent clips": {"count": 11, "examples": ["10.wav", "11.wav", "12.wav", "13.wav", "14.wav"]},
        "features that are not finite": {"count": 1, "examples": ["50"]},
    }
    assert lines[-1] == (
        "features of corpus: 86 of 100 items have features; left out: 2 missing (3, 4); 11 silent clips (10.wav, "
        "11.wav, 12.wav, 13.wav, 14.wav, ...); 1 features that are not finite (50)"
    )
    assert json.loads((found.folder / "manifest.json").read_text()) == found.manifest
    again, lines = Corpus(fails_at=0), []
    assert again.extract(say=lines.append).manifest == found.manifest
    assert len(lines) == 1 and "86 of 100" in lines[0]


def test_a_shard_without_any_row_is_not_asked_for_again():
    found = Corpus(bad=range(30, 60)).extract()
    assert len(found) == 70 and len(shards(found)) == 3
    again = Corpus(fails_at=30)
    assert same(again.extract(), found)
    assert not again.loaded


@pytest.mark.parametrize("corpus", [Corpus(bad=range(COUNT)), Corpus()])
def test_a_corpus_without_any_row_is_refused(corpus):
    count = COUNT if corpus.bad else 0
    with pytest.raises(UserError, match=rf"features of corpus: no item of {count} has any; see .*manifest\.json"):
        corpus.extract(count=count)


# ------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("at", [0, 29, 30, 47, 99])
def test_a_killed_extraction_goes_on_and_ends_alike(at, monkeypatch, tmp_path):
    whole = Corpus(bad={7, 61}).extract(data="d2")
    killed = Corpus(bad={7, 61}, fails_at=at)
    with pytest.raises(KeyboardInterrupt):
        killed.extract()
    finished = at // SHARD * SHARD
    resumed, lines = Corpus(bad={7, 61}), []
    found = resumed.extract(say=lines.append)
    assert resumed.loaded == list(range(finished, COUNT))
    assert same(found, whole)
    assert found.manifest["left out"] == whole.manifest["left out"]
    assert [one.read_bytes() for one in shards(found)] == [other.read_bytes() for other in shards(whole)]
    assert (f"{finished // SHARD} of 4 shards are there" in lines[0]) == (finished > 0)
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(
        ["lock", "manifest.json", *(path.name for path in shards(found))]
    )


def test_what_a_killed_process_was_writing_is_no_shard():
    """A process that is killed outright leaves its unfinished file, which the next one replaces."""
    whole = Corpus().extract()
    last = shards(whole)[-1]
    (whole.folder / f".{last.name}.part").write_bytes(b"half of it")
    last.unlink()
    resumed = Corpus()
    assert same(resumed.extract(), whole)
    assert resumed.loaded == list(range(90, COUNT))
    assert not list(whole.folder.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "said"), [("cut", r"has [\d,]+ bytes of"), ("flipped", "has changed since"), ("gone", "is gone")]
)
def test_a_damaged_shard_alone_is_made_anew(damage, said):
    whole = Corpus().extract()
    contents = [path.read_bytes() for path in shards(whole)]
    hurt = shards(whole)[1]
    if damage == "cut":
        hurt.write_bytes(contents[1][:-200])
    elif damage == "flipped":
        middle = len(contents[1]) // 2
        hurt.write_bytes(contents[1][:middle] + bytes([contents[1][middle] ^ 1]) + contents[1][middle + 1 :])
    else:
        hurt.unlink()
    corpus, lines = Corpus(), []
    found = corpus.extract(say=lines.append)
    assert corpus.loaded == list(range(30, 60))
    assert [path.read_bytes() for path in shards(found)] == contents
    assert re.search(rf"{hurt.name} {said}.*: extracting its items anew", lines[0])
    Corpus(fails_at=30).extract()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"shards": [{}]}'])
def test_a_damaged_manifest_costs_an_extraction(content):
    whole = Corpus().extract()
    kept = (whole.folder / "manifest.json").read_bytes()
    (whole.folder / "manifest.json").write_bytes(content)
    corpus, lines = Corpus(), []
    assert same(corpus.extract(say=lines.append), whole)
    assert "manifest.json cannot be used (" in lines[0]
    assert len(corpus.loaded) == COUNT
    assert (whole.folder / "manifest.json").read_bytes() == kept


def test_what_features_depend_on_tells_folders_apart():
    folders = {
        Corpus().extract(**changes).folder
        for changes in ({}, {"codec": "c2"}, {"data": "d2"}, {"count": 99}, {"name": "another"}, {"shard": 40})
    }
    assert len(folders) == 6
    again = Corpus(fails_at=0)
    assert again.extract().folder in folders
    assert not again.loaded


def test_one_process_extracts_and_the_other_waits():
    first, second = Corpus(), Corpus(fails_at=0)
    begun, go_on, lines = threading.Event(), threading.Event(), []
    load = first.load

    def slowly(number):
        begun.set()
        assert go_on.wait(60)
        return load(number)

    first.load = slowly
    found = []
    working = threading.Thread(target=lambda: found.append(first.extract()))
    working.start()
    assert begun.wait(60)

    def say(line):
        lines.append(line)
        go_on.set()

    assert len(second.extract(say=say)) == COUNT
    working.join(60)
    assert same(found[0], second.extract())
    assert "another process extracts these features: waiting for it" in lines[0]


# ------------------------------------------------------------------------------------------ memory and progress


class Thing:
    """An item that is counted while it is held."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, number):
        self.number = number
        self.alive.add(self)


def test_no_more_items_are_held_than_a_batch_has():
    most = []

    def load(number):
        thing = Thing(number)
        gc.collect(0)
        most.append(len(Thing.alive))
        return thing

    def encode(things):
        return {"audio": VECTORS[[thing.number for thing in things]]}

    feature_files.extract("things", "c", "d", COUNT, load, encode, say=str, shard=SHARD, batch=BATCH)
    assert max(most) <= BATCH + 1  # the last one of a batch is let go when the next is there
    assert len(most) == COUNT


def test_it_says_how_far_it_is_and_how_long_the_rest_takes(monkeypatch):
    monkeypatch.setattr(feature_files, "SAY_EVERY", -1.0)
    lines = []
    Corpus().extract(say=lines.append)
    assert lines[0] == "features of corpus: extracting 100 items, once for this machine"
    assert all(re.fullmatch(r"features of corpus: \d+ of 100 items, \d+ %, \d+ s left", line) for line in lines[1:])
    assert "100 of 100 items, 100 %, 0 s left" in lines[-1]


def test_it_speaks_on_stderr(capsys):
    Corpus().extract(say=None)
    out, err = capsys.readouterr()
    assert not out and err.startswith("features of corpus: extracting")


# ------------------------------------------------------------------------------------------ statistics


def test_statistics_are_numpys_of_all_parts(monkeypatch):
    """Far from zero, where sums of squares in float32 would lose the deviation."""
    generator = torch.Generator().manual_seed(2)
    values = 1e4 + torch.rand(2 * COUNT, 3, generator=generator) * torch.tensor([1e-1, 1.0, 0.0])
    parts = [
        feature_files.extract(
            name, "c", "d", COUNT, int, lambda n, first=first: {"x": values[first + torch.tensor(n)]}, str
        )
        for name, first in (("first", 0), ("second", COUNT))
    ]
    mean, deviation = feature_files.statistics(parts, "x")
    double = values.numpy().astype(np.float64)
    assert mean.dtype == deviation.dtype == torch.float32
    assert np.allclose(mean.numpy(), double.mean(0), rtol=1e-7)
    assert np.allclose(deviation[:2].numpy(), double.std(0)[:2], rtol=1e-6)
    assert deviation[2] == 1  # never varies


# ------------------------------------------------------------------------------------------ what the user can mend


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets, which is not installed: pip install 'muni-bench\[image-text-audio"):
        Corpus().extract()


def test_a_folder_that_takes_no_files_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"features of corpus cannot be kept in .*set MUNI_BENCH_CACHE") as caught:
        Corpus().extract()
    assert "\n" not in str(caught.value)
