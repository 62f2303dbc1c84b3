"""The paper-scale dataset on tiny models and real pictures and sounds: from files to scores, and what can go wrong."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmark import registry
from benchmark.api import Cell, Modality, UserError, cells
from benchmark.config import Config, resolve
from benchmark.engine.evaluate import evaluate_cell
from benchmark.engine.samples import Samples
from benchmark.engine.train import training_batch
from benchmark.judges import pretrained_judges as judges
from benchmark.media.media_files import read_wav
from benchmark.metrics.common import frechet
from benchmark.runtime import Draws, seeded
from data_prep.media import image_text_audio_sources as sources
from data_prep.media.feature_files import BadItem
from data_prep.pretrained.pretrained_codecs import Models, PrefixProjector
from tests import ROOT
from tests.helpers import tiny_models_once

NAME = "image_text_audio"
ORDER = ("text", "image", "audio")


def smoke(**changes: Any) -> Config:
    overrides = [f"{key}={value}" for key, value in changes.items()]
    return resolve(registry.card("dataset", NAME), None, "smoke", overrides).config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models_once.models(tmp_path_factory)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where features of this test run are kept; several test processes share them."""
    with pytest.MonkeyPatch.context() as patch:
        place = tiny_models_once.shared(tmp_path_factory) / "tiny-features"
        patch.setenv("MUNI_BENCH_CACHE", str(place))
        yield place


@pytest.fixture(scope="module")
def data(folder: Path, cache: Path) -> Any:
    """The variant mini, made of the real files."""
    real = Path(os.environ.get("MUNI_BENCH_DATA", ROOT.parent / "shared" / "data"))
    if not (real / "coco_mini").is_dir() or not (real / "esc10").is_dir():
        pytest.skip(f"no coco_mini and esc10 in {real}: set MUNI_BENCH_DATA to their folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUNI_BENCH_DATA", str(real))
        return registry.load("dataset", NAME)(smoke(), "cpu", Models(folder))


# ---------------------------------------------------------------------------------------------- files that a user has


def put_picture(path: Path, shade: int = 128, size: tuple[int, int] = (20, 16)) -> Path:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.RandomState(shade).randint(0, 256, (*size, 3)).astype(np.uint8)
    image.fromarray(levels).save(path)
    return path


def put_sound(path: Path, seed: int = 0, rate: int = 48_000, seconds: float = 0.5, gain: float = 0.1) -> Path:
    soundfile = pytest.importorskip("soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = gain * np.random.RandomState(seed).uniform(-1, 1, round(seconds * rate))
    soundfile.write(path, samples, rate)
    return path


def put_manifest(folder: Path, rows: list[dict[str, Any]], form: str = "csv") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif form == "jsonl":
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "manifest.parquet")


def source(holds: tuple[str, ...], split: str = "text+audio", reader: Any = None, **hub: str) -> sources.Source:
    return sources.Source("mine", split, holds, 0, "none", reader or sources.manifest(holds), hub)


# Separators that pycocoevalcap's tokenizer would take for the end of a line.
HOSTILE = ("a dog\nbarks", "a dog\u2028barks", "a dog\x0bbarks", " a  dog\tbarks ", "a dog\x85barks\r")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_manifest_is_read_and_what_is_wrong_with_it_is_counted(tmp_path: Path, form: str) -> None:
    rows = [{"id": f"r{number}", "caption": text} for number, text in enumerate((*HOSTILE, "", "no sound", "a cat"))]
    for number in (*range(6), 7):
        put_sound(tmp_path / "audio" / f"r{number}.wav", number)
    put_manifest(tmp_path, [*rows, {"id": "r7", "caption": "a cat again"}], form)
    found = sources.listing(source(("text", "audio")), tmp_path, {})
    assert [item.id for item in found.items] == ["r0", "r1", "r2", "r3", "r4", "r7"]
    assert {item.captions[0] for item in found.items[:5]} == {"a dog barks"}
    assert found.items[5].captions == ("a cat", "a cat again")
    assert found.counts == {
        "captions whose white space was mended": 5,
        "without a caption": 1,
        "without their audio": 1,
    }
    assert "6 rows, 5 captions whose white space was mended, 1 without a caption, 1 without" in found.in_words()


