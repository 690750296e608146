"""What a data file can be used for."""

from collections.abc import Callable, Sequence
from typing import Any

from tether.data import formats
from tether.errors import DataError

USES: dict[str, Callable[[str], Sequence[Any]]] = {
    "sft --data": formats.read_demonstrations,
    "reward --data": formats.read_comparisons,
    "dpo --data": formats.read_comparisons,
    "kto --data": formats.read_thumbs,
    "score --data": formats.read_completions,
    "ppo --prompts": formats.read_prompts,
}


def print_uses(file: str) -> None:
    """Say which commands can read a file, how many records they find, and why others cannot.

    Raises:
        DataError: None can.
    """
    refusals: list[str] = []
    for use, read in USES.items():
        try:
            print(f"tether {use:<14} {len(read(file))} records")
        except DataError as error:
            refusals.append(f"not for {use}: {error}")
    if len(refusals) == len(USES):
        raise DataError(refusals[-1].partition(": ")[2])  # prompts ask for least
    print("\n".join([*refusals, f"next  tether data check {file} --model DIR"]))
