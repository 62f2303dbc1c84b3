"""Pictures of every mode and depth are read as they are meant to be seen, or refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark.media import pictures
from benchmark.media.media_files import read_png
from data_prep.digits import backgrounds
from data_prep.media import image_text_audio_sources as sources
from data_prep.media.feature_files import BadItem

Image = pytest.importorskip("PIL.Image")
SHADES = np.arange(0, 256, 5, dtype=np.uint8).reshape(4, 13)  # 52 levels from black to white


def content(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(levels: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits, which Pillow does not write: kind 0 grey, 2 colours, 4 grey and alpha, 6 colours and alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, axis=2)


WIDE = SHADES.astype(np.uint16) * 257  # the same levels in 16 bits
CLEAR = np.full_like(SHADES, 255)
SEEN: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "1 bit": (lambda: content(Image.fromarray(SHADES > 99)), grey(np.where(SHADES > 99, 255, 0).astype(np.uint8))),
    "grey": (lambda: content(Image.fromarray(SHADES)), grey(SHADES)),
    "16 bit grey": (lambda: png(WIDE, 0), grey(SHADES)),
    "16 bit grey TIFF": (lambda: content(Image.fromarray(WIDE), "TIFF"), grey(SHADES)),
    "16 bit colours": (lambda: png(grey(WIDE), 2), grey(SHADES)),
    "16 bit alpha": (lambda: png(np.stack([WIDE, CLEAR.astype(np.uint16) * 257], 2), 4), grey(SHADES)),
    "palette": (lambda: content(Image.fromarray(SHADES).convert("P")), grey(SHADES)),
    "grey, clear": (lambda: content(Image.fromarray(np.stack([SHADES, 0 * CLEAR], 2), "LA")), grey(CLEAR)),
    "grey, opaque": (lambda: content(Image.fromarray(np.stack([SHADES, CLEAR], 2), "LA")), grey(SHADES)),
    "half clear": (
        lambda: content(Image.fromarray(np.dstack([grey(0 * SHADES), SHADES]), "RGBA")),
        grey(255 - SHADES),  # black over white
    ),
    "one clear level": (
        lambda: content(Image.fromarray(SHADES), transparency=0),
        grey(np.where(SHADES == 0, 255, SHADES)),
    ),
    "CMYK JPEG": (lambda: content(Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK"), "JPEG", quality=100), None),
    "animation": (
        lambda: content(
            Image.fromarray(SHADES), "PNG", save_all=True, append_images=[Image.fromarray(255 - SHADES)], duration=9
        ),
        grey(SHADES),
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_every_mode_and_depth_is_read_as_it_is_seen(name: str) -> None:
    make, expected = SEEN[name]
    found = pictures.read(make())
    if expected is None:
        expected = np.broadcast_to(np.array([200, 40, 90]), found.shape)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (2 if "JPEG" in name else 0)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_known_white_are_refused_and_counted(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(SHADES).convert(mode).save(path)
    with pytest.raises(BadItem) as raised:
        sources.picture(sources.Item("a", "a", image=sources.File(path)))
    assert raised.value.reason == "pictures without a known black and white"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_camera_was(form: str, orientation: int, tmp_path: Path) -> None:
    """A picture whose EXIF says how it lies is the upright one, for all eight ways, wherever pictures are read."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # white in the top left corner alone
    upright[8:, :12, 0] = 255  # red below it
    lies = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7}[orientation]
    ways = [
        lambda x: x,
        lambda x: x[:, ::-1],
        lambda x: x[::-1, ::-1],
        lambda x: x[::-1],
        lambda x: x.swapaxes(0, 1),
        lambda x: np.rot90(x, 1),
        lambda x: np.rot90(x, 2).swapaxes(0, 1),
        lambda x: np.rot90(x, -1),
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ways[lies](upright)))
    path = tmp_path / "a"
    path.write_bytes(content(stored, form, exif=exif, **({} if form == "PNG" else {"quality": 95})))
    for found in (pictures.read(path), backgrounds.read(path), (read_png(path) * 255).numpy().transpose(1, 2, 0)):
        assert found.shape == upright.shape
        assert np.abs(found[4::8, 4::8].astype(int) - upright[4::8, 4::8]).max() < 100


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_costs_the_orientation_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = content(Image.fromarray(SHADES), exif=exif.tobytes()[:14] + b"\xff" * 8)
    assert pictures.read(damaged).shape in {(4, 13, 3), (13, 4, 3)}


def test_a_picture_of_another_program_in_16_bits_is_scored_as_it_looks(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(WIDE, 0))
    found = read_png(tmp_path / "a.png")
    assert found.shape == (3, 4, 13) and np.allclose(found[0].numpy() * 255, SHADES)
