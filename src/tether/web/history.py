"""Rows that training writes, as columns: read on as the file grows, thinned for the screen."""

import itertools
import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BUCKETS = 300  # of a chart; each shows its least and its greatest value
CHUNK = 1 << 18  # bytes parsed at once
SAMPLED = 400  # rows of the first glance at a long file
HELD = 16  # files whose columns are kept in memory
TAIL = 1 << 18  # bytes that are read for the newest rows

Series = dict[str, dict[str, list[float]]]


class Position(NamedTuple):
    """How far a file has been read, and which file: one written anew is another."""

    inode: int
    offset: int

    def __str__(self) -> str:
        return f"{self.inode}:{self.offset}"


def position(text: str) -> Position:
    """A position as a browser sends it back; the start where it makes no sense."""
    inode, _, offset = text.partition(":")
    known = inode.isdecimal() and offset.isdecimal() and len(text) < 64 and text.isascii()
    return Position(int(inode), int(offset)) if known else Position(0, 0)


def end(path: Path | None) -> Position:
    """Where a file ends now."""
    found = None if path is None else _stat(path)
    return Position(found.st_ino, found.st_size) if found else Position(0, 0)


def rows_after(path: Path, after: Position) -> tuple[list[dict[str, Any]], Position] | None:
    """Rows that were written after a position, at most `CHUNK` bytes of them, and their end.

    None where the file there is another one, or shorter than it was: it must be read anew.
    """
    found = _stat(path)
    if found is None:
        return ([], after) if after == (0, 0) else None
    if after == (0, 0):
        after = Position(found.st_ino, 0)
    if found.st_ino != after.inode or found.st_size < after.offset:
        return None
    lines = _whole_lines(path, after.offset, CHUNK)
    return _parsed(lines), Position(after.inode, after.offset + len(lines))


def newest(path: Path | None, num: int) -> list[dict[str, Any]]:
    """The last rows of a file, oldest first."""
    found = None if path is None else _stat(path)
    if path is None or found is None:
        return []
    start = max(found.st_size - TAIL, 0)
    lines = _whole_lines(path, start, TAIL)
    if start:
        lines = lines.partition(b"\n")[2]
    kept = lines.splitlines(keepends=True)[-num:]
    return _parsed(b"".join(kept))


# --- columns --------------------------------------------------------------------------------------


class Columns:
    """The numbers of a file of rows, read on at every look."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._clear(0)

    def _clear(self, inode: int) -> None:
        self._at = Position(inode, 0)
        self._count = 0
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}  # places and values

    def look(self, seconds: float) -> tuple[Series, Position, float]:
        """Thinned series by key, where they end, and how much of the file they cover.

        Args:
            seconds: How long to parse at most; below 1 the share of a long file that is covered
                tells to look again.
        """
        with self._lock:
            share = self._read_on(time.monotonic() + seconds)
            if share < 1:
                rows = sampled(self._path, SAMPLED)
                numbered = {key: _numbers(rows, key, 0) for key in _keys(rows)}
            else:
                numbered = {key: self._joined(key) for key in self._parts}
            return _on_steps(numbered), self._at, share

    def _read_on(self, until: float) -> float:
        while (found := _stat(self._path)) is not None:
            if found.st_ino != self._at.inode or found.st_size < self._at.offset:
                self._clear(found.st_ino)
            lines = _whole_lines(self._path, self._at.offset, CHUNK)
            if not lines:
                return 1.0
            rows = _parsed(lines)
            for key in _keys(rows):
                self._parts.setdefault(key, []).append(_numbers(rows, key, self._count))
            self._count += len(rows)
            self._at = Position(found.st_ino, self._at.offset + len(lines))
            if time.monotonic() > until and self._at.offset < found.st_size:
                return self._at.offset / found.st_size
        return 1.0

    def _joined(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        parts = self._parts[key]
        if len(parts) > 1:
            places, values = (np.concatenate(each) for each in zip(*parts, strict=True))
            self._parts[key] = parts = [(places, values)]
        return parts[0]


_held: OrderedDict[Path, Columns] = OrderedDict()
_holding = threading.Lock()


def columns(path: Path) -> Columns:
    """The columns of a file, kept from one look to the next."""
    with _holding:
        found = _held.setdefault(path, Columns(path))
        _held.move_to_end(path)
        while len(_held) > HELD:
            _held.popitem(last=False)
        return found


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about 2 · `BUCKETS` points: each bucket's least and greatest, so spikes survive.

    Both ends are kept.
    """
    count = len(values)
    if count <= 2 * BUCKETS:
        return steps, values
    edges = np.linspace(0, count, BUCKETS + 1).astype(int)
    kept = {0, count - 1}
    for low, high in itertools.pairwise(edges):
        part = values[low:high]
        kept |= {low + int(part.argmin()), low + int(part.argmax())}
    places = np.array(sorted(kept))
    return steps[places], values[places]


def sampled(path: Path, num: int) -> list[dict[str, Any]]:
    """Rows at equal distances in a file, the last one included: a glance at a long one."""
    rows: list[dict[str, Any]] = []
    with path.open("rb") as stream:
        size, at = os.fstat(stream.fileno()).st_size, 0
        for wanted in np.linspace(0, size, num, endpoint=False).astype(int):
            if wanted >= at:
                stream.seek(int(wanted))
                if wanted:
                    stream.readline()
                rows += _parsed(stream.readline())
                at = stream.tell()
    return rows + newest(path, 1)


def _on_steps(numbered: dict[str, tuple[np.ndarray, np.ndarray]]) -> Series:
    """Series over the steps; over the numbers of the rows where those have no step."""
    places, steps = numbered.pop("step", (np.zeros(0), np.zeros(0)))
    found: Series = {}
    for key, (at, values) in numbered.items():
        x = at + 1.0
        if len(steps):
            x = steps[np.searchsorted(places, at).clip(0, len(steps) - 1)]
        x, y = thin(x, values)
        found[key] = {"x": x.tolist(), "y": [float(f"{value:.6g}") for value in y]}
    return found


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _numbers(rows: list[dict[str, Any]], key: str, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers under a key, and the rows they stand in, counted from `start`."""
    pairs = [(start + i, number(row.get(key))) for i, row in enumerate(rows)]
    found = [(place, value) for place, value in pairs if value is not None]
    places = np.fromiter((place for place, _ in found), float, len(found))
    return places, np.fromiter((value for _, value in found), float, len(found))


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that may stand in a row."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


# --- files ----------------------------------------------------------------------------------------


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _whole_lines(path: Path, offset: int, most: int) -> bytes:
    """Bytes from an offset up to the last line feed within `most`, or up to the next after it."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            read = stream.read(most)
            if b"\n" not in read:
                read += stream.readline()
    except OSError:
        return b""
    return read[: read.rfind(b"\n") + 1]


def _parsed(lines: bytes) -> list[dict[str, Any]]:
    """The objects in lines of JSON; a broken line is left out."""
    try:
        rows = json.loads(b"[" + b",".join(lines.splitlines()) + b"]")
    except (ValueError, RecursionError):
        rows = list(_one_by_one(lines))
    return [row for row in rows if isinstance(row, dict)]


def _one_by_one(lines: bytes) -> Iterator[Any]:
    for line in lines.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue
