"""Which of several processes this is: what torchrun and Ray Train say in the environment.

All processes of a run read the same files; only the first writes. Without torch, so that folders
and the console can ask.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_alone = False


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return 0 if _alone else int(os.environ.get("RANK", "0"))


def count() -> int:
    """Processes that train together; 1 = this one alone."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def leads() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def alone() -> Iterator[None]:
    """Context in which this process computes by itself; the others wait for it elsewhere."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before
