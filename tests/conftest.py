"""What every test starts from: one thread, runs in a folder of its own, real data where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import ROOT

torch.set_num_threads(1)  # pytest -n uses the other cores


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty runs folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, with nothing in it, and no judge or verifier in memory."""
    from benchmark.judges import towers, verifier

    monkeypatch.setenv("MUNI_BENCH_CACHE", str(tmp_path))
    for module in (towers, verifier):
        monkeypatch.setattr(module, "_known", {})
    return tmp_path


@pytest.fixture
def real_data() -> Path:
    """The folder of real files, from MUNI_BENCH_DATA or ../shared/data; skips the test where there is none."""
    folder = Path(os.environ.get("MUNI_BENCH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set MUNI_BENCH_DATA to their folder")
    return folder
