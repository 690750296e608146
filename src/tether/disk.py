"""Files and folders that appear whole or not at all, and a disk that is full."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tether.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in a quota, in a file


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes `path` on success: whole or not at all.

    Raises:
        DiskError: The disk is full.
    """
    with full_disk_told(path):
        aside = fresh_aside(path)
        try:
            yield aside
            put_in_place(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def fresh_aside(path: Path) -> Path:
    """Make the empty folder in which `path` is written; of one that a killed process left, anew."""
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def aside_of(path: Path) -> Path:
    """Where `path` is written."""
    return path.with_name(f".{path.name}.writing")


def put_in_place(aside: Path, path: Path) -> None:
    """Let a folder become `path`; every file in it is on the disk before the rename."""
    for file in (*aside.rglob("*"), aside):
        _sync(file)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    aside.rename(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file aside, sync it and rename it into place."""
    with full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_of(path)
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        os.replace(aside, path)
        _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) in the way of `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Context of writing `path`, in which a full disk is told in one line.

    Raises:
        DiskError: The disk, or what one may use of it, is full.
    """
    try:
        yield
    except Exception as error:
        # Rust libraries, such as that of safetensors, tell the number in their text alone.
        number = error.errno if isinstance(error, OSError) else 0
        if number not in FULL and not any(f"(os error {n})" in str(error) for n in FULL):
            raise
        above = path.absolute().parents
        free = shutil.disk_usage(next(p for p in above if p.exists())).free / (1 << 20)
        steps = [step for p in above[:2] for step in checkpoint_steps(p / "checkpoints")]
        start = f"step {step_of(steps[-1])}" if steps else "what is there"
        raise DiskError(
            f"{path} cannot be written: no room on the disk ({free:.1f} MiB are free); make room "
            f"and run the same command again, which goes on from {start}"
        ) from None


def checkpoint_steps(checkpoints: Path) -> list[Path]:
    """The checkpoints `step-000120/` in a folder, oldest first."""
    return sorted(checkpoints.glob("step-*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-").split(".")[0])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
