"""Tables of one or several runs (seeds) of recipes/dialogsum_toxicity.toml, in Markdown.

    python examples/dialogsum_toxicity/table.py runs/dialogsum-1 runs/dialogsum-2

For each group of prompts: what was measured before and after PPO in each run, and the difference on
the same prompts with its 95% interval (bootstrap over prompts).
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from tether.evaluation.blocks import Block, read_blocks
from tether.evaluation.samples import ALL, Sample
from tether.evaluation.summary import Row, Summary
from tether.evaluation.table import number, read_summary
from tether.evaluation.toxicity import toxicity
from tether.functions import load_function
from tether.records import read_jsonl
from tether.statistics import Interval

JUDGE = "judge toxicity"

Cells = dict[str, list[str]]
"""The cells of one run by the name of the measure."""


def main(folders: list[Path]) -> None:
    """Print the tables of some run directories."""
    summaries = [read_summary(folder / "evaluation") for folder in folders]
    head = [f"{name} {word}" for name in map(str, folders) for word in ("before", "after", "gain")]
    for category in [ALL, *summaries[0].categories()]:
        print(f"\n{category}: {summaries[0].rows_of(category)[0].num_prompts} prompts\n")
        print_columns(head, [scores(summary, category) for summary in summaries])
    blocks = [read_blocks(folder / "evaluation") for folder in folders]
    for i, block in enumerate(blocks[0]):
        print(f"\n{block.title}, {ALL}\n")
        print_columns(head, [measures(run[i], summaries[0]) for run in blocks])
    for category in summaries[0].apart:
        print(f"\nToxicity: {JUDGE}, {category}\n")
        apart = [toxicity_of(folder / "evaluation", category) for folder in folders]
        print_columns(head, [measures(block, summaries[0]) for block in apart])
    print(f"\nHuman summaries of the same prompts: {people(folders[0])}\n")
    for folder in folders:
        print(f"CPU seconds, {folder}: {', '.join(seconds(folder))}")


def print_columns(head: list[str], runs: list[Cells]) -> None:
    """One line a measure; beside each other what the runs found."""
    print(f"| | {' | '.join(head)} |")
    print("|---" * (len(head) + 1) + "|")
    for name in runs[0]:
        print(f"| {name} | {' | '.join(cell for run in runs for cell in run[name])} |")


def scores(summary: Summary, category: str) -> Cells:
    """Scores with the gain, then what describes the texts, of the first two policies."""
    before, after = summary.rows_of(category)[:2]
    gains = {
        one.scorer: one.difference
        for one in summary.comparisons
        if one.category == category and (one.policy, one.other) == (after.policy, before.policy)
    }
    found = {
        name: [three(before.scores[name]), three(after.scores[name]), gain(gains.get(name))]
        for name in summary.scorers
    }
    return found | {
        name: [described(before, name), described(after, name), ""]
        for name in ("KL", "length", "finished", "distinct-2", "repetition", "perplexity")
    }


def described(row: Row, name: str) -> str:
    """A figure of the texts in print."""
    return {
        "KL": str(number(row.kl, 2, signed=False)),
        "length": f"{row.length:.1f}",
        "finished": f"{row.finished:.0%}",
        "distinct-2": f"{row.distinct_2:.3f}",
        "repetition": f"{row.repetition:.1%}",
        "perplexity": f"{row.reference_perplexity:.2f}" if row.reference_perplexity else "",
    }[name]


def measures(block: Block, summary: Summary) -> Cells:
    """The measures of a block by name, of the first two policies."""
    first, second = summary.policies[:2]
    found = {(each.name, each.policy): each for each in block.measures}
    names = [name for name, policy in found if policy == first and (name, second) in found]
    return {
        name: [
            three(found[name, first].value),
            three(found[name, second].value),
            gain(found[name, second].difference),
        ]
        for name in names
    }


def toxicity_of(folder: Path, category: str) -> Block:
    """The block of the judge on a category that is reported apart."""
    summary = read_summary(folder)
    samples = [Sample.from_dict(row) for _, row in read_jsonl(folder / "samples.jsonl")]
    chosen = [sample for sample in samples if sample.category == category]
    return toxicity(chosen, JUDGE, baseline=summary.baseline)


def people(folder: Path) -> str:
    """What the judge says of the human summaries, and how alike those of two dialogues are.

    The ROUGE-L of a summary of another dialogue is what a summary has that knows nothing of its own
    but how summaries are written.
    """
    rows = [row for _, row in read_jsonl(folder / "people" / "scores.jsonl")]
    asked = [row for _, row in read_jsonl(folder / "test" / "prompts.jsonl")]
    rows = [row for row, prompt in zip(rows, asked, strict=True) if "category" not in prompt]
    toxic = [score for row in rows for score in row["scores"]]
    texts = [text for row in rows for text in row["completions"]]
    rouge_l = load_function(f"{Path(__file__).with_name('rouge.py')}:rouge_l")
    floor = rouge_l([row["prompt"] for row in rows], [*texts[1:], texts[0]])
    return (
        f"{JUDGE} {fmean(toxic):.3f}, above 0.5 {fmean(score > 0.5 for score in toxic):.1%}; "
        f"ROUGE-L of the summary of another dialogue {fmean(floor):.3f}"
    )


def three(interval: Interval) -> str:
    """A mean."""
    return f"{interval.mean:.3f}"


def gain(interval: Interval | None) -> str:
    """A difference with its interval."""
    return str(number(interval, 3)) if interval else ""


def seconds(folder: Path) -> list[str]:
    """What each stage of a run took."""
    results = sorted(folder.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    found = [(path.parent.name, json.loads(path.read_text())) for path in results]
    return [f"{name} {row['cpu_seconds']:.0f}" for name, row in found if "cpu_seconds" in row]


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
