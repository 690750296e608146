"""What a data file can be used for."""

from tether.data import formats
from tether.errors import DataError

USES: dict[str, formats.Use] = {
    "sft --data": "demonstrations",
    "reward --data": "comparisons",
    "dpo --data": "comparisons",
    "kto --data": "thumbs",
    "score --data": "completions",
    "ppo --prompts": "prompts",
}


def print_uses(file: str) -> None:
    """Say which commands can read a file, how many records they find, and why others cannot.

    Raises:
        DataError: None can.
    """
    found = formats.uses(file, list(dict.fromkeys(USES.values())))
    refusals: list[str] = []
    for use, name in USES.items():
        records = found[name]
        if isinstance(records, DataError):
            refusals.append(f"not for {use}: {records}")
        else:
            print(f"tether {use:<14} {records} records")
    if len(refusals) == len(USES):
        raise DataError(refusals[-1].partition(": ")[2])  # prompts ask for least
    print("\n".join([*refusals, f"next  tether data check {file} --model DIR"]))
