"""What stands in README and docs between the markers that `bench readme` fills."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from benchmark import registry
from benchmark.api import TASKS, UserError, one_line
from benchmark.engine import tune
from benchmark.files import files_in
from benchmark.records import selection
from benchmark.tables.claims import claims_about, render_claims, verdicts_of
from benchmark.tables.layout import page_of
from benchmark.tables.render import render
from benchmark.tables.table_file import load_table
from benchmark.toml_files import read_toml

PRESET = "cpu"


def page_blocks() -> dict[str, dict[str, str]]:
    """Page -> what stands between each pair of its markers."""
    frame = selection.reference(PRESET)

    def table(*names: str) -> dict[str, str]:
        loaded = {name: load_table(name, registry.index("metric"), PRESET) for name in names}
        return {f"{name} {PRESET}": render(page_of(frame, each, PRESET)[1], "md") for name, each in loaded.items()}

    def claims(*names: str) -> dict[str, str]:
        verdicts = verdicts_of(frame, claims_about(names, PRESET), PRESET)
        return {f"claims {' '.join(names)} {PRESET}": render_claims(verdicts, "md")}

    def search(*names: str) -> dict[str, str]:
        found = {name: tune.load_search(name) for name in names}
        return {
            f"search {name}": tune.render(each, tune.read_lines(each.lines), PRESET) for name, each in found.items()
        }

    return {
        "README.md": {
            **table("table5", "criteria", "table6", "table3"),
            **claims("table5"),
            **claims("table2", "table6"),
            **claims("table3", "table4", "table8", "table9"),
            **search("tuning", "edge"),
        },
        "docs/findings.md": search("budget", "long"),
        "docs/polymnist_findings.md": search("pictures_budget", "pictures_tuning", "pictures_sensitivity"),
        "docs/spoken_findings.md": table("table4", "table8", "table9") | search("spoken_tuning"),
        "docs/ablation.md": table("ablation") | claims("ablation") | search("pictures_ablation"),
        "docs/mld.md": {
            **table("mld", "mld_mixture"),
            **claims("mld", "mld_svhn"),
            **search("mld_stages", "mld_diffusion", "mvtcae_beta"),
        },
        "docs/image_text_audio.md": {"weights": _weights()},
        "docs/external/README.md": {"models": _external_models()},
        "docs/guide/map.md": {"map": _map()},
    }


def _map() -> str:
    """Markdown of the tree: per package its purpose, and a line for each file, both from the docstrings."""
    lines = []
    for top in ("benchmark", "models", "baselines", "data_prep"):
        for package in sorted({path.parent for path in (registry.ROOT / top).rglob("__init__.py")}):
            lines += ["", f"## {package.relative_to(registry.ROOT)}/", "", _purpose(package / "__init__.py"), ""]
            files = (path for path in files_in(package, ".py") if path.name != "__init__.py")
            lines += ["| file | purpose |", "|---|---|", *(f"| `{path.name}` | {_purpose(path)} |" for path in files)]
    return "\n".join(lines).replace("| file | purpose |\n|---|---|\n\n", "\n")


def _purpose(file: Path) -> str:
    """The first sentence of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
    return one_line(text.partition("\n\n")[0]).replace("|", "\\|")


def _weights() -> str:
    """Markdown of the models that image_text_audio loads, by role."""
    entries = read_toml(registry.ROOT / "data_prep" / "pretrained" / "pretrained_models.toml").values()
    lines = [
        f"| {each['use']} | `{each.get('id') or each['url'].rpartition('/')[2]}`{' (gated)' * each['gated']} "
        f"| {each['licence']} | {each['gigabytes']} |"
        for each in entries
    ]
    total = sum(each["gigabytes"] for each in entries)
    return "\n".join(["| use | default | licence | GB |", "|---|---|---|---:|", *lines, f"| all | | | {total:.1f} |"])


def _external_models() -> str:
    """Markdown of what the external models can generate."""
    folder = registry.ROOT / "baselines" / "published" / "workers"
    lines = []
    for path in files_in(folder, ".toml"):
        known = read_toml(path)
        refused = known.get("refused", {})
        tasks = [task for task in TASKS if task not in refused]
        does = ", ".join(known.get("directions", [task.replace("_", " ") for task in tasks]))
        reasons = "; ".join(f"{task.replace('_', ' ')}: {why}" for task, why in refused.items())
        lines.append(f"| [{known['label']}]({path.stem}.md) | {does} | {reasons} | {known['gigabytes']} |")
    return "\n".join(["| model | makes | and not | GB |", "|---|---|---|---:|", *lines])


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """The text with what stands between `<!-- NAME -->` and `<!-- /NAME -->` replaced, for each name of `blocks`.

    Raises UserError where a name has no such pair of markers, or more than one.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise UserError(f"the page needs {begin} and, below it, {end}, once each")
        between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        text = f"{begin}\n{content.strip()}\n{end}"
        page = between.sub(lambda _, text=text: text, page)  # type: ignore[misc]
    return page