def test_a_checksum_sees_names_captions_and_what_files_hold(tmp_path: Path, cache: Path) -> None:
    def checksum() -> str:
        return sources.listing(source(("text", "audio")), tmp_path, {}).checksum

    put_sound(tmp_path / "audio" / "a.wav")
    put_manifest(tmp_path, [{"id": "a", "caption": "a dog", "clip": "x"}])
    seen = [checksum(), checksum()]
    put_sound(tmp_path / "audio" / "a.wav", seed=1)  # of the same size
    seen.append(checksum())
    for row in ({"caption": "a cat", "clip": "x"}, {"caption": "a cat", "clip": "y"}):
        put_manifest(tmp_path, [{"id": "a", **row}])
        seen.append(checksum())
    assert seen[0] == seen[1] and len(set(seen)) == 4


BAD_ROWS = {
    "a number": ("jsonl", b'{"id": 1, "caption": 1.5}', "line 2: the caption 1.5 is no text"),
    "true": ("jsonl", b'{"id": 1, "caption": [true]}', "line 2: the caption True is no text"),
    "an object": ("jsonl", b'{"id": 1, "caption": {"en": "x"}}', "line 2: the caption {'en': 'x'} is no text"),
    "half a pair": (
        "jsonl",
        b'{"id": 1, "caption": "a \\ud800 dog"}',
        r"line 2: holds '\ud800', which is no character",
    ),
    "no object": ("jsonl", b'["a", "dog"]', 'line 2: ["a", "dog"] is no object of columns'),
    "no JSON": ("jsonl", b'{"id": 1, "caption": }', "line 2: not JSON: Expecting value"),
    "no UTF-8": ("csv", b"1,a d\xf6g", r"line 3: holds '\udcf6', which is no character: write UTF-8"),
    "an open quote": (
        "csv",
        b'1,"a dog' + b"\nfar too long" * 20_000,
        "field larger than field limit (131072): is a quote",
    ),
    "no score": ("csv", b"1,a dog,fine", "line 3: aesthetic_score is 'fine', which is no number"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_read_is_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    form, row, said = BAD_ROWS[name]
    good = b"id,caption,aesthetic_score\n0,a cat,9\n" if form == "csv" else b'{"id": 0, "caption": "a cat"}\n'
    (tmp_path / f"manifest.{form}").write_bytes(good + row + b"\n")
    with pytest.raises(UserError) as raised:
        sources.listing(source(("text",)), tmp_path, {})
    assert said in str(raised.value) and f"manifest.{form}" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_marks_blank_lines_whole_numbers_and_long_captions_are_read(tmp_path: Path, form: str) -> None:
    put_manifest(tmp_path, [{"id": "a", "caption": 1984}, {"id": "b", "caption": None if form != "csv" else ""}], form)
    path = tmp_path / f"manifest.{form}"
    if form != "parquet":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    found = sources.listing(source(("text",)), tmp_path, {})
    assert [item.captions for item in found.items] == [("1984",)] and found.counts == {"without a caption": 1}
    if form != "csv":
        put_manifest(tmp_path, [{"id": "a", "caption": "a dog " * 30_000}], form)
        assert len(sources.listing(source(("text",)), tmp_path, {}).items[0].captions[0]) == 179_999


def test_marks_and_blank_lines_are_read_in_every_form(tmp_path: Path) -> None:
    """As spreadsheets and editors of some systems write them."""
    mark, audio = b"\xef\xbb\xbf", tmp_path / "audiocaps"
    put_sound(audio / "audio" / "x_1.WAV")
    (audio / "test.csv").write_bytes(mark + b"audiocap_id,youtube_id,start_time,caption\r\n1,x,1,a dog\r\n\r\n")
    put_sound(tmp_path / "audio" / "y_000002.flac")
    put_picture(tmp_path / "frames" / "y_000002.JPG")
    (tmp_path / "vggsound.csv").write_bytes(mark + b"y,2,dog,test\n\n")
    put_picture(tmp_path / "flickr30k-images" / "1.jpg")
    (tmp_path / "flickr_annotations_30k.csv").write_bytes(mark + b'raw,filename\n"[""a cat""]",1.jpg\n\n')
    put_picture(tmp_path / "val2014" / "7.jpg")
    captions = {"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": [{"id": 1, "image_id": 7, "caption": "a"}]}
    (tmp_path / "captions.json").write_bytes(mark + json.dumps(captions).encode())
    for holds, reader, folder in (
        (("text", "audio"), sources.audiocaps("test.csv"), audio),
        (("image", "audio"), sources.vggsound("test"), tmp_path),
        (("text", "image"), sources.flickr30k, tmp_path),
        (("text", "image"), sources.coco("captions.json", "val2014", 9), tmp_path),
    ):
        assert len(sources.listing(source(holds, reader=reader), folder, {}).items) == 1


@pytest.mark.parametrize("suffix", [".PNG", ".JPG", ".WEBP"])
def test_suffixes_in_capitals_are_found(tmp_path: Path, suffix: str) -> None:
    put_picture(tmp_path / "images" / f"a{suffix}")
    put_manifest(tmp_path, [{"id": "a", "caption": "a dog"}])
    assert len(sources.listing(source(("text", "image")), tmp_path, {}).items) == 1


def test_low_aesthetic_scores_are_left_out(tmp_path: Path) -> None:
    rows = [{"id": f"r{score}", "caption": "x", "aesthetic_score": score} for score in (4.9, 5.0, 5.1)]
    for row in rows:
        put_picture(tmp_path / "images" / f"{row['id']}.png")
    put_manifest(tmp_path, rows)
    assert [item.id for item in sources.listing(source(("text", "image")), tmp_path, {}).items] == ["r5.1"]


def test_the_forms_in_which_the_data_are_handed_out_are_read(tmp_path: Path) -> None:
    """COCO's json, AudioCaps' and VGGSound's tables, Flickr30k's annotations."""
    annotations = [
        {"id": 3, "image_id": 7, "caption": "second"},
        {"id": 1, "image_id": 7, "caption": "first"},
        {"id": 2, "image_id": 9, "caption": "only"},
    ]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (7, 9, 11)]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for number in (7, 9, 11):
        put_picture(tmp_path / "val2014" / f"{number}.jpg")
    (tmp_path / "test.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,-a_b,30,one\n2,-a_b,30,two\n3,cd,0,three\n"
    )
    (tmp_path / "vggsound.csv").write_text('-a_b,30,"dog, barking",train\ncd,7,rain,test\n')
    for name in ("-a_b_30", "cd_0", "-a_b_000030", "cd_000007"):
        put_sound(tmp_path / "audio" / f"{name}.flac")
        put_picture(tmp_path / "images" / f"{name}.png")
        put_picture(tmp_path / "frames" / f"{name}.jpg")
    (tmp_path / "flickr_annotations_30k.csv").write_text('raw,filename\n"[""x"", ""y""]",1.jpg\n')
    put_picture(tmp_path / "flickr30k-images" / "1.jpg")

    def items(number: int) -> list[sources.Item]:
        return sources.listing(sources.SOURCES[number], tmp_path, {}).items

    names = [each.name for each in sources.SOURCES]
    coco = {item.id: item for item in items(names.index("coco"))}
    assert {key: item.captions for key, item in coco.items()} == {"7": ("first", "second"), "9": ("only",)}
    assert [(item.id, item.captions) for item in items(names.index("audiocaps_test"))] == [
        ("-a_b_30", ("one", "two")),
        ("cd_0", ("three",)),
    ]
    assert [item.id for item in items(names.index("vggsound"))] == ["-a_b_000030"]
    assert [item.id for item in items(names.index("vggsound_test"))] == ["cd_000007"]
    triplet = items(names.index("triplets"))[1]
    assert triplet.clip == "youtube:cd" and triplet.image is not None and triplet.audio is not None
    assert items(names.index("flickr30k"))[0].captions == ("x", "y")


def test_cocos_rows_are_the_first_by_a_hash_whatever_their_order(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(40)]
    for image in images:
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / image["file_name"]).write_bytes(b"x")
    annotations = [{"id": number, "image_id": number, "caption": "x"} for number in range(40)]

    def chosen(order: int, rows: int) -> list[str]:
        content = {"images": images[::order], "annotations": annotations}
        (tmp_path / "c.json").write_text(json.dumps(content))
        return [item.id for item in sources.coco("c.json", "p", rows)(tmp_path)]

    assert chosen(1, 10) == chosen(-1, 10) == chosen(1, 40)[:10] != [str(number) for number in range(10)]


