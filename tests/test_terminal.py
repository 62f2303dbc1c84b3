"""Output that a terminal, a reader, a disk or an encoding does not take costs neither work nor a traceback."""

from __future__ import annotations

import ast
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import terminal
from tests import ROOT

BENCH = [sys.executable, "-m", "benchmark.cli.commands"]
TABLE = ["table", "table5", "-p", "cpu", "--reference"]  # ±, arrows, an em dash


def run(*words: str, **settings: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*BENCH, *words], capture_output=True, env=os.environ | settings, cwd=ROOT)


@pytest.mark.parametrize(
    ("settings", "encoding"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "ascii"),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1"),
        # A locale of ASCII: what is read is UTF-8 all the same.
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}, "ascii"),
    ],
    ids=["ascii", "latin-1", "locale"],
)
def test_a_table_in_a_poor_encoding_keeps_its_columns(settings: dict[str, str], encoding: str) -> None:
    rich = run(*TABLE, PYTHONIOENCODING="utf-8").stdout.decode()
    found = run(*TABLE, **settings)
    assert found.returncode == 0, found.stderr
    poor = found.stdout.decode(encoding)
    assert not rich.isascii() and [len(line) for line in poor.splitlines()] == [len(line) for line in rich.splitlines()]
    assert ("±" in poor) == (encoding == "latin-1")


def test_signs_degrade_to_one_of_ascii() -> None:
    text = "— → ± é ² … \udce9 漢"
    assert text.encode("ascii", "plain_signs") == b"- > ~ e 2 . ? ?"
    assert "é ±→".encode("latin-1", "plain_signs").decode("latin-1") == "é ±>"


def test_a_reader_that_has_gone_is_status_141_without_a_word() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*BENCH, "list"], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (terminal.LOST, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*BENCH, "list"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
        silent = subprocess.run([*BENCH, "list"], stdout=subprocess.PIPE, stderr=full, cwd=ROOT)
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 2 and line.startswith("bench: the output is lost (No space left on device)")
    assert silent.returncode == 0 and silent.stdout


def test_closed_streams_are_no_matter() -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        assert (
            subprocess.run(
                f"{sys.executable} -m benchmark.cli.commands list {closed} <&-", shell=True, cwd=ROOT
            ).returncode
            == 0
        )


def test_a_stream_that_fails_stops_nobody_who_writes() -> None:
    """Progress and what a plug-in prints, while a run is at work."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        stream = terminal.Stream(broken)
        for _ in range(3):
            print("how far it is", file=stream, flush=True)
        assert isinstance(stream.fault, BrokenPipeError)


def on_a_terminal(code: str, **settings: str) -> bytes:
    """What the code writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, cwd=ROOT, env=os.environ | settings
    ) as process:
        os.close(theirs)
        content = b""
        try:
            while part := os.read(ours, 65536):
                content += part
        except OSError:  # Linux's word for the end of a terminal
            pass
    os.close(ours)
    assert process.returncode == 0, content
    return content


PROGRESS = """
import sys
from benchmark.progress import progress
with progress() as report:
    for k in range(3):
        report("training", k, 2, "loss")
"""
SHOWN = f"import sys; sys.argv = ['bench', *{TABLE}]; from benchmark.cli.commands import main; main()"


@pytest.mark.parametrize("code", [PROGRESS, SHOWN], ids=["progress", "table"])
def test_no_color_and_a_dumb_terminal_get_no_escape_codes(code: str) -> None:
    assert b"\x1b[" in on_a_terminal(code, TERM="xterm", NO_COLOR="")
    for settings in ({"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": ""}):
        content = on_a_terminal(code, **settings)
        assert content and b"\x1b" not in content


def test_text_files_are_read_as_utf_8_whatever_the_locale() -> None:
    """Every file that is opened as text names its encoding."""
    faults = []
    for folder in ("benchmark", "baselines", "data_prep", "models"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and opens_text(node) and "encoding" not in {k.arg for k in node.keywords}:
                    faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert faults == []


def opens_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute) and len(call.args) == (name == "write_text")
    if name != "open" or (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in OTHERS):
        return False
    modes = [value.value for value in call.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return not any("b" in mode for mode in modes)


OTHERS = ("os", "Image", "utils.Image", "wave", "tarfile", "zipfile", "subprocess", "gzip")


@pytest.mark.parametrize("line", ["p.read_text()", "p.write_text(x)", "open(p)", "p.open()", 'p.open("w")'])
def test_a_text_file_without_an_encoding_is_seen(line: str) -> None:
    assert opens_text(ast.parse(line, mode="eval").body)
