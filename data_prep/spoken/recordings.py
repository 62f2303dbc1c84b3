"""Recordings of spoken digits: the Free Spoken Digit Dataset, or tones that stand in for it. Every sample is verified.

The set is Jakobovski's, version 1.0.10, CC BY-SA 4.0: six speakers say each digit 50 times, 8 kHz, mono, 16 bit.

What the suite uses of a recording is one second of it (`SAMPLES`), in a form that is the same for all:

1. Its mean is taken off (one speaker's microphone adds a constant, which would click where the clip begins).
2. Its sound lasts from the first to the last 10 ms that are above -35 dB of the loudest, where a running median over
   five of them hides clicks; 20 ms around it are kept, and 5 ms at either end are faded, so that nothing clicks.
3. It begins 50 ms into the second, so that every word begins at one place, whatever its length; silence follows.
   Longer sound is cut: 4 of the 3,000, of which three go on with noise after a short word and one fades out.
4. Each speaker has one gain, which brings the median of his or her clips to one level, since the microphones differ by
   22 dB and some could not be heard. How loud a clip is among its speaker's is kept. What would exceed full scale
   gets a smaller gain (72 clips) and no distortion.

Every step is integer arithmetic or one rounded product per sample, so all machines get the same second.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import tarfile
import urllib.request
import wave
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmark.api import UserError, one_line
from benchmark.files import cache_folder, write_atomic
from benchmark.runtime import Draws
from data_prep.media.data_folder import SETTING, data_folder, offline

RATE = SAMPLES = 8_000  # Hz, and samples of a clip: one second
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50
DIGITS = 10

FOLDER = "fsdd/recordings"
ARCHIVE = "fsdd-1.0.10.tar.gz"
ADDRESS = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
DIGEST = "418bff75bbd1accf31a9cb515fcdaf00"  # of names and samples, as `digest` makes it
ELSE = "or choose the variant synthetic-sound"

FRAME = 80  # samples: 10 ms
QUIET = 10 ** (-35 / 10)  # of the loudest frame's power
KEPT, FADED, BEGIN = 160, 40, 400  # samples around the sound, of its ends, before it
LEVEL = 0.08  # of full scale: root mean square of a speaker's median clip
PEAK = 0.99  # of full scale


@dataclass(frozen=True, eq=False)
class Recordings:
    """Clip number (digit * speakers + speaker) * takes + take of every field; `speaker` counts within `SPEAKERS`.

    sound: (clips, SAMPLES) float32 in [-1, 1] at RATE Hz; digit, speaker, take: (clips,) int64.
    loudness: (clips,) float64, power of the sound in the original clip, dB of full scale, to 0.01.
    seconds: (clips,) float64, how long the sound lasts in the original clip.
    """

    sound: np.ndarray
    digit: np.ndarray
    speaker: np.ndarray
    take: np.ndarray
    loudness: np.ndarray
    seconds: np.ndarray


def load(name: str) -> Recordings:
    """`fsdd` or `synthetic`, made once per process. Raises UserError where recordings are missing or damaged."""
    return _synthetic() if name == "synthetic" else _fsdd(data_folder(FOLDER))


@functools.cache
def _fsdd(folder: Path | None) -> Recordings:
    """The recordings of a folder, or else of the project's archive."""
    contents = _files(folder)
    clips = _verified(contents, str(folder)) if contents else _from_the_archive(folder)
    return _recordings(clips)


