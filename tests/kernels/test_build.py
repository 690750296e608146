import ctypes
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tests.kernels.backends import NEEDS_C

from tether.kernels import build
from tether.kernels.build import library

# A compiler that writes a library that was compiled before, in two halves; it notes each call.
COMPILER = """
    #!/bin/sh
    echo "$@" >> {log}
    while [ "$1" != "-o" ]; do shift; done
    head -c 1000 {library} > "$2"
    sleep ${{PAUSE:-0}}
    tail -c +1001 {library} >> "$2"
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Nothing loaded yet and an empty cache folder; what other tests use comes back after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TETHER_KERNELS", raising=False)
    monkeypatch.delenv("CC", raising=False)
    library.cache_clear()
    yield
    monkeypatch.undo()
    library.cache_clear()


@pytest.fixture(scope="module")
def compiled():
    """The library as this machine has it; compiled here if it never was."""
    found = library()
    if os.environ.get("TETHER_KERNELS") == "0" or shutil.which("cc") is None:
        pytest.skip("no kernels are wanted, or there is no C compiler")
    assert found is not None
    return Path(found._name)


@pytest.fixture
def compiler(tmp_path, compiled, monkeypatch):
    """That compiler, in force; its notes."""
    path, log = tmp_path / "quick-cc", tmp_path / "calls"
    text = textwrap.dedent(COMPILER).lstrip()
    path.write_text(text.format(log=log, library=compiled), encoding="utf-8")
    path.chmod(0o755)
    log.touch()
    monkeypatch.setenv("CC", str(path))
    return log


def calls(log):
    return len(log.read_text(encoding="utf-8").splitlines())


def folder(tmp_path):
    return tmp_path / "cache" / "tether"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


# --- it is there ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="compiled where gcc is the compiler")
def test_where_there_is_a_compiler_there_are_kernels(compiled):
    lib = ctypes.CDLL(str(compiled))
    for name in ("add_norm", "swiglu", "attention", "decode_attention", "cache_write"):
        assert hasattr(lib, name + "_float")
        assert hasattr(lib, name + "_bf16")


@NEEDS_C
def test_it_brings_no_threads_of_its_own(compiled):
    # With two OpenMP runtimes in one process, two teams of threads would share the cores.
    assert b"libgomp" not in compiled.read_bytes()
    maps = Path("/proc/self/maps")
    if maps.is_file():
        lines = maps.read_text(encoding="utf-8").splitlines()
        loaded = {line.split()[-1] for line in lines if "libgomp" in line}
        ours = {path for path in loaded if Path(path).is_relative_to(Path(torch.__file__).parent)}
        assert len(ours) <= 1


# --- it is not ------------------------------------------------------------------------------------


def test_switched_off(monkeypatch, compiler):
    monkeypatch.setenv("TETHER_KERNELS", "0")
    assert library() is None
    assert calls(compiler) == 0


@pytest.mark.parametrize("setting", ["1", ""])
def test_not_switched_off(monkeypatch, compiler, setting):
    monkeypatch.setenv("TETHER_KERNELS", setting)
    assert library() is not None


def test_no_compiler(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert library() is None
    assert not folder(tmp_path).exists()


@pytest.mark.parametrize(
    "text", ["exit 1", "exit 0", 'while [ "$1" != "-o" ]; do shift; done; echo rubbish > "$2"']
)
def test_a_broken_compiler(monkeypatch, tmp_path, text):
    # It fails, writes nothing at all, or writes something that is no library.
    monkeypatch.setenv("CC", script(tmp_path / "broken-cc", text))
    assert library() is None


def test_a_compiler_that_hangs(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "SECONDS", 0.2)
    monkeypatch.setenv("CC", script(tmp_path / "hanging-cc", "exec sleep 60"))
    assert library() is None
    assert list(folder(tmp_path).glob("*.so")) == []


def test_a_compiler_that_cannot_be_run(monkeypatch, tmp_path):
    monkeypatch.setattr(build.shutil, "which", lambda name: str(tmp_path / "gone-cc"))
    assert library() is None


def test_it_says_in_one_line_that_it_cannot_compile(monkeypatch, tmp_path, capsys):
    text = "echo cpu.c: first >&2; echo cpu.c: unknown flag >&2; exit 1"
    monkeypatch.setenv("CC", script(tmp_path / "broken-cc", text))
    assert library() is None
    said = capsys.readouterr()
    assert "unknown flag" in said.out + said.err
    assert "first" not in said.out + said.err


# --- the cache ------------------------------------------------------------------------------------


def test_what_was_compiled_is_kept(compiler, tmp_path):
    assert library() is not None
    [file] = folder(tmp_path).iterdir()  # and nothing is left beside it
    assert calls(compiler) == 2  # compiled and linked
    library.cache_clear()
    again = library()
    assert again is not None
    assert again._name == str(file)
    assert calls(compiler) == 2


def test_it_is_asked_for_once_a_process(compiler, monkeypatch):
    first = library()
    monkeypatch.setenv("TETHER_KERNELS", "0")
    assert library() is first


@pytest.mark.parametrize("what", ["FLAGS", "source", "processor"])
def test_what_else_it_depends_on_is_compiled_anew(compiler, monkeypatch, tmp_path, what):
    assert library() is not None
    library.cache_clear()
    if what == "FLAGS":
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
    elif what == "processor":
        monkeypatch.setattr(build, "_processor", lambda: "another")
    else:
        copy = tmp_path / "src"
        shutil.copytree(Path(build.__file__).parent, copy)
        with (copy / "layers.h").open("a") as file:
            file.write("/* one more line */\n")
        monkeypatch.setattr(build, "__file__", str(copy / "build.py"))
    assert library() is not None
    assert calls(compiler) == 4
    assert len(list(folder(tmp_path).glob("*.so"))) == 2


def test_what_cannot_be_loaded_is_compiled_anew(compiler, tmp_path):
    path = tmp_path / "quick-cc"
    good = path.read_text(encoding="utf-8")
    script(path, 'while [ "$1" != "-o" ]; do shift; done; echo cut off > "$2"')
    assert library() is None
    path.write_text(good, encoding="utf-8")
    library.cache_clear()
    assert library() is not None


def test_two_processes_at_once(compiler, tmp_path):
    # torch is only asked where it lies; without it, a process starts sooner.
    code = f"""
        import sys, types
        sys.modules["torch"] = types.SimpleNamespace(__file__={torch.__file__!r})
        from tether.kernels.build import library
        assert library().has_bf16_products() in (0, 1)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PAUSE": "0.5"}
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=environment)
    while calls(compiler) < 2 and other.poll() is None:
        time.sleep(0.02)
    assert library() is not None  # while the other has written half of what it links
    assert other.wait(timeout=60) == 0
    assert calls(compiler) == 4  # neither waited for the other
    [file] = folder(tmp_path).iterdir()
    assert file.suffix == ".so"


