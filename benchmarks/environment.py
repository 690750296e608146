"""TRL's own virtual environment, with the very torch and transformers that tether runs on."""

import subprocess
import sysconfig
import venv
from pathlib import Path

VENVS = Path(__file__).parent / ".venvs"


def trl_python(version: str, given: Path | None) -> str:
    """The Python that has this version of TRL: the one given, or one made on first use.

    The environment sees the packages of this one behind its own, so that both sides share one
    torch and one transformers, down to the build, and pip adds only what is missing.
    """
    if given:
        return str(given)
    folder = VENVS / f"trl-{version}"
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        print(f"Making {folder} (once, a minute or two)", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        here = sysconfig.get_path("purelib")
        (packages / "behind.pth").write_text(here + "\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"trl=={version}"], check=True)
        done.touch()
    return str(python)
