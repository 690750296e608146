"""One table of runs of recipes/overoptimization.toml: where gold turns, by size of the data.

    python examples/overoptimization/table.py runs/overoptimization …

Prints Markdown, a line a run and reward model. Gold of PPO is that of the models kept along the
run, on all test prompts; peaks are those of the fitted laws, over d = √KL, with the interval of a
bootstrap over prompts. "none" is a law without a peak within what was measured.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tether.evaluation.overoptimization import Law, read_frontier
from tether.evaluation.summary import ALL
from tether.evaluation.table import number, read_summary
from tether.statistics import Interval

SIZES = (100, 1_000, 10_000)
HEADER = (
    "| run | pairs | held-out accuracy | longer wins | gold: SFT → best (√KL) → end of PPO "
    "| proxy at the end | PPO's peak | best-of-n's peak |"
)


def main(folders: list[Path]) -> None:
    """Print the table of some run directories."""
    print(HEADER + "\n|---|" + "---:|" * (HEADER.count("|") - 2))
    for folder in folders:
        for size in SIZES:
            print(line(folder, size))


def line(folder: Path, size: int) -> str:
    """The line of one reward model."""
    reward = json.loads((folder / f"reward-{size}" / "result.json").read_text())
    evaluation = folder / f"evaluation-{size}"
    summary = read_summary(evaluation)
    start, end = (row.scores["gold"].mean for row in summary.rows_of(ALL))
    best = max(summary.kept, key=lambda each: each.scores["gold"].mean)
    distance = best.kl.mean**0.5 if best.kl else float("nan")
    proxy = summary.rows_of(ALL)[1].scores[f"proxy-{size}"].mean
    frontier = read_frontier(evaluation)
    laws = {law.policy: law for law in (frontier.laws if frontier else [])}
    cells = [
        folder.name,
        f"{size:,}",
        accuracy(reward),
        f"{reward['length_baseline_accuracy']:.0%}",
        f"{start:.2f} → {best.scores['gold'].mean:.2f} ({distance:.1f}) → {end:.2f}",
        f"{proxy:.2f}",
        peak(laws.get("ppo")),
        peak(laws.get("best of n")),
    ]
    return f"| {' | '.join(cells)} |"


def accuracy(result: dict[str, Any]) -> str:
    """Held-out accuracy of a reward model, with its interval."""
    found = result["held_out_accuracy"]
    ends = (float("nan") if found[name] is None else found[name] for name in ("low", "high"))
    return str(number(Interval(found["mean"], *ends), 2, signed=False))


def peak(law: Law | None) -> str:
    """√KL at a law's peak."""
    return "none" if law is None or law.peak is None else str(number(law.peak, 2, signed=False))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