@pytest.mark.parametrize("fault", ["no folder", "empty", "other form", "all missing", "no id"])
def test_a_source_that_has_nothing_is_one_line(tmp_path: Path, fault: str) -> None:
    place = tmp_path / "mine"
    said = {
        "no folder": "no folder .*mine: put its files there",
        "empty": "neither the files of its own form",
        "other form": "manifest.jsonl, line 1: not JSON",
        "all missing": r"has no usable row \(2 without their image\)",
        "no id": "a row without an id",
    }[fault]
    if fault != "no folder":
        place.mkdir()
    if fault == "other form":
        (place / "manifest.jsonl").write_text("{")
    elif fault == "all missing":
        put_manifest(place, [{"id": "a", "caption": "x"}, {"id": "b", "caption": "y"}])
    elif fault == "no id":
        put_manifest(place, [{"name": "a", "caption": "x"}])
    with pytest.raises(UserError, match=said) as raised:
        sources.listing(source(("text", "image")), place, {})
    assert "\n" not in str(raised.value)


def test_training_on_a_clip_of_a_test_is_refused(tmp_path: Path) -> None:
    def listed(split: str, clips: list[str]) -> sources.Listing:
        return sources.Listing(
            source(("text",), split), "here", [sources.Item(clip, clip, ("x",)) for clip in clips], Counter()
        )

    train, test = (
        listed("text+audio", ["youtube:a", "youtube:b", "youtube:c"]),
        listed("triplets", ["coco:1 youtube:b"]),
    )
    with pytest.raises(UserError, match=r"mine: 1 of its 3 training rows .* such as youtube:b: leave them out with"):
        sources.without_overlap([train, test], leave_out=False)
    kept, same = sources.without_overlap([train, test], leave_out=True)
    assert [item.id for item in kept.items] == ["youtube:a", "youtube:c"] and same is test
    assert kept.counts == {"left out, since a test has their clip": 1} and kept.checksum != train.checksum
    assert sources.without_overlap([train, listed("coco", ["coco:1"])], leave_out=False)[0] is train


