"""What pictures share: their ink, their file, and what is said in their place where the extra "plots" is missing."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmark.checks.doctor import install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, QUIET = "#1f1f1e", "#6b6a66"


def why_none() -> str:
    """Empty where pictures can be drawn, and else what is missing and the command that installs it."""
    return "" if find_spec("matplotlib") else f"matplotlib is not installed: {install_command('plots')}"


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The picture's file; equal pictures are equal files."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()
