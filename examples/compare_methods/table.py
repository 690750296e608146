"""One table over several runs (seeds) of recipes/compare_methods.toml.

    python examples/compare_methods/table.py runs/compare-1 runs/compare-2 runs/compare-3

Prints Markdown. A figure is the mean over the runs; "gain" is the paired difference of the gold
score to the SFT model on the same prompts, with the least and the most of the runs' means, and in
how many runs its 95% interval (bootstrap over prompts) lies above, across or below 0.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from tether.evaluation.summary import ALL, Comparison, Row, Summary
from tether.evaluation.table import read_summary

HEADER = (
    "| method | gold | gain over SFT | least, most | intervals +/0/− | proxy | KL | length "
    "| distinct-2 | CPU s | wall s |"
)


def main(folders: list[Path]) -> None:
    """Print the table of some run directories."""
    print("\n".join(table([read_run(folder) for folder in folders])))


def read_run(folder: Path) -> tuple[Summary, dict[str, dict[str, Any]]]:
    """The summary of a run's evaluation, and what each stage's result.json holds."""
    results = {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")
    }
    return read_summary(folder / "evaluation"), results


def table(runs: list[tuple[Summary, dict[str, dict[str, Any]]]]) -> list[str]:
    """The lines of the table, in the order of the first run's policies."""
    lines = [HEADER, "|---|" + "---:|" * (HEADER.count("|") - 2)]
    for policy in runs[0][0].policies:
        rows = [next(r for r in run.rows_of(ALL) if r.policy == policy) for run, _ in runs]
        gains = [gain for run, _ in runs for gain in [_gain(run, policy)] if gain]
        times = [results.get(policy, {}) for _, results in runs]
        lines.append(f"| {policy} | {' | '.join(_cells(rows, gains, times))} |")
    return lines


def _gain(run: Summary, policy: str) -> Comparison | None:
    """The policy against the baseline on the first scorer."""
    for one in run.comparisons:
        sides, scorer = (one.policy, one.other), one.scorer == run.scorers[0]
        if one.category == ALL and scorer and sides == (policy, run.baseline):
            return one
    return None


def _cells(rows: list[Row], gains: list[Comparison], times: list[dict[str, Any]]) -> list[str]:
    gold, proxy = (fmean(row.scores[name].mean for row in rows) for name in rows[0].scores)
    means = [gain.difference.mean for gain in gains]
    kls = [row.kl.mean for row in rows if row.kl]
    return [
        f"{gold:.2f}",
        f"{fmean(means):+.2f}" if means else "",
        f"{min(means):+.2f}, {max(means):+.2f}" if means else "",
        _directions(gains) if gains else "",
        f"{proxy:.2f}",
        f"{fmean(kls):.2f}" if kls else "",
        f"{fmean(row.length for row in rows):.1f}",
        f"{fmean(row.distinct_2 for row in rows):.3f}",
        *(_seconds([time.get(name) for time in times]) for name in ("cpu_seconds", "seconds")),
    ]


def _directions(gains: list[Comparison]) -> str:
    above = sum(gain.difference.low > 0 for gain in gains)
    below = sum(gain.difference.high < 0 for gain in gains)
    return f"{above}/{len(gains) - above - below}/{below}"


def _seconds(found: list[float | None]) -> str:
    known = [each for each in found if each is not None]
    return f"{fmean(known):.0f}" if known else ""


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