def test_the_hub_answers_where_there_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A dataset of parquet files with bytes of pictures and sounds, read through the package datasets."""
    monkeypatch.setattr(tiny_models_once.package("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [
        {
            "key": number,
            "said": [f"caption {number}", "another"],
            "audio": {"bytes": put_sound(tmp_path / "x.wav", number).read_bytes(), "path": None},
            "youtube_id": f"clip{number}",
        }
        for number in range(3)
    ]
    (tmp_path / "hub").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    hub = {"hub": str(tmp_path / "hub"), "id": "key", "caption": "said", "audio": "audio", "clip": "youtube_id"}
    found = sources.listing(source(("text", "audio"), **hub), tmp_path / "nowhere", {})
    assert [(item.id, item.clip, item.captions[0]) for item in found.items][2] == ("2", "youtube:clip2", "caption 2")
    samples, changed = sources.sound(found.items[2], 48_000)
    assert len(samples) == 24_000 and not changed
    same = sources.listing(source(("text", "audio"), **hub), tmp_path / "nowhere", {})
    assert same.checksum == found.checksum
    rows[1]["audio"]["bytes"] = put_sound(tmp_path / "x.wav", 9).read_bytes()  # of the same size
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    other = sources.listing(source(("text", "audio"), **hub), tmp_path / "nowhere", {})
    assert other.checksum != found.checksum
    with pytest.raises(
        UserError, match=r"mine: no folder .* cannot be had from the hub .*no column wave: it has"
    ) as raised:
        sources.listing(source(("text", "audio"), **{**hub, "audio": "wave"}), tmp_path / "nowhere", {})
    assert "\n" not in str(raised.value)


def test_a_wrong_configuration_of_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    (tmp_path / NAME).mkdir()
    for text, said in (
        ("[flicker30k]\nhub = 'x'", "unknown source 'flicker30k': did you mean 'flickr30k'"),
        ("[flickr30k]\nhubb = 'x'", r"\[flickr30k\] has no key 'hubb': did you mean 'hub'"),
        ("[", "sources.toml: "),
    ):
        (tmp_path / NAME / "sources.toml").write_text(text)
        with pytest.raises(UserError, match=said):
            sources.listings("paper")
    (tmp_path / NAME / "sources.toml").unlink()
    with pytest.raises(UserError, match=r"laion_coco_aesthetic: no folder .* put its files there"):
        sources.listings("paper")


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("seconds", [2.0, 30.0])
def test_half_a_sound_is_damaged(tmp_path: Path, form: str, seconds: float) -> None:
    """Although what is read of it, the first ten seconds, may be there, and libsndfile says nothing."""
    whole = put_sound(tmp_path / f"whole.{form}", seconds=seconds)
    content = whole.read_bytes()
    item = sources.Item("a", "a", audio=sources.File(whole))
    assert len(sources.sound(item, 48_000)[0]) == min(seconds, 10) * 48_000
    for kept in (0.5, 0.95):
        whole.write_bytes(content[: round(kept * len(content))])
        with pytest.raises(BadItem) as raised:
            sources.sound(item, 48_000)
        assert raised.value.reason in ("sounds that are cut short", "unreadable sounds")


def test_a_sound_that_was_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    """Its header says neither of its sizes."""
    path = put_sound(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert len(sources.sound(sources.Item("a", "a", audio=sources.File(path)), 48_000)[0]) == 24_000


def test_channels_in_opposite_phase_are_heard(tmp_path: Path) -> None:
    """Their mean is silence; of channels that differ otherwise it is what a listener hears."""
    soundfile = pytest.importorskip("soundfile")
    tone, path = 0.5 * np.sin(np.arange(4_000) / 9), tmp_path / "a.wav"
    item = sources.Item("a", "a", audio=sources.File(path))
    for left, right, expected in (
        (tone, -tone, tone),
        (tone / 2, -0.55 * tone, -0.55 * tone),  # 20 dB are gone: the loudest
        (tone, -tone / 2, tone / 4),
        (tone, 0 * tone, tone / 2),
    ):
        soundfile.write(path, np.stack([left, right], 1), 16_000, "FLOAT")
        assert np.allclose(sources.sound(item, 16_000)[0], expected, atol=1e-6)
        soundfile.write(path, np.stack([left, right], 1), 16_000)
        assert np.allclose(read_wav(path)[0], expected, atol=1e-4)


def test_a_generated_sound_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = put_sound(tmp_path / "a.wav")
    path.write_bytes(path.read_bytes()[:9_044])
    with pytest.raises(UserError, match=r"not a whole sound \(4,500 of the 24,000 samples that its header names\)"):
        read_wav(path)


def test_unusable_files_are_named_by_their_fault(tmp_path: Path) -> None:
    def item(name: str) -> sources.Item:
        return sources.Item(name, name, image=sources.File(tmp_path / name), audio=sources.File(tmp_path / name))

    (tmp_path / "cut.jpg").write_bytes(put_picture(tmp_path / "whole.jpg", size=(99, 99)).read_bytes()[:200])
    (tmp_path / "text.wav").write_text("no sound")
    put_sound(tmp_path / "silent.wav", gain=1e-5)
    put_sound(tmp_path / "empty.wav", seconds=0)
    for name, reader, reason in (
        ("cut.jpg", sources.picture, "unreadable pictures"),
        ("gone.jpg", sources.picture, "unreadable pictures"),
        ("text.wav", lambda each: sources.sound(each, 48_000), "unreadable sounds"),
        ("gone.wav", lambda each: sources.sound(each, 48_000), "unreadable sounds"),
        ("silent.wav", lambda each: sources.sound(each, 48_000), "silent sounds"),
        ("empty.wav", lambda each: sources.sound(each, 48_000), "sounds without a sample"),
    ):
        with pytest.raises(BadItem) as raised:
            reader(item(name))
        assert (raised.value.reason, raised.value.which) == (reason, name)


def test_sounds_of_other_rates_channels_and_lengths_become_alike(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    t = np.arange(12 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(tmp_path / "long.wav", np.stack([tone, tone / 2], 1), 44_100)
    item = sources.Item("long", "long", audio=sources.File(tmp_path / "long.wav"))
    samples, changed = sources.sound(item, 16_000)
    expected = 0.375 * np.sin(2 * np.pi * 440 * np.arange(160_000) / 16_000)
    assert changed and samples.shape == (160_000,) and samples.dtype == np.float32
    assert np.abs(samples - expected)[100:-100].max() < 5e-3


# ---------------------------------------------------------------------------------------------- the dataset


def test_features_are_standard_over_the_training_corpora(data: Any) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for split in data.corpora:
        for name, values in data.rows(split, torch.arange(data.count(split))).items():
            seen.setdefault(name, []).append(values)
    for name in ORDER:
        values = torch.cat(seen[name])
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0, unbiased=False), torch.ones(values.shape[1]), atol=1e-3, rtol=0)
    assert {split: set(data.rows(split, torch.arange(1))) for split in data.corpora} == {
        "text+image": {"text", "text words", "image"},
        "text+audio": {"text", "text words", "audio"},
        "image+audio": {"image", "audio"},
    }


def test_rows_are_of_the_stated_shapes(data: Any) -> None:
    rows = data.rows("triplets", torch.tensor([3, 1]))
    for modality in data.modalities:
        assert rows[modality.name].shape == (2, *modality.shape) and rows[modality.name].dtype == torch.float32
    text = data.modalities[0]
    assert rows["text words"].shape == (2, text.words) and rows["text words"].max() < text.classes


def test_features_and_words_are_those_of_the_things(data: Any, folder: Path) -> None:
    """A row's features, worked out anew from its files; standardised distances are of rounding alone."""
    indices = torch.tensor([0, 7, 39])
    items = [data._splits["triplets"].items[number] for number in indices.tolist()]
    rows, models = data.rows("triplets", indices), data.models
    captions = [item.captions[0] for item in items]
    fresh = {
        "text": models.load("text_encoder").captions(captions),
        "image": models.load("image_encoder").pictures([sources.picture(item) for item in items]),
        "audio": models.load("audio_encoder").sounds([sources.sound(item, 48_000)[0] for item in items], 48_000),
    }
    fresh["audio"] = data._autoencoder.encode(fresh["audio"])
    for name, values in fresh.items():
        torch.testing.assert_close(data._unscaled(name, rows[name]), values, atol=1e-4, rtol=1e-3)
    assert torch.equal(rows["text words"], models.load("text_decoder").tokens(captions))


