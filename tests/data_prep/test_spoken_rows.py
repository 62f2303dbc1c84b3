"""Raw rows of spoken_digits: clips, captions, what splits share (nothing), and what is said where something is bad."""

from __future__ import annotations

import io
import itertools
import re
import struct
import tarfile
import urllib.error
import wave
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import registry
from benchmark.api import UserError
from benchmark.config import resolve
from data_prep.digits import mnist_digits
from data_prep.spoken import recordings, spoken_captions, spoken_world
from data_prep.spoken.spoken_captions import (
    CLASSES,
    DRAWN,
    DRAWS,
    PHRASES,
    TEMPLATES,
    VOCABULARY,
    decode,
    digit_of,
    encode,
)
from data_prep.spoken.spoken_world import CORPORA, HOLDS, PICTURES, TAKES, SpokenWorld

CARD = registry.card("dataset", "polymnist_quadrant_labels")  # any: for the fields that it has in common


def made(variant: str = "synthetic-sound", **counts: int) -> SpokenWorld:
    wanted = {"train_rows": 1_000, "evaluation_rows": 600, "unconditional_rows": 400} | counts
    overrides = [f"variant={variant}", *(f"{field}={value}" for field, value in wanted.items())]
    return SpokenWorld(resolve(CARD, None, "smoke", overrides).config)


@cache
def world(variant: str = "synthetic-sound") -> SpokenWorld:
    return made(variant)


