"""Rows of a large file, one after another: JSONL, also compressed, or Parquet."""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from app.errors import StartupError

# A piece of a line that is too long, which is read and dropped.
PIECE_BYTES = 1 << 20
# Rows of a Parquet file in memory at once.
PARQUET_ROWS = 64
# Bytes at both ends of the input that identify it, with its size and its time.
SAMPLE_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class UnreadableInput(StartupError):
    """The input cannot be read, or not to its end."""


class Place(NamedTuple):
    """A place between two rows."""

    number: int = 0
    """Lines before it (JSONL), or rows (Parquet)."""
    offset: int = 0
    """Bytes before it, decompressed (JSONL); unused with Parquet."""


class Row(NamedTuple):
    """One row as JSON."""

    content: bytes
    end: Place
    """The place after the row. Its number is the number of the line (JSONL) or row (Parquet), from 1."""
    done: int
    """How much of the input is read, see `Source.size`."""
    problem: str | None = None
    """Why the row cannot be used, if that is known before it is parsed."""


class Source(Protocol):
    """A file with rows."""

    size: int
    """Bytes of the file (JSONL), or rows (Parquet)."""

    def rows(self, start: Place) -> Iterator[Row]:
        """The rows after a place. Raises `UnreadableInput`."""
        ...


def open_source(path: Path, max_bytes: int) -> Source:
    """The rows of a file, by its suffix. `max_bytes`: of one line. Raises `UnreadableInput`."""
    return ParquetRows(path) if path.suffix == ".parquet" else JsonLines(path, max_bytes)


def identify(path: Path) -> dict[str, Any]:
    """What changes if the file changes. Raises `UnreadableInput`."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, found.st_size - SAMPLE_BYTES))
            digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise UnreadableInput(f"{path}: cannot be read: {error.strerror}") from None
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "digest": digest.hexdigest()}


class JsonLines:
    """One JSON object per line. Empty lines are skipped. A file that ends with .gz is decompressed."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.size = path.stat().st_size
        self._path = path
        self._max_bytes = max_bytes

    def rows(self, start: Place) -> Iterator[Row]:
        number, offset = start
        try:
            with self._path.open("rb") as raw, self._decompressed(raw) as file:
                file.seek(offset)
                while line := file.readline(self._max_bytes + 1):
                    number, offset, problem = number + 1, offset + len(line), None
                    if len(line) > self._max_bytes:
                        offset += _skip_line(file, line)
                        problem = f"the line has more than {self._max_bytes} bytes (RERANKER_MAX_BODY_BYTES)"
                        line = b""
                    line = line.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
                    if line or problem:
                        yield Row(line, Place(number, offset), raw.tell(), problem)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableInput(f"{self._path}: cannot be read after line {number}: {error}") from None

    def _decompressed(self, raw: BinaryIO) -> Any:
        return gzip.GzipFile(fileobj=raw, mode="rb") if self._path.suffix == ".gz" else nullcontext(raw)


def _skip_line(file: BinaryIO, line: bytes) -> int:
    """Read to the end of a line that has begun. Returns the number of bytes read."""
    skipped = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(PIECE_BYTES)
        skipped += len(line)
    return skipped


class ParquetRows:
    """One row per row, with the fields as columns. Needs the extra `bulk`."""

    def __init__(self, path: Path) -> None:
        """Raises `UnreadableInput`, and `StartupError` without the extra."""
        parquet = load_pyarrow()
        self._path = path
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise UnreadableInput(f"{path}: cannot be read: {error}") from None
        self.size = int(self._file.metadata.num_rows)

    def rows(self, start: Place) -> Iterator[Row]:
        number = start.number
        try:
            for fields in self._fields(number):
                number += 1
                content = json.dumps(fields, default=_as_json).encode("utf-8", "surrogatepass")
                yield Row(content, Place(number), number)
        except (OSError, ValueError) as error:
            raise UnreadableInput(f"{self._path}: cannot be read after row {number}: {error}") from None

    def _fields(self, skipped: int) -> Iterator[dict[str, Any]]:
        """The rows after the first `skipped`. Row groups that are skipped as a whole are not read."""
        metadata, first = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            end = first + metadata.row_group(group).num_rows
            if end > skipped:
                left = max(0, skipped - first)
                for batch in self._file.iter_batches(PARQUET_ROWS, row_groups=[group]):
                    if left < batch.num_rows:
                        yield from batch.slice(left).to_pylist()
                    left = max(0, left - batch.num_rows)
            first = end


def load_pyarrow() -> Any:
    """pyarrow's Parquet. Raises `StartupError` without the extra."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise StartupError(f"Parquet needs the extra: pip install '.[bulk]' ({error})") from None
    return cast(Any, parquet)


def _as_json(value: Any) -> str:
    """A value that JSON does not have, such as a date, as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
