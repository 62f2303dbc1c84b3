"""Where a variable forbids it, nothing asks the network: proven by sockets that refuse and tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers import tiny_models_once

# Everything of the suite that could fetch: each source of data, and each model by its role.
PROGRAM = """
import json, socket, sys

asked = []

def refuse(*what, **more):
    asked.append(repr(what)[:200])
    raise OSError("the network was asked")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse

from benchmark.api import UserError
from data_prep.digits import mnist_digits as digits, svhn
from data_prep.media import image_text_audio_sources as sources
from data_prep.spoken import recordings
from data_prep.pretrained.pretrained_codecs import Models
from pathlib import Path

models = Models()
work = {
    "mnist": lambda: digits.load("mnist"),
    "svhn": lambda: svhn.load(official=True),
    "recordings": lambda: recordings.load("fsdd"),
    **{source.name: lambda source=source: sources.listing(source, Path("nowhere"), {}) for source in sources.SOURCES},
    **{role: lambda role=role: models.locate(role) for role in models.entries},
}
from benchmark.judges.segformer import Segformer
work["segformer"] = lambda: Segformer(8).pretrain()
said = {}
for name, each in work.items():
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    try:
        each()
        said[name] = ""
    except UserError as error:
        said[name] = str(error)
print(json.dumps({"asked": asked, "said": said}))
"""


def outcome(tmp_path: Path, *names: str, **variables: str) -> dict:
    away = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "MUNI_BENCH_DATA", "MUNI_BENCH_MODELS")
    environment = {name: value for name, value in os.environ.items() if name not in away}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "MUNI_BENCH_CACHE": str(tmp_path / "cache"), **variables}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("variable", ["MUNI_BENCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_no_source_of_data_and_no_model_asks_the_network(variable: str, tmp_path: Path) -> None:
    tiny_models_once.package("huggingface_hub", imported=False)
    found = outcome(tmp_path, **{variable: "1"})
    assert found["asked"] == []
    assert "" not in found["said"].values() and not [said for said in found["said"].values() if "\n" in said]
    for name in ("recordings", "judge_vggish", "judge_clip"):
        assert f"{variable} is set" in found["said"][name]


def test_without_the_variables_the_sockets_tell(tmp_path: Path) -> None:
    """The proof would be empty if the refusing sockets were not where the network is asked."""
    tiny_models_once.package("huggingface_hub", imported=False)
    assert len(outcome(tmp_path, "recordings", "judge_vggish")["asked"]) == 2