@pytest.fixture
def real(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real recordings, to which the suite is pointed."""
    if not (real_data / recordings.FOLDER).is_dir() or not (real_data / "mnist").is_dir():
        pytest.skip(f"no recordings and MNIST in {real_data}")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(real_data))
    return real_data / recordings.FOLDER


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def every(data: SpokenWorld, split: str) -> Tensor:
    return torch.arange(data.count(split))


# The recordings.


def wav(samples: np.ndarray, rate: int = 8_000, channels: int = 1, width: int = 2) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype({1: "u1", 2: "<i2"}[width]).tobytes())
    return target.getvalue()


def spoken(number: int) -> np.ndarray:
    """A clip that says its number: a tone of 0.1 s."""
    return np.rint(8_000 * np.sin(np.arange(800) * (0.3 + number / 100))).astype(np.int16)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one take of everything, 60 clips, that count as the official ones; and a cache of its own."""
    monkeypatch.setattr(recordings, "TAKES", 1)
    folder = tmp_path / recordings.FOLDER
    folder.mkdir(parents=True)
    clips = {name: spoken(number) for number, name in enumerate(recordings.names())}
    for name, clip in clips.items():
        (folder / name).write_bytes(wav(clip))
    monkeypatch.setattr(recordings, "DIGEST", recordings.digest(clips))
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_folder_is_read_in_the_order_of_names(small: Path):
    found = recordings.load("fsdd")
    assert found.sound.shape == (60, 8_000) and found.sound.dtype == np.float32
    expected = [re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", name).groups() for name in recordings.names()]  # type: ignore[union-attr]
    assert [
        (str(d), recordings.SPEAKERS[s], str(t)) for d, s, t in zip(found.digit, found.speaker, found.take, strict=True)
    ] == expected
    for number in (0, 31, 59):  # the tone begins 400 samples in, after no silence, and keeps its pitch
        heard = np.flatnonzero(found.sound[number])
        assert heard[0] in (400, 401) and heard[-1] == 1_199  # a sine begins with 0, and may have a mean
        clip = spoken(number) - int(np.rint(spoken(number).mean()))
        inner = found.sound[number, 440:1_160]
        assert np.abs(inner / inner.max() - clip[40:760] / clip[40:760].max()).max() < 1e-6
    assert found.seconds == pytest.approx(0.1)
    assert np.sqrt((found.sound[:, 440:1_160] ** 2).mean(1)) == pytest.approx(recordings.LEVEL, rel=0.01)


def edited(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def flipped(folder: Path) -> None:
    """The last bit of one sample in 48,000."""
    content = bytearray((folder / "4_theo_0.wav").read_bytes())
    content[500] ^= 1
    edited(folder, "4_theo_0.wav", bytes(content))


def swapped(folder: Path) -> None:
    first, second = (folder / name for name in ("3_lucas_0.wav", "8_lucas_0.wav"))
    one = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(one)


def resampled(folder: Path) -> None:
    for name in ("0_george_0.wav", "1_george_0.wav", "9_yweweler_0.wav"):
        edited(folder, name, wav(spoken(1), rate=16_000))


def a_folder_in_its_place(folder: Path) -> None:
    (folder / "5_jackson_0.wav").unlink()
    (folder / "5_jackson_0.wav").mkdir()


ONE = "7_nicolas_0.wav"
BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "one missing": (lambda folder: (folder / ONE).unlink(), f"{{folder}} lacks 1 of 60 recordings, the first {ONE}: "),
    "most missing": (
        lambda folder: [path.unlink() for path in folder.iterdir() if not path.name.startswith("9_")],
        "{folder} lacks 54 of 60 recordings, the first 0_george_0.wav: get them anew",
    ),
    "rate": (resampled, "{folder}: 0_george_0.wav has 16,000 samples a second, not 8,000 (and 2 more of 60 are bad): "),
    "two channels": (lambda folder: edited(folder, ONE, wav(spoken(1), channels=2)), f"{ONE} has 2 channels of 16 bit"),
    "8 bit": (lambda folder: edited(folder, ONE, wav(spoken(1) // 300, width=1)), f"{ONE} has 1 channels of 8 bit"),
    "no samples": (lambda folder: edited(folder, ONE, wav(np.zeros(0))), f"{{folder}}: {ONE} has no samples: get"),
    "silent": (lambda folder: edited(folder, ONE, wav(np.full(900, -7))), f"{{folder}}: {ONE} is silent: get it anew"),
    "empty": (lambda folder: edited(folder, ONE, b""), f"{ONE} cannot be read as a wav file (it ends too early)"),
    "not wav": (lambda folder: edited(folder, ONE, b"hello" * 99), f"{ONE} cannot be read as a wav file (file does "),
    "cut short": (lambda folder: edited(folder, ONE, wav(spoken(1))[:-200]), f"{ONE} holds 700 of the 800 samples"),
    "a folder": (a_folder_in_its_place, "{folder}/5_jackson_0.wav cannot be read ([Errno 21] Is a directory"),
    "a sample flipped": (flipped, "the recordings in {folder} are not those of version 1.0.10: their digest is "),
    "two swapped": (swapped, "the recordings in {folder} are not those of version 1.0.10: their digest is "),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_folder_of_clips_with_a_fault_is_refused(small: Path, name: str):
    plant, expected = BAD_CLIPS[name]
    plant(small)
    assert expected.format(folder=small) in refused(lambda: recordings.load("fsdd"))


def test_a_header_with_a_size_of_nonsense_is_refused():
    content = bytearray(wav(spoken(0)))
    content[40:44] = struct.pack("<I", 2**32 - 1)
    with pytest.raises(ValueError, match=r"holds 800 of the 2,147,483,647 samples|cannot be read"):
        recordings.samples(bytes(content))


def archive(folder: Path, names: list[str]) -> bytes:
    """As the project's release packs it: with a folder of its own, and files besides."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as file:
        for name in names:
            file.add(folder / name, f"free-spoken-digit-dataset-1.0.10/recordings/{name}")
        file.add(__file__, "free-spoken-digit-dataset-1.0.10/README.md")
        file.add(__file__, f"free-spoken-digit-dataset-1.0.10/elsewhere/{names[0]}")
        file.add(__file__, f"/tmp/../{names[0]}")
    return target.getvalue()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the network answers with, and the addresses that it was asked for."""
    asked: dict[str, list] = {"addresses": [], "answers": []}

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked["addresses"].append(address)
        if isinstance(answer := asked["answers"].pop(0), Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setattr(recordings.urllib.request, "urlopen", urlopen)
    return asked


def test_clips_are_fetched_once_and_verified(small: Path, network: dict, monkeypatch: pytest.MonkeyPatch):
    expected = recordings.load("fsdd")
    network["answers"] = [archive(small, recordings.names()[::-1])]
    monkeypatch.delenv("MUNI_BENCH_DATA")
    recordings._fsdd.cache_clear()
    found = recordings.load("fsdd")
    assert np.array_equal(found.sound, expected.sound)
    recordings._fsdd.cache_clear()
    assert np.array_equal(recordings.load("fsdd").sound, expected.sound)
    assert network["addresses"] == [recordings.ADDRESS]
    (kept,) = (small.parent.parent / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:2_000])
    recordings._fsdd.cache_clear()
    assert refused(lambda: recordings.load("fsdd")).startswith(f"{kept}, which you may delete, cannot be unpacked (")


def test_a_bad_download_is_refused_and_not_kept(small: Path, network: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUNI_BENCH_DATA", str(small))  # one level too deep
    whole = archive(small, recordings.names())
    flipped(small)
    network["answers"] = [
        archive(small, recordings.names()),
        archive(small, recordings.names()[3:]),
        whole[: len(whole) // 2],
        b"<html>sign in</html>",
        urllib.error.URLError("no network"),
        TimeoutError("timed out"),
    ]
    recordings._fsdd.cache_clear()
    messages = [refused(lambda: recordings.load("fsdd")) for _ in list(network["answers"])]
    assert messages[0].startswith(f"the recordings in {recordings.ADDRESS} are not those of version 1.0.10: ")
    assert f"{recordings.ADDRESS} lacks 3 of 60 recordings, the first 0_george_0.wav" in messages[1]
    assert all(f"{recordings.ADDRESS} cannot be unpacked (" in message for message in messages[2:4])
    assert messages[4] == (
        f"no recordings of spoken digits: none in {small / recordings.FOLDER}, and {recordings.ADDRESS} cannot be "
        "fetched (URLError: <urlopen error no network>): set MUNI_BENCH_DATA to the folder that holds "
        "fsdd/recordings, or choose the variant synthetic-sound"
    )
    assert "TimeoutError: timed out" in messages[5]
    assert not (small.parent.parent / "cache").exists()
    monkeypatch.delenv("MUNI_BENCH_DATA")
    network["answers"] = [urllib.error.URLError("no network")]
    assert "MUNI_BENCH_DATA is not set" in refused(lambda: recordings.load("fsdd"))


def burst(*parts: tuple[int, int]) -> np.ndarray:
    """(samples, amplitude) after (samples, amplitude), each a square wave."""
    return np.concatenate([height * (-1) ** np.arange(length) for length, height in parts]).astype(np.int64)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(1_600, 0), (2_400, 1_000), (1_600, 0)], (1_600, 4_000)),  # silence around
        ([(1_600, 17), (2_400, 1_000), (1_600, 17)], (1_600, 4_000)),  # noise at -35.4 dB is quiet
        ([(1_600, 19), (2_400, 1_000), (1_600, 19)], (0, 5_600)),  # at -34.4 dB it is not
        ([(800, 0), (80, 9_000), (720, 0), (2_400, 1_000), (800, 0), (160, 9_000)], (1_600, 4_000)),  # clicks
        ([(240, 900)], (0, 240)),
        ([(100, 900)], (0, 100)),  # too short for the median
        ([(30, 0), (1, 900), (30, 0)], (0, 61)),
    ],
)
def test_where_sound_begins_and_ends(parts: list, expected: tuple[int, int]):
    assert recordings.span(burst(*parts)) == expected


def test_a_second_of_a_clip():
    clip = burst((1_000, 8), (2_000, 16_384), (1_000, 8))
    found = recordings.second(clip, 1_000, 3_000, 0.5)
    assert (np.abs(found[400:2_400]) == 0.25).all() and (np.abs(found[280:400]) == 8 / 2**16).all()
    assert np.abs(found[240:280]) == pytest.approx(np.arange(1, 41) / 40 * 8 / 2**16, rel=1e-6)
    assert np.flatnonzero(found)[[0, -1]].tolist() == [240, 2_559]
    # Longer than the second: cut, with an end that fades.
    long = recordings.second(burst((20_000, 16_384)), 0, 20_000, 0.5)
    assert np.flatnonzero(long)[[0, -1]].tolist() == [400, 7_999]
    assert (np.abs(long[440:7_960]) == 0.25).all() and abs(long[-1]) == pytest.approx(0.25 / 40)
    # Too loud for full scale: a smaller gain, and the same form.
    loud = recordings.second(burst((2_000, 16_384)), 0, 2_000, 5.0)
    assert np.abs(loud[440:2_300]) == pytest.approx(recordings.PEAK, abs=1e-3) and np.abs(loud).max() <= recordings.PEAK
    # Shorter than its own fades.
    assert np.isfinite(recordings.second(burst((7, 1_000)), 0, 7, 1.0)).all()


def test_the_real_recordings(real: Path):
    """Against a second reader of wav files, and what the module says of the 3,000."""
    from scipy.io import wavfile

    found = recordings.load("fsdd")
    assert len(list(real.glob("*.wav"))) == len(found.sound) == 3_000
    assert found.seconds.min() >= 0.1 and (found.seconds > (8_000 - recordings.BEGIN) / 8_000).sum() == 4
    assert np.abs(found.sound).max() <= recordings.PEAK
    limited = 0
    for at in range(0, 3_000, 7):
        _, clip = wavfile.read(real / recordings.names()[at])
        level = clip - np.rint(clip.mean(dtype=np.float64))
        sound, window = found.sound[at].astype(np.float64), np.ones(8_000)
        spectrum = np.fft.rfft(sound, 32_768).conj() * np.fft.rfft(level, 32_768)
        shift = int(np.fft.irfft(spectrum).argmax())  # where the clip agrees best with the second
        shift = shift - 32_768 if shift > 16_384 else shift
        overlap = np.zeros(8_000)
        first, last = max(-shift, 0), min(len(level) - shift, 8_000)
        overlap[first:last] = level[first + shift : last + shift] / 2**15
        heard = np.flatnonzero(sound)
        window[: heard[0] + 40] = window[heard[-1] - 39 :] = 0
        gain = (sound * overlap * window).sum() / (overlap**2 * window).sum()
        assert np.abs(sound - gain * overlap)[window > 0].max() < 1e-6
        limited += np.abs(sound).max() > recordings.PEAK - 2e-3
        strong = np.sqrt((overlap[400 : 400 + int(found.seconds[at] * 8_000)] ** 2).mean())
        if shift >= -400 and found.seconds[at] < 0.95:
            assert 20 * np.log10(strong) == pytest.approx(found.loudness[at], abs=0.01)
    assert limited <= 20
    by_speaker = [found.loudness[found.speaker == each] for each in range(6)]
    assert [round(float(np.median(each))) for each in by_speaker] == [-25, -21, -23, -27, -44, -38]


def test_synthetic_clips_follow_their_formula_and_need_no_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MUNI_BENCH_DATA", raising=False)
    found = recordings.load("synthetic")
    assert found.sound.shape == (3_000, 8_000) and found.seconds.min() > 0.15 and found.seconds.max() <= 0.4
    for digit, speaker, take in ((0, 0, 3), (4, 5, 20), (7, 2, 49)):
        clip = found.sound[(digit * 6 + speaker) * 50 + take]
        times, power = [], []
        for at in (0.3, 0.7):  # of the clip's length: the loudest frequencies, of a tenth of a second
            middle = 400 + int(found.seconds[(digit * 6 + speaker) * 50 + take] * 8_000 * at)
            part = clip[middle - 256 : middle + 256] * np.hanning(512)
            power.append(np.abs(np.fft.rfft(part, 8_000)))
            times.append(at)
        for at, spectrum in zip(times, power, strict=True):
            low = 300 + 60 * (digit + at * (3 * digit % 10 - digit))
            high = 1_200 + 200 * (7 * digit % 10 + at * (9 - digit - 7 * digit % 10))
            assert abs(spectrum[:1_100].argmax() - low) < 30
            assert abs(1_100 + spectrum[1_100:].argmax() - high) < 60


# The captions.


def drawn(rows: int, *purpose: object) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(len(str(purpose)))
    attributes = {name: torch.randint(classes, (rows,), generator=generator) for name, classes in CLASSES.items()}
    return attributes, torch.randint(DRAWN, (rows, DRAWS), generator=generator)


# What words and pairs of words say, written down a second time: (attribute, class).
MEANS = {
    "weight": {"thin|fine": 0, "medium|moderate": 1, "thick|bold": 2},
    "slant": {"leaning left|slanted left|tilted left": 0, "standing|without slant": 1, r"\w+ed right|leaning right": 2},
    "speaker": {name: number for number, name in enumerate(recordings.SPEAKERS)},
    "loudness": {"quiet|soft|quietly|softly": 0, "normal|moderate|medium": 1, "loud|strong|loudly|with force": 2},
    "pace": {"quickly|rapidly": 0, "steadily|at normal speed": 1, "slowly|without hurry": 2},
}


def details(text: str) -> dict[str, int]:
    """What a caption says besides the digit, read word by word."""
    found = {}
    for attribute, meanings in MEANS.items():
        for pattern, value in meanings.items():
            whole = rf"\b(?:{pattern})\b"
            if attribute == "weight":
                whole += rf" (?:strokes|lines)\b|(?:strokes of this \w+|lines) are {whole}"
            elif attribute == "loudness":  # "moderate" is of strokes, too
                whole += " (?:voice|volume)" + (rf"|{whole}" if value != 1 else "")
            if re.search(whole, text):
                assert attribute not in found, text
                found[attribute] = value
    return found


KINDS = {"picture": {"weight", "slant"}, "sound": {"speaker", "loudness", "pace"}}
KINDS["both"] = KINDS["picture"] | KINDS["sound"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_says_what_its_slots_say(kind: str):
    """Each template with each digit, numeral or word, and random fillings."""
    attributes, draws = drawn(len(TEMPLATES[kind]) * 20 * 4, kind)
    row = torch.arange(len(draws))
    draws[:, 0] = row // 80
    attributes["digit"] = row % 10
    draws[:, 1] = row // 10 % 2
    told = {name: values for name, values in attributes.items() if name in KINDS[kind] | {"digit"}}
    texts = spoken_captions.write(kind, told, draws)
    assert [digit_of(text) for text in texts] == attributes["digit"].tolist()
    for at, text in enumerate(texts):
        words = text.split(" ")
        assert "" not in words and len(words) <= 15 and set(words) <= set(VOCABULARY)
        digit, template = int(attributes["digit"][at]), TEMPLATES[kind][at // 80]
        named = str(digit) if draws[at, 1] % 4 == 0 else spoken_captions.DIGITS[digit]
        assert words.count(named) == 1 and (words[words.index(named) - 1] != ("a" if digit == 8 else "an"))
        slots = {PHRASES[slot][0] for slot in re.findall(r"\{(\w+)\}", template) if slot in PHRASES} - {"digit"}
        assert details(text) == {name: int(attributes[name][at]) for name in slots}


def test_the_vocabulary_is_closed_and_holds_no_other_word():
    attributes, draws = drawn(20_000)
    texts = spoken_captions.write("both", attributes, draws)
    seen = {word for text in texts for word in text.split()}
    assert seen == set(VOCABULARY[3:]) and VOCABULARY[:3] == ("<unknown>", "<start>", "<end>")
    assert 100 <= len(VOCABULARY) == len(set(VOCABULARY)) <= 150
    assert len(set(texts)) > 10_000
    named = sum(bool(re.search(r"\d", text)) for text in texts)
    assert named == pytest.approx(5_000, abs=4 * (20_000 * 0.25 * 0.75) ** 0.5)


def test_templates_and_words_are_drawn_evenly():
    attributes, draws = drawn(20_000, "even")
    attributes = {name: torch.zeros_like(values) for name, values in attributes.items()}
    texts = spoken_captions.write("picture", attributes, draws)
    starts = Counter(text for text in texts if re.fullmatch(r"a handwritten (zero|0) \w+ left", text))
    assert sum(starts.values()) == pytest.approx(20_000 / 24, abs=4 * (20_000 / 24) ** 0.5)
    words = Counter(text.split()[3] for text in texts if re.fullmatch(r"a handwritten (zero|0) \w+ left", text))
    assert words.keys() == {"leaning", "slanted", "tilted"} and min(words.values()) > 0.8 * max(words.values())


def test_a_caption_is_a_function_of_its_row_alone():
    attributes, draws = drawn(500, "pure")
    texts = spoken_captions.write("both", attributes, draws)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))[:77]
    again = spoken_captions.write("both", {name: v[order] for name, v in attributes.items()}, draws[order])
    assert again == [texts[each] for each in order]


@pytest.mark.parametrize(
    ("text", "digit"),
    [
        ("the number seven", 7),
        ("  A\u2028SEVEN!\x0b", 7),
        ("seven\x85", 7),
        ("it is 0", 0),
        ("an\r8\x0c", 8),
        ("seven or 7", 7),
        ("seven or 8", -1),
        ("one two three", -1),
        ("17", -1),
        ("sevens", -1),
        ("someone", -1),
        ("", -1),
        ("\n\u2029", -1),
    ],
)
def test_the_digit_of_a_text(text: str, digit: int):
    assert digit_of(text) == digit


def test_tokens_round_trip_and_ends_fill():
    attributes, draws = drawn(2_000, "tokens")
    texts = spoken_captions.write("both", attributes, draws)
    ids = encode(texts)
    assert ids.shape == (2_000, 17) and ids.dtype == torch.int64 and decode(ids) == texts
    lengths = torch.tensor([len(text.split()) for text in texts])
    assert torch.equal(ids == spoken_captions.END, torch.arange(17) >= lengths[:, None])
    assert not (ids == spoken_captions.UNKNOWN).any() and not (ids == spoken_captions.START).any()


def test_tokens_of_hostile_text():
    clean = "george says seven loudly"
    hostile = "\u2028 George\x0bsays\r\nSEVEN,\x85loudly\u2029\x1c\t"
    assert torch.equal(encode([hostile]), encode([clean]))
    ids = encode(["", "\n", "george says gibberish", "seven " * 40, "<end> seven", "日本"])
    names = [[VOCABULARY[each] for each in row] for row in ids.tolist()]
    assert names[0] == names[1] == names[5] == ["<end>"] * 17
    assert names[2] == ["george", "says", "<unknown>"] + ["<end>"] * 14
    assert names[3] == ["seven"] * 16 + ["<end>"]
    assert names[4][:2] == ["<unknown>", "seven"]  # no text can write a special token
    assert decode(torch.tensor([[1, 2, 20], [1, 20, 21]]))[0] == ""
    assert decode(torch.tensor([[1, 20, 21]])) == [f"{VOCABULARY[20]} {VOCABULARY[21]}"]
    assert encode(["seven"], length=3).shape == (1, 3) and encode([]).shape == (0, 17)


# The splits.


def test_splits_share_neither_takes_nor_pictures():
    for pools in (TAKES, *PICTURES.values()):
        for one, other in itertools.combinations(pools, 2):
            assert not set(pools[one]) & set(pools[other]), (one, other)
    assert set().union(*TAKES.values()) == set(range(50)) and TAKES["test"] == (0, 1, 2, 3, 4)
    assert set().union(*PICTURES["mnist"].values()) == set(range(70_000))
    assert set(PICTURES["mnist"]["test"]) | set(PICTURES["mnist"]["fresh"]) == set(range(60_000, 70_000))
    assert set().union(*PICTURES["sklearn"].values()) == set(range(1_797))


def check_rows(data: SpokenWorld, source: mnist_digits.Digits, sound: recordings.Recordings) -> None:
    """What every split shows is its own, of one digit, and told of rightly."""
    seen: dict[str, dict[int, str]] = {"picture": {}, "clip": {}}
    for split in HOLDS:
        rows = every(data, split)
        raw, facts = data.raw(split, rows), data.attributes(split, rows)
        assert tuple(sorted(raw)) == tuple(sorted(HOLDS[split]))
        assert facts["digit"][: len(rows) // 10 * 10].reshape(-1, 10).sort(1).values.unique(dim=0).tolist() == [
            list(range(10))
        ]
        if "image" in raw:
            numbers = facts["picture"]
            assert numbers.unique().tolist() == sorted(
                set(numbers.tolist()) & set(data.pools[split]["picture"].tolist())
            )
            assert (
                raw["image"].shape[1:] == (1, 28, 28) and 0 <= raw["image"].min() < 0.01 < 0.9 < raw["image"].max() <= 1
            )
            if split != "codec":
                assert np.array_equal(source.labels[numbers], facts["digit"])
        if "audio" in raw:
            numbers = facts["clip"]
            assert set(sound.take[numbers]) <= set(TAKES[split])
            assert np.array_equal(raw["audio"], sound.sound[numbers])
            if split != "codec":
                assert np.array_equal(sound.digit[numbers], facts["digit"])
                assert np.array_equal(sound.speaker[numbers], facts["speaker"])
        for name, owners in seen.items():
            for number in set(facts.get(name, torch.tensor([])).tolist()):
                assert owners.setdefault(number, split) == split
        told = KINDS[spoken_world.ABOUT.get(split, "both")]
        for texts in (raw["text"], data.other_captions(split, rows)) if "text" in raw else ():
            assert [digit_of(text) for text in texts] == facts["digit"].tolist()
            for at, text in enumerate(texts):
                said = details(text)
                assert said.keys() <= told and said == {name: int(facts[name][at]) for name in said}
    assert len(seen["clip"]) > 1_500


def test_rows_of_the_synthetic_variant():
    check_rows(world(), mnist_digits.load("sklearn"), recordings.load("synthetic"))


def test_rows_of_real_data(real: Path):
    check_rows(made("mnist"), mnist_digits.load("mnist"), recordings.load("fsdd"))
    assert made("sklearn").identity != world("synthetic-sound").identity != made("mnist").identity


def test_pictures_of_mnist_are_its_own(real: Path):
    data = made("")
    assert data.identity == made("mnist").identity
    number = data.attributes("test", torch.arange(3))["picture"]
    assert torch.equal(
        data.raw("test", torch.arange(3))["image"][:, 0],
        torch.from_numpy(mnist_digits.load("mnist").images[number].astype(np.float32)) / 255,
    )


@pytest.mark.parametrize("split", HOLDS)
def test_a_row_depends_on_its_split_and_index_alone(split: str):
    """Not on the other rows, their order, how many there are, or a second instance."""
    data = world()
    rows = torch.tensor([599, 3, 3, 250, 0])
    whole, part = data.raw(split, every(data, split)), data.raw(split, rows)
    larger = made(train_rows=9_000, evaluation_rows=5_000).raw(split, rows)
    for name in HOLDS[split]:
        for found in (part[name], larger[name]):
            if name == "text":
                assert found == [whole[name][row] for row in rows.tolist()]
            else:
                assert torch.equal(found, whole[name][rows])
    with pytest.raises(IndexError):
        data.raw(split, torch.tensor([data.count(split)]))


def test_counts_and_what_has_no_rows():
    data = world()
    assert {data.count(split) for split in (*CORPORA, "codec", "judge")} == {1_000}
    assert {data.count(split) for split in ("validation", "test", "fresh")} == {600}
    assert made(evaluation_rows=10, unconditional_rows=50).count("test") == 50
    with pytest.raises(ValueError, match=r"the split image\+audio holds no text"):
        data.other_captions("image+audio", torch.arange(2))
    assert data.attributes("text+image", torch.arange(2)).keys() == {"digit", "picture", "weight", "slant"}
    assert data.attributes("text+audio", torch.arange(2)).keys() == {"digit", "clip", "speaker", "loudness", "pace"}


def test_test_rows_take_turns_among_300_clips_and_never_repeat_a_picture():
    data = made(evaluation_rows=650)
    facts = data.attributes("test", every(data, "test"))
    assert facts["clip"][:300].unique().numel() == 300
    assert torch.equal(facts["clip"][300:600], facts["clip"][:300]) and torch.equal(
        facts["clip"][600:], facts["clip"][:50]
    )
    assert torch.equal(data.clusters("test", every(data, "test")), facts["clip"])
    for digit in range(10):
        pictures = facts["picture"][facts["digit"] == digit]
        pool = data.pools["test"]["picture"]
        own = int((torch.from_numpy(mnist_digits.load("sklearn").labels)[pool] == digit).sum())
        assert pictures[:own].unique().numel() == own and torch.equal(pictures[own : 2 * own], pictures[:own])


def test_fresh_rows_are_other_items_that_the_captions_fit(real: Path):
    data = made("mnist", evaluation_rows=1_200)
    rows = every(data, "test")
    test, fresh = data.attributes("test", rows), data.attributes("fresh", rows)
    for name in ("digit", "speaker", "weight", "slant"):
        assert torch.equal(test[name], fresh[name])
    alike = {name: (test[name] == fresh[name]).double().mean() for name in ("loudness", "pace")}
    assert alike["loudness"] > 0.65 and alike["pace"] > 0.75  # by chance: about 0.36
    assert fresh["clip"][:300].unique().numel() == 300 and fresh["picture"].unique().numel() == 1_200
    assert len(set(data.raw("test", rows)["text"]) & set(data.raw("fresh", rows)["text"])) < 200


def test_where_no_picture_is_alike_the_digit_still_is():
    data = made(evaluation_rows=900)
    rows = every(data, "test")
    test, fresh = data.attributes("test", rows), data.attributes("fresh", rows)
    assert torch.equal(test["digit"], fresh["digit"])
    alike = (test["weight"] == fresh["weight"]) & (test["slant"] == fresh["slant"])
    assert 0.5 < alike.double().mean() < 1


def test_codec_rows_are_unpaired_and_show_everything_once():
    data = world()
    facts = data.attributes("codec", every(data, "codec"))
    pictures, clips = (data.pools["codec"][name] for name in ("picture", "clip"))
    assert (
        len(clips) == 600
        and facts["clip"][:600].sort().values.equal(clips)
        and facts["clip"][600:].equal(facts["clip"][:400])
    )
    assert facts["picture"][: len(pictures)].sort().values.equal(pictures)
    shown = torch.from_numpy(mnist_digits.load("sklearn").labels)[facts["picture"]]
    heard = torch.from_numpy(recordings.load("synthetic").digit)[facts["clip"]]
    for one, other in itertools.combinations((shown, heard, facts["digit"]), 2):
        assert (one == other).double().mean() == pytest.approx(0.1, abs=0.04)


def test_other_captions_are_others():
    data = world()
    rows = every(data, "test")
    texts, others = data.raw("test", rows)["text"], data.other_captions("test", rows)
    assert sum(one == other for one, other in zip(texts, others, strict=True)) < 12
    assert data.other_captions("test", rows[:9]) == others[:9]


def test_an_unknown_variant_is_refused():
    assert refused(lambda: made("minst")) == "unknown variant 'minst': did you mean 'mnist'?"


# What captions tell of, measured.


def bar(width: int, height: int, lean: float = 0.0) -> Tensor:
    """A bar of that many pixels, whose upper end leans to the right by so many pixels for each one up."""
    picture = torch.zeros(1, 28, 28, dtype=torch.uint8)
    for row in range(height):
        left = 14 - width // 2 + round(lean * (height / 2 - row))
        picture[0, 14 - height // 2 + row, left : left + width] = 255
    return picture


def test_stroke_weight_is_the_width_of_a_stroke():
    for width, height in ((1, 20), (2, 20), (3, 18), (5, 22)):
        # The edge of a rectangle is 2 (w + h), but that one pixel at a corner counts its two sides as a diagonal.
        expected = 2 * width * height / (2 * (width + height) - 2 + 2**0.5)
        assert spoken_world.stroke_weight(bar(width, height))[0] == pytest.approx(expected, rel=2e-3)
    mixed = torch.cat([bar(width, 20) for width in (4, 1, 3, 2)])
    assert spoken_world.stroke_weight(mixed).argsort().tolist() == [1, 3, 2, 0]
    dim = (bar(3, 18) // 2 + 0).to(torch.uint8)  # half as bright: as wide
    assert spoken_world.stroke_weight(dim)[0] == pytest.approx(
        float(spoken_world.stroke_weight(bar(3, 18))[0]), rel=2e-3
    )


def test_slant_is_the_lean_of_a_bar():
    for lean in (-1.0, -0.5, 0.0, 0.5, 1.0):
        assert spoken_world.slant(bar(3, 20, lean))[0] == pytest.approx(lean, abs=0.02)
    picture = mnist_digits.load("sklearn").images[:50].astype(np.float64)
    grown = spoken_world.canvas(mnist_digits.load("sklearn").images[:50])
    for ink, found in zip(grown.double().numpy(), spoken_world.slant(grown), strict=True):
        rows, columns = np.indices(ink.shape)
        covariance = np.cov(rows.ravel(), columns.ravel(), aweights=ink.ravel())
        assert found == pytest.approx(-covariance[0, 1] / covariance[0, 0], abs=1e-9)
    assert picture.shape == (50, 8, 8)


def test_small_digits_are_resized_as_torch_does():
    pictures = mnist_digits.load("sklearn").images[:40]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pictures.astype(np.float32))[:, None] * 255 / 16, size=20, mode="bilinear", align_corners=False
    )
    found = spoken_world.canvas(pictures)
    assert (found[:, 4:24, 4:24].float() - expected[:, 0]).abs().max() <= 0.51
    assert found.float().sum() == found[:, 4:24, 4:24].float().sum()


def test_classes_are_thirds_of_the_codecs_own_split():
    data, sound = world(), recordings.load("synthetic")
    clips, pictures = (data.pools["codec"][name].numpy() for name in ("clip", "picture"))
    loudness = (
        sound.loudness
        - np.array([np.sort(sound.loudness[clips][sound.speaker[clips] == who])[49] for who in range(6)])[sound.speaker]
    )  # the lower median of the 100 clips of a speaker
    pace = (
        sound.seconds
        / np.array([np.sort(sound.seconds[clips][sound.digit[clips] == digit])[29] for digit in range(10)])[sound.digit]
    )
    images = spoken_world.canvas(mnist_digits.load("sklearn").images)
    measured = {
        "loudness": (loudness, clips),
        "pace": (pace, clips),
        "weight": (spoken_world.stroke_weight(images).numpy(), pictures),
        "slant": (spoken_world.slant(images).numpy(), pictures),
    }
    for name, (values, own) in measured.items():
        low, high = np.sort(values[own])[[len(own) // 3, 2 * len(own) // 3]]
        assert data.levels[name] == (low, high)
        facts = data.attributes("test", every(data, "test"))
        number = facts["clip" if name in ("loudness", "pace") else "picture"]
        assert facts[name].tolist() == [int(v >= low) + int(v >= high) for v in values[number]]


def test_picking_and_counting_by_hand():
    labels = torch.tensor([0, 1, 0, 1, 1, 2, 0])
    pool = torch.tensor([6, 4, 0, 1])
    wanted = torch.tensor([1, 0, 1, 0, 1, 0])
    assert spoken_world.pick(pool, labels, wanted, spoken_world.occurrence(wanted)).tolist() == [4, 6, 1, 0, 4, 6]
    assert spoken_world.occurrence(torch.tensor([5, 5, 2, 5, 2])).tolist() == [0, 1, 0, 2, 1]
    assert spoken_world.pick(pool, labels, torch.tensor([2]), torch.tensor([3]))[0] in pool
