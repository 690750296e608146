"""How far the labelers of a run agreed, for its report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether.feedback.report import Agreement, Summary, figure, read_judgments, summarize

KINDS = ("collect", "simulate")
HEADER = ["labeler", "judged", "reliability", "τ to the others", "repeats", "ties", "weight"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What is known of the labels that a stage collected."""

    stage: str
    simulated: bool
    """True where the labelers were simulated"""
    counts: list[str]
    """Sentences: how many judgments on how many items"""
    figures: list[tuple[str, str, str]]
    """(statistic, value with its interval, how to read it)"""
    labelers: list[list[str]]
    """One row a labeler, under HEADER"""
    flags: list[str]
    """What speaks against a labeler, in sentences"""


def read_labels(folder: Path, kind: str, settings: dict[str, Any]) -> Labels | None:
    """Agreement of the judgments that a stage left; None for stages that collect none."""
    path = folder / "judgments.jsonl"
    if kind not in KINDS or not path.is_file() or path.stat().st_size == 0:
        return None
    items, judgments, _ = read_judgments(str(path))
    found = summarize(items, judgments)
    return Labels(
        stage=folder.name,
        simulated=kind == "simulate" or bool(settings.get("scorer")),
        counts=[_count(one) for one in found.agreement],
        figures=[row for one in found.agreement if one.overlapping for row in _figures(one)],
        labelers=_labelers(found),
        flags=[f"{one.labeler}: {flag}" for one in found.labelers for flag in one.flags],
    )


def _count(one: Agreement) -> str:
    return (
        f"{one.judgments:,} {one.kind} on {one.items:,} items, "
        f"{one.overlapping:,} of them judged by several labelers."
    )


def _figures(one: Agreement) -> list[tuple[str, str, str]]:
    rows = [
        ("Krippendorff's α on ranks", figure(one.alpha_ranks), "1 = as one, 0 = by chance"),
        (
            f"Krippendorff's α on {'up or down' if one.tau is None else 'pairs'}",
            figure(one.alpha_pairs),
            "1 = as one, 0 = by chance; above 0.67 is usable, tastes lie far below",
        ),
        ("Fleiss' κ", figure(one.kappa), "of the same, ties a category of their own"),
        ("Kendall's τ-b", figure(one.tau), "mean of two labelers; 1 = the same order"),
        ("unanimous", f"{one.unanimous:.0%}", "share of the items judged by several"),
    ]
    return [row for row in rows if row[1]]


def _labelers(found: Summary) -> list[list[str]]:
    return [
        [
            one.labeler,
            f"{one.judgments:,}",
            figure(one.reliability),
            "" if one.agreement is None else f"{one.agreement.mean:+.2f}",
            "" if one.consistency is None else f"{one.consistency.mean:+.2f}",
            "" if one.tie_rate is None else f"{one.tie_rate:.0%}",
            f"{one.weight:.2f}",
        ]
        for one in found.labelers
    ]
