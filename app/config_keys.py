"""API keys as an operator writes them: in a variable, or in a file."""

import re
from pathlib import Path

from pydantic import SecretStr

from app.config_types import split
from app.errors import StartupError


def keys_of(value: SecretStr, name: str) -> list[str]:
    """The comma-separated keys of a variable. Raises `StartupError` if there is none."""
    return _some(split(value.get_secret_value()), name)


def keys_in(path: Path, name: str) -> list[str]:
    """The keys of a file, one per line. Raises `StartupError` if it has none or cannot be read."""
    name = f"{name}={path}"
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{name} cannot be read: {error}") from None
    if any(re.search(r"\S\s+#", line) for line in lines):
        raise StartupError(f"{name} has a comment after a key; put comments on separate lines")
    return _some([line for line in lines if line and not line.startswith("#")], name)


def _some(keys: list[str], name: str) -> list[str]:
    """Refuse to start without a key: keys were intended, and without one the service would be open to all."""
    if not keys:
        raise StartupError(f"{name} has no key; unset it to turn authentication off")
    return keys
