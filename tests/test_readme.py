"""The README's tables are what the committed rows say, and its commands exist."""

import re

import pytest

from benchmark import cli, registry, tables

CPU = tables.RESULTS / "reference" / "cpu.csv"
README = (registry.ROOT / "README.md").read_text()


@pytest.mark.skipif(not CPU.exists(), reason="results/reference/cpu.csv is not there yet: bench bless --preset cpu")
def test_the_tables_are_current():
    assert tables.render_readme(README, cli.readme_blocks()) == README, "stale: run bench readme"


@pytest.mark.skipif(not CPU.exists(), reason="results/reference/cpu.csv is not there yet: bench bless --preset cpu")
def test_a_changed_number_makes_them_stale(monkeypatch):
    rows = cli._reference("cpu")
    rows.loc[rows["method"] == "muni", "value"] *= 1.5
    monkeypatch.setattr(cli, "_reference", lambda preset: rows)
    assert tables.render_readme(README, cli.readme_blocks()) != README


def test_every_command_it_names_exists():
    known = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert set(re.findall(r"\bbench ([a-z]+)\b", README)) <= known


def test_every_file_it_links_exists():
    assert all((registry.ROOT / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", README))
