"""What the judgments of a project or a file say, and how far they can be trusted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from tether.errors import DataError
from tether.feedback.agreement import (
    category_counts,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_tau,
    rank_ratings,
    sign_ratings,
    unanimous_share,
)
from tether.feedback.disputed import Disputed, disputed, weak_spots
from tether.feedback.judgments import Item, Judgment, from_records
from tether.feedback.labelers import LabelerQuality, assess, weights
from tether.feedback.store import Project, Store, is_project
from tether.feedback.strengths import Consensus, agreed
from tether.feedback.tally import Block, one_voice, tally
from tether.progress import results
from tether.records import PreferencePair, Ranking, Thumb, from_dict, read_jsonl
from tether.statistics import Interval

RESAMPLES = 200
SHOWN = 5  # disputed items in print


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far labelers agree on the items of one kind; None or NaN where nothing is known.

    Attributes:
        kind: "rankings" (of two completions or more) or "thumbs".
        items: With at least one judgment.
        overlapping: Of these, with two or more.
        judgments: Without repeats.
        alpha_ranks: Krippendorff's α (ordinal) on mid-ranks; for rankings of three and more alone.
        alpha_pairs: Krippendorff's α on which of a pair is better: the interval metric on -1, 0, 1
            (orientation by chance); for thumbs the nominal metric on up and down.
        kappa: Fleiss' κ of the same categories.
        tau: Mean Kendall's τ-b over the pairs of labelers of an item; not for thumbs.
        unanimous: Share of the overlapping items on which all say the same.
    """

    kind: str
    items: int
    overlapping: int
    judgments: int
    alpha_ranks: Interval | None
    alpha_pairs: Interval
    kappa: float
    tau: Interval | None
    unanimous: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the judgments say together.

    Attributes:
        project: The name, "" for a file.
        criterion: What was judged, "" where unknown.
        agreement: One for rankings and one for thumbs, where there are any.
        labelers: Everybody's quality, by name.
        disputed: The items on which labelers differ most.
        weak_spots: Those on which competent labelers do: what the instructions leave open.
        consensus: By the key of the item; votes count as `LabelerQuality.weight` says.
    """

    project: str
    criterion: str
    agreement: list[Agreement]
    labelers: list[LabelerQuality]
    disputed: list[Disputed]
    weak_spots: list[Disputed]
    consensus: dict[str, Consensus]


def summarize(
    items: Mapping[str, Item], judgments: Sequence[Judgment], project: Project | None = None
) -> Summary:
    """Agreement, quality, disputes and consensus; a second or so for 20,000 judgments."""
    quality = assess(items, judgments, num_resamples=RESAMPLES)
    blocks = [block for block in tally(items, one_voice(judgments)).blocks if len(block.judgment)]
    rankings = [block for block in blocks if not block.thumbs]
    thumbs = [block for block in blocks if block.thumbs]
    return Summary(
        project="" if project is None else project.name,
        criterion="" if project is None else project.criterion,
        agreement=[_agreement(kind) for kind in (rankings, thumbs) if kind],
        labelers=quality,
        disputed=disputed(items, judgments),
        weak_spots=weak_spots(items, judgments, quality),
        consensus=agreed(items, judgments, weights(quality)),
    )


def read_judgments(path: str) -> tuple[dict[str, Item], list[Judgment], Project | None]:
    """Items and judgments of a project (.db) or of a file of rankings, pairs or thumbs (JSONL).

    Raises:
        DataError: The file cannot be read, holds no judgments, or a record names no labeler.
    """
    if is_project(path):
        store = Store(path)
        items, judgments, project = store.items(), store.judgments(), store.project
        store.close()
    else:
        items, judgments = from_records([_record(*row, path) for row in read_jsonl(path)])
        project = None
    if not judgments:
        mend = f"label some with `tether label {path}`" if project else "name a file with some"
        raise DataError(f"{path}: holds no judgments; {mend}")
    return items, judgments, project


def _record(line: int, row: dict[str, Any], path: str) -> Ranking | PreferencePair | Thumb:
    where = f"{path}:{line}"
    if "ranks" in row:
        record = from_dict(Ranking, row, where)
    elif "chosen" in row:
        record = from_dict(PreferencePair, row, where)
    elif "label" in row:
        record = from_dict(Thumb, row, where)
    else:
        raise DataError(
            f"{where}: is no ranking (ranks), pair (chosen, rejected) or thumb (label); the fields "
            f"found are {', '.join(map(repr, row)) or 'none'}"
        )
    if not record.labeler.strip():
        raise DataError(
            f"{where}: labeler={record.labeler!r} names nobody, and agreement is between labelers; "
            'give each row a field "labeler"'
        )
    return record


def _agreement(blocks: list[Block]) -> Agreement:
    thumbs = blocks[0].thumbs
    several = [block for block in blocks if block.size > 2]
    signs = sign_ratings(blocks)
    numbers = [number for block in blocks for number in block.num_judgments() if number]
    alpha = krippendorff_alpha(signs, "nominal" if thumbs else "interval", num_resamples=RESAMPLES)
    ranks = (
        krippendorff_alpha(rank_ratings(several), "ordinal", num_resamples=RESAMPLES)
        if several
        else None
    )
    return Agreement(
        kind="thumbs" if thumbs else "rankings",
        items=len(numbers),
        overlapping=sum(number > 1 for number in numbers),
        judgments=sum(numbers),
        alpha_ranks=ranks,
        alpha_pairs=alpha,
        kappa=fleiss_kappa(category_counts(signs)),
        tau=None if thumbs else pairwise_tau(blocks, num_resamples=RESAMPLES),
        unanimous=unanimous_share(blocks),
    )


# --- in print -------------------------------------------------------------------------------------


def print_agreement(path: str) -> None:
    """Print the statistics of a project or a file of judgments.

    Raises:
        DataError: As `read_judgments`.
    """
    items, judgments, project = read_judgments(path)
    summary = summarize(items, judgments, project)
    for one in summary.agreement:
        _print_kind(one)
    results.print(_table(summary.labelers))
    for labeler in summary.labelers:
        for flag in labeler.flags:
            results.print(Text(f"{labeler.labeler}: {flag}"))
    _print_items("Labelers differ most on", summary.disputed, items)
    _print_items("Competent labelers differ most on", summary.weak_spots, items)


def _print_kind(one: Agreement) -> None:
    results.print(
        f"{one.judgments} {one.kind} on {one.items} items, {one.overlapping} of them by several"
    )
    if one.overlapping == 0:
        results.print("Nobody has judged the same item as another: nothing can be compared.")
        return
    rows = [
        ("Krippendorff's α, ranks (ordinal)", figure(one.alpha_ranks)),
        (
            f"Krippendorff's α, {'up or down' if one.tau is None else 'pairs'}",
            figure(one.alpha_pairs),
        ),
        ("Fleiss' κ", figure(one.kappa)),
        ("Kendall's τ-b, mean of two labelers", figure(one.tau)),
        ("items all agree on", f"{one.unanimous:.0%}"),
    ]
    for name, value in rows:
        if value:
            results.print(f"  {name:<38} {value}")


def _table(labelers: Sequence[LabelerQuality]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    titles = (
        "labeler",
        "judged",
        "reliability",
        "τ to others",
        "gold",
        "again",
        "ties",
        "s",
        "weight",
    )
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=number > 0)
    for one in labelers:
        table.add_row(
            Text(one.labeler),
            str(one.judgments),
            figure(one.reliability),
            "" if one.agreement is None else f"{one.agreement.mean:+.2f}",
            "" if one.gold is None else f"{one.gold.share:.0%}",
            "" if one.consistency is None else f"{one.consistency.mean:+.2f}",
            "" if one.tie_rate is None else f"{one.tie_rate:.0%}",
            "" if one.seconds is None else f"{one.seconds:.0f}",
            f"{one.weight:.2f}",
        )
    return table


def _print_items(title: str, found: Sequence[Disputed], items: Mapping[str, Item]) -> None:
    if found:
        results.print(f"{title}:")
    for one in found[:SHOWN]:
        prompt = items[one.item].prompt
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        short = " ".join(text.split())
        results.print(Text(f"  {one.dispute:.2f}  {short[:90]}{'…' * (len(short) > 90)}"))


def figure(of: Interval | float | None) -> str:
    """A figure with its interval, as far as there is one; "undefined" where all said the same."""
    if of is None:
        return ""
    mean, low, high = of if isinstance(of, Interval) else (of, math.nan, math.nan)
    if math.isnan(mean):
        return "undefined"
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