@functools.cache
def _synthetic() -> Recordings:
    """Not speech: two gliding tones per digit, buzzing at a pitch of the speaker, for tests without a download.

    Clip (digit d, speaker s, take) is, for its T = 0.2 to 0.4 seconds, with u = time / T,
    sin(pi u) (0.6 + 0.4 cos(2 pi pitch time)) (sin(phase_1) + sin(phase_2) / 2) / 3, with pitch = 80 * 1.25^s Hz, and
    phase_k the integral of 2 pi f_k; f_1 glides from 300 + 60 d to 300 + 60 (3 d mod 10) Hz and f_2 from
    1,200 + 200 (7 d mod 10) to 1,200 + 200 (9 - d) Hz. Takes differ by T, by 5 % in pitch and by 12 dB in level.
    """
    clips: list[np.ndarray] = []
    time = np.arange(4 * RATE // 10)[None] / RATE
    for d in range(DIGITS):
        uniform = Draws("synthetic recordings", d, rows=len(SPEAKERS) * TAKES, block=4096).uniform("take", 3)
        lasts, tuning, level = uniform.double().numpy().T[:, :, None]
        lasts = 0.2 + 0.2 * lasts
        pitch = 80 * 1.25 ** (np.arange(len(lasts)) // TAKES)[:, None] * (1 + 0.05 * (tuning - 0.5))
        share = np.minimum(time / lasts, 1)
        tones = [
            np.sin(2 * np.pi * time * (low + (high - low) * share / 2))
            for low, high in (
                (300 + 60 * d, 300 + 60 * (3 * d % 10)),
                (1_200 + 200 * (7 * d % 10), 1_200 + 200 * (9 - d)),
            )
        ]
        buzz = np.sin(np.pi * share) * (0.6 + 0.4 * np.cos(2 * np.pi * pitch * time))
        sound = np.rint(10 ** (-0.6 * level) * 32_767 / 3 * buzz * (tones[0] + tones[1] / 2)).astype(np.int16)
        clips += [clip[: int(last * RATE)] for clip, last in zip(sound, lasts[:, 0], strict=True)]
    return _recordings(clips)


def names() -> list[str]:
    """File names in the order of the clips' numbers."""
    return [f"{digit}_{who}_{take}.wav" for digit in range(DIGITS) for who in SPEAKERS for take in range(TAKES)]


def digest(clips: dict[str, np.ndarray]) -> str:
    """32 hex digits of names and samples, in the order of the names."""
    content = hashlib.blake2b(digest_size=16)
    for name in sorted(clips):
        content.update(f"{name} {len(clips[name])} ".encode() + clips[name].astype("<i2").tobytes())
    return content.hexdigest()


def _files(folder: Path | None) -> dict[str, bytes]:
    """{name: content} of the recordings in a folder; empty where it has none, or there is none."""
    found: dict[str, bytes] = {}
    if folder is None:
        return found
    for path in map(folder.joinpath, names()):
        try:
            found[path.name] = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}): get it anew") from None
    return found


def _from_the_archive(folder: Path | None) -> list[np.ndarray]:
    """The clips of the project's archive, which is kept for the machine once it is verified."""
    path = cache_folder() / ARCHIVE
    here = f"none in {folder}" if folder else f"{SETTING} is not set"
    kept = path.is_file()
    try:
        content = path.read_bytes() if kept else _fetch(ADDRESS)
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"no recordings of spoken digits: {here}, and {ADDRESS} cannot be fetched ({reason}): set {SETTING} to the "
            f"folder that holds {FOLDER}, {ELSE}"
        ) from None
    where = f"{path}, which you may delete," if kept else ADDRESS
    clips = _verified(_unpacked(content, where), where)
    if not kept:
        write_atomic(path, content)
    return clips


def _fetch(address: str) -> bytes:
    if forbidden := offline():
        raise OSError(f"{forbidden} is set")
    with urllib.request.urlopen(address, timeout=60) as response:
        return response.read()


def _unpacked(content: bytes, where: str) -> dict[str, bytes]:
    """{name: content} of the recordings in a packed archive. Raises UserError where it is damaged."""
    found: dict[str, bytes] = {}
    wanted = set(names())
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:
                parts = Path(member.name).parts  # of the project's folder, recordings, and a name
                if parts[1:-1] == ("recordings",) and parts[-1] in wanted and (file := archive.extractfile(member)):
                    found[parts[-1]] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise UserError(f"{where} cannot be unpacked ({type(error).__name__}: {error}): get it anew") from None
    return found


def _verified(contents: dict[str, bytes], where: str) -> list[np.ndarray]:
    """The samples of each clip. Raises UserError where clips are missing, unreadable (the first is named, the others
    are counted) or others than the official ones."""
    if lacking := [name for name in names() if name not in contents]:
        raise UserError(
            f"{where} lacks {len(lacking):,} of {len(names()):,} recordings, the first {lacking[0]}: get them anew"
        )
    clips, faults = {}, []
    for name in names():
        try:
            clips[name] = samples(contents[name])
        except ValueError as error:
            faults.append(f"{name} {error}")
    if faults:
        more = f" (and {len(faults) - 1:,} more of {len(names()):,} are bad)" if len(faults) > 1 else ""
        raise UserError(f"{where}: {faults[0]}{more}: get it anew")
    if (found := digest(clips)) != DIGEST:
        raise UserError(
            f"the recordings in {where} are not those of version 1.0.10: their digest is {found}, not {DIGEST}; get "
            "them anew"
        )
    return list(clips.values())


