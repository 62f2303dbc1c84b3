"""The README's tables are what the committed rows say, and its commands exist."""

import functools
import re

import pytest

from benchmark import cli, registry
from benchmark.formats import fill_blocks

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
)


blocks = functools.cache(cli.page_blocks)


def fresh(page: str) -> str:
    return fill_blocks((registry.ROOT / page).read_text(), blocks()[page])


def test_the_pages_are_those() -> None:
    assert tuple(blocks()) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_current(page: str) -> None:
    assert fresh(page) == (registry.ROOT / page).read_text(), "stale: run bench readme"


def test_a_changed_number_makes_them_stale(monkeypatch) -> None:
    rows = cli._reference("cpu")
    rows.loc[rows["method"] == "muni", "value"] *= 1.5
    monkeypatch.setattr(cli, "_reference", lambda preset: rows)
    assert fill_blocks(README, cli.page_blocks()["README.md"]) != README


def test_every_command_it_names_exists():
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert set(re.findall(r"\bbench ([a-z][a-z-]*)\b", README)) <= known


def test_every_file_it_links_exists():
    assert all((registry.ROOT / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", README))
