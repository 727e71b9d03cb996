"""The files that a run writes. The output gets its name only when it is complete."""

import gzip
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from app.bulk.checkpoint import CannotResume, Checkpoint
from app.bulk.scoring import Outcome
from app.errors import StartupError

COPIED_BYTES = 1 << 20


class UnwritableOutput(StartupError):
    """The output cannot be written, or another run writes it."""


class Output:
    """`OUT.partial` and `OUT.bad.jsonl` while a run goes on, and `OUT.state.json` with the newest checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = path.with_name(path.name + ".bad.jsonl")
        self.state = path.with_name(path.name + ".state.json")
        self._partial = path.with_name(path.name + ".partial")
        self._lock = FileLock(path.with_name(path.name + ".lock"), blocking=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from writing these files until the end of the block. Raises `UnwritableOutput`."""
        try:
            self._lock.acquire()
        except Timeout:
            raise UnwritableOutput(f"Another run is writing {self.path}") from None
        except OSError as error:
            raise UnwritableOutput(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            yield
        finally:
            self._lock.release()

    def earlier(self, overwrite: bool) -> Checkpoint | None:
        """The checkpoint to continue from, if there is one. Raises `CannotResume`."""
        if overwrite:
            for path in (self.state, self._partial, self.bad):
                path.unlink(missing_ok=True)
            return None
        found = Checkpoint.read(self.state)
        if found is None and self.path.exists():
            raise CannotResume(f"{self.path} exists: choose another name, or add --overwrite")
        return found

    def open(self, checkpoint: Checkpoint) -> None:
        """Open the files at the checkpoint. Raises `CannotResume`."""
        if not checkpoint.place.number:
            self.bad.unlink(missing_ok=True)
            self._partial.unlink(missing_ok=True)
            checkpoint.write(self.state)
        for path, size in ((self._partial, checkpoint.output_bytes), (self.bad, checkpoint.bad_bytes)):
            if size and (not path.exists() or path.stat().st_size < size):
                raise CannotResume(
                    f"{path} is shorter than the {size} bytes that {self.state} names: add --overwrite to start again"
                )
        self._files = {}
        for path, size in ((self._partial, checkpoint.output_bytes), (self.bad, checkpoint.bad_bytes)):
            file = self._files[path] = path.open("r+b" if path.exists() else "wb")
            file.truncate(size)
            file.seek(size)

    def write(self, outcome: Outcome) -> None:
        """Append a line to the file that it belongs to."""
        self._files[self.bad if outcome.counts.bad else self._partial].write(outcome.line)

    def save(self, checkpoint: Checkpoint) -> None:
        """Make everything written so far durable, and then the checkpoint that counts it."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        output_bytes, bad_bytes = self._files[self._partial].tell(), self._files[self.bad].tell()
        replace(checkpoint, output_bytes=output_bytes, bad_bytes=bad_bytes).write(self.state)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        """Give the complete output its name, after the checkpoint that says so. A killed run does it again."""
        if self._partial.exists():
            if self.path.suffix == ".gz":
                self._compress()
                self._partial.unlink()
            else:
                self._partial.replace(self.path)
        if self.bad.exists() and not self.bad.stat().st_size:
            self.bad.unlink()
        self.state.unlink()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _compress(self) -> None:
        """The same input gives the same bytes: without a name and a time."""
        new = self.path.with_name(self.path.name + ".new")
        with self._partial.open("rb") as lines, new.open("wb") as raw:
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                shutil.copyfileobj(lines, file, COPIED_BYTES)
            raw.flush()
            os.fsync(raw.fileno())
        new.replace(self.path)
