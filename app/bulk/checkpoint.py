"""What a run remembers, so that the same command can continue it after it was killed."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from app.bulk.rows import Place
from app.bulk.scoring import Counts
from app.errors import StartupError

FORMAT = 1
SHOWN_CHARS = 60


class CannotResume(StartupError):
    """The files of an earlier run do not belong to this one."""


@dataclass(slots=True)
class Checkpoint:
    """The state of a run after a row. What the files have beyond it is cut off."""

    identity: Mapping[str, Any]
    """What the output depends on: the input, the model and the options."""
    place: Place = field(default_factory=Place)
    counts: Counts = field(default_factory=Counts)
    output_bytes: int = 0
    bad_bytes: int = 0
    finished: bool = False
    """Whether all rows are done, and only the last steps may be missing."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The checkpoint of an earlier run, if there is one. Raises `CannotResume`."""
        try:
            found = json.loads(path.read_text())
            if found.pop("format") != FORMAT:
                raise CannotResume(f"{path} was written by another version: add --overwrite to start again")
            found |= {"place": Place(*found["place"]), "counts": Counts(**found["counts"])}
            return cls(**found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CannotResume(f"{path} cannot be used: {error}. Add --overwrite to start again") from None

    def write(self, path: Path) -> None:
        """Replace the file as a whole: a process that is killed leaves the old checkpoint or the new one."""
        new = path.with_name(path.name + ".new")
        with new.open("w") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def check(self, identity: Mapping[str, Any], path: Path) -> None:
        """Raise `CannotResume` if the run had another input, model or options."""
        now = json.loads(json.dumps(identity))
        changed = [name for name in now | self.identity if now.get(name) != self.identity.get(name)]
        if changed:
            values = ", ".join(_change(name, self.identity.get(name), now.get(name)) for name in changed)
            raise CannotResume(
                f"{path} belongs to a run that differs in {values}. Restore what changed, or add "
                "--overwrite to start again"
            )


def _change(name: str, before: Any, now: Any) -> str:
    """The values, or of objects the fields that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        fields = [each for each in now | before if now.get(each) != before.get(each)]
        return ", ".join(_change(f"{name}.{each}", before.get(each), now.get(each)) for each in fields)
    return f"{name} ({_short(before)} then, {_short(now)} now)"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
