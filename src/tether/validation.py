"""Rules that a setting must keep: one line each with the field, its value and the mend."""

import math
import re
from urllib.parse import urlsplit

from tether.errors import ConfigError


def require(condition: bool, name: str, value: object, rule: str) -> None:
    """Refuse a setting: one line with the field, its value, the rule and so the mend."""
    if not condition:
        raise ConfigError(f"{name}={value!r} {rule}")


def positive(name: str, value: int | float) -> None:
    """Refuse anything but a finite number above 0."""
    require(value > 0 and math.isfinite(value), name, value, "must be a number above 0")


def not_negative(name: str, value: int | float) -> None:
    """Refuse anything but a finite number of at least 0."""
    require(value >= 0 and math.isfinite(value), name, value, "must be a number of at least 0")


def share(name: str, value: int | float) -> None:
    """Refuse anything outside [0, 1]."""
    require(0 <= value <= 1, name, value, "must lie between 0 and 1")


def web_address(name: str, value: str) -> None:
    """Refuse anything but http(s)://host[:port][/path].

    No user, password or query: what is secret belongs into the environment, not into settings.
    """
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(f"{name}={value!r} must be an address such as https://host/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{name} must have no user, password, query or fragment (not shown: it may hold a "
            "secret); put a key into the environment variable that key_env names"
        )
    blank = any(character.isspace() for character in value)
    require(usable and not blank, name, value, "must be an address such as https://host/v1")


def variable_name(name: str, value: str) -> None:
    """Refuse what can be no environment variable, without showing it: it may be the key itself."""
    if value and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ConfigError(
            f"{name} must be the name of an environment variable, in capitals, such as "
            "OPENAI_API_KEY (what it is now is not shown: it may be a key)"
        )
