"""From measured iterations to ratios and the tables that are printed."""

from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Measured(NamedTuple):
    """What a worker told: versions and memory after its imports, then a row an iteration."""

    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    def median(self, name: str) -> float:
        """Median over iterations."""
        return median(row[name] for row in self.rows)

    def phase(self, name: str) -> float:
        """Median CPU seconds of a phase."""
        return median(row["phases"].get(name, 0.0) for row in self.rows)

    @property
    def per_token(self) -> float:
        """CPU seconds a token, over all iterations."""
        return sum(row["cpu_s"] for row in self.rows) / sum(row["tokens"] for row in self.rows)

    @property
    def mean_length(self) -> float:
        """Tokens a row, over all iterations."""
        return sum(row["tokens"] for row in self.rows) / sum(row["rows"] for row in self.rows)

    @property
    def peak(self) -> float:
        """Most memory held, in MiB."""
        return max(row["peak_mib"] for row in self.rows)

    @property
    def working(self) -> float:
        """Most memory held above what the imports took, in MiB."""
        return self.peak - self.facts["imported_mib"]


class Ratios(NamedTuple):
    """How many times as much the other side takes as ours does; above 1, ours is cheaper."""

    cpu: list[float]  # of each round
    wall: float  # median over the rounds
    per_token: float
    peak: float
    working: float


def ratios(other: Measured, ours: Measured) -> Ratios:
    """Ratios within each round; a token's over all of them; the memory's of the peaks."""
    rounds = list(zip(other.rows, ours.rows, strict=True))
    return Ratios(
        cpu=[a["cpu_s"] / b["cpu_s"] for a, b in rounds],
        wall=median(a["wall_s"] / b["wall_s"] for a, b in rounds),
        per_token=other.per_token / ours.per_token,
        peak=other.peak / ours.peak,
        working=other.working / ours.working,
    )


def spread(numbers: list[float]) -> str:
    """Minimum, median and maximum."""
    return f"{min(numbers):.2f} / {median(numbers):.2f} / {max(numbers):.2f}"


def show(
    title: str,
    measured: dict[str, Measured],
    pairs: list[tuple[str, str]],
    facts: dict[str, Any],
) -> None:
    """Print the machine, the table of the sides and that of their ratios."""
    console = Console(width=110, highlight=False)
    versions = {k: v for side in measured.values() for k, v in side.facts.items() if "_" not in k}
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']}; one thread a side"
    )
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()))
    console.print(sides_table(title, measured))
    console.print(ratios_table(measured, pairs))
    for our in dict.fromkeys(our for _, our in pairs):
        others = [other for other, name in pairs if name == our]
        best = min(others, key=lambda other: measured[other].median("cpu_s"))
        found = ratios(measured[best], measured[our])
        console.print(
            f"{our} against the fastest of the others, {best}: {median(found.cpu):.2f} × "
            f"({found.per_token:.2f} × a token)"
        )


def sides_table(title: str, measured: dict[str, Measured]) -> Table:
    """What each side takes for an iteration; medians over the rounds, memory at its most."""
    phases = list(dict.fromkeys(p for m in measured.values() for r in m.rows for p in r["phases"]))
    phases = [name for name in ("generate", "score", "train") if name in phases]
    table = Table(title=f"{title}: one iteration")
    table.add_column("side")
    columns = ["CPU s", *phases, "tokens", "a row", "tokens/CPU s"]
    for name in (*columns, "peak MiB", "above imports"):
        table.add_column(name, justify="right")
    for label, side in measured.items():
        cells = [f"{side.median('cpu_s'):.2f}", *(f"{side.phase(name):.2f}" for name in phases)]
        cells += [f"{side.median('tokens'):.0f}", f"{side.mean_length:.1f}"]
        cells += [f"{1 / side.per_token:.0f}"]
        table.add_row(label, *cells, f"{side.peak:.0f}", f"{side.working:.0f}")
    return table


def ratios_table(measured: dict[str, Measured], pairs: list[tuple[str, str]]) -> Table:
    """Each of the others over each of ours."""
    table = Table(title="ratios: above 1, the second side is cheaper")
    table.add_column("pair")
    for name in ("CPU min / median / max", "wall", "CPU a token", "peak MiB", "above imports"):
        table.add_column(name, justify="right")
    for other, ours in pairs:
        found = ratios(measured[other], measured[ours])
        cells = [spread(found.cpu), *(f"{ratio:.2f}" for ratio in found[1:])]
        table.add_row(f"{other} : {ours}", *cells)
    return table
