"""Functions of the user's own, named in a setting: the user's code, run as it is."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tether.errors import ConfigError


def is_function(path: str) -> bool:
    """True where a setting names a function (`file.py:function`) rather than a folder."""
    address = path.startswith(("http://", "https://"))
    return ":" in path and not address and not Path(path).is_dir()


def load_function(path: str) -> Callable[..., Any]:
    """The function named by `path/to/file.py:function` or `package.module:function`.

    Raises:
        ConfigError: The file, module or function does not exist.
    """
    place, _, name = path.rpartition(":")
    module = _load_file(Path(place), path) if place.endswith(".py") else _load_module(place, path)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{path!r}: {place} has no function {name!r}; check its name")
    return function


def _load_file(file: Path, path: str) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"{path!r}: {str(file)!r} does not exist; use path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"tether_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses in it look up their annotations
    spec.loader.exec_module(module)
    return module


def _load_module(place: str, path: str) -> ModuleType:
    refusal = ConfigError(
        f"{path!r}: no module {place!r}; use path/to/file.py:function or package.module:function"
    )
    if not all(place.split(".")):
        raise refusal
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise  # the module exists and lacks something of its own
        raise refusal from None
