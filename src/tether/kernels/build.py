"""Compile the C kernels on first use, for the machine at hand, and load them.

There is nothing to install: where no C compiler is found, or TETHER_KERNELS=0 is set, `library()`
is None and the operations run in torch. What was compiled is kept under the user's cache folder,
named by the hash of source, compiler and flags, so that this costs a few seconds once.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from tether.progress import console

SOURCES = ("cpu.c", "layers.h")
FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
FLAGS += ("--param=vect-max-peeling-for-alignment=0",)
THREADED = "-fopenmp"
SECONDS = 120  # a compiler that takes longer is not waited for


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or cannot be compiled."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if os.environ.get("TETHER_KERNELS", "1") == "0" or compiler is None:
        return None
    threaded = _share_threads_with_torch()
    try:
        loaded = _load(_compiled(compiler, threaded=threaded))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        line = reason.decode(errors="replace").strip().splitlines()[-1:]
        console.print(f"{compiler} could not compile the C kernels ({line}); torch does their work")
        return None
    _keep_freed_memory()
    return loaded


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)  # cut off by a full disk, say: made anew next time
        raise


def _keep_freed_memory() -> None:
    """Let malloc keep what is freed for the next activation of that size, up to 32 MiB each.

    By default it goes back to the system and costs a page fault every 4 KiB when it is wanted
    again: 3 to 8 % of a training step here.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def _compiled(compiler: str, *, threaded: bool) -> Path:
    """The shared library in the cache, compiled if it is not there."""
    flags = [*FLAGS, THREADED if threaded else "-fopenmp-simd"]
    folder = Path(__file__).parent
    parts = [(folder / name).read_bytes() for name in SOURCES]
    parts += [compiler.encode(), " ".join(flags).encode(), _processor().encode()]
    target = _cache_folder() / f"kernels-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as aside:
        compiled, linked = Path(aside) / "cpu.o", Path(aside) / "cpu.so"
        _run(compiler, *flags, "-c", str(folder / "cpu.c"), "-o", str(compiled))
        # Linked without OpenMP's runtime: the symbols are found in the one that torch has loaded.
        _run(compiler, "-shared", str(compiled), "-lm", "-o", str(linked))
        os.replace(linked, target)
    return target


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)


def _share_threads_with_torch() -> bool:
    """Let the kernels use torch's OpenMP threads, so that two teams never fight over the cores.

    False where torch has brought none that could be shared; the kernels then use one thread.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        return True
    return False


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(next((line for line in lines if line.startswith(key)), "") for key in _KEYS)


_KEYS = ("vendor_id", "model name", "flags")


def _cache_folder() -> Path:
    """A folder of this user alone: what lies there is run."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tether"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's alone; `chmod 700` it")
    return folder
