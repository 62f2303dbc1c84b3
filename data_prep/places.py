"""Where files that are not ours lie: the user's data folder, and inside installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from benchmark.api import UserError
from benchmark.files import folder_named

SETTING = "MUNI_BENCH_DATA"
INSTALL = "pip install 'muni-bench[polymnist]'"


def data_folder(name: str) -> Path | None:
    """A folder inside the user's data folder, there or not; None where the environment names no data folder."""
    folder = folder_named(SETTING)
    return None if folder is None else folder / name


def packaged(package: str, path: str, distribution: str) -> Path:
    """A file that an installed package ships, found without importing it (which is slow, and may make folders).

    Raises UserError where the package or the file is missing.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{distribution} is not installed: {INSTALL}")
    file = Path(found.submodule_search_locations[0]) / path
    if not file.is_file():
        raise UserError(f"{distribution} is here without its file {file}: {INSTALL} brings a version that has it")
    return file