def samples(content: bytes) -> np.ndarray:
    """The int16 samples of a wav file. Raises ValueError, with the reason, where it is none of 8 kHz, mono, 16 bit."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate, count = file.getparams()[:4]
            data = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"cannot be read as a wav file ({str(error) or 'it ends too early'})") from None
    if (channels, width) != (1, 2):
        raise ValueError(f"has {channels} channels of {8 * width} bit, not one of 16")
    if rate != RATE:
        raise ValueError(f"has {rate:,} samples a second, not {RATE:,}")
    if len(data) != 2 * count:
        raise ValueError(f"holds {len(data) // 2:,} of the {count:,} samples that its header names")
    found = np.frombuffer(data, "<i2")
    if not len(found):
        raise ValueError("has no samples")
    if not np.ptp(found):
        raise ValueError("is silent")
    return found


def _recordings(clips: Sequence[np.ndarray]) -> Recordings:
    """Of the clips of `names()`, in that order, each (samples,) int16."""
    number = np.arange(len(clips))
    speaker = number // TAKES % len(SPEAKERS)
    sound = np.zeros((len(clips), SAMPLES), np.float32)
    power, lasts = np.zeros(len(clips)), np.zeros(len(clips), np.int64)
    spans = []
    for at, clip in enumerate(clips):
        level = clip.astype(np.int64) - int(np.rint(clip.mean()))
        first, last = span(level)
        spans.append((level, first, last))
        power[at], lasts[at] = (level[first:last] ** 2).sum() / (last - first), last - first
    gains = [_gain(np.median(np.sqrt(power[speaker == each]))) for each in range(len(SPEAKERS))]
    for at, (level, first, last) in enumerate(spans):
        sound[at] = second(level, first, last, gains[speaker[at]])
    return Recordings(
        sound=sound,
        digit=number // (TAKES * len(SPEAKERS)),
        speaker=speaker,
        take=number % TAKES,
        loudness=np.round(10 * np.log10(power / 2**30), 2),
        seconds=lasts / RATE,
    )


def span(level: np.ndarray) -> tuple[int, int]:
    """Where sound begins and ends, in samples: the first and last frame that is above -35 dB of the loudest.

    level: (samples,) int64, not all alike. A frame's power is the median of five; what is shorter than 30 ms does not
    count, unless there is nothing else.
    """
    frames = -(-len(level) // FRAME)
    padded = np.zeros(frames * FRAME, np.int64)
    padded[: len(level)] = level**2
    power = padded.reshape(frames, FRAME).sum(1)
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(power, 2), 5), 1)
    smooth = smooth if smooth.any() else power
    loud = np.flatnonzero(smooth > QUIET * smooth.max())
    return int(loud[0]) * FRAME, min(int(loud[-1] + 1) * FRAME, len(level))


def second(level: np.ndarray, first: int, last: int, gain: float) -> np.ndarray:
    """(SAMPLES,) float32: the sound from `first` to `last` of a clip, (samples,) int64, times the gain.

    It begins BEGIN samples in; before and behind it is what the clip has there, KEPT samples of it, and then silence.
    """
    start = max(first - KEPT, 0)
    at = BEGIN - (first - start)
    piece = level[start : last + KEPT][: SAMPLES - at].astype(np.float32) / 2**15
    highest = float(np.abs(piece).max())
    if gain * highest > PEAK:
        gain = np.floor(PEAK / highest * 1024) / 1024
    ramp = (np.arange(1, FADED + 1) / FADED).astype(np.float32)[: len(piece)]
    piece *= np.float32(gain)
    piece[: len(ramp)] *= ramp
    piece[len(piece) - len(ramp) :] *= ramp[::-1]
    placed = np.zeros(SAMPLES, np.float32)
    placed[at : at + len(piece)] = piece
    return placed


def _gain(typical: float) -> float:
    """Brings a root mean square, in steps of 16 bit, to LEVEL; a multiple of 1 / 1024, so that it is the same
    everywhere."""
    return float(np.rint(LEVEL * 2**15 / typical * 1024) / 1024)
