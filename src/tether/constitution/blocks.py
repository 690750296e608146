"""Work in blocks that are kept as they are finished, so that an interrupted stage goes on."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tether.records import read_jsonl, write_jsonl
from tether.rundir import StageFolder

Item = TypeVar("Item")
JsonRow = dict[str, Any]


def in_blocks(
    folder: StageFolder,
    items: Sequence[Item],
    size: int,
    work: Callable[[int, Sequence[Item]], list[JsonRow]],
    on_items: Callable[[int], None],
) -> list[JsonRow]:
    """The rows that `work(number, block)` makes of each block of items, in order.

    Each block's rows are written to the folder's checkpoints as soon as they are there, and read
    from there when the stage is begun again.

    Args:
        folder: The stage's folder, begun.
        items: All items.
        size: Items a block.
        work: Makes the rows of a block; a function of its number and items alone.
        on_items: Is told how many more items are done.
    """
    rows: list[JsonRow] = []
    folder.checkpoints.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(items), size)):
        block = items[start : start + size]
        file = folder.checkpoints / f"step-{number + 1:06d}.jsonl"
        if not file.exists():
            write_jsonl(file, work(number, block))
        rows += [row for _, row in read_jsonl(file)]
        on_items(len(block))
    return rows
