"""Seconds that each command takes which reads a result file, by the number of its rows.

python docs/experiments/many_rows.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmark import registry
from benchmark.engine import execution
from benchmark.records import results_file, run_identity
from benchmark.tables.table_file import load_table

PRESET, SIZES, TRIES = "cpu", (1_000, 100_000), 1
RUN = ["run", "--method", "chance", "--task", "uncond", "--seed", "0-49", "--plan"]
COMMANDS = {
    "reproduce table5 --plan, 50 runs": ["reproduce", "table5", "--plan"],
    "run --plan, 50 seeds": RUN,
    "table table5": ["table", "table5"],
    "claims": ["claims"],
    "check": ["check"],
    "report --no-samples": ["report", "--no-samples", "--out", "report.html"],
}


def rows_of_table(runs: Path) -> list[results_file.Record]:
    """A made-up number for everything that table5 asks of its 50 runs."""
    table = load_table("table5", registry.index("metric"), PRESET)
    jobs = table.jobs(PRESET, registry.card("dataset", table.dataset).modalities)
    found = []
    for run in (run_identity.prepare(job, runs) for job in jobs):
        results = (execution.Result(cell, metric, None, "n/a: made up", None) for cell, metric in run.job.scores)
        rows = [
            execution._record(run, "cpu", result, dict.fromkeys(results_file.MEASURED[::2], 1.0), {})
            for result in results
        ]
        found += [replace(row, value=1 + row.seed / 7, stderr=0.1, n=512, status="ok") for row in rows]
    return found


def fill(path: Path, rows: list[results_file.Record], count: int) -> None:
    """Write `count` rows: rows of older code, which no command shows, and after them as many of `rows` as fit in."""
    rows = rows[:count]
    older = (
        replace(rows[number % len(rows)], run_id=f"older{number // len(rows)}{rows[number % len(rows)].run_id}")
        for number in range(count - len(rows))
    )
    results_file.append(path, [*older, *rows])


def seconds(words: list[str], folder: Path) -> float:
    """The best of several calls, from the start of the process to its end."""
    best = float("inf")
    for _ in range(TRIES):
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmark.cli.commands",
                *words,
                "--preset",
                PRESET,
                "--runs",
                str(folder / "runs"),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        best = min(best, time.perf_counter() - start)
        if "Traceback" in done.stderr or done.stderr.startswith("bench: "):
            raise RuntimeError(done.stderr)
    return best


def main() -> None:
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder) / "runs"
            fill(runs / "results.csv", rows_of_table(runs), size)
            for name, words in COMMANDS.items():
                found[name].append(seconds(words, Path(folder)))
    print("| seconds of bench | " + " | ".join(f"{size:,} rows" for size in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    for name, times in found.items():
        print(f"| `{name}` | " + " | ".join(f"{each:.1f}" for each in times) + " |")


if __name__ == "__main__":
    main()
