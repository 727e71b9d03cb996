"""Read files line by line, as text, columns or JSON. Files that end with .gz are decompressed."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Parsed = TypeVar("Parsed", bound=BaseModel)


class UnusableCollection(ValueError):
    """A file cannot be used. The message is one line that names the file, the line, the field and the problem."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of each line that is not empty. Raises `UnusableCollection`."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UnusableCollection(f"{path}: not valid UTF-8: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableCollection(f"{path}: cannot be read: {error}") from None


def read_columns(path: Path, names: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield (line number, columns) of each line, split at white space."""
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != len(names):
            expected = f"expected {len(names)} columns ({', '.join(names)})"
            raise UnusableCollection(f"{path}: line {number}: {expected}, found {len(columns)}")
        yield number, columns


def read_json_lines(path: Path, kind: type[Parsed]) -> Iterator[tuple[int, Parsed]]:
    """Yield (line number, object) of a JSONL file."""
    for number, line in read_lines(path):
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            raise UnusableCollection(f"{path}: line {number}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first problem, with the path to its field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"]