def test_things_are_read_from_the_files(data: Any, real_data: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    raw = data.raw("triplets", torch.tensor([5]))
    item = data._splits["triplets"].items[5]
    original = image.open(item.image.path).convert("RGB")
    side = min(original.size)
    left, top = (original.width - side) // 2, (original.height - side) // 2
    square = original.crop((left, top, left + side, top + side)).resize((64, 64), image.Resampling.BICUBIC)
    assert torch.equal(raw["image"][0], torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255)
    samples, _ = sources.sound(item, 16_000)
    assert raw["audio"].shape == (1, 160_000) and torch.equal(
        raw["audio"][0, : len(samples)], torch.from_numpy(samples)
    )
    assert not raw["audio"][0, len(samples) :].any()
    assert raw["text"] == [item.captions[0]]


def test_real_rows_have_another_caption_where_there_is_one(data: Any) -> None:
    indices = torch.tensor([0, 1])
    raw, real = data.raw("coco", indices), data.real("coco", indices)
    assert all(a != b for a, b in zip(raw["text"], real["text"], strict=True)) and torch.equal(
        raw["image"], real["image"]
    )
    assert data.raw("audiocaps", indices)["text"] == data.real("audiocaps", indices)["text"]


def test_rows_of_one_picture_are_one_cluster(data: Any) -> None:
    clusters = data.clusters("coco", torch.arange(data.count("coco")))
    assert data.count("coco") == 130 and len(clusters.unique()) == 26 and clusters[0] == clusters[26] != clusters[1]


def test_cells_use_the_tests_of_their_modalities(data: Any) -> None:
    found = {
        (cell.given, cell.want): data.split_of(cell)
        for task in ("one_to_one", "many_to_one", "one_to_many", "uncond")
        for cell in cells(NAME, ORDER, task)
    }
    pairs = {("text", "image"): "coco", ("text", "audio"): "audiocaps", ("image", "audio"): "vggsound"}
    for (a, b), split in pairs.items():
        assert found[(a,), (b,)] == found[(b,), (a,)] == split
    assert {split for (given, want), split in found.items() if len(given) != 1 or len(want) != 1} == {"triplets"}
    assert data.rows_of(Cell(NAME, (), ORDER)) == 8 and data.rows_of(Cell(NAME, ("text",), ("image",))) == 8


def test_a_second_dataset_extracts_nothing(data: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models(folder)
    real = models.load

    def load(role: str, device: str = "cpu") -> Any:
        assert role == "text_decoder", f"{role} was loaded"
        return real(role, device)

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setenv("MUNI_BENCH_DATA", str(Path(data.manifest[0]["place"])))
    again = type(data)(smoke(), "cpu", models)
    assert again.identity == data.identity
    assert all(
        torch.equal(values, again.rows("triplets", torch.arange(40))[name])
        for name, values in data.rows("triplets", torch.arange(40)).items()
    )


def test_the_manifest_says_what_there_is(data: Any) -> None:
    json.dumps(data.manifest)
    found = {entry["source"]: entry for entry in data.manifest}
    assert found["mini_triplets"]["rows"] == found["mini_triplets"]["listed"] == 40
    assert found["mini_audiocaps"]["counts"]["sounds that were resampled"] == 130
    assert found["mini_coco"]["counts"]["captions whose white space was mended"] > 0
    assert all(entry["licence"] and entry["checksum"] for entry in data.manifest)


def test_the_triplets_are_the_test_and_other_splits_are_named(data: Any) -> None:
    assert torch.equal(data.rows("test", torch.arange(3))["image"], data.rows("triplets", torch.arange(3))["image"])
    with pytest.raises(UserError, match=r"no split 'validation': it has text.image, text.audio"):
        data.count("validation")


def test_unknown_variants_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="unknown variant 'papre': did you mean 'paper'"):
        registry.load("dataset", NAME)(smoke(variant="papre"), "cpu", Models(folder))


def own_data(root: Path) -> Path:
    """A small `paper` data folder with two faults of every kind. Returns the folder that MUNI_BENCH_DATA names."""
    base = root / NAME
    holds = {each.name: each.holds for each in sources.SOURCES}
    for name, modalities in holds.items():
        rows = []
        for number in range(6):
            key = f"{name}{number}"
            rows.append({"id": key, "clip": f"youtube:{key}", "caption": f"caption {number}\u2028of {name}"})
            if "image" in modalities:
                put_picture(base / name / "images" / f"{key}.png", number)
            if "audio" in modalities:
                put_sound(base / name / "audio" / f"{key}.wav", number, rate=44_100 if number else 48_000)
        put_manifest(base / name, rows)
    (base / "laion_coco_aesthetic" / "images" / "laion_coco_aesthetic1.png").write_bytes(b"no picture")
    (base / "flickr30k" / "images" / "flickr30k2.png").unlink()
    put_sound(base / "audiocaps" / "audio" / "audiocaps3.wav", gain=0.0)
    put_sound(base / "vggsound" / "audio" / "vggsound4.wav", seconds=0)
    (base / "vggsound_test" / "audio" / "vggsound_test5.wav").write_text("no sound")
    return root


def test_what_is_wrong_with_single_files_is_counted_and_the_rest_goes_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MUNI_BENCH_DATA", str(own_data(tmp_path / "data")))
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    made = registry.load("dataset", NAME)(smoke(variant="paper", evaluation_rows=100), "cpu", Models(folder))
    found = {entry["source"]: entry for entry in made.manifest}
    lost = {name: (entry["rows"], entry["left out"], entry["listed"]) for name, entry in found.items()}
    assert lost["laion_coco_aesthetic"] == (5, {"unreadable pictures": 1}, 6)
    assert lost["flickr30k"] == (5, {}, 5) and found["flickr30k"]["counts"]["without their image"] == 1
    assert lost["audiocaps"] == (5, {"silent sounds": 1}, 6)
    assert lost["vggsound"] == (5, {"sounds without a sample": 1}, 6)
    assert lost["vggsound_test"] == (5, {"unreadable sounds": 1}, 6)
    assert found["triplets"]["counts"]["sounds that were resampled"] == 5
    assert found["coco"]["counts"]["captions whose white space was mended"] == 6
    assert made.count("text+image") == 10 and made.rows_of(Cell(NAME, ("audio",), ("image",))) == 5
    captions = made.raw("vggsound", torch.arange(5)), made.raw("coco", torch.arange(2))["text"]
    assert captions[1] == ["caption 0 of coco", "caption 1 of coco"] and captions[0]["image"].shape == (5, 3, 256, 256)
    said = capsys.readouterr().err
    assert "5 rows with features" in said and "1 silent sounds (audiocaps3)" in said
    sound = tmp_path / "data" / NAME / "coco" / "images" / "coco1.png"
    sound.write_bytes(b"gone bad")
    with pytest.raises(UserError, match="coco: coco1 had features and is now among the unreadable pictures"):
        made.raw("coco", torch.arange(3))


# ---------------------------------------------------------------------------------------------- rendering and scoring


def test_renders_do_not_depend_on_the_rows_beside(data: Any) -> None:
    rows = data.rows("triplets", torch.arange(3))
    generated = {"text": rows["text words"], "image": rows["image"], "audio": rows["audio"]}
    whole = data.render(generated, Draws("render", rows=3))
    part = data.render({name: values[:2] for name, values in generated.items()}, Draws("render", rows=2))
    assert whole["text"] == [
        caption[: len(text)]
        for caption, text in zip(data.raw("triplets", torch.arange(3))["text"], whole["text"], strict=True)
    ]
    assert part["text"] == whole["text"][:2]
    assert whole["image"].shape == (3, 3, 64, 64) and whole["audio"].shape == (3, 20_480)
    torch.testing.assert_close(part["image"], whole["image"][:2], atol=2 / 255, rtol=0)
    torch.testing.assert_close(part["audio"], whole["audio"][:2], atol=1e-4, rtol=1e-3)
    other = data.render({"image": rows["image"]}, Draws("render again", rows=3))
    assert not torch.equal(other["image"], whole["image"])


def test_fid_and_fad_of_real_rows_against_themselves_are_zero_and_of_others_are_not(data: Any) -> None:
    judging = judges.of(data)
    for name, split in (("image", "coco"), ("audio", "audiocaps")):
        raw = data.raw(split, torch.arange(20))[name]
        features = judging.features(name, raw).double()
        other = judging.features(name, raw.flip(-1) * 0.5).double()
        fits = [frechet.fit(each) for each in (features, other)]
        assert abs(frechet.distance(fits[0], fits[0])) < 1e-6 * fits[0].covariance.trace()
        assert frechet.distance(*fits) > 1e-3 * fits[0].covariance.trace()


def built(method: str, data: Any, config: Config) -> Any:
    with seeded("init", 0):
        found = registry.load("method", method)(data.modalities, config)
        if hasattr(found, "bind"):
            found.bind(data)
    return found


def test_a_method_learns_from_each_corpus(data: Any) -> None:
    draws, config = Draws("train", rows=16, block=16), smoke()
    method = built("muni", data, config)
    for split in data.corpora:
        method.zero_grad()
        loss, _ = method.loss(data.rows(split, draws.integers("rows", data.count(split))), "joint", draws)
        loss.backward()
        assert torch.isfinite(loss) and any(each.grad is not None and each.grad.any() for each in method.parameters())
    share = Counter(tuple(sorted(training_batch(data, draws, 0, update))) for update in range(300))
    assert len(share) == 3 and share["image", "text", "text words"] / 300 == pytest.approx(125 / 165, abs=0.08)


ALL = [cell for task in ("one_to_one", "many_to_one", "one_to_many", "uncond") for cell in cells(NAME, ORDER, task)]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ALL, ids=str)
def test_every_direction_from_files_to_scores(data: Any, cell: Cell, tmp_path: Path) -> None:
    config = smoke()
    names = ["clip_score", "clap_score", "ais", "cider", "distinct_captions", "fid", "fad"]
    names = [name for name in names if name in registry.index("metric")]
    kept = Samples(tmp_path / "cell", {"cell": str(cell)})
    results = {
        result.metric: result
        for result in evaluate_cell(built("muni", data, config), data, cell, names, config, 0, "cpu", kept=kept)
    }
    assert len(kept) == 8
    scored = {name: result.score for name, result in results.items() if result.score is not None}
    pairs = {"clip_score": {"text", "image"}, "clap_score": {"text", "audio"}, "ais": {"image", "audio"}}
    for name, pair in pairs.items():
        asked = pair <= {*cell.given, *cell.want} and not pair <= set(cell.given)
        assert (name in scored) == (asked and name in names), (name, results.get(name))
    assert all(np.isfinite(score.value) for score in scored.values())


