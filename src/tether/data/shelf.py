"""A sequence that may be larger than the memory.

A shelf is a list until what it holds takes 16 MiB. From then on it keeps its items in a file
without a name, in the folder for temporary files (`TMPDIR`), and in memory eight bytes for each.
The file is gone when the shelf is, however the process ends.
"""

import hashlib
import marshal
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Any, Generic, TypeVar, overload

from tether.errors import DataError
from tether.progress import counted

T = TypeVar("T")

IN_MEMORY = 16 << 20  # bytes, as marshal writes them; texts take little more in memory
TOKENS_IN_MEMORY = 16 << 20  # the same of token ids, which take eight times that as lists


class Shelf(Sequence[T], Generic[T]):
    """Items that can be appended and read in any order, each by itself."""

    def __init__(
        self, dump: Callable[[T], Any], load: Callable[[Any], T], in_memory: int = 0
    ) -> None:
        """An empty shelf.

        Args:
            dump: An item as plain tuples, lists, dicts, strings, numbers and None.
            load: The item of what `dump` made.
            in_memory: Bytes from which on it is a file; 0 = 16 MiB.
        """
        self._dump, self._load, self._in_memory = dump, load, in_memory or IN_MEMORY
        self._held: list[T] = []
        self._ends = array("Q", [0])
        self._file: IO[bytes] | None = None
        self._written = True

    def append(self, item: T) -> None:
        """Put an item behind the others.

        Raises:
            DataError: The temporary folder has no room.
        """
        data = marshal.dumps(self._dump(item))
        self._ends.append(self._ends[-1] + len(data))
        if self._file is None and self._ends[-1] <= self._in_memory:
            self._held.append(item)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115 (it lives on)
                weakref.finalize(self, self._file.close)
                self._file.writelines(marshal.dumps(self._dump(each)) for each in self._held)
                self._held = []
            self._file.write(data)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: no room for large data ({error.strerror}); set the "
                "environment variable TMPDIR to a folder with room for several times the data"
            ) from None
        self._written = False

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        if self._file is None:
            return self._held[place]
        if not self._written:
            self._file.flush()
            self._written = True
        start, end = self._ends[place], self._ends[place + 1]
        return self._load(marshal.loads(os.pread(self._file.fileno(), end - start, start)))

    @property
    def on_disk(self) -> bool:
        """True once the items are in the file."""
        return self._file is not None

    def plain(self) -> Sequence[T]:
        """The items as a list where they are in memory, else the shelf itself."""
        return self if self.on_disk else self._held


class Made(Sequence[T], Generic[T]):
    """Items that are made whenever they are asked for, each from its place."""

    def __init__(self, num: int, make: Callable[[int], T]) -> None:
        """`num` items; `make` is given their places, from 0."""
        self._places, self._make = range(num), make

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self._make(place) for place in self._places[index]]
        return self._make(self._places[index])


def shelved(
    items: Iterable[T], dump: Callable[[T], Any], load: Callable[[Any], T], in_memory: int = 0
) -> Sequence[T]:
    """A list of the items, or a shelf where they are many."""
    shelf = Shelf(dump, load, in_memory)
    for item in items:
        shelf.append(item)
    return shelf.plain()


def made(num: int, make: Callable[[int], T], *, like: Sequence[Any]) -> Sequence[T]:
    """`make(0)`, `make(1)`, …: as a list if `like` is one, else each when it is asked for."""
    return [make(i) for i in range(num)] if isinstance(like, list) else Made(num, make)


def picked(items: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The items at some places: as a list if they are one, else each when it is asked for."""
    return made(len(places), lambda i: items[places[i]], like=items)


def watched(items: Sequence[T], name: str) -> Iterator[T]:
    """The items, with a progress bar where they are too many for a list."""
    if isinstance(items, list):
        yield from items
        return
    yield from counted(items, name, len(items))


def text_keys(texts: Iterable[str]) -> "list[str] | array[int]":
    """What tells texts apart: themselves, or where they are many their hashes (64 bits)."""
    kept, size, texts = list[str](), 0, iter(texts)
    for text in texts:
        kept.append(text)
        size += len(text)
        if size > IN_MEMORY:
            return array("Q", map(text_hash, chain(kept, texts)))
    return kept


def text_hash(text: str) -> int:
    """64 bits of a text's hash, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
