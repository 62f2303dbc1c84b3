"""The README's tables are what the committed rows say, and its commands exist."""

import functools
import re

import pytest

from benchmark import registry
from benchmark.api import UserError
from benchmark.cli import commands
from benchmark.records import selection
from benchmark.report.documents import fill_blocks, page_blocks

README = (registry.ROOT / "README.md").read_text()
PAGES = (
    "README.md",
    "docs/findings.md",
    "docs/polymnist_findings.md",
    "docs/spoken_findings.md",
    "docs/ablation.md",
    "docs/mld.md",
    "docs/image_text_audio.md",
    "docs/external/README.md",
    "docs/guide/map.md",
)


blocks = functools.cache(page_blocks)


def fresh(page: str) -> str:
    return fill_blocks((registry.ROOT / page).read_text(), blocks()[page])


def test_the_pages_are_those() -> None:
    assert tuple(blocks()) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_current(page: str) -> None:
    assert fresh(page) == (registry.ROOT / page).read_text(), "stale: run bench readme"


def test_a_changed_number_makes_them_stale(monkeypatch) -> None:
    frame = selection.reference("cpu")
    frame.loc[frame["method"] == "muni", "value"] *= 1.5
    monkeypatch.setattr(selection, "reference", lambda preset: frame)
    assert fill_blocks(README, page_blocks()["README.md"]) != README


def test_blocks_are_replaced_between_their_markers():
    page = "head\n<!-- table5 cpu -->\nold\n<!-- /table5 cpu -->\ntail <!-- other -->x<!-- /other -->\n"
    fresh = fill_blocks(page, {"table5 cpu": r"| \1 new |"})
    assert fresh == (
        "head\n<!-- table5 cpu -->\n| \\1 new |\n<!-- /table5 cpu -->\ntail <!-- other -->x<!-- /other -->\n"
    )
    assert fill_blocks(fresh, {"table5 cpu": "| \\1 new |\n"}) == fresh
    for broken in ("", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a --><!-- a --><!-- /a -->"):
        with pytest.raises(UserError, match="the page needs <!-- a -->"):
            fill_blocks(broken, {"a": "x"})


def test_every_command_it_names_exists():
    known = {
        command.name or command.callback.__name__ for command in commands.app.registered_commands if command.callback
    }
    assert set(re.findall(r"\bbench ([a-z][a-z-]*)\b", README)) <= known


def test_every_file_it_links_exists():
    assert all((registry.ROOT / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", README))