def test_the_folder_is_its_users_alone(compiler, tmp_path):
    before = os.umask(0)
    try:
        assert library() is not None
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder(tmp_path).stat().st_mode) == 0o700


def loaded_from(tmp_path, monkeypatch):
    """Libraries of the cache folder that are loaded."""
    loaded, real = [], ctypes.CDLL

    def load(name, *args, **settings):
        if name is not None and str(tmp_path) in str(name):
            loaded.append(name)
        return real(name, *args, **settings)

    monkeypatch.setattr(build.ctypes, "CDLL", load)
    return loaded


def test_nothing_is_loaded_from_another_users_folder(compiler, tmp_path, monkeypatch):
    assert library() is not None
    library.cache_clear()
    own = os.getuid()
    monkeypatch.setattr(build.os, "getuid", lambda: own + 1)
    loaded = loaded_from(tmp_path, monkeypatch)
    assert library() is None
    assert loaded == []


def test_nothing_is_loaded_from_a_folder_that_others_may_write_to(compiler, tmp_path, monkeypatch):
    assert library() is not None
    library.cache_clear()
    folder(tmp_path).chmod(0o777)
    loaded = loaded_from(tmp_path, monkeypatch)
    assert library() is None
    assert loaded == []


def test_a_folder_that_cannot_be_made(compiler, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert library() is None


def test_without_a_home(compiler, monkeypatch):
    def none(*args):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(build.Path, "home", none)
    assert library() is None