@pytest.mark.slow
@pytest.mark.parametrize(("given", "want", "metric"), [("text", "image", "fid"), ("text", "audio", "fad")])
def test_frechet_distances_are_scored_where_there_are_rows_enough(
    data: Any, given: str, want: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if metric not in registry.index("metric"):
        pytest.skip(f"no metric {metric}")
    monkeypatch.setattr(data, "_evaluation_rows", {True: 130, False: 8})
    cell = Cell(NAME, (given,), (want,))
    method = built("chance", data, smoke())
    (result,) = evaluate_cell(method, data, cell, [metric], smoke(), 0, "cpu", kept=Samples(tmp_path / "cell", {}))
    assert result.score is not None and result.score.n == 130 and result.score.value >= 0


# ---------------------------------------------------------------------------------------------- the paper's sizes


class GemmasShapes:
    """Gemma 3 1B's attention projections without weights: 26 layers of 4 heads of 256, one of keys and values."""

    start, end = 2, 1

    def __init__(self) -> None:
        sizes = {"q_proj": (1152, 1024), "k_proj": (1152, 256), "v_proj": (1152, 256), "o_proj": (1024, 1152)}
        self.network = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(*size, bias=False) for name, size in sizes.items()})
            for _ in range(26)
        )

    def projector(self) -> torch.nn.Module:
        return PrefixProjector(768, 1152)


@pytest.mark.parametrize("method", ["muni", "muni_hellinger", "mmvae", "mopoe"])
def test_the_papers_networks_have_the_papers_sizes(method: str) -> None:
    """Table E.2: 90 M in encoders, 30 M in the prior, 140 M in decoders, the language model's adapters among them."""
    config = resolve(registry.card("dataset", NAME), registry.card("method", method), "paper").config
    modalities = (
        Modality("text", (768,), "text", classes=262_144, words=64),
        Modality("image", (768,), "image"),
        Modality("audio", (768,), "audio"),
    )
    with torch.device("meta"):
        writer = GemmasShapes()
        made: Any = registry.load("method", method)(modalities, config)
        made.bind(SimpleNamespace(language_model=lambda: writer))

    def millions(*parts: torch.nn.Module) -> float:
        return sum(each.numel() for part in parts for each in part.parameters()) / 1e6

    encoders, decoders = [f.encoder for f in made.families], [f.decoder for f in made.families]
    assert millions(*encoders) == pytest.approx(90, rel=0.02)
    assert millions(*decoders) == pytest.approx(140, rel=0.02)
    assert millions(made) - millions(*encoders, *decoders) == pytest.approx(30, rel=0.02)
