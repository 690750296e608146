"""Labels parted by who gave them, so that each person or group gets a model of their own."""

from typing import Any

from tether.errors import DataError

Rows = list[dict[str, Any]]


def by_labeler(rows: Rows) -> dict[str, Rows]:
    """Rankings or pairs by their `labeler`, in the order in which labelers first appear.

    For the `prepare` stage: `function = "tether.feedback.groups:by_labeler"` writes one file a
    labeler, named after them; blanks and slashes become "-".

    Raises:
        DataError: A row names no labeler, or two names become the same.
    """
    groups: dict[str, Rows] = {}
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        labeler = row.get("labeler")
        if not isinstance(labeler, str) or not labeler.strip():
            raise DataError(f"row {number}: labeler={labeler!r} names nobody; give each row one")
        name = "-".join(labeler.replace("/", " ").split())
        if names.setdefault(name, labeler) != labeler:
            raise DataError(f"labelers {names[name]!r} and {labeler!r} become one file; rename one")
        groups.setdefault(name, []).append(row)
    return groups
