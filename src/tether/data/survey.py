"""What many texts have in common, counted in one pass: eight bytes a text, four a length.

Nothing of a text is kept but a hash, so that a file may be larger than the memory.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tether.records import Text

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BARS = "▁▂▃▄▅▆▇█"
BINS = 32


class Repeats(NamedTuple):
    """How many texts were there before, and where the first such case is (numbers from 1)."""

    number: int
    first: tuple[int, int] | None


class Hashes:
    """64-bit hashes of texts in their order; a collision among a million is one in 37 million."""

    def __init__(self, texts: Iterable[object] = ()) -> None:
        self._hashes = array("Q")
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, text: object) -> None:
        """Append the hash of a text, or of anything that JSON can hold."""
        plain = json.dumps(text, sort_keys=True).encode()
        self._hashes.append(int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big"))

    @property
    def _all(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._hashes, dtype=np.uint64) if self._hashes else np.zeros(0, "u8")

    @property
    def distinct(self) -> int:
        """How many different texts there are."""
        return len(np.unique(self._all))

    def repeats(self) -> Repeats:
        """The texts that equal an earlier one."""
        order = np.argsort(self._all, kind="stable")
        ordered = self._all[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(again):
            return Repeats(0, None)
        later = order[again]
        at = int(again[later.argmin()])
        while at and ordered[at - 1] == ordered[at]:
            at -= 1
        return Repeats(len(again), (int(order[at]) + 1, int(later.min()) + 1))

    def within(self, other: "Hashes") -> list[int]:
        """Numbers (from 1) of the texts that `other` has, too."""
        return (np.flatnonzero(np.isin(self._all, other._all)) + 1).tolist()


class Lengths:
    """Lengths of texts, in tokens or characters."""

    def __init__(self) -> None:
        self._lengths = array("I")

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, length: int) -> None:
        """Append one."""
        self._lengths.append(length)

    def quantiles(self) -> list[int]:
        """The lengths that the shares `SHARES` of the texts do not exceed."""
        return np.quantile(self._lengths, SHARES, method="inverted_cdf").astype(int).tolist()

    def histogram(self) -> str:
        """A line of bars from 0 to the longest; the highest bar is where most texts are."""
        longest = max(self._lengths)
        counts, _ = np.histogram(self._lengths, bins=BINS, range=(0, max(longest, 1)))
        return "".join(_bar(count / counts.max()) for count in counts)


def _bar(share: float) -> str:
    return " " if share == 0 else BARS[min(int(share * len(BARS)), len(BARS) - 1)]


def loosely(text: Text) -> Text:
    """A text without case and spacing, so that near copies are found as well."""
    if isinstance(text, str):
        return " ".join(text.casefold().split())
    return [{"role": m["role"], "content": " ".join(m["content"].casefold().split())} for m in text]


def is_empty(text: Text) -> bool:
    """Whether a completion says nothing."""
    said = [text] if isinstance(text, str) else [m["content"] for m in text]
    return not any(each.strip() for each in said)


def shown_numbers(numbers: list[int], most: int = 5) -> Iterator[str]:
    """The first of the numbers, for a message."""
    yield from map(str, numbers[:most])
    if len(numbers) > most:
        yield "…"
