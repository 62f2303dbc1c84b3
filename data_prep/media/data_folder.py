"""Where files that are not ours lie: the user's data folder, and inside installed packages."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from benchmark.api import UserError
from benchmark.files import folder_named

SETTING = "MUNI_BENCH_DATA"
INSTALL = "pip install 'muni-bench[polymnist]'"
OFFLINE = ("MUNI_BENCH_OFFLINE", "HF_HUB_OFFLINE")  # either keeps the suite and the packages it loads off the network


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


def offline() -> str:
    """The variable that forbids asking the network; empty where none does.

    The hub's packages obey variables of their own, and read them when they are imported: they are set for them here.
    """
    named = next((name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), "")
    if named:
        os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
        for module, setting in (("huggingface_hub.constants", "HF_HUB_OFFLINE"), ("datasets.config", "HF_HUB_OFFLINE")):
            if module in sys.modules:
                setattr(sys.modules[module], setting, True)
    return named
