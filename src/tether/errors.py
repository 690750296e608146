"""What can go wrong, and how it is told.

    TetherError        something the user can mend: one line, exit code 2, no traceback
    ├─ ConfigError     a setting is missing, unknown or out of range
    ├─ DataError       a file or record cannot be used (names file and line)
    ├─ ModelError      a model directory cannot be used
    ├─ DiskError       a disk is full; what was there before is still there
    ├─ ServerError     a server refuses, fails, or answers something else than asked
    └─ CheckError      a check inside a run failed; going on would give wrong results

A message names the field or file, shows the value with `!r`, states the rule and the mend.
Everything else that is raised is a bug and keeps its traceback.
"""


class TetherError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(TetherError):
    """A setting is missing, unknown or out of range."""


class DataError(TetherError):
    """A file or a record in it cannot be used."""


class ModelError(TetherError):
    """A model directory cannot be used."""


class DiskError(TetherError):
    """A disk is full; what was there before is still there."""


class ServerError(TetherError):
    """A server refuses, fails, or answers something else than asked."""


class CheckError(TetherError):
    """A check inside a run failed; the run stops before it gives wrong results."""
