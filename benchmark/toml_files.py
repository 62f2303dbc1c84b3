"""What a user writes is read strictly: TOML files by key and type, and names; a refusal is one line that says where."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmark.api import SEEDS, UserError
from benchmark.config import nearest


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is absent or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def checked(
    raw: Mapping[str, Any], required: Mapping[str, Any], where: str, optional: Mapping[str, Any] | None = None
) -> None:
    """Raises UserError, naming file and key, unless `raw` has the required keys, no unknown one, and their types."""
    kinds: dict[str, Any] = {**required, **(optional or {})}
    for key, value in raw.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            kind = getattr(kinds[key], "__name__", str(kinds[key]))
            raise UserError(f"{where}: {key} = {value!r} is not of type {kind}")
    for key in required:
        if key not in raw:
            raise UserError(f"{where}: lacks the key {key!r}")


def checked_seed(seed: Any, where: str) -> int:
    """Raises UserError for what is no training's seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS:
        raise UserError(f"{where}: seed {seed!r}: write a whole number from 0 to {SEEDS[-1]}")
    return seed


def known_name(name: str, known: Collection[str], what: str, where: str) -> None:
    """Raises UserError, with the nearest match, for a name that is not known."""
    if name not in known:
        raise UserError(f"{where}: unknown {what} {name!r}{nearest(name, known)}")
