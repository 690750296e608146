"""What the administrator's page shows of consensus, agreement and labelers; it costs no request.

Computed in a thread of its own. Where a project asks actively, the items that were judged get the
uncertainty that is left after all judgments so far.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tether.feedback.disputed import Disputed, uncertainties
from tether.feedback.export import To, export
from tether.feedback.judgments import Item
from tether.feedback.labelers import LabelerQuality
from tether.feedback.report import Agreement, Summary, figure, summarize
from tether.feedback.store import Store
from tether.records import Text
from tether.web.access import Export

SHOWN = 10  # items in a list


def summary(store: Store) -> dict[str, Any] | None:
    """Values of the template `summary.html`; None where nobody has judged."""
    judgments = store.judgments()
    if not judgments:
        return None
    items = store.items()
    found = summarize(items, judgments, store.project)
    if store.project.next_item == "active":
        unsure = uncertainties(items, found.consensus)
        store.set_uncertainties({key: unsure[key] for key in found.consensus})
    numbers = {row["key"]: row["id"] for row in store.read().execute("SELECT id, key FROM items")}
    return {
        "figures": [row for one in found.agreement for row in _figures(one)],
        "labelers": [_labeler(one) for one in found.labelers],
        "lists": _lists(found, items, numbers),
    }


def _figures(one: Agreement) -> Iterator[dict[str, str]]:
    several = f"{one.overlapping} of {one.items} items judged by several"
    alpha = figure(one.alpha_pairs)
    yield {"name": "Krippendorff's α on pairs", "value": alpha, "note": several}
    if one.alpha_ranks is not None:
        note = "1: as one, 0: by chance"
        yield {
            "name": "Krippendorff's α on ranks",
            "value": figure(one.alpha_ranks),
            "note": note,
        }
    yield {"name": "Fleiss' κ", "value": figure(one.kappa), "note": "of pairs, ties a category"}
    if one.tau is not None:
        yield {"name": "Kendall's τ-b", "value": figure(one.tau), "note": "mean of two labelers"}
    yield {"name": "Unanimous", "value": f"{one.unanimous:.0%}", "note": "of items by several"}


def _labeler(one: LabelerQuality) -> dict[str, Any]:
    return {
        "name": one.labeler,
        "judgments": one.judgments,
        "reliability": figure(one.reliability),
        "agreement": "" if one.agreement is None else f"{one.agreement.mean:+.2f}",
        "gold": "" if one.gold is None else f"{one.gold.share:.0%}",
        "consistency": "" if one.consistency is None else f"{one.consistency.mean:+.2f}",
        "position": "" if one.position is None else f"{one.position.mean:+.2f}",
        "ties": "" if one.tie_rate is None else f"{one.tie_rate:.0%}",
        "seconds": "" if one.seconds is None else f"{one.seconds:.0f} s",
        "weight": f"{one.weight:.2f}",
        "flags": one.flags,
    }


def _lists(found: Summary, items: dict[str, Item], numbers: dict[str, int]) -> list[dict[str, Any]]:
    def rows(disputes: Sequence[Disputed]) -> list[dict[str, Any]]:
        return [
            {
                "id": numbers[one.item],
                "prompt": _short(items[one.item].prompt),
                "dispute": f"{one.dispute:.2f}",
                "judgments": one.judgments,
            }
            for one in disputes[:SHOWN]
        ]

    return [
        {"title": "Most disputed items", "rows": rows(found.disputed), "note": ""},
        {
            "title": "Weak spots of the instructions",
            "rows": rows(found.weak_spots),
            "note": "Items on which reliable labelers differ: what the instructions leave open.",
        },
    ]


def _short(text: Text) -> str:
    whole = text if isinstance(text, str) else text[-1]["content"]
    line = " ".join(whole.split())
    return line if len(line) <= 100 else line[:99] + "…"


def lines(to: To) -> Export:
    """What makes the lines of an export of this kind."""
    return lambda store: (json.dumps(row, ensure_ascii=False) + "\n" for row in export(store, to))


EXPORTS = {
    "pairs.jsonl": lines("pairs"),
    "rankings.jsonl": lines("rankings"),
    "thumbs.jsonl": lines("thumbs"),
}
"""What an administrator can download."""
